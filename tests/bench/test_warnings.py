"""Warnings from hand-made counters, and from real workers that are disturbed."""

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
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import CORES, fakes
from scripts import start

from dlrm_tvm.bench.statistics import percentiles_ms
from dlrm_tvm.bench.warnings import (
    beyond_peak_warnings,
    engine_warnings,
    faster_than_closed_warnings,
    other_load,
    other_load_warnings,
    stall_warnings,
    table_warnings,
    window_warnings,
)
from dlrm_tvm.machine.os_counters import CpuTime, Snapshot
from dlrm_tvm.runtime.manifest import Peak
from dlrm_tvm.runtime.residency import TableMemory
from dlrm_tvm.runtime.weight_copies import TableSetup

MS, GB = 1_000_000, 1_000_000_000


def snapshot(time_s: float = 0.0, **counters: object) -> Snapshot:
    """Two quiet processes on cpus 0 and 1, but for what is given."""
    return Snapshot(
        **{"time_s": time_s, "waited_ns": (0, 0), "minor_faults": (0, 0), "major_faults": (0, 0)}
        | {"stolen_s": {0: 0, 1: 0}}
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
        stolen_s={0: stolen_s, 1: 0},
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
    page = 4096
    before = snapshot(swapped_bytes=(5 * page, 5 * page))
    (warning,) = window_warnings(before, snapshot(10.0, swapped_bytes=(10_005 * page, 2505 * page)))
    assert "41.0 MB in, 10.2 MB out. Probably memory is short: " in warning
    assert window_warnings(before, snapshot(10.0, swapped_bytes=before.swapped_bytes)) == []


def test_a_few_pages_from_disk_or_swap_are_nothing_to_warn_of() -> None:
    few, page = 9_900_000, 4096
    assert window_warnings(snapshot(), snapshot(10.0, major_faults=(99, 0), swapped_bytes=(few, 0))) == []
    assert len(window_warnings(snapshot(), snapshot(10.0, major_faults=(99, 2), swapped_bytes=(few, 99 * page)))) == 2


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


# Tables, another engine, LoadGen


def tables(table_bytes: int, resident_bytes: int | None, available_bytes: int, *copies: str) -> list[str]:
    return table_warnings(TableSetup(TableMemory(table_bytes, resident_bytes, available_bytes), None, copies))


def test_tables_that_do_not_fit_are_warned_of_with_the_remedy() -> None:
    (warning,) = tables(96 * GB, 5 * GB, 24 * GB)
    assert "Page faults that read the disk will dominate" in warning
    assert "more memory" in warning


def test_tables_that_fit_but_are_not_read_yet_are_warned_of_with_preload() -> None:
    (warning,) = tables(9 * GB, 3 * GB, 24 * GB)
    assert "6.0 GB of the tables are not in memory yet" in warning
    assert "--preload" in warning


def test_tables_in_memory_or_small_ones_bring_no_warning() -> None:
    assert tables(9 * GB, 9 * GB, 1 * GB) == [], "in memory already: they fit, whatever is left"
    assert tables(GB // 10, 0, 24 * GB) == [], "a warm-up reads that"
    assert tables(9 * GB, None, 24 * GB) == [], "of another user's file nothing is known"
    assert tables(96 * GB, 0, 1 * GB, "copied") == [], "a copy is in memory"


def test_an_engine_at_another_precision_than_the_peak_is_told() -> None:
    other, own = SimpleNamespace(precision="int8"), Peak("fp32", "avx512", 1)
    (warning,) = engine_warnings(SimpleNamespace(peak_of=lambda precision: own), other, {"avx512f"})
    assert warning.startswith("The engine ran at int8, the peak is that of the library's fp32")
    assert engine_warnings(SimpleNamespace(peak_of=lambda precision: own), None, {"amx_int8"}) == []


def test_a_peak_of_slower_instructions_than_the_cpus_is_told() -> None:
    manifest, other = (
        SimpleNamespace(peak_of=lambda each: Peak(each, "avx512_vnni", 1)),
        SimpleNamespace(precision="int8"),
    )
    assert engine_warnings(manifest, other, {"avx512f", "avx512_vnni"}) == []
    (warning,) = engine_warnings(manifest, other, {"avx512f", "avx512_vnni", "amx_int8"})
    assert "The peak is that of avx512_vnni, this CPU has amx_int8 too" in warning


def test_more_than_the_peak_is_told() -> None:
    assert beyond_peak_warnings(1.0, "avx512") == []
    (warning,) = beyond_peak_warnings(1.07, "avx512_bf16")
    assert warning.startswith("The throughput is 1.07 of the peak of avx512_bf16: this is not the limit.")


def test_loadgen_beyond_the_closed_loop_is_told() -> None:
    (warning,) = faster_than_closed_warnings(1.2)
    assert "1.20 times as fast as the closed loop before it" in warning
    assert faster_than_closed_warnings(1.04) == []


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
    assert ours_s > 0
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
        output, errors = start(*options).communicate(timeout=600)
    text, _, last_line = output.rstrip().rpartition("\n")
    seen = f"of core {CORES[0]} during the window"
    assert any(seen in warning for warning in json.loads(last_line)["warnings"]), errors
    assert seen in text
