"""The queue in shared memory, and the ledger of what is done: every item exactly once, in whatever order."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dlrm_tvm.errors import UserError
from dlrm_tvm.sample_ledger import SampleLedger
from dlrm_tvm.work_queue import Taken, WorkQueue

ROOT = Path(__file__).parents[1]
MS = 1_000_000


def new_queue(most_samples: int = 5000, ring_items: int = 1 << 20, batch: int = 100) -> WorkQueue:
    queue = WorkQueue.create(most_samples=most_samples, ring_items=ring_items)
    queue.configure(batch_size=batch, wait_ns=0)
    return queue


def publish(queue: WorkQueue, lengths: list[int], arrival_ns: int | None = None) -> np.ndarray:
    """Samples that lie one after the other, a hundred items apart, in some library: where each begins there."""
    lengths = np.array(lengths)
    sources = np.cumsum(lengths + 100) - lengths
    queue.publish(sources, lengths, time.perf_counter_ns() if arrival_ns is None else arrival_ns)
    return sources


def library_items(taken: list[Taken]) -> list[int]:
    """The library's item behind each item of the batches, after checking that segments fill their batch in order."""
    items = []
    for part in taken:
        assert [segment.target for segment in part.segments] == np.cumsum(
            [0, *(segment.items for segment in part.segments)]
        ).tolist()[:-1]
        assert sum(segment.items for segment in part.segments) == part.items
        for segment in part.segments:
            items += range(segment.source, segment.source + segment.items)
    return items


def drain(queue: WorkQueue, most: int = 1) -> list[Taken]:
    found = []
    while taken := queue.take(most):
        found += taken
    return found


@pytest.mark.parametrize("batch", [1, 7, 100, 128, 1000])
@pytest.mark.parametrize("most", [1, 5])
def test_batches_are_cut_across_samples_and_hold_each_item_once(batch: int, most: int) -> None:
    queue = new_queue(batch=batch)
    lengths = np.random.default_rng(batch).integers(1, 700, 40).tolist()
    sources = publish(queue, lengths)
    queue.flush()
    taken = drain(queue, most)
    wanted = [item for source, length in zip(sources, lengths) for item in range(source, source + length)]
    assert library_items(taken) == wanted
    assert [part.items for part in taken[:-1]] == [batch] * (len(taken) - 1)
    assert [part.begin for part in taken] == list(range(0, sum(lengths), batch))


def test_a_batch_that_is_not_full_waits_for_more() -> None:
    queue = new_queue()
    queue.configure(batch_size=100, wait_ns=3600 * 10**9)
    publish(queue, [150])
    assert [part.items for part in drain(queue)] == [100]
    publish(queue, [60])
    assert [[segment.items for segment in part.segments] for part in drain(queue)] == [[50, 50]]


def test_a_batch_leaves_unfilled_when_its_oldest_item_has_waited_long_enough() -> None:
    queue = new_queue()
    queue.configure(batch_size=100, wait_ns=200 * MS)
    now = time.perf_counter_ns()
    publish(queue, [130], now - 150 * MS)
    publish(queue, [20], now)
    assert [part.items for part in drain(queue)] == [100]
    late = now + 100 * MS
    while time.perf_counter_ns() < late:
        time.sleep(0.005)
    assert [part.items for part in drain(queue)] == [50]


def test_waiting_ends_when_the_oldest_item_must_leave() -> None:
    queue = new_queue()
    queue.configure(batch_size=100, wait_ns=30 * MS)
    publish(queue, [10])
    began = time.perf_counter()
    while not queue.take():
        queue.wait(queue.changes)
    assert 0.02 < time.perf_counter() - began < 5


def test_waiting_ends_when_samples_come() -> None:
    queue = new_queue()
    seen = queue.changes
    woken = threading.Event()

    def wait() -> None:
        while not queue.take():
            queue.wait(seen)
        woken.set()

    sleeper = threading.Thread(target=wait)
    sleeper.start()
    time.sleep(0.05)
    assert not woken.is_set()
    publish(queue, [100])
    assert woken.wait(5)
    sleeper.join()


def test_what_comes_between_looking_and_waiting_is_not_missed() -> None:
    queue = new_queue()
    seen = queue.changes
    assert not queue.take()
    publish(queue, [100])
    began = time.perf_counter()
    for _ in range(100):
        queue.wait(seen)
    assert time.perf_counter() - began < 5  # a sleep that nothing ends lasts 0.1 s, a hundred of them 10


def test_of_sleepers_that_are_woken_one_stays_up_for_the_batch_that_is_not_full() -> None:
    queue = new_queue()
    queue.configure(batch_size=100, wait_ns=50 * MS)
    seen, taken = queue.changes, []

    def sleep() -> None:
        queue.wait(seen)
        while parts := queue.take() or (queue.waiting_items and [None]):
            if parts == [None]:
                queue.wait(queue.changes)
            else:
                taken.extend(part.items for part in parts)

    sleepers = [threading.Thread(target=sleep) for _ in range(6)]
    for sleeper in sleepers:
        sleeper.start()
    publish(queue, [130])
    for sleeper in sleepers:
        sleeper.join()
    assert sorted(taken) == [30, 100]


def test_after_a_flush_more_may_come_and_waits_again() -> None:
    queue = new_queue()
    queue.configure(batch_size=100, wait_ns=3600 * 10**9)
    publish(queue, [30])
    queue.flush()
    assert [part.items for part in drain(queue)] == [30]
    publish(queue, [40])
    assert drain(queue) == []


def test_nobody_overwrites_predictions_that_were_not_read() -> None:
    queue = new_queue(ring_items=256)
    publish(queue, [1000])
    queue.flush()
    assert sum(part.items for part in drain(queue)) == 256 // 100 * 100 + 56
    queue.release(100)
    assert sum(part.items for part in drain(queue)) == 100


def test_more_samples_than_there_is_room_for_are_refused() -> None:
    queue = new_queue(most_samples=3)
    publish(queue, [1, 1])
    with pytest.raises(UserError, match="more than 3 samples"):
        publish(queue, [1, 1])


TAKER = """
import sys
from dlrm_tvm.work_queue import WorkQueue
queue = WorkQueue(int(sys.argv[1]), most_samples=5000, ring_items=1 << 20)
print("up", flush=True)
while not queue.stopped:
    seen = queue.changes
    taken = queue.take()
    if not taken:
        queue.wait(seen)
    for part in taken:
        print(part.begin, part.items)
"""


def test_processes_that_take_at_once_share_the_items_without_gap_or_overlap() -> None:
    queue = new_queue(batch=37)
    command = [sys.executable, "-c", TAKER, str(queue.descriptor)]
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "pass_fds": (queue.descriptor,)}
    takers = [subprocess.Popen(command, **options) for _ in range(3)]
    assert [taker.stdout.readline() for taker in takers] == ["up\n"] * 3
    rng = np.random.default_rng(0)
    for _ in range(60):
        publish(queue, rng.integers(1, 300, 20).tolist())
        time.sleep(0.002)
    queue.flush()
    deadline = time.monotonic() + 30
    while queue.waiting_items and time.monotonic() < deadline:
        time.sleep(0.01)
    queue.stop()
    covered = np.zeros(queue.published_items, int)
    for taker in takers:
        for text in taker.communicate(timeout=30)[0].splitlines():
            begin, items = map(int, text.split())
            covered[begin : begin + items] += 1
    assert (covered == 1).all()
    assert [taker.returncode for taker in takers] == [0, 0, 0]


# The ledger


def test_samples_complete_when_their_last_item_is_done_whatever_the_order() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 300, 500)
    ends = np.cumsum(lengths)
    ledger = SampleLedger(1000)
    ledger.issue(lengths[:200])
    ledger.issue(lengths[200:])
    cuts = np.arange(0, ends[-1], 128)
    batches = np.stack([cuts, np.minimum(cuts + 128, ends[-1]) - cuts], axis=1)
    rng.shuffle(batches)
    done = np.zeros(ends[-1], bool)
    reported: list[int] = []
    for group in np.array_split(batches, 97):
        for begin, items in group:
            done[begin : begin + items] = True
        reported += ledger.done(group).tolist()
        complete = [done[end - length : end].all() for length, end in zip(lengths, ends)]
        assert sorted(reported) == np.flatnonzero(complete).tolist()
        settled = int(np.argmin(complete)) if not all(complete) else len(complete)
        assert ledger.settled_items == (ends[settled - 1] if settled else 0)
    assert sorted(reported) == list(range(500))
    assert ledger.outstanding == 0


def test_nothing_done_completes_nothing() -> None:
    ledger = SampleLedger(1)
    ledger.issue(np.array([5]))
    assert len(ledger.done(np.empty((0, 2), np.int64))) == 0
    assert ledger.settled_items == 0 and ledger.outstanding == 1
