"""When batches are asked for: back to back, at a fixed rate, or at random.

    closed    the next batch begins when the one before has ended: throughput, and latency without any queue
    fixed     one every 1 / rate s
    poisson   gaps of -ln(U) / rate: independent clients

Requests are divided among the instances: the k-th of a fixed stream goes to instance k mod N, a Poisson stream is
split at random, which gives every instance a Poisson stream of rate / N. Each instance serves its own in order. Latency
counts from the intended arrival, however late the batch began (no coordinated omission: Tene, "How NOT to Measure
Latency"). Knows times only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = ("closed", "fixed", "poisson")
_SEED = 20_201_119


@dataclass(frozen=True)
class Arrivals:
    """kind: one of KINDS; rate: batches per second over all instances, None for closed."""

    kind: str = "closed"
    rate: float | None = None

    @property
    def is_open(self) -> bool:
        return self.kind != "closed"


CLOSED = Arrivals()


def schedule_ns(arrivals: Arrivals, *, instance: int, instances: int, begin_ns: int, end_ns: int) -> np.ndarray:
    """One instance's intended arrivals [n] int64, ascending, begin_ns <= each < end_ns; the same in every call."""
    seconds = (end_ns - begin_ns) / 1e9
    if arrivals.kind == "fixed":
        count = int(seconds * arrivals.rate / instances) + 2
        at_s = (np.arange(count) * instances + instance) / arrivals.rate
    else:
        at_s = _poisson_s(arrivals.rate / instances, seconds, np.random.default_rng([_SEED, instance]))
    at_ns = begin_ns + np.round(at_s * 1e9).astype(np.int64)
    return at_ns[at_ns < end_ns]


def _poisson_s(rate: float, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """Arrivals of a Poisson process of `rate` per second, at least until `seconds`."""
    expected = rate * seconds
    times = np.empty(0)
    while not len(times) or times[-1] < seconds:
        gaps = generator.exponential(1 / rate, int(expected + 4 * expected**0.5) + 8)
        times = np.concatenate([times, (times[-1] if len(times) else 0) + np.cumsum(gaps)])
    return times
