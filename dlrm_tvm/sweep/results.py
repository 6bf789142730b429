"""Runs of a sweep -> one row per combination, the Pareto front, the best within a latency, engines side by side.

    row     = medians over the repeats, beside lowest and highest throughput and the worst p99
    Pareto  = no other row has at least this throughput and at most this p99, and one of them better
    best    = highest throughput of the rows whose p99 is at most the bound; without a bound: of all
    ratio   = items/s of ours / items/s of the fastest other engine in the same round

Pure. It does not know whether two rows differ by more than the noise; the spread is shown for that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from ..bench.baseline import is_positive
from ..engines.interface import OURS
from ..errors import printable
from ..model.precision import PRECISIONS
from ..runtime.typed_json import read_as
from .plan import Combination, Planned

P99_BATCHES = 100  # of fewer, p99 is the largest or close to it


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run: figures by the keys of multi_instance.py's JSON, or the error that it failed with."""

    planned: Planned
    figures: dict[str, object] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Latencies:
    """Of a batch, in ms."""

    p50: float
    p99: float
    min: float | None = None
    p90: float | None = None
    p999: float | None = None
    max: float | None = None
    mean: float | None = None


@dataclass(frozen=True)
class RunFigures:
    """What is kept of one run's JSON, by its keys; the combination and the sweep say the rest. None: not measured."""

    cores: tuple[int, ...] | None
    duration_s: float | None
    batches: int
    batches_per_s: float | None
    items_per_s: float
    mlperf_qps_equivalent: float | None
    latency_ms: Latencies
    gflops: float | None
    peak_gflops: float | None
    peak_before_gflops: float | None
    peak_after_gflops: float | None
    peak_fraction: float
    streamed_fraction: float | None
    pss_mb: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class RunEntry:
    """One run as a state or a result has it: figures, or the error that it failed with."""

    round: int
    instances: int
    threads: int
    batch_size: int
    engine: str | None = None
    precision: str | None = None
    rate: float | None = None
    figures: RunFigures | None = None
    error: str | None = None


def read_outcome(fields: Mapping[str, Any], source: str | None = None, arrivals: str | None = None) -> Outcome:
    """fields: of a RunEntry, as JSON has them; source, arrivals: as a Combination's. Raises ValueError for what is no
    run: values of other types, and those that no run has."""
    entry = read_as(RunEntry, fields, "run")
    figures = entry.figures
    numbers = [entry.round + 1, entry.instances, entry.threads, entry.batch_size, entry.rate or 1]
    if figures is not None:
        numbers += [figures.items_per_s, figures.peak_fraction, figures.batches]
        numbers += [figures.latency_ms.p50, figures.latency_ms.p99]
    if not all(map(is_positive, numbers)) or entry.precision not in (None, *PRECISIONS):
        raise ValueError("a number or a precision that no run has")
    if (figures is None) == (entry.error is None):
        raise ValueError("a run has either figures or an error")
    named = {"engine": entry.engine and printable(entry.engine), "precision": entry.precision, "rate": entry.rate}
    combination = Combination(entry.instances, entry.threads, entry.batch_size, **named, source=source)
    combination = replace(combination, arrivals=arrivals and printable(arrivals))
    return Outcome(Planned(entry.round, combination), fields.get("figures"), entry.error)


@dataclass(frozen=True)
class Row:
    """One combination's medians over its repeats. items_per_s_by_round: (round, items/s) of each.

    fewest_batches: whole batches in the timed window of the repeat that had fewest.
    """

    combination: Combination
    items_per_s: float
    items_per_s_by_round: tuple[tuple[int, float], ...]
    peak_fraction: float
    p50_ms: float
    p99_ms: float
    p99s_ms: tuple[float, ...]
    fewest_batches: int

    @property
    def repeats(self) -> int:
        return len(self.p99s_ms)

    @property
    def items_per_s_min(self) -> float:
        return min(rate for _, rate in self.items_per_s_by_round)

    @property
    def items_per_s_max(self) -> float:
        return max(rate for _, rate in self.items_per_s_by_round)

    @property
    def p99_worst_ms(self) -> float:
        return max(self.p99s_ms)

    def rounds_within(self, bound_ms: float) -> int:
        return sum(p99_ms <= bound_ms for p99_ms in self.p99s_ms)


@dataclass(frozen=True)
class Comparison:
    """Engines at one setting, by name. best_other: the fastest but ours.

    ratio: median, lowest and highest of ours / best_other over the rounds that measured both; None where none did.
    """

    setting: Combination
    rows: dict[str, Row]
    best_other: str | None
    ratio: tuple[float, float, float] | None


@dataclass(frozen=True)
class Summary:
    """rows: by throughput, highest first. best: None where no row keeps the bound. failed: combination -> its errors.

    warnings: of all repeats, as (the first one's text, how many); those that differ only in numbers count together.
    comparisons: empty unless several engines were measured.
    """

    rows: tuple[Row, ...]
    pareto: frozenset[Combination]
    best: Row | None
    max_latency_ms: float | None
    failed: dict[Combination, tuple[str, ...]]
    warnings: tuple[tuple[str, int], ...]
    comparisons: tuple[Comparison, ...]


def summarise(outcomes: Sequence[Outcome], max_latency_ms: float | None) -> Summary:
    measured: dict[Combination, list[Outcome]] = {}
    failed: dict[Combination, tuple[str, ...]] = {}
    for outcome in outcomes:
        combination = outcome.planned.combination
        if outcome.figures is not None:
            measured.setdefault(combination, []).append(outcome)
        else:
            failed[combination] = (*failed.get(combination, ()), outcome.error)
    rows = sorted((_row(*item) for item in measured.items()), key=lambda row: (-row.items_per_s, row.combination.place))
    bound = float("inf") if max_latency_ms is None else max_latency_ms
    return Summary(
        rows=tuple(rows),
        pareto=frozenset(row.combination for row in pareto_front(rows)),
        best=next((row for row in rows if row.p99_ms <= bound), None),
        max_latency_ms=max_latency_ms,
        failed=failed,
        warnings=count_warnings(text for runs in measured.values() for run in runs for text in run.figures["warnings"]),
        comparisons=compare_engines(rows),
    )


def _row(combination: Combination, outcomes: Sequence[Outcome]) -> Row:
    runs = [outcome.figures for outcome in outcomes]
    p99s_ms = [run["latency_ms"]["p99"] for run in runs]
    return Row(
        combination=combination,
        items_per_s=median(run["items_per_s"] for run in runs),
        items_per_s_by_round=tuple((outcome.planned.round, outcome.figures["items_per_s"]) for outcome in outcomes),
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


def compare_engines(rows: Sequence[Row]) -> tuple[Comparison, ...]:
    """One comparison per setting, by precision first; none where fewer than two engines have rows."""
    settings: dict[Combination, dict[str, Row]] = {}
    for row in rows:
        settings.setdefault(replace(row.combination, engine=None), {})[row.combination.engine] = row
    if len({row.combination.engine for row in rows}) < 2:
        return ()
    order = sorted(settings, key=lambda setting: (PRECISIONS.index(setting.precision or PRECISIONS[0]), setting.place))
    return tuple(_comparison(setting, settings[setting]) for setting in order)


def _comparison(setting: Combination, rows: dict[str, Row]) -> Comparison:
    others = [engine for engine in rows if engine != OURS]
    best = max(others, key=lambda engine: rows[engine].items_per_s, default=None)
    ours, other = (dict(rows[engine].items_per_s_by_round) if engine in rows else {} for engine in (OURS, best))
    ratios = [ours[number] / other[number] for number in ours if other.get(number)]
    ratio = (median(ratios), min(ratios), max(ratios)) if ratios else None
    return Comparison(setting, rows, best, ratio)


def count_warnings(warnings: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """(the first one's text, how many), most frequent first; texts that differ only in numbers count as one."""
    kinds: Counter[str] = Counter()
    first: dict[str, str] = {}
    for warning in warnings:
        kind = re.sub(r"[+-]?\d[\d,.]*", "#", warning)
        first.setdefault(kind, warning)
        kinds[kind] += 1
    return tuple((first[kind], number) for kind, number in kinds.most_common())
