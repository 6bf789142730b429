"""A sweep's summary -> table and sentences for people, CSV, JSON. One list of columns gives all three.

The JSON is the last line on stdout and the state file too: `outcomes_of` reads back what `sweep_json` wrote.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .sweep_plan import Combination, Planned
from .sweep_results import P99_BATCHES, Outcome, Row, Summary

# Of a run's JSON, what its combination does not say already.
_KEPT = (
    *(
        "cores",
        "duration_s",
        "batches",
        "batches_per_s",
        "items_per_s",
        "mlperf_qps_equivalent",
        "latency_ms",
        "gflops",
    ),
    *("peak_gflops", "peak_before_gflops", "peak_after_gflops", "peak_fraction", "streamed_fraction", "pss_mb"),
    "warnings",
)


@dataclass(frozen=True)
class _Column:
    """heading and form: of the table; value: of CSV and JSON under `key`."""

    key: str
    heading: str
    form: str
    value: Callable[[Row], float]


_COLUMNS = (
    _Column("instances", "instances", "d", lambda row: row.combination.instances),
    _Column("threads", "threads", "d", lambda row: row.combination.threads),
    _Column("batch_size", "batch", "d", lambda row: row.combination.batch),
    _Column("items_per_s", "items/s", ",.0f", lambda row: row.items_per_s),
    _Column("items_per_s_min", "lowest", ",.0f", lambda row: row.items_per_s_min),
    _Column("items_per_s_max", "highest", ",.0f", lambda row: row.items_per_s_max),
    _Column("peak_fraction", "of peak", ".3f", lambda row: row.peak_fraction),
    _Column("p50_ms", "p50 ms", ".3f", lambda row: row.p50_ms),
    _Column("p99_ms", "p99 ms", ".3f", lambda row: row.p99_ms),
    _Column("p99_worst_ms", "worst p99", ".3f", lambda row: row.p99_worst_ms),
)


def run_figures(result: Mapping[str, object]) -> dict[str, object]:
    """What is kept of one run's JSON."""
    return {key: result[key] for key in _KEPT}


def sweep_text(summary: Summary, rounds: int) -> str:
    """Table, what it says in a sentence, what failed, warnings. rounds: in how many each was to be measured."""
    cells = [[*(column.heading for column in _COLUMNS), "runs"]]
    cells += [
        [*(format(column.value(row), column.form) for column in _COLUMNS), _runs(row, rounds)] for row in summary.rows
    ]
    widths = [max(len(line[at]) for line in cells) for at in range(len(cells[0]))]
    marks = ["", *(", ".join(_marks(summary, row)) for row in summary.rows)]
    table = [
        ("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths)) + "  " + mark).rstrip()
        for line, mark in zip(cells, marks)
    ]
    failed = [_failed_line(one, errors) for one, errors in summary.failed.items()]
    return "\n".join([*table, best_sentence(summary), *failed, *_warning_lines(summary)])


def _runs(row: Row, rounds: int) -> str:
    """An earlier part of the sweep may have had more rounds."""
    return f"{row.repeats} of {max(rounds, row.repeats)}"


def _failed_line(combination: Combination, errors: Sequence[str]) -> str:
    return f"Failed {len(errors)} time{'s' * (len(errors) > 1)}: {combination}: {errors[0]}"


def _marks(summary: Summary, row: Row) -> list[str]:
    return ["Pareto"] * (row.combination in summary.pareto) + ["best"] * (row is summary.best)


def best_sentence(summary: Summary) -> str:
    bound, best = summary.max_latency_ms, summary.best
    if best is None:
        lowest = min(summary.rows, key=lambda row: row.p99_ms)
        return (
            f"Best: none of the {len(summary.rows)} combinations kept p99 within {bound:g} ms; the lowest was "
            f"{lowest.p99_ms:.3f} ms ({lowest.combination})."
        )
    spread = [f"worst of {best.repeats}: {best.p99_worst_ms:.3f}"] if best.repeats > 1 else []
    if spread and bound is not None:
        spread.append(f"at most {bound:g} in {best.rounds_within(bound)} of {best.repeats} rounds")
    worst = f" ({'; '.join(spread)})" if spread else ""
    within = "Fastest" if bound is None else f"Best with p99 of at most {bound:g} ms"
    return f"{within}: {best.combination}: {best.items_per_s:,.0f} items/s, p99 {best.p99_ms:.3f} ms{worst}."


def _warning_lines(summary: Summary) -> list[str]:
    few = [row for row in summary.rows if row.fewest_batches < P99_BATCHES]
    runs = sum(row.repeats for row in summary.rows)
    lines = [f"Warning ({number} of {runs} runs): {text}" for text, number in summary.warnings]
    if few:
        lines.append(
            f"Warning: {len(few)} of {len(summary.rows)} combinations did fewer than {P99_BATCHES} batches in a window."
            " Their p99 is the slowest batch or close to it: give a longer --duration."
        )
    return lines


def sweep_csv(summary: Summary) -> bytes:
    """One row per combination, in the table's order."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(column.key for column in _COLUMNS), "repeats", "fewest_batches", "pareto", "best"])
    for row in summary.rows:
        marks = (int(row.combination in summary.pareto), int(row is summary.best))
        writer.writerow([*(column.value(row) for column in _COLUMNS), row.repeats, row.fewest_batches, *marks])
    return text.getvalue().encode()


def sweep_json(summary: Summary, outcomes: Sequence[Outcome], facts: Mapping[str, object]) -> dict[str, object]:
    """The object of the last stdout line and of the state file. facts: what the sweep is, and how it ended."""
    rows = {row.combination: row for row in summary.rows}
    ranked = [*rows, *sorted(summary.failed.keys() - rows.keys())]
    return {
        **facts,
        "max_latency_ms": summary.max_latency_ms,
        "combinations": [_row_json(one, rows.get(one), summary, outcomes) for one in ranked],
        "pareto": [combination_json(row.combination) for row in summary.rows if row.combination in summary.pareto],
        "best": combination_json(summary.best.combination) if summary.best else None,
        "warnings": [{"text": text, "runs": number} for text, number in summary.warnings],
    }


def combination_json(combination: Combination) -> dict[str, int]:
    return {"instances": combination.instances, "threads": combination.threads, "batch_size": combination.batch}


def _row_json(
    combination: Combination, row: Row | None, summary: Summary, outcomes: Sequence[Outcome]
) -> dict[str, object]:
    """The row's figures are None where every run failed."""
    mine = [outcome for outcome in outcomes if outcome.planned.combination == combination]
    return {
        **{column.key: column.value(row) if row else None for column in _COLUMNS},
        **combination_json(combination),
        "pareto": combination in summary.pareto,
        "best": row is not None and row is summary.best,
        "repeats": [{"round": run.planned.round, **run.figures} for run in mine if run.figures is not None],
        "failures": [{"round": run.planned.round, "error": run.error} for run in mine if run.error is not None],
    }


def outcomes_of(fields: Mapping[str, object]) -> list[Outcome]:
    """The runs in an object of `sweep_json`. Raises KeyError, TypeError or ValueError for anything else."""
    outcomes = []
    for entry in fields["combinations"]:
        numbers = [typed(entry[key], int) for key in ("instances", "threads", "batch_size")]
        if min(numbers) < 1:
            raise ValueError(f"combination {numbers}")
        combination = Combination(*numbers)
        for run in entry["repeats"]:
            figures = _checked({key: run[key] for key in _KEPT})
            outcomes.append(Outcome(Planned(typed(run["round"], int), combination), figures=figures))
        for run in entry["failures"]:
            planned = Planned(typed(run["round"], int), combination)
            outcomes.append(Outcome(planned, error=typed(run["error"], str)))
    if len({outcome.planned for outcome in outcomes}) < len(outcomes):
        raise ValueError("a run that is there twice")
    return outcomes


def _checked(figures: dict[str, object]) -> dict[str, object]:
    """Those that a summary is made of, as it takes them."""
    for key in ("items_per_s", "peak_fraction", "batches"):
        typed(figures[key], int, float)
    for key in ("p50", "p99"):
        typed(typed(figures["latency_ms"], dict)[key], int, float)
    for text in typed(figures["warnings"], list):
        typed(text, str)
    return figures


def typed(value: object, *kinds: type) -> object:
    """The value, of one of these types exactly: True is no int. Raises TypeError."""
    if type(value) not in kinds:
        raise TypeError(f"{value!r} is no {' or '.join(kind.__name__ for kind in kinds)}")
    return value
