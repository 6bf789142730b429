"""The highest rate of Poisson arrivals at which a percentile of the latency stays within a bound.

    0 < low (holds) .. high (does not) <= the closed loop's rate     halved until within 2 % of the closed loop's rate

A rate is judged by the share of batches that are late, those given up included, over windows of different arrivals. Its
95 % interval is the wider one of two: Wilson's of all batches together (Journal of the American Statistical Association
22, 1927), which few batches widen, and Student's of the windows' shares, which stalls and queues widen. While the
interval holds both answers, another window is run; what stays open counts as not held. At low rates windows are longer:
so few batches that none late of them proved nothing would make every low rate seem too high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..console import line, ms_text
from ..errors import FoundWantingError
from ..instances.arrivals import Arrivals
from ..instances.group import Instances, MeasuredRun, NoBatchError
from .statistics import percentiles_ms, t_975

_FEWEST, _MOST_WINDOWS = 3, 8
_HOPELESS = 0.5  # share of late batches in one window: the queue grows
_LONGEST = 4  # windows at low rates, times the duration
_ENOUGH = 3  # times the batches that would do if none were late: some are
_PRECISION = 0.02
_Z_975 = 1.96


@dataclass(frozen=True)
class Target:
    """A share of `percentile` % of all batches within max_latency_ms."""

    max_latency_ms: float
    percentile: float = 99.0

    @property
    def late_allowed(self) -> float:
        return 1 - self.percentile / 100

    @property
    def fewest(self) -> int:
        """Batches of a window, on average: of most windows' together none late is enough (Wilson's upper end)."""
        return math.ceil(_ENOUGH * _Z_975**2 * (1 / self.late_allowed - 1) / _MOST_WINDOWS)

    @property
    def text(self) -> str:
        return f"p{self.percentile:g} within {self.max_latency_ms:g} ms"


@dataclass(frozen=True)
class Probe:
    """One rate, in batches per second. latency_ms: the percentile that the target bounds, None where a window had no
    batch. late: share of its batches; interval: that share's, 95 %; None of one window that was hopeless. holds: None
    where the interval holds both answers."""

    rate: float
    windows: int
    batches: int
    latency_ms: float | None
    late: float
    interval: tuple[float, float] | None
    holds: bool | None


@dataclass(frozen=True)
class RateSearch:
    """rate: the highest that held; not_held: the lowest above it that did not, or the closed loop's. interrupted:
    whether Ctrl-C ended it; then rate is None where none had held yet."""

    target: Target
    rate: float | None
    not_held: float
    closed_loop_rate: float
    probes: tuple[Probe, ...]
    interrupted: bool = False

    @property
    def arrivals(self) -> Arrivals:
        return Arrivals("poisson", self.rate)

    def text(self) -> str:
        below = f"; {self.not_held:,.1f} does not" if self.not_held < self.closed_loop_rate else ""
        if self.rate is None:
            return line("highest rate", f"unknown: interrupted before one held{below}")
        found = f"{self.rate:,.1f} batches/s, {self.rate / self.closed_loop_rate:.2f} of the closed loop's"
        return line("highest rate", f"{found}, keeps {self.target.text}{below}")


def find_rate(
    instances: Instances, target: Target, *, duration_s: float, warmup_s: float, show: Callable[[str], None]
) -> RateSearch:
    """duration_s: of a window at least. Raises FoundWantingError where no rate holds, KeyboardInterrupt where Ctrl-C
    comes before a rate was judged."""
    timing = {"duration_s": duration_s, "warmup_s": warmup_s}
    closed = _completed(instances.measure(**timing)).measurement
    fastest, quickest_ms = closed.total_batches_per_s, percentiles_ms(np.concatenate(closed.latencies_ns))["p50"]
    wanted = f"{target.text}: {target.late_allowed:.3g} of all batches may be late"
    if target.fewest > fastest * _PRECISION * duration_s:
        longest_s = min(target.fewest / _PRECISION / fastest, _LONGEST * duration_s)
        wanted += f"; windows of {duration_s:g} s, at low rates up to {longest_s:.3g} s"
    show(line("closed loop", f"{fastest:,.1f} batches/s, p50 {ms_text(quickest_ms)} ms"))
    show(line("wanted", wanted))
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        probes.append(_probe(instances, target, rate, timing))
        show(line("rate", _said(probes[-1])))
        return bool(probes[-1].holds)

    try:
        low, high = bisected(holds, fastest) if quickest_ms <= target.max_latency_ms else (0.0, fastest)
    except KeyboardInterrupt:
        if not probes:
            raise
        low = max((probe.rate for probe in probes if probe.holds), default=None)
        high = min((probe.rate for probe in probes if not probe.holds), default=fastest)
        return RateSearch(target, low, high, fastest, tuple(probes), interrupted=True)
    if not low:
        quickest = f"back to back, {fastest:,.1f} batches/s, p50 is {ms_text(quickest_ms)}. Try smaller batches."
        why = _why_not(probes[-1]) if probes else quickest
        raise FoundWantingError(f"No rate keeps {target.text}: {why}")
    return RateSearch(target, low, high, fastest, tuple(probes))


def bisected(holds: Callable[[float], bool], most: float) -> tuple[float, float]:
    """(the highest rate that held, 0 where none did; the lowest above it that did not), at most 2 % of `most` apart."""
    low, high = 0.0, most
    while high - low > _PRECISION * most:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high


def _completed(run: MeasuredRun) -> MeasuredRun:
    if run.interrupted:
        raise KeyboardInterrupt
    return run


def _probe(instances: Instances, target: Target, rate: float, timing: dict[str, float]) -> Probe:
    shortest_s, allowed = timing["duration_s"], target.late_allowed
    timing = timing | {"duration_s": min(max(shortest_s, target.fewest / rate), _LONGEST * shortest_s)}
    windows_ns: list[np.ndarray] = []
    interval = holds = None
    while holds is None and len(windows_ns) < _MOST_WINDOWS:
        arrivals = Arrivals("poisson", rate, seed=len(windows_ns))
        try:
            measurement = _completed(instances.measure(**timing, arrivals=arrivals)).measurement
        except NoBatchError:  # the instances stood still
            return Probe(rate, len(windows_ns) + 1, sum(map(len, windows_ns)), None, 1.0, None, False)
        windows_ns.append(np.concatenate(measurement.latencies_ns))
        late = [int((each > target.max_latency_ms * 1e6).sum()) for each in windows_ns]
        asked = list(map(len, windows_ns))
        share = sum(late) / sum(asked)
        if len(windows_ns) == 1 and share > max(_HOPELESS, allowed):
            holds = False
        elif len(windows_ns) >= _FEWEST:
            low, high = interval = late_interval(late, asked)
            holds = True if high <= allowed else False if low > allowed else None
    latency_ns = np.percentile(np.concatenate(windows_ns), target.percentile, method="inverted_cdf")
    return Probe(rate, len(windows_ns), sum(asked), float(latency_ns) / 1e6, share, interval, holds)


def late_interval(late: Sequence[int], asked: Sequence[int]) -> tuple[float, float]:
    """The 95 % interval of the share of late batches; late, asked: numbers of each of two or more windows."""
    total, share = sum(asked), sum(late) / sum(asked)
    z2 = _Z_975**2 / total
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z_975 * math.sqrt(share * (1 - share) / total + z2 / total / 4) / (1 + z2)
    spread = float(np.std(np.array(late) / np.array(asked), ddof=1))
    student = t_975(len(late) - 1) * spread / math.sqrt(len(late))
    return max(min(middle - half, share - student), 0.0), min(max(middle + half, share + student), 1.0)


def _said(probe: Probe) -> str:
    verdict = {True: "holds", False: "does not hold", None: "stays open"}[probe.holds]
    interval = f" ({probe.interval[0]:.2%} to {probe.interval[1]:.2%})" if probe.interval else ""
    windows = f"{probe.windows} window{'s' * (probe.windows > 1)}"
    late = f"{probe.late:.2%}{interval} of {probe.batches:,} late"
    if not probe.batches:
        late = "no batch was done"
    return f"{probe.rate:,.1f} batches/s {verdict}: {late}, {windows}"


def _why_not(probe: Probe) -> str:
    """The rate is the lowest that was tried."""
    at = f"at {probe.rate:,.1f} batches/s"
    if probe.latency_ms is None:
        return f"{at} a window had no batch. Try an idle machine."
    if probe.holds is None:
        low, high = (100 * share for share in probe.interval)
        return f"{at} {low:.2g} to {high:.2g}% are late. Try a longer --duration."
    return f"{at} it is {ms_text(probe.latency_ms)}. Try a larger --max-latency-ms."
