"""Runs of a sweep -> one row per combination, the Pareto front among them, the best within a latency.

    row     = medians over the repeats, beside lowest and highest throughput and the worst p99
    Pareto  = no other row has at least this throughput and at most this p99, and one of them better
    best    = highest throughput of the rows whose p99 is at most the bound; without a bound: of all

Pure. What it does not know: whether two rows differ by more than the noise; the spread is shown for that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from .sweep_plan import Combination, Planned

P99_BATCHES = 100  # of fewer, p99 is the largest or close to it


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run's figures, of multi_instance.py's JSON by their keys; or the error that it failed with."""

    planned: Planned
    figures: dict[str, object] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """One combination's medians over its repeats. items_per_s_min, _max and p99s_ms: over them too.

    fewest_batches: whole batches in the timed window of the repeat that had fewest.
    """

    combination: Combination
    repeats: int
    items_per_s: float
    items_per_s_min: float
    items_per_s_max: float
    peak_fraction: float
    p50_ms: float
    p99_ms: float
    p99s_ms: tuple[float, ...]
    fewest_batches: int

    @property
    def p99_worst_ms(self) -> float:
        return max(self.p99s_ms)

    def rounds_within(self, bound_ms: float) -> int:
        return sum(p99_ms <= bound_ms for p99_ms in self.p99s_ms)


@dataclass(frozen=True)
class Summary:
    """rows: by throughput, highest first. best: None where no row keeps the bound. failed: combination -> its errors.

    warnings: of all repeats, those that differ only in numbers counted together: (the first one's text, how many).
    """

    rows: tuple[Row, ...]
    pareto: frozenset[Combination]
    best: Row | None
    max_latency_ms: float | None
    failed: dict[Combination, tuple[str, ...]]
    warnings: tuple[tuple[str, int], ...]


def summarise(outcomes: Sequence[Outcome], max_latency_ms: float | None) -> Summary:
    figures: dict[Combination, list[dict]] = {}
    failed: dict[Combination, tuple[str, ...]] = {}
    for outcome in outcomes:
        combination = outcome.planned.combination
        if outcome.figures is not None:
            figures.setdefault(combination, []).append(outcome.figures)
        else:
            failed[combination] = (*failed.get(combination, ()), outcome.error)
    rows = sorted((_row(*item) for item in figures.items()), key=lambda row: (-row.items_per_s, row.combination))
    bound = float("inf") if max_latency_ms is None else max_latency_ms
    return Summary(
        rows=tuple(rows),
        pareto=frozenset(row.combination for row in pareto_front(rows)),
        best=next((row for row in rows if row.p99_ms <= bound), None),
        max_latency_ms=max_latency_ms,
        failed=failed,
        warnings=count_warnings(warning for runs in figures.values() for run in runs for warning in run["warnings"]),
    )


def _row(combination: Combination, runs: Sequence[dict]) -> Row:
    throughputs = [run["items_per_s"] for run in runs]
    p99s_ms = [run["latency_ms"]["p99"] for run in runs]
    return Row(
        combination=combination,
        repeats=len(runs),
        items_per_s=median(throughputs),
        items_per_s_min=min(throughputs),
        items_per_s_max=max(throughputs),
        peak_fraction=median(run["peak_fraction"] for run in runs),
        p50_ms=median(run["latency_ms"]["p50"] for run in runs),
        p99_ms=median(p99s_ms),
        p99s_ms=tuple(p99s_ms),
        fewest_batches=min(run["batches"] for run in runs),
    )


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other one beats in both, in their order; of equal ones all."""
    return [row for row in rows if not any(_beats(other, row) for other in rows)]


def _beats(one: Row, other: Row) -> bool:
    as_good = one.items_per_s >= other.items_per_s and one.p99_ms <= other.p99_ms
    return as_good and (one.items_per_s > other.items_per_s or one.p99_ms < other.p99_ms)


def count_warnings(warnings: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """(the first one's text, how many), most frequent first; what differs only in its numbers is the same."""
    kinds: Counter[str] = Counter()
    first: dict[str, str] = {}
    for warning in warnings:
        kind = re.sub(r"[+-]?\d[\d,.]*", "#", warning)
        first.setdefault(kind, warning)
        kinds[kind] += 1
    return tuple((first[kind], number) for kind, number in kinds.most_common())
