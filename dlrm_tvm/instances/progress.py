"""Progress of running instances, seen from outside, and when their throughput has become stable.

A board in shared memory has a cache line per instance: batches done, and when the last one ended. Rates between ends of
batches are exact, however few of them fall between two looks.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

import numpy as np

from ..machine.shared_memory import SharedArrays

WINDOWS = 3
TOLERANCE = 0.01
_WINDOW_S = 1.0
LEAST_STABLE_S = WINDOWS * _WINDOW_S
_BATCHES_PER_WINDOW = 10  # of each instance, at least


class ProgressBoard:
    """[instances, 8] int64 in shared memory: batches done, the end of the last even one and of the last odd one in ns.

    The end that belongs to the current count is not overwritten: the next one goes beside it.
    """

    def __init__(self, instances: int, descriptor: int | None = None) -> None:
        """Make one, or attach to the one behind `descriptor`."""
        layout = {"lines": ("int64", (instances, 8))}
        self._arrays = SharedArrays.create(layout) if descriptor is None else SharedArrays(descriptor, layout)
        self._lines = self._arrays["lines"]
        self.descriptor = self._arrays.descriptor

    def telling(self, run: Callable[[object], object], instance: int) -> Callable[[object], object]:
        """`run`, which also writes its progress: 0.1 µs more."""
        line = memoryview(self._lines[instance])
        done = line[0] = 0

        def run_and_tell(batch: object) -> object:
            nonlocal done
            result = run(batch)
            done += 1
            line[1 + (done & 1)] = perf_counter_ns()
            line[0] = done
            return result

        return run_and_tell

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(batches done [instances], end of the last one in ns [instances]), each pair as it was at one moment."""
        pairs = [_pair(memoryview(line)) for line in self._lines]
        counts, ends_ns = zip(*pairs)
        return np.array(counts), np.array(ends_ns)

    def close(self) -> None:
        self._arrays.close()


def _pair(line: memoryview) -> tuple[int, int]:
    while True:
        count = line[0]
        end_ns = line[1 + (count & 1)]
        if line[0] == count:
            return count, end_ns


class StabilityWatch:
    """Takes looks at the board; stable once three windows in a row are within 1 % of their mean."""

    def __init__(self) -> None:
        self._counts = self._ends_ns = None
        self.rates: list[float] = []  # batches per second of all instances, per window

    def look(self, counts: np.ndarray, ends_ns: np.ndarray) -> bool:
        """counts, ends_ns [instances] as ProgressBoard.read gives them; whether it is stable now."""
        if self._counts is None:
            if counts.min() > 0:
                self._counts, self._ends_ns = counts, ends_ns
            return False
        done, took_ns = counts - self._counts, ends_ns - self._ends_ns
        if took_ns.min() < _WINDOW_S * 1e9 or done.min() < _BATCHES_PER_WINDOW:
            return self.is_stable
        self.rates.append(float((done / took_ns).sum() * 1e9))
        self._counts, self._ends_ns = counts, ends_ns
        return self.is_stable

    @property
    def is_stable(self) -> bool:
        last = np.array(self.rates[-WINDOWS:])
        return len(last) == WINDOWS and bool((np.abs(last / last.mean() - 1) <= TOLERANCE).all())
