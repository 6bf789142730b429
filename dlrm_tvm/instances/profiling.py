"""Inside a worker: calls with and without time stamps in turn -> the time of each part of a call.

    ns of a part = ticks x ns per tick, the mean over the threads of the instance and over the faster half of the calls

Half of the calls, so that interruptions of a few are not taken for work; a mean, so that parts add up. Each call has
another batch than the one before, as in the timed loop: rows that were just read are in a cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:
    from ..runtime.executor import Batch, Executor

_TOLERANCE = 1e-5
_FEWEST_CALLS = 2  # two stamps make a rate


@dataclass(frozen=True)
class ProfiledCalls:
    """Of one instance. calls: those with stamps, of which the faster half counts; call_ns, main_ns: a call with stamps
    and one without; parts_ns: each part's share of the former."""

    calls: int
    call_ns: float
    main_ns: float
    parts_ns: list[float]


def profile_calls(engine: Executor, batches: Sequence[Batch], seconds: float) -> ProfiledCalls:
    """For about `seconds`. Raises UserError where the library predicts differently with time stamps."""
    _check_same(engine, batches[0])
    turns = itertools.cycle(batches)
    main_ns, begins_ns, ends_ns, ticks = [], [], [], []
    until_ns = perf_counter_ns() + int(seconds * 1e9)
    while len(ticks) < _FEWEST_CALLS or ends_ns[-1] < until_ns:
        began_ns = perf_counter_ns()
        engine.run(next(turns))
        main_ns.append(perf_counter_ns() - began_ns)
        begins_ns.append(perf_counter_ns())
        _, stamps = engine.run_profiled(next(turns))
        ends_ns.append(perf_counter_ns())
        ticks.append(stamps[: engine.threads].copy())  # fewer where there are not that many tiles
    return _summary(engine.threads, np.array(main_ns), np.array([begins_ns, ends_ns]), np.array(ticks))


def _check_same(engine: Executor, batch: Batch) -> None:
    wanted = engine.run(batch).copy()
    error = np.abs(engine.run_profiled(batch)[0] - wanted).max()
    if not error <= _TOLERANCE:
        raise UserError(f"With time stamps the library's predictions are off by {error:.2g}. Compile it again.")


def _summary(threads: int, main_ns: np.ndarray, spans_ns: np.ndarray, ticks: np.ndarray) -> ProfiledCalls:
    """spans_ns [begins and ends, calls]; ticks [calls, tasks, parts + 1], the last column the counter at the start."""
    rate = ticks_per_ns(spans_ns[0], ticks[:, 0, -1])
    calls_ns = spans_ns[1] - spans_ns[0]
    fast = _faster_half(calls_ns)
    parts_ns = ticks[fast, :, :-1].sum(axis=1).mean(axis=0) / threads / rate
    return ProfiledCalls(
        calls=len(calls_ns),
        call_ns=float(calls_ns[fast].mean()),
        main_ns=float(main_ns[_faster_half(main_ns)].mean()),
        parts_ns=parts_ns.tolist(),
    )


def ticks_per_ns(times_ns: np.ndarray, ticks: np.ndarray) -> float:
    """Rate of a counter read at about these times: the median over pairs half of the time apart, so that one delay
    between reading the two clocks does no harm."""
    half = len(ticks) // 2
    return float(
        np.median((ticks[half:] - ticks[: len(ticks) - half]) / (times_ns[half:] - times_ns[: len(ticks) - half]))
    )


def _faster_half(times_ns: np.ndarray) -> np.ndarray:
    """Their indices."""
    return np.argsort(times_ns)[: -(-len(times_ns) // 2)]
