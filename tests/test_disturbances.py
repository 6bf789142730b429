"""Warnings from hand-made counters, counters from pasted /proc trees, and both from real workers that are disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sysfs_trees import write
from test_instances import CORES, fakes
from test_multi_instance import start

from dlrm_tvm.disturbances import other_load, other_load_warnings, stall_warnings, window_warnings
from dlrm_tvm.kernel_counters import TICKS_PER_S, CpuTime, Snapshot, take_snapshot
from dlrm_tvm.metrics import percentiles_ms

MS = 1_000_000


def snapshot(time_s: float = 0.0, **counters: object) -> Snapshot:
    """Two quiet processes on cpus 0 and 1, but for what is given."""
    return Snapshot(
        **{"time_s": time_s, "waited_ns": (0, 0), "minor_faults": (0, 0), "major_faults": (0, 0)}
        | {"stolen_ticks": {0: 0, 1: 0}}
        | counters
    )


# Other load


def window(busy_s: float, idle_s: float, ours_s: float, stolen_s: float = 0) -> tuple[Snapshot, Snapshot]:
    """10 s on cpu 0, in which our thread 7 ran."""
    before = snapshot(100.0, cpu_times={0: CpuTime(50, 60)}, threads={7: (0, 3.0)})
    after = snapshot(
        110.0,
        cpu_times={0: CpuTime(50 + busy_s, 60 + idle_s)},
        threads={7: (0, 3 + ours_s)},
        stolen_ticks={0: int(stolen_s * TICKS_PER_S), 1: 0},
    )
    return before, after


def test_busy_time_that_is_not_ours_is_other_load() -> None:
    assert other_load(*window(busy_s=10, idle_s=0, ours_s=6)) == {(0,): pytest.approx(0.4)}
    (warning,) = other_load_warnings(*window(busy_s=10, idle_s=0, ours_s=6))
    assert warning.startswith("Other programs took 40% of core 0 during the window. Probably ")
    assert "choose other cores with --cores" in warning


@pytest.mark.parametrize(
    "times",
    [
        {"busy_s": 10, "idle_s": 0, "ours_s": 10},
        {"busy_s": 10, "idle_s": 0, "ours_s": 10.2},  # the two counters are not read at one moment
        {"busy_s": 10, "idle_s": 0, "ours_s": 9.55},  # 4.5 %
        {"busy_s": 3, "idle_s": 7, "ours_s": 3},
        {"busy_s": 9, "idle_s": 7, "ours_s": 3},  # ticks that hit every burst of ours: idle time knows better
        {"busy_s": 5, "idle_s": 0, "ours_s": 5, "stolen_s": 5},
    ],
)
def test_our_own_work_idle_time_and_stolen_time_are_no_other_load(times: dict[str, float]) -> None:
    assert other_load_warnings(*window(**times)) == []


def test_a_thread_counts_where_it_ran_and_a_new_one_from_its_start() -> None:
    before = snapshot(0.0, cpu_times={0: CpuTime(0, 0), 1: CpuTime(0, 0)}, threads={7: (0, 5.0)})
    after = snapshot(
        10.0, cpu_times={0: CpuTime(10, 0), 1: CpuTime(10, 0)}, threads={7: (0, 15.0), 8: (1, 7.0), 9: (5, 4.0)}
    )
    assert other_load(before, after) == {(0,): 0, (1,): pytest.approx(0.3)}


def two_cores(busy_s: float, ours_s: float) -> tuple[Snapshot, Snapshot]:
    """10 s of one process's two threads on cpus 0 and 1, busy for busy_s each; both threads ended on cpu 0."""
    shared = {"groups": ((0, 1),)}
    before = snapshot(0.0, cpu_times=dict.fromkeys((0, 1), CpuTime(0, 0)), threads={7: (0, 0.0), 8: (1, 0.0)}, **shared)
    times = dict.fromkeys((0, 1), CpuTime(busy_s, 10 - busy_s))
    return before, snapshot(10.0, cpu_times=times, threads={7: (0, ours_s), 8: (0, ours_s)}, **shared)


def test_threads_that_move_between_the_cores_of_their_instance_are_no_other_load() -> None:
    assert other_load(*two_cores(busy_s=10, ours_s=10)) == {(0, 1): 0}
    assert other_load_warnings(*two_cores(busy_s=10, ours_s=9.97)) == []
    (warning,) = other_load_warnings(*two_cores(busy_s=10, ours_s=8))
    assert "Other programs took 40% of one core's time on cores 0-1 during the window" in warning


def test_waiting_is_of_a_thread_on_average() -> None:
    groups = {"groups": ((0, 1, 2, 3), (4,))}
    after = snapshot(10.0, waited_ns=(13_300 * MS, 0), **groups)
    (warning,) = window_warnings(snapshot(**groups), after)
    assert "Instance 0 waited 33.2% of the window for its cores" in warning


def test_load_on_the_other_hardware_thread_of_a_chosen_core_is_named_so() -> None:
    idle, busy = CpuTime(0, 10), CpuTime(5, 5)
    before = snapshot(0.0, cpu_times={0: CpuTime(0, 0), 64: CpuTime(0, 0)})
    (warning,) = other_load_warnings(before, snapshot(10.0, cpu_times={0: idle, 64: busy}))
    assert "took 50% of core 64, the other half of a chosen one, during the window" in warning


def test_a_few_ticks_of_a_short_window_are_not_load() -> None:
    before = snapshot(0.0, cpu_times={0: CpuTime(0, 0)})
    assert other_load_warnings(before, snapshot(0.5, cpu_times={0: CpuTime(0.04, 0.46)})) == []
    assert other_load_warnings(before, snapshot(0.5, cpu_times={0: CpuTime(0.1, 0.4)}))


# Swap, quota, stalls


def test_swapping_is_named_with_its_size() -> None:
    (warning,) = window_warnings(snapshot(swapped_pages=(5, 5)), snapshot(10.0, swapped_pages=(10_005, 2505)))
    megabytes = os.sysconf("SC_PAGE_SIZE") / 1e6
    assert f"{10_000 * megabytes:.1f} MB in, {2500 * megabytes:.1f} MB out. Probably memory is short: " in warning
    assert window_warnings(snapshot(swapped_pages=(5, 5)), snapshot(10.0, swapped_pages=(5, 5))) == []


def test_a_few_pages_from_disk_or_swap_are_nothing_to_warn_of() -> None:
    few = 9_900_000 // os.sysconf("SC_PAGE_SIZE")
    assert window_warnings(snapshot(), snapshot(10.0, major_faults=(99, 0), swapped_pages=(few, 0))) == []
    assert len(window_warnings(snapshot(), snapshot(10.0, major_faults=(99, 2), swapped_pages=(few, 99)))) == 2


def test_throttling_is_named_once_for_the_group_that_was_stopped_longest() -> None:
    before = snapshot(throttled={"/a/b": (10, 1.0), "/a": (3, 0.5), "/": (0, 0.0)})
    after = snapshot(10.0, throttled={"/a/b": (52, 2.25), "/a": (4, 0.6), "/": (0, 0.0), "/new": (9, 9.0)})
    (warning,) = window_warnings(before, after)
    assert "stopped this container 42 times during the window, for 1.25 s" in warning
    assert "Probably" in warning and "raise the quota" in warning
    assert window_warnings(before, snapshot(10.0, throttled=before.throttled)) == []


def latencies(*ms: float) -> np.ndarray:
    return np.array([int(each * MS) for each in ms], np.int64)


def test_a_stall_is_named_with_what_is_usual() -> None:
    (warning,) = stall_warnings([latencies(*[20] * 50), latencies(*[20] * 50, 2010, 20)])
    assert warning.startswith("Instance 1 finished nothing for 2.0 s (20 ms is usual). Probably it was paused")
    (warning,) = stall_warnings([latencies(20, 20, 900), latencies(20, 20, 700), latencies(20, 20, 20)])
    assert "Instance 0 finished nothing for 0.9 s" in warning and "So did 1 more" in warning


@pytest.mark.parametrize("ms", [(), (5000,), (300, 300, 2900), (1, 1, 1, 150)])
def test_long_batches_and_short_delays_are_no_stall(ms: tuple[float, ...]) -> None:
    assert stall_warnings([latencies(*ms)]) == []


# Pasted counters


def stat_line(name: str, *, minor: int, major: int, user: int, system: int, cpu: int) -> str:
    fields = ["S", *["0"] * 6, str(minor), "0", str(major), "0", str(user), str(system), *["0"] * 23, str(cpu), "0"]
    return f"7 ({name}) " + " ".join(fields)


def proc_tree(root: Path) -> Path:
    write(root, "proc/stat", "cpu 9 9 9 9\ncpu0 100 10 40 500 25 3 2 7 0 0\ncpu1 1 0 0 900 0 0 0 0 0 0\nintr 5")
    write(root, "proc/7/stat", stat_line("a) b (c", minor=11, major=2, user=0, system=0, cpu=0))
    write(root, "proc/7/task/7/stat", stat_line("a) b (c", minor=0, major=0, user=150, system=50, cpu=0))
    write(root, "proc/7/task/7/schedstat", "1500000000 25000000 99")
    write(root, "proc/7/task/8/stat", stat_line("x", minor=0, major=0, user=150, system=50, cpu=1))
    write(root, "proc/vmstat", "nr_free_pages 9\npswpin 12\npswpout 34\npswpinx 5")
    return root


def test_counters_are_read_from_proc(tmp_path: Path) -> None:
    seen = take_snapshot([7, 999], [[0], [5]], proc_tree(tmp_path))
    assert seen.cpu_times == {0: CpuTime(155 / TICKS_PER_S, 525 / TICKS_PER_S)}
    assert (seen.stolen_ticks, seen.groups) == ({0: 7}, ((0,), (5,)))
    assert seen.threads == {7: (0, 1.5), 8: (1, 200 / TICKS_PER_S)}  # the second one without schedstat
    assert seen.waited_ns == (25_000_000, 0)
    assert (seen.minor_faults, seen.major_faults) == ((11, 0), (2, 0))
    assert seen.swapped_pages == (12, 34)
    assert seen.throttled == {}


def test_the_other_hardware_thread_of_a_core_is_counted_too(tmp_path: Path) -> None:
    root = proc_tree(tmp_path)
    write(root, "sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1")
    seen = take_snapshot([], [[0]], root)
    assert (set(seen.cpu_times), set(seen.stolen_ticks)) == ({0, 1}, {0})


def test_throttling_is_read_from_both_versions_of_cgroups(tmp_path: Path) -> None:
    root = proc_tree(tmp_path)
    write(root, "proc/self/cgroup", "3:cpu,cpuacct:/pod\n0::/box/inner")
    write(root, "sys/fs/cgroup/box/cpu.stat", "usage_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 250000")
    write(root, "sys/fs/cgroup/cpu.stat", "usage_usec 5")  # the root has no quota
    write(root, "sys/fs/cgroup/cpu/pod/cpu.stat", "nr_periods 9\nnr_throttled 2\nthrottled_time 1500000000")
    seen = take_snapshot([], [[0]], root).throttled
    assert {Path(group).name: counts for group, counts in seen.items()} == {"box": (4, 0.25), "pod": (2, 1.5)}


# Real workers


@contextmanager
def spinning_on(core: int) -> Iterator[None]:
    """A process that does nothing else; it ends with this test."""
    script = f"import os\nos.sched_setaffinity(0, [{core}])\nprint(flush=True)\nwhile True: pass"
    spinner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        spinner.stdout.readline()
        yield
    finally:
        spinner.kill()
        spinner.communicate()


def test_a_run_under_load_on_the_same_core_warns() -> None:
    with spinning_on(CORES[0]), fakes(1) as instances:
        run = instances.measure(duration_s=1.5, warmup_s=0.2)
    (warning,) = other_load_warnings(run.before, run.after)
    assert f"of core {CORES[0]} during the window" in warning
    assert other_load(run.before, run.after)[CORES[0],] > 0.2


def test_our_own_work_is_told_from_the_load_of_others() -> None:
    """However busy the machine is: ours and theirs make the whole core, as the kernel counts it."""
    with fakes(1) as instances:
        run = instances.measure(duration_s=1.5, warmup_s=0.2)
        (pid,) = run.after.threads.keys() & set(instances.pids)
    ours_s = run.after.threads[pid][1] - run.before.threads[pid][1]
    seconds = run.after.time_s - run.before.time_s
    assert ours_s > 0.05
    assert ours_s / seconds + other_load(run.before, run.after)[CORES[0],] < 1.1


def test_a_paused_worker_shows_in_max_and_p999_and_in_a_warning() -> None:
    """The pause begins when the window has begun, and ends well before it ends."""
    with fakes(1, call_ms=20) as instances:
        (pid,) = instances.pids
        timers = [
            threading.Timer(0.7, os.kill, (pid, signal.SIGSTOP)),
            threading.Timer(2.2, os.kill, (pid, signal.SIGCONT)),
        ]
        for timer in timers:
            timer.start()
        run = instances.measure(duration_s=3, warmup_s=0.2)
    for timer in timers:
        timer.join()
    seen = percentiles_ms(run.measurement.latencies_ns[0])
    assert 1200 < seen["max"] < 4500 and seen["p999"] == seen["max"]
    assert seen["p50"] < 190
    (warning,) = stall_warnings(run.measurement.latencies_ns)
    assert "Instance 0 finished nothing for" in warning and "SIGSTOP" in warning


def test_load_is_in_the_report_of_the_command_line(demo_library: Path) -> None:
    options = ("--model", demo_library, "--num-instances", 1, "--cores", CORES[0], "--duration", 1.5, "--warmup", 0.2)
    with spinning_on(CORES[0]):
        output, errors = start(*options).communicate(timeout=60)
    text, _, last_line = output.rstrip().rpartition("\n")
    seen = f"of core {CORES[0]} during the window"
    assert any(seen in warning for warning in json.loads(last_line)["warnings"]), errors
    assert seen in text
