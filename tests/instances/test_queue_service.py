"""An instance at the queue: the rows that it runs, where it leaves predictions, what it reports."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np

from dlrm_tvm.data.query_samples import SampleLibrary, SampleSpec
from dlrm_tvm.instances.queue_service import RECORD, serve_queue
from dlrm_tvm.instances.work_queue import WorkQueue
from dlrm_tvm.machine.shared_memory import SharedArrays

BATCH = 8


class SummingEngine:
    """Its prediction of an item is the sum of the item's inputs; stops the queue after `calls` calls."""

    batch_size = BATCH

    def __init__(self, queue: WorkQueue, calls: int) -> None:
        self._queue, self._left = queue, calls

    def open_batch(self) -> SimpleNamespace:
        dense, indices = np.zeros((BATCH, 2), np.float32), np.zeros((BATCH, 3), np.int64)
        return SimpleNamespace(batch=(dense, indices), dense=dense, indices=indices)

    def run(self, batch: tuple) -> np.ndarray:
        self._left -= 1
        if not self._left:
            self._queue.stop()
        return batch[0].sum(axis=1) + batch[1].sum(axis=1)


def served(lengths: list[int], ring_items: int, most_batches: int = 1) -> tuple:
    """(result, ring, records, what each item of the stream should give)"""
    spec = SampleSpec(len(lengths), 500, 2, (50, 50, 50), None, False)
    library = SampleLibrary(spec, SharedArrays.create(spec.layout).descriptor)
    rng = np.random.default_rng(0)
    library.dense[:], library.indices[:] = rng.integers(0, 9, (500, 2)), rng.integers(0, 50, (500, 3))
    queue = WorkQueue.create(most_samples=100, ring_items=ring_items)
    queue.configure(batch_size=BATCH, wait_ns=0)
    sources = rng.integers(0, 400, len(lengths))
    queue.publish(sources, np.array(lengths), 0)
    queue.flush()
    queue.release(sum(lengths))  # so that the ring may wrap
    reading, writing = os.pipe()
    engine = SummingEngine(queue, -(-sum(lengths) // BATCH))
    result = serve_queue(
        engine,
        queue,
        library,
        completions=writing,
        instance=3,
        instances=1,
        most_batches=most_batches,
        clock=SimpleNamespace(interrupted=False),
    )
    os.close(writing)
    records = np.frombuffer(os.read(reading, 1 << 16), np.int64).reshape(-1, RECORD.size // 8)
    os.close(reading)
    items = np.concatenate([np.arange(source, source + length) for source, length in zip(sources, lengths)])
    wanted = library.dense[items].sum(axis=1) + library.indices[items].sum(axis=1)
    return result, queue.ring, records, wanted


def test_predictions_of_every_item_are_in_the_ring_at_its_place() -> None:
    result, ring, records, wanted = served([5, 20, 1, 9], ring_items=64)
    assert (ring[:35] == wanted).all()
    assert (result.batches, result.items) == (5, 35)
    assert records[:, :2].tolist() == [[0, 8], [8, 8], [16, 8], [24, 8], [32, 3]]
    assert (records[:, 3] == 3).all() and (np.diff(records[:, 2]) > 0).all()


def test_several_batches_may_be_taken_at_a_time() -> None:
    """Two turns are left to every instance: of 5 batches two at first, then one by one."""
    result, ring, records, wanted = served([5, 20, 1, 9], ring_items=64, most_batches=3)
    assert (ring[:35] == wanted).all() and (result.batches, result.items) == (5, 35)
    assert records[:, :2].tolist() == [[0, 16], [16, 8], [24, 8], [32, 3]]


def test_the_ring_wraps_within_a_batch() -> None:
    _, ring, _, wanted = served([30], ring_items=20)
    assert (ring[:10] == wanted[20:]).all() and (ring[10:] == wanted[10:20]).all()
