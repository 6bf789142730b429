"""The queue between LoadGen and the instances: a stream of items in shared memory, from which batches are cut.

    samples issued     |--200--|-100-|------400------|--200--| ..          ends[k]: where sample k ends in the stream
    batches taken      |--128--|--128--|--128--|--128--|--128--| ..        across samples, nothing padded between

One process publishes (LoadGen's), many take, each with one thread. A batch leaves when it is full, when no more is to
come, or when its oldest item has waited for `wait_ns`. Taking is a few loads and stores under a record lock (fcntl),
which the kernel frees when its holder dies; such a lock is a process's, and keeps no two threads apart. Predictions go
into a ring, and no item is taken before its place there is free.

Idle takers sleep on a bell, an eventfd that all processes inherit. A ring wakes one sleeper, who clears the bell, rings
again for the next one if more than a batch waits, and takes. It clears before it looks, so nothing is missed: what is
published later rings later. Knows no models and no LoadGen.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..machine.shared_memory import Layout, SharedArrays

MOST_SAMPLES = 1 << 24  # of one process's life: a MLPerf run of 10 minutes at 25,000 samples/s
RING_ITEMS = 1 << 24

# Places in the header, a cache line each, so that takers and the publisher do not take lines from each other.
_PUBLISHED, _TAKEN, _CURSOR, _FLUSHED, _RELEASED, _STOPPED, _SETTINGS = range(0, 7 * 8, 8)
_BATCH_SIZE, _WAIT_NS = _SETTINGS, _SETTINGS + 1

_NS_PER_MS = 1_000_000
_LONGEST_SLEEP_NS = 100 * _NS_PER_MS
_NEVER_NS = 2**62


@dataclass(frozen=True)
class Segment:
    """`items` items of one sample: from where in the sample library, to where in the batch."""

    source: int
    target: int
    items: int


@dataclass(frozen=True)
class Taken:
    """Items begin .. begin + items of the stream, and where they lie in the sample library."""

    begin: int
    items: int
    segments: tuple[Segment, ...]


class WorkQueue:
    """One end of the queue. Samples are numbered as they were published, from 0."""

    def __init__(
        self, descriptor: int, bell: int, *, most_samples: int = MOST_SAMPLES, ring_items: int = RING_ITEMS
    ) -> None:
        """Attach to the memory and the eventfd that `create` made with the same sizes."""
        self._arrays = SharedArrays(descriptor, _layout(most_samples, ring_items))
        self.descriptor, self.bell = descriptor, bell
        self.ring = self._arrays["ring"]  # [ring_items] float32: the prediction of item i at i % ring_items
        self._ends = self._arrays["ends"]
        self._sources, self._arrivals_ns = self._arrays["sources"], self._arrays["arrivals_ns"]
        self._header = memoryview(self._arrays["header"]).cast("B").cast("q")
        self._sleep = select.epoll()
        self._sleep.register(bell, select.EPOLLIN | select.EPOLLEXCLUSIVE)  # one ring, one sleeper

    @staticmethod
    def create(*, most_samples: int = MOST_SAMPLES, ring_items: int = RING_ITEMS) -> WorkQueue:
        created = SharedArrays.create(_layout(most_samples, ring_items))
        bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return WorkQueue(created.descriptor, bell, most_samples=most_samples, ring_items=ring_items)

    def close(self) -> None:
        self._sleep.close()
        os.close(self.bell)
        self._arrays.close()

    @property
    def waiting_items(self) -> int:
        """Published, and taken by nobody."""
        return self.published_items - self._header[_TAKEN]

    @property
    def done(self) -> tuple[int, int]:
        """Samples and items from the stream's start whose predictions have been read."""
        items = self._header[_RELEASED]
        return int(np.searchsorted(self._ends[: self.published], items, side="right")), items

    # Publishing

    @property
    def most_samples(self) -> int:
        return len(self._ends)

    @property
    def published(self) -> int:
        """Samples so far."""
        return self._header[_PUBLISHED]

    @property
    def published_items(self) -> int:
        return self._items_until(self.published)

    def publish(self, sources: np.ndarray, lengths: np.ndarray, arrival_ns: int) -> int:
        """Add samples [n], each of `lengths` items from `sources` on in the library: the number of the first.

        Raises UserError when there have been more than the queue has room for.
        """
        first = self.published
        last = first + len(lengths)
        if last > len(self._ends):
            raise UserError(f"LoadGen issued more than {len(self._ends):,} samples. Give a shorter --duration.")
        self._ends[first:last] = self._items_until(first) + np.cumsum(lengths)
        self._sources[first:last] = sources
        self._arrivals_ns[first:last] = arrival_ns
        self._header[_PUBLISHED] = last  # after the arrays: x86 keeps the order of stores
        self._ring()
        return first

    def flush(self) -> None:
        """No more comes for now: what is there leaves in batches that need not be full."""
        self._header[_FLUSHED] = self.published_items
        self._ring()

    def configure(self, *, batch_size: int, wait_ns: int) -> None:
        """Items per batch, and how long the oldest one may wait for its batch to fill."""
        self._header[_BATCH_SIZE], self._header[_WAIT_NS] = batch_size, wait_ns

    def release(self, items: int) -> None:
        """The predictions of the stream's first `items` items have been read."""
        self._header[_RELEASED] = items

    def stop(self) -> None:
        """Takers are to leave."""
        self._header[_STOPPED] = 1
        self._ring()

    # Taking

    @property
    def stopped(self) -> bool:
        return self._header[_STOPPED] != 0

    def take(self, most_batches: int = 1) -> list[Taken]:
        """Up to `most_batches` full batches, or one that is not full and must leave; nothing where there is none."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            begin, first = self._header[_TAKEN], self._header[_CURSOR]
            items = self._items_to_take(begin, most_batches)
            end = begin + items
            # A sample has an item at least, so that no more samples than items can be touched.
            touched = self._ends[first : min(first + items, self.published)]
            last = first + int(np.searchsorted(touched, end, side="right"))
            self._header[_TAKEN], self._header[_CURSOR] = end, last
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)
        if not items:
            return []
        batch_size = self._header[_BATCH_SIZE]
        ends = self._ends[first : last + 1].tolist()
        sources = self._sources[first : last + 1].tolist()
        start = self._items_until(first)
        return _cut(begin, end, batch_size, start, ends, sources)

    def wait(self) -> None:
        """After `take` found nothing: sleep until the bell rings, or the oldest item has waited long enough."""
        left_ns = min(self._leaves_ns() - time.perf_counter_ns(), _LONGEST_SLEEP_NS)
        if 0 < left_ns < _NS_PER_MS:
            time.sleep(left_ns / 1e9)  # epoll counts in whole milliseconds
        elif left_ns > 0 and self._sleep.poll(left_ns // _NS_PER_MS / 1e3):
            with suppress(BlockingIOError):  # another one was faster
                os.eventfd_read(self.bell)
            # The rest may be less than a batch: then someone has to wait for its time.
            if self.stopped or self._available_items() > self._header[_BATCH_SIZE]:
                self._ring()

    def _available_items(self) -> int:
        """Published, taken by nobody, and with a free place in the ring."""
        return min(self.published_items, self._header[_RELEASED] + len(self.ring)) - self._header[_TAKEN]

    def _items_to_take(self, begin: int, most_batches: int) -> int:
        available = self._available_items()
        batch_size = self._header[_BATCH_SIZE]  # read after: the queue is configured before anything is published
        if 0 < batch_size <= available:
            return min(available // batch_size, most_batches) * batch_size
        if available > 0 and (begin < self._header[_FLUSHED] or self._leaves_ns() <= time.perf_counter_ns()):
            return available
        return 0

    def _leaves_ns(self) -> int:
        """When the oldest item that waits must leave; far away where none waits."""
        cursor = self._header[_CURSOR]
        if cursor >= self.published:
            return _NEVER_NS
        return int(self._arrivals_ns[cursor]) + self._header[_WAIT_NS]

    def _items_until(self, sample: int) -> int:
        return int(self._ends[sample - 1]) if sample else 0

    def _ring(self) -> None:
        os.eventfd_write(self.bell, 1)


def _cut(begin: int, end: int, batch_size: int, start: int, ends: list[int], sources: list[int]) -> list[Taken]:
    """The stream's items begin..end in batches; sample i runs to ends[i] from where its forerunner ended."""
    batches, sample = [], 0
    for at in range(begin, end, batch_size):
        stop = min(at + batch_size, end)
        segments, position = [], at
        while position < stop:
            until = min(ends[sample], stop)
            segments.append(Segment(sources[sample] + position - start, position - at, until - position))
            position = until
            if position == ends[sample]:
                start, sample = position, sample + 1
        batches.append(Taken(at, stop - at, tuple(segments)))
    return batches


def _layout(most_samples: int, ring_items: int) -> Layout:
    return {
        "header": ("int64", (64,)),
        "ends": ("int64", (most_samples,)),
        "sources": ("int64", (most_samples,)),
        "arrivals_ns": ("int64", (most_samples,)),
        "ring": ("float32", (ring_items,)),
    }
