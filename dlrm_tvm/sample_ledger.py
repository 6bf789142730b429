"""Which of LoadGen's samples are done: batches cut across samples, and end in any order.

samples    |--200--|-100-|------400------|        open[k]: items of sample k that are not done yet
done              |--128--|                       each record takes from those that it touches
"""

from __future__ import annotations

import numpy as np


class SampleLedger:
    """ends [most_samples] int64: where each sample ends in the stream of items, filled in as samples are issued."""

    def __init__(self, ends: np.ndarray) -> None:
        self._ends = ends
        self._open = np.zeros(len(ends), np.int64)  # pages are taken as they are written
        self._issued = 0
        self._first_open = 0

    def issue(self, lengths: np.ndarray) -> None:
        """The next samples [n] int64; to be told before anybody can work on them."""
        self._open[self._issued : self._issued + len(lengths)] = lengths
        self._issued += len(lengths)

    def done(self, ranges: np.ndarray) -> np.ndarray:
        """Items are done, each once: ranges [n, 2] int64 of begin and count. Gives the samples that this completes."""
        completed = [self._take(begin, end) for begin, end in _joined(ranges)]
        return np.sort(np.concatenate(completed)) if completed else np.empty(0, np.int64)

    @property
    def outstanding(self) -> int:
        """Samples issued and not complete, those between the first such one and the last issued counted."""
        return self._issued - self._first_open

    @property
    def settled_items(self) -> int:
        """So many items from the stream's start belong to complete samples."""
        waiting = np.flatnonzero(self._open[self._first_open : self._issued])
        self._first_open = self._first_open + int(waiting[0]) if len(waiting) else self._issued
        return int(self._ends[self._first_open - 1]) if self._first_open else 0

    def span(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(begin, end) of samples [n] in the stream, [n] int64 each."""
        begins = np.where(samples > 0, self._ends[samples - 1], 0)
        return begins, self._ends[samples]

    def _take(self, begin: int, end: int) -> np.ndarray:
        ends = self._ends[: self._issued]
        first = int(np.searchsorted(ends, begin, side="right"))
        last = int(np.searchsorted(ends, end, side="left"))
        samples = np.arange(first, last + 1)
        begins, stops = self.span(samples)
        self._open[samples] -= np.minimum(stops, end) - np.maximum(begins, begin)
        return samples[self._open[samples] == 0]


def _joined(ranges: np.ndarray) -> list[tuple[int, int]]:
    """[n, 2] begin and count, in any order -> (begin, end) in order, neighbours joined."""
    joined: list[list[int]] = []
    for begin, items in sorted(ranges.tolist()):
        if joined and joined[-1][1] == begin:
            joined[-1][1] = begin + items
        else:
            joined.append([begin, begin + items])
    return [(begin, end) for begin, end in joined]
