"""When batches are asked for: back to back, at a fixed rate, at random, or as recorded.

    closed    the next batch begins when the one before has ended: throughput, and latency without any queue
    fixed     one every 1 / rate s
    poisson   gaps of -ln(U) / rate: independent clients
    trace     at the times of a file, over and over; with a rate at that mean rate

In bursts, `burst` batches are asked for at one moment, and such moments come at rate / burst.

Requests are divided among the instances: the k-th of a stream goes to instance k mod N; a Poisson stream without bursts
is split at random, which gives every instance a Poisson stream of rate / N. Each instance serves its own in order.
Latency counts from the intended arrival, however late the batch began (no coordinated omission: Tene, "How NOT to
Measure Latency"). Knows times only.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..errors import UserError, one_line
from ..machine.files import check_regular

KINDS = ("closed", "fixed", "poisson", "trace")
_SEED = 20_201_119
_MOST_BYTES = 1 << 30
_SHORTEST_S, _LONGEST_S = 1e-6, 366 * 86_400.0  # from a trace's first time to its last


@dataclass(frozen=True)
class Arrivals:
    """kind: one of KINDS; rate: batches per second over all instances, None for closed and for a trace as it is; trace:
    its file; seed: of another random stream."""

    kind: str = "closed"
    rate: float | None = None
    burst: int = 1
    trace: str | None = None
    seed: int = 0

    @property
    def is_open(self) -> bool:
        return self.kind != "closed"

    def __str__(self) -> str:
        rate = "" if self.rate is None else f", {self.rate:,.6g} batches/s wanted"
        bursts = f" in bursts of {self.burst}" * (self.burst > 1)
        seed = f", seed {self.seed}" * (self.seed > 0)
        return f"{self.kind}{f' of {self.trace}' * (self.trace is not None)}{bursts}{rate}{seed}"


CLOSED = Arrivals()


def schedule_ns(arrivals: Arrivals, *, instance: int, instances: int, begin_ns: int, end_ns: int) -> np.ndarray:
    """One instance's intended arrivals [n] int64, ascending, begin_ns <= each < end_ns; the same in every call."""
    seconds = (end_ns - begin_ns) / 1e9
    if arrivals.kind == "poisson" and arrivals.burst == 1:
        at_s = _poisson_s(arrivals.rate / instances, seconds, np.random.default_rng([_SEED + arrivals.seed, instance]))
    else:
        at_s = _stream_s(arrivals, seconds)[instance::instances]
    at_ns = begin_ns + np.round(at_s[at_s <= seconds] * 1e9).astype(np.int64)  # int64 has no room for 300 years
    return at_ns[at_ns < end_ns]


def read_trace(path: str) -> np.ndarray:
    """Times of requests in s [n >= 2] float64, ascending, from the first on, and behind them when it begins anew.

    Raises UserError for a file that holds no such numbers.
    """
    check_regular(Path(path), "a trace")
    if Path(path).exists() and Path(path).stat().st_size > _MOST_BYTES:
        raise UserError(f"{path}: larger than any trace that is read, 1 GiB. Give a part of it.")
    try:
        with open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file
            times_s = np.loadtxt(file, delimiter=",", usecols=0, ndmin=1)
    except ValueError as error:
        raise UserError(f"{path}: {one_line(error)}. A trace was wanted: a time in seconds per line.") from None
    with np.errstate(invalid="ignore", over="ignore"):
        wrong = np.flatnonzero(~np.isfinite(times_s) | (np.diff(times_s, prepend=times_s[:1]) < 0))
    if len(times_s) < 2 or len(wrong) or times_s[0] == times_s[-1]:
        found = f"the time number {wrong[0] + 1} is {times_s[wrong[0]]:g}" if len(wrong) else f"{len(times_s)} times"
        raise UserError(f"{path}: {found}. Two or more times in seconds that ascend were wanted, one per line.")
    with np.errstate(over="ignore"):
        times_s = times_s - times_s[0]
    if not _SHORTEST_S <= times_s[-1] <= _LONGEST_S:
        span = f"its times span {times_s[-1]:g} s"
        raise UserError(f"{path}: {span}; {_SHORTEST_S:g} s to a year, in seconds, were wanted.")
    return np.append(times_s, times_s[-1] * len(times_s) / (len(times_s) - 1))


_trace = cache(read_trace)


def _stream_s(arrivals: Arrivals, seconds: float) -> np.ndarray:
    """All instances' arrivals, at least until `seconds`."""
    if arrivals.kind == "trace":
        times_s = _trace(arrivals.trace)
        period_s = times_s[-1] * (1 if arrivals.rate is None else (len(times_s) - 1) / times_s[-1] / arrivals.rate)
        rounds = np.arange(int(seconds / period_s) + 1)
        return (rounds[:, None] * period_s + times_s[:-1] * (period_s / times_s[-1])).reshape(-1)
    moments_per_s = arrivals.rate / arrivals.burst
    if arrivals.kind == "fixed":
        moments_s = np.arange(int(seconds * moments_per_s) + 2) / moments_per_s
    else:
        moments_s = _poisson_s(moments_per_s, seconds, np.random.default_rng(_SEED + arrivals.seed))
    return np.repeat(moments_s, arrivals.burst)


def _poisson_s(rate: float, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """Arrivals of a Poisson process of `rate` per second, at least until `seconds`."""
    expected = rate * seconds
    times = np.empty(0)
    while not len(times) or times[-1] < seconds:
        gaps = generator.exponential(1 / rate, int(expected + 4 * expected**0.5) + 8)
        times = np.concatenate([times, (times[-1] if len(times) else 0) + np.cumsum(gaps)])
    return times
