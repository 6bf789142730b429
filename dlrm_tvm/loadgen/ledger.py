"""Which of LoadGen's samples are done: batches cut across samples, and end in any order.

samples    |--200--|-100-|------400------|        open[k]: items of sample k that are not done yet
done              |--128--|                       each record lowers the count of the samples that it touches
"""

from __future__ import annotations

import numpy as np

_SCANNED = 4096  # samples at a time


class SampleLedger:
    """Up to most_samples samples, numbered as they are issued. One thread may issue while another reports."""

    def __init__(self, most_samples: int) -> None:
        self._ends = np.zeros(most_samples, np.int64)  # in the stream of items; pages are taken as they are written
        self._open = np.zeros(most_samples, np.int64)
        self._issued = 0
        self._first_open = 0

    def issue(self, lengths: np.ndarray) -> None:
        """lengths [n] int64: items of the next samples. To be called before anybody can work on them."""
        first, last = self._issued, self._issued + len(lengths)
        self._ends[first:last] = (self._ends[first - 1] if first else 0) + np.cumsum(lengths)
        self._open[first:last] = lengths
        self._issued = last  # the other thread looks no further than this

    def done(self, ranges: np.ndarray) -> np.ndarray:
        """The samples completed by these items, each done once: ranges [n, 2] int64 of begin and count."""
        completed = [self._take(begin, end) for begin, end in _joined(ranges)]
        return np.sort(np.concatenate(completed)) if completed else np.empty(0, np.int64)

    @property
    def outstanding(self) -> int:
        """Samples from the first that is not complete to the last issued."""
        return self._issued - self._first_open

    @property
    def settled_items(self) -> int:
        """Number of items from the stream's start that belong to complete samples."""
        issued = self._issued
        while self._first_open < issued:
            scanned = self._open[self._first_open : min(self._first_open + _SCANNED, issued)] != 0
            self._first_open += int(scanned.argmax()) if scanned.any() else len(scanned)
            if scanned.any():
                break
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
