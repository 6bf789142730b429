"""The queue in shared memory: every item is taken exactly once, and sleepers wake when there is work."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dlrm_tvm.errors import UserError
from dlrm_tvm.instances.work_queue import Taken, WorkQueue
from dlrm_tvm.paths import ROOT

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
        queue.wait()
    assert 0.02 < time.perf_counter() - began < 5


def test_waiting_ends_when_samples_come() -> None:
    queue = new_queue()
    woken = threading.Event()

    def wait() -> None:
        while not queue.take():
            queue.wait()
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
    began = time.perf_counter()
    for _ in range(100):
        assert not queue.take()
        publish(queue, [100])
        queue.wait()
        assert queue.take()
    assert time.perf_counter() - began < 5  # a sleep that nothing ends lasts 0.1 s, a hundred of them 10


def test_the_last_fraction_of_a_millisecond_is_slept_through() -> None:
    queue = new_queue()
    queue.configure(batch_size=100, wait_ns=MS // 2)
    for _ in range(20):
        publish(queue, [10])
        sleeps = 0
        while not queue.take():
            queue.wait()
            sleeps += 1
        assert sleeps <= 2


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


# Takers are processes: the queue's lock is one between processes. They sleep for a minute where nothing wakes them.

TAKER = """
import sys
from dlrm_tvm.instances import work_queue
work_queue._LONGEST_SLEEP_NS = 60 * 10**9
queue = work_queue.WorkQueue(int(sys.argv[1]), int(sys.argv[2]), most_samples=5000, ring_items=1 << 20)
print("up", flush=True)
waits = 0
while not queue.stopped:
    taken = queue.take()
    if not taken:
        queue.wait()
        waits += 1
    for part in taken:
        print(part.begin, part.items)
    if taken and len(sys.argv) > 3:
        break  # one batch is all that it takes
print("waits", waits)
"""


def start_takers(queue: WorkQueue, count: int, *arguments: str) -> list[subprocess.Popen]:
    """All of them asleep, or about to be."""
    ends = (queue.descriptor, queue.bell)
    command = [sys.executable, "-c", TAKER, *map(str, ends), *arguments]
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "pass_fds": ends}
    takers = [subprocess.Popen(command, **options) for _ in range(count)]
    assert [taker.stdout.readline() for taker in takers] == ["up\n"] * count
    return takers


def wait_until_taken(queue: WorkQueue) -> None:
    deadline = time.monotonic() + 30
    while queue.waiting_items:
        assert time.monotonic() < deadline, "a sleeper was not woken"
        time.sleep(0.001)


def stop_takers(queue: WorkQueue, takers: list[subprocess.Popen]) -> tuple[list[tuple[int, int]], int]:
    """(begin and items of everything that was taken, in the stream's order; how often they have slept)"""
    queue.stop()
    parts, waits = [], 0
    for taker in takers:
        *taken, last = taker.communicate(timeout=30)[0].splitlines()
        parts += [tuple(map(int, text.split())) for text in taken]
        waits += int(last.split()[1])
    assert [taker.returncode for taker in takers] == [0] * len(takers)
    return sorted(parts), waits


def test_of_sleepers_that_are_woken_one_stays_up_for_the_batch_that_is_not_full() -> None:
    queue = new_queue()
    queue.configure(batch_size=100, wait_ns=50 * MS)
    takers = start_takers(queue, 6)
    publish(queue, [130])
    wait_until_taken(queue)
    parts, _ = stop_takers(queue, takers)
    assert parts == [(0, 100), (100, 30)]


def test_who_takes_one_of_several_batches_wakes_the_next() -> None:
    """Each of these takes a single batch in its life: one ring has to reach all four."""
    queue = new_queue()
    takers = start_takers(queue, 4, "one batch")
    time.sleep(0.05)
    publish(queue, [400])
    wait_until_taken(queue)
    for taker in takers:
        assert len(taker.communicate(timeout=30)[0].splitlines()) == 2  # its batch, and how often it slept


def test_a_ring_wakes_one_sleeper_and_not_all() -> None:
    queue = new_queue()
    takers = start_takers(queue, 4)
    for _ in range(50):
        publish(queue, [100])
        wait_until_taken(queue)
    parts, waits = stop_takers(queue, takers)
    assert [items for _, items in parts] == [100] * 50
    assert waits < 100  # 50 rings, and each one's first and last sleep; if all woke, 200


def test_all_sleepers_leave_when_the_queue_is_stopped() -> None:
    queue = new_queue()
    takers = start_takers(queue, 5)
    time.sleep(0.05)
    assert stop_takers(queue, takers)[0] == []


def test_processes_that_take_at_once_share_the_items_without_gap_or_overlap() -> None:
    queue = new_queue(batch=37)
    takers = start_takers(queue, 3)
    rng = np.random.default_rng(0)
    for _ in range(60):
        publish(queue, rng.integers(1, 300, 20).tolist())
        time.sleep(0.002)
    queue.flush()
    wait_until_taken(queue)
    parts, _ = stop_takers(queue, takers)
    covered = np.zeros(queue.published_items, int)
    for begin, items in parts:
        covered[begin : begin + items] += 1
    assert (covered == 1).all()
