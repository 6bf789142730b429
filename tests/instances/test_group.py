"""The measuring itself: windows on made-up clocks, and real worker processes around an engine of known speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import FAKE_WORKER, MS, assignments, fakes, is_alive

from dlrm_tvm.data.workload import items_to_rotate, random_bags, random_items
from dlrm_tvm.errors import UserError
from dlrm_tvm.instances import group
from dlrm_tvm.instances.group import Instances
from dlrm_tvm.instances.loops import StopClock, timed_loop
from dlrm_tvm.instances.window import Run, merge_runs
from dlrm_tvm.paths import ROOT

# The window


def steady(*, started_ms: float, every_ms: float, count: int) -> Run:
    ends = (started_ms + every_ms * np.arange(1, count + 1)) * MS
    return Run(int(started_ms * MS), ends.astype(np.int64))


def test_throughput_counts_the_parts_that_borders_cut() -> None:
    run = steady(started_ms=0, every_ms=30, count=20)
    measurement = merge_runs([run], 100 * MS, 200 * MS)
    assert measurement.batches_per_s[0] == pytest.approx(1000 / 30)
    assert measurement.batches == 2  # those that end at 150 and 180 and began at 120 or later
    assert set(measurement.latencies_ns[0]) == {30 * MS}


def test_only_the_time_in_which_all_instances_ran_counts() -> None:
    early = steady(started_ms=0, every_ms=10, count=10)
    late = steady(started_ms=50, every_ms=5, count=100)
    measurement = merge_runs([early, late], 20 * MS, 400 * MS)
    assert measurement.duration_s == pytest.approx(0.05)
    assert measurement.batches_per_s == pytest.approx((100, 200))


def test_instances_that_never_ran_together_give_nothing() -> None:
    first = steady(started_ms=0, every_ms=1, count=10)
    second = steady(started_ms=20, every_ms=1, count=10)
    assert merge_runs([first, second], 0, 100 * MS) is None
    assert merge_runs([first, Run(0, np.array([], np.int64))], 0, 100 * MS) is None


def test_rates_are_exact_late_after_boot() -> None:
    year_ns = 365 * 24 * 3600 * 10**9
    run = steady(started_ms=0, every_ms=0.1, count=10_000)
    later = Run(run.started_ns + year_ns, run.ends_ns + year_ns)
    assert merge_runs([later], year_ns, year_ns + 500 * MS).batches_per_s[0] == pytest.approx(10_000)


def test_rates_of_the_windows_parts_add_up_to_the_throughput() -> None:
    uneven = np.cumsum(np.random.default_rng(0).integers(5, 60, 200)) * MS
    runs = [Run(0, uneven), steady(started_ms=3, every_ms=7, count=500)]
    measurement = merge_runs(runs, 101 * MS, 2014 * MS)
    assert len(measurement.sub_windows_per_s) == 10
    assert np.mean(measurement.sub_windows_per_s) == pytest.approx(measurement.total_batches_per_s)


def test_a_part_of_the_window_counts_what_was_done_in_it() -> None:
    ends = np.concatenate([np.arange(10, 501, 10), np.arange(520, 1001, 20)]) * MS  # half as fast from the middle on
    measurement = merge_runs([Run(0, ends)], 0, 1000 * MS)
    assert measurement.sub_windows_per_s == pytest.approx([100] * 5 + [50] * 5)


def test_pause_shows_in_the_latencies() -> None:
    ends = np.array([10, 20, 2030, 2040]) * MS
    measurement = merge_runs([Run(0, ends)], 0, 2040 * MS)
    assert max(measurement.latencies_ns[0]) == 2010 * MS


# The timed loop


def test_timed_loop_costs_under_half_a_microsecond() -> None:
    clock = StopClock()
    clock.set(time.perf_counter_ns() + 200 * MS)
    started_ns, ends_ns, stopped_ns = timed_loop(lambda batch: None, [None], clock)
    assert stopped_ns == ends_ns[-1]
    assert isinstance(ends_ns, array) and ends_ns.typecode == "q"
    gaps = np.diff(np.concatenate([[started_ns], ends_ns]))
    assert np.median(gaps) < 500


def test_timed_loop_uses_every_batch_in_turn() -> None:
    seen = []
    clock = StopClock()
    clock.set(time.perf_counter_ns() + 10**12)

    def run(batch: int) -> None:
        seen.append(batch)
        if len(seen) == 7:
            clock.interrupt()

    timed_loop(run, [0, 1, 2], clock)
    assert seen == [0, 1, 2, 0, 1, 2, 0]


def test_stop_before_the_loop_is_not_lost() -> None:
    clock = StopClock()
    clock.interrupt()
    clock.set(time.perf_counter_ns() + 10**12)
    assert len(timed_loop(lambda batch: None, [None], clock)[1]) == 1


# The inputs

CARD = SimpleNamespace(num_dense=13, table_rows=(3, 40_000_000), gather_bytes_per_item=2 * 512)


def test_rotating_set_touches_four_times_the_cache() -> None:
    items = items_to_rotate(CARD, 100, l3_bytes=32 << 20)
    assert items % 100 == 0
    assert 4 * (32 << 20) <= items * CARD.gather_bytes_per_item < 4 * (32 << 20) + 101 * 1024


def test_rotating_set_of_small_tables_stops_where_all_rows_are_touched() -> None:
    card = SimpleNamespace(num_dense=13, table_rows=(3, 500), gather_bytes_per_item=2 * 64)
    assert items_to_rotate(card, 10, l3_bytes=32 << 20) == 2000
    drawn = random_items(card, 2000, instance=0)[1][:, 1]
    assert len(set(drawn.tolist())) > 0.97 * 500


def test_rotating_set_is_bounded_and_has_two_batches() -> None:
    assert items_to_rotate(CARD, 100, l3_bytes=1 << 40) * (13 * 4 + 2 * 8) < (32 << 20) + 100 * 68
    assert items_to_rotate(CARD, 1_000_000, l3_bytes=1 << 20) == 2_000_000


def test_random_rows_cover_the_tables_and_differ_by_instance() -> None:
    dense, indices = random_items(CARD, 5000, instance=0)
    assert dense.dtype == np.float32 and dense.shape == (5000, 13)
    assert indices.dtype == np.int64 and indices.shape == (5000, 2)
    assert set(indices[:, 0]) == {0, 1, 2}
    assert indices[:, 1].min() < 100_000 and indices[:, 1].max() > 39_900_000
    assert (random_items(CARD, 5000, instance=1)[1][:, 1] != indices[:, 1]).mean() > 0.99
    assert (random_items(CARD, 5000, instance=0)[1] == indices).all()


def test_random_bags_hold_so_many_rows_of_whole_tables_different_for_each_instance():
    lengths = [20] * len(CARD.table_rows)
    dense, bags = random_bags(CARD, 500, lengths, instance=0)
    assert dense.shape == (500, CARD.num_dense)
    for table, rows in enumerate(CARD.table_rows):
        assert (np.diff(bags.begins[table]) == 20).all()
        assert bags.indices[table].min() >= 0 and 0.99 * (rows - 1) < bags.indices[table].max() < rows
    other = random_bags(CARD, 500, lengths, instance=1)[1]
    assert (other.indices[1] != bags.indices[1]).mean() > 0.9


def test_bags_need_fewer_items_for_the_same_rows_and_no_more_memory_than_there_is():
    one, twenty = (items_to_rotate(CARD, 100, 32 << 20, per_bag) for per_bag in (1, 20))
    assert 100 * 2 <= twenty < one / 10
    with pytest.raises(UserError, match=r"two batches of 100 items with 1e\+06 indices per bag take .* MB"):
        items_to_rotate(CARD, 100, 32 << 20, 1_000_000)


# Worker processes


def test_engine_of_known_speed_gives_that_throughput() -> None:
    with fakes(2, call_ms=5) as instances:
        pids = instances.pids
        assert instances.peak_gflops(0.01) == [100, 100]
        assert instances.stream_gbps(0.01) == [40, 40]
        run = instances.measure(duration_s=1.0, warmup_s=0.1)
    assert not run.interrupted
    assert run.measurement.duration_s == pytest.approx(1.0)
    for rate, latencies in zip(run.measurement.batches_per_s, run.measurement.latencies_ns):
        assert rate <= 200 and rate == pytest.approx(len(latencies), abs=2)  # two are cut by the window's ends
        assert latencies.min() >= 5 * MS
        # One call after the other: however long each took on a busy machine, little lies between them.
        assert 0.5 < latencies.sum() / 1e9 < 1.2
    assert not any(is_alive(pid) for pid in pids)


def test_all_instances_run_through_the_whole_window() -> None:
    with fakes(3, call_ms=50) as instances:
        measurement = instances.measure(duration_s=0.5, warmup_s=0.1).measurement
    assert measurement.duration_s == pytest.approx(0.5)


def test_window_shorter_than_a_batch_says_so() -> None:
    with pytest.raises(UserError, match=r"No batch was done within the window of 0\.05 s"), fakes(1, 200) as instances:
        instances.measure(duration_s=0.05, warmup_s=0)


def test_killed_worker_ends_the_run_within_five_seconds() -> None:
    with pytest.raises(UserError) as error, fakes(2) as instances:
        pids = instances.pids
        threading.Timer(0.3, os.kill, (pids[1], signal.SIGKILL)).start()
        began = time.monotonic()
        instances.measure(duration_s=30, warmup_s=0)
    assert time.monotonic() - began < 5
    assert f"Instance 1 (process {pids[1]}" in str(error.value) and "SIGKILL" in str(error.value)
    assert not any(is_alive(pid) for pid in pids)


def test_workers_mistake_is_the_users_line() -> None:
    with pytest.raises(UserError, match=r"none\.so needs avx512_vnni, which this CPU lacks"), fakes(2, 1, "no-open"):
        pass


def test_workers_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: our own bug"), fakes(1, 1, "crash"):
        pass


def test_library_that_gives_no_numbers_is_not_timed() -> None:
    with pytest.raises(UserError, match="not finite"), fakes(1, 1, "nan"):
        pass


def test_silent_worker_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_SILENCE_S", 0.5)
    with pytest.raises(UserError, match=r"gave no answer for 0\.51 s"), fakes(1, 1, "hang") as instances:
        pids = instances.pids
        instances.peak_gflops(0.01)
    assert not is_alive(pids[0])


def test_worker_that_hangs_while_it_opens_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_OPENING_S", 0.3)
    command = (sys.executable, str(FAKE_WORKER), "1", "hang-open")
    instances = Instances(assignments(1), command, table_bytes=20_000_000)
    with (
        pytest.raises(UserError, match=r"Instance 0 \(process \d+\) gave no answer for 0\.5 s and was ended"),
        instances,
    ):
        pass
    assert not instances.pids


def test_waiting_for_a_month_does_not_overflow_the_kernels_timeout() -> None:
    with fakes(1) as instances:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        run = instances.measure(duration_s=1e8, warmup_s=0)
    assert run.interrupted


def test_interrupt_hands_over_what_was_measured() -> None:
    with fakes(2) as instances:
        threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT)).start()
        run = instances.measure(duration_s=60, warmup_s=0.1)
    assert run.interrupted
    assert 0.3 < run.measurement.duration_s < 5
    assert run.measurement.batches > 10


def test_interrupt_before_the_window_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), fakes(1) as instances:
        pids = instances.pids
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        instances.measure(duration_s=60, warmup_s=60)
    assert not is_alive(pids[0])


PARENT = """
import json, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from fakes import fakes
with fakes(2) as instances:
    print(json.dumps(instances.pids), flush=True)
    instances.measure(duration_s=60, warmup_s=0)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_workers_end_with_their_parent(name: str) -> None:
    script = PARENT.format(root=str(ROOT), tests=str(FAKE_WORKER.parent))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    pids = json.loads(parent.stdout.readline())
    time.sleep(0.3)
    assert all(is_alive(pid) for pid in pids)
    parent.send_signal(getattr(signal, name))
    parent.communicate()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(is_alive(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)


def test_workers_never_see_ctrl_c_nor_what_a_scheduler_sends_to_all_processes_of_a_job() -> None:
    with fakes(1) as instances:
        status = Path(f"/proc/{instances.pids[0]}/status").read_text()
        blocked = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")), 16)
        assert all(blocked & 1 << number - 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
