"""A sweep's summary -> tables and sentences for people, CSV, JSON. One list of columns gives all three."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..console import WIDTH, ms_text
from ..engines.interface import OURS, TITLES
from .plan import Combination
from .results import P99_BATCHES, Comparison, Outcome, Row, RunFigures, Summary


@dataclass(frozen=True)
class _Column:
    """heading and form: of the table; value: of CSV and JSON under `key`. A column of None alone is left out."""

    key: str
    heading: str
    form: Callable[[Any], str]
    value: Callable[[Row], object]


_COLUMNS = (
    _Column("source", "result", str, lambda row: row.combination.source),
    _Column("engine", "engine", str, lambda row: row.combination.engine),
    _Column("precision", "prec.", str, lambda row: row.combination.precision),
    _Column("instances", "inst.", str, lambda row: row.combination.instances),
    _Column("threads", "thr.", str, lambda row: row.combination.threads),
    _Column("batch_size", "batch", str, lambda row: row.combination.batch),
    _Column("arrivals", "arrivals", str, lambda row: row.combination.arriving),
    _Column("rate", "rate", "{:,.7g}".format, lambda row: row.combination.rate),
    _Column("items_per_s", "items/s", "{:,.0f}".format, lambda row: row.items_per_s),
    _Column("items_per_s_min", "lowest", "{:,.0f}".format, lambda row: row.items_per_s_min),
    _Column("items_per_s_max", "highest", "{:,.0f}".format, lambda row: row.items_per_s_max),
    _Column("peak_fraction", "of peak", "{:.3f}".format, lambda row: row.peak_fraction),
    _Column("p50_ms", "p50 ms", ms_text, lambda row: row.p50_ms),
    _Column("p99_ms", "p99 ms", ms_text, lambda row: row.p99_ms),
    _Column("p99_worst_ms", "worst", ms_text, lambda row: row.p99_worst_ms),
)


# The columns that engines side by side share.
_SETTING = ("precision", "instances", "threads", "batch_size", "arrivals", "rate")


_LEAST_WANTED = (("items_per_s_min", "items_per_s_max"), ("p99_worst_ms",), ("p50_ms",))  # in a table that is too wide


def _columns(rows: Sequence[Row]) -> list[_Column]:
    return [column for column in _COLUMNS if any(column.value(row) is not None for row in rows)]


def run_figures(result: Mapping[str, object]) -> dict[str, object]:
    """What is kept of one run's JSON."""
    return {field.name: result[field.name] for field in fields(RunFigures)}


def sweep_text(summary: Summary, rounds: int) -> str:
    """Table, engines side by side, the best in a sentence, failures, warnings. rounds: planned for each combination."""
    failed = [
        f"Failed {len(errors)} time{'s' * (len(errors) > 1)}: {combination}: {errors[0]}"
        for combination, errors in summary.failed.items()
    ]
    sentence = best_sentence(summary)
    table = table_lines(summary, rounds)
    return "\n".join([*table, *comparison_lines(summary), sentence, *failed, *_warning_lines(summary)])


def table_lines(summary: Summary, rounds: int = 1) -> list[str]:
    """Without the columns that are wanted least where it would be wider than a line."""
    columns = _columns(summary.rows)
    for unwanted in (*_LEAST_WANTED, ()):
        lines = _table(_cells(summary, columns, rounds))
        if max(map(len, lines)) <= WIDTH:
            break
        columns = [column for column in columns if column.key not in unwanted]
    return lines


def _cells(summary: Summary, columns: Sequence[_Column], rounds: int) -> list[list[str]]:
    cells = [[*(column.heading for column in columns), "runs", ""]]
    for row in summary.rows:
        runs = f"{row.repeats} of {max(rounds, row.repeats)}"  # an earlier part of the sweep may have had more rounds
        figures = (_figure(column, row) for column in columns)
        marks = ["Pareto"] * (row.combination in summary.pareto) + ["best"] * (row is summary.best)
        cells.append([*figures, runs, ", ".join(marks)])
    return cells


def _figure(column: _Column, row: Row) -> str:
    value = column.value(row)
    return "-" if value is None else column.form(value)


def sweep_markdown(summary: Summary) -> str:
    """One row per combination, all columns."""
    heading, *rows = _cells(summary, _columns(summary.rows), 1)
    lines = [heading, ["---:"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Every column to the right but the last one."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        "  " + "  ".join([*(cell.rjust(width) for cell, width in zip(line[:-1], widths)), line[-1]]).rstrip()
        for line in cells
    ]


def comparison_lines(summary: Summary) -> list[str]:
    """Engines side by side, one line per setting; nothing where one engine was measured."""
    if not summary.comparisons:
        return []
    others = [engine for engine in TITLES if any(engine in each.rows for each in summary.comparisons)]
    columns = [column for column in _columns(summary.rows) if column.key in _SETTING]
    titles = (TITLES[engine] for engine in others)
    cells = [[*(column.heading for column in columns), "ours", "of peak", *titles, "ratio", "spread", ""]]
    for each in summary.comparisons:
        row = next(iter(each.rows.values()))
        setting = (_figure(column, row) for column in columns)
        cells.append([*setting, *_engine_cells(each, others), ""])
    return ["Engines side by side, items/s. ratio: ours / the fastest other one, round by round", *_table(cells)]


def _engine_cells(comparison: Comparison, others: Sequence[str]) -> list[str]:
    """ours, its share of peak, each other engine, the ratio and its spread; "-" where nothing was measured."""
    rows = comparison.rows
    ours, *rates = (f"{rows[engine].items_per_s:,.0f}" if engine in rows else "-" for engine in (OURS, *others))
    share = f"{rows[OURS].peak_fraction:.3f}" if OURS in rows else "-"
    if comparison.ratio is None:
        return [ours, share, *rates, "-", "-"]
    middle, lowest, highest = comparison.ratio
    return [ours, share, *rates, f"{middle:.2f}", f"{lowest:.2f} to {highest:.2f}"]


def best_sentence(summary: Summary) -> str:
    bound, best = summary.max_latency_ms, summary.best
    if best is None:
        lowest = min(summary.rows, key=lambda row: row.p99_ms)
        return (
            f"Best: none of the {len(summary.rows)} combinations kept p99 within {bound:g} ms; the lowest was "
            f"{ms_text(lowest.p99_ms)} ms ({lowest.combination})."
        )
    spread = [f"worst of {best.repeats}: {ms_text(best.p99_worst_ms)}"] if best.repeats > 1 else []
    if spread and bound is not None:
        spread.append(f"at most {bound:g} in {best.rounds_within(bound)} of {best.repeats} rounds")
    worst = f" ({'; '.join(spread)})" if spread else ""
    within = "Fastest" if bound is None else f"Best with p99 of at most {bound:g} ms"
    return f"{within}: {best.combination}: {best.items_per_s:,.0f} items/s, p99 {ms_text(best.p99_ms)} ms{worst}."


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
    columns = _columns(summary.rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(column.key for column in columns), "repeats", "fewest_batches", "pareto", "best"])
    for row in summary.rows:
        marks = (int(row.combination in summary.pareto), int(row is summary.best))
        writer.writerow([*(column.value(row) for column in columns), row.repeats, row.fewest_batches, *marks])
    return text.getvalue().encode()


def sweep_json(summary: Summary, outcomes: Sequence[Outcome], facts: Mapping[str, object]) -> dict[str, object]:
    """The object of the last stdout line and of the result file. facts: what was swept, and how it ended."""
    rows = {row.combination: row for row in summary.rows}
    ranked = [*rows, *sorted(summary.failed.keys() - rows.keys())]
    return {
        **facts,
        "max_latency_ms": summary.max_latency_ms,
        "combinations": [_row_json(one, rows.get(one), summary, outcomes) for one in ranked],
        "pareto": [combination_json(row.combination) for row in summary.rows if row.combination in summary.pareto],
        "best": combination_json(summary.best.combination) if summary.best else None,
        "engine_comparison": [_comparison_json(each) for each in summary.comparisons],
        "warnings": [{"text": text, "runs": number} for text, number in summary.warnings],
    }


def combination_json(combination: Combination) -> dict[str, object]:
    named = {"engine": combination.engine, "precision": combination.precision, "rate": combination.rate}
    return {
        **{key: value for key, value in named.items() if value is not None},
        "instances": combination.instances,
        "threads": combination.threads,
        "batch_size": combination.batch,
    }


def _row_json(
    combination: Combination, row: Row | None, summary: Summary, outcomes: Sequence[Outcome]
) -> dict[str, object]:
    """The row's figures are None where every run failed."""
    mine = [outcome for outcome in outcomes if outcome.planned.combination == combination]
    return {
        **{column.key: column.value(row) if row else None for column in _columns(summary.rows)},
        **combination_json(combination),
        "pareto": combination in summary.pareto,
        "best": row is not None and row is summary.best,
        "repeats": [{"round": run.planned.round, **run.figures} for run in mine if run.figures is not None],
        "failures": [{"round": run.planned.round, "error": run.error} for run in mine if run.error is not None],
    }


def _comparison_json(comparison: Comparison) -> dict[str, object]:
    middle, lowest, highest = comparison.ratio or (None, None, None)
    return {
        **combination_json(comparison.setting),
        "items_per_s": {engine: row.items_per_s for engine, row in comparison.rows.items()},
        "best_other": comparison.best_other,
        "ratio": middle,
        "ratio_min": lowest,
        "ratio_max": highest,
    }
