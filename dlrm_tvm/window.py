"""The window in which all instances ran, and what of their work lies in it.

    instance 0   |--|--|--|--|--|--|--|          started, then one end per batch; the next begins where one ends
    instance 1     |---|---|---|---|---|--|
                     t0            t1             counted: from when the last one was warm to when the first stops

Throughput counts the parts of the batches that the borders cut, so that long batches in a short window are not off
by one; latencies are of whole batches inside. Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SUB_WINDOWS = 10


@dataclass(frozen=True, eq=False)
class Run:
    """One instance's timed loop: when it began, and the end of each batch [batches] int64, ns of one clock."""

    started_ns: int
    ends_ns: np.ndarray

    @property
    def starts_ns(self) -> np.ndarray:
        return np.concatenate([[self.started_ns], self.ends_ns[:-1]])


@dataclass(frozen=True, eq=False)
class Measurement:
    """What ran in the window. latencies_ns: one int64 array per instance; batches_per_s: one rate per instance.

    sub_windows_per_s: batches per second of all instances together in each of 10 equal parts of the window; their mean
    is the throughput, and how they differ is the noise within the run.
    """

    duration_s: float
    batches_per_s: tuple[float, ...]
    latencies_ns: tuple[np.ndarray, ...]
    sub_windows_per_s: tuple[float, ...] = ()

    @property
    def batches(self) -> int:
        """Whole batches inside the window."""
        return sum(len(latencies) for latencies in self.latencies_ns)

    @property
    def total_batches_per_s(self) -> float:
        return sum(self.batches_per_s)


def merge_runs(runs: Sequence[Run], begin_ns: int, end_ns: int) -> Measurement | None:
    """The part of begin..end in which every instance ran; None where there is none."""
    begin_ns = max(begin_ns, *(run.started_ns for run in runs))
    end_ns = min([end_ns, *(int(run.ends_ns[-1]) if len(run.ends_ns) else 0 for run in runs)])
    if end_ns <= begin_ns:
        return None
    duration_s = (end_ns - begin_ns) / 1e9
    return Measurement(
        duration_s=duration_s,
        batches_per_s=tuple(_batches_done(run, begin_ns, end_ns) / duration_s for run in runs),
        latencies_ns=tuple(_latencies(run, begin_ns, end_ns) for run in runs),
        sub_windows_per_s=_sub_windows(runs, begin_ns, end_ns),
    )


def _sub_windows(runs: Sequence[Run], begin_ns: int, end_ns: int) -> tuple[float, ...]:
    part_s = (end_ns - begin_ns) / 1e9 / SUB_WINDOWS
    borders = [begin_ns + (end_ns - begin_ns) * part // SUB_WINDOWS for part in range(SUB_WINDOWS + 1)]
    return tuple(sum(_batches_done(run, *part) for run in runs) / part_s for part in pairwise(borders))


def _batches_done(run: Run, begin_ns: int, end_ns: int) -> float:
    """Batches between the two times, with the fractions that the borders cut off."""
    # Relative to the start: a float64 holds nanoseconds since boot exactly for 104 days only.
    times = np.concatenate([[0], run.ends_ns - run.started_ns])
    borders = np.array([begin_ns, end_ns]) - run.started_ns
    done = np.interp(borders, times, np.arange(len(times)))
    return float(done[1] - done[0])


def _latencies(run: Run, begin_ns: int, end_ns: int) -> np.ndarray:
    inside = (run.starts_ns >= begin_ns) & (run.ends_ns <= end_ns)
    return (run.ends_ns - run.starts_ns)[inside]
