"""Counters from pasted /proc trees."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import psutil
import pytest
from sysfs_trees import ONLINE_CPU, meminfo, read_by_psutil, write

from dlrm_tvm.machine.os_counters import TICKS_PER_S, busiest_core, cpu_times, take_snapshot


def stat_line(name: str, *, minor: int, major: int, user: int, system: int, cpu: int) -> str:
    fields = ["S", *["0"] * 6, str(minor), "0", str(major), "0", str(user), str(system), *["0"] * 23, str(cpu), "0"]
    return f"7 ({name}) " + " ".join(fields)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path
    read_by_psutil(root, monkeypatch)
    write(root, f"{ONLINE_CPU}/online", "0-1")
    write(root, "proc/stat", "cpu 9 9 9 9\ncpu0 100 10 40 500 25 3 2 7 0 0\ncpu1 1 0 0 900 0 0 0 0 0 0\nintr 5")
    write(root, "proc/7/stat", stat_line("a) b (c", minor=11, major=2, user=0, system=0, cpu=0))
    write(root, "proc/7/task/7/stat", stat_line("a) b (c", minor=0, major=0, user=150, system=50, cpu=0))
    write(root, "proc/7/task/7/schedstat", "1500000000 25000000 99")
    write(root, "proc/7/task/8/stat", stat_line("x", minor=0, major=0, user=150, system=50, cpu=1))
    meminfo(root, total_kb=9)
    write(root, "proc/vmstat", "nr_free_pages 9\npswpin 12\npswpout 34\npswpinx 5")
    return root


def test_counters_are_read_from_proc(tree: Path) -> None:
    seen = take_snapshot([7, 999], [[0], [5]], tree)
    ((cpu, times),) = seen.cpu_times.items()
    assert cpu == 0
    assert [times.busy_s, times.idle_s, times.stolen_s] == pytest.approx([each / TICKS_PER_S for each in (155, 525, 7)])
    assert (seen.stolen_s, seen.groups) == ({0: 7 / TICKS_PER_S}, ((0,), (5,)))
    assert seen.threads == {7: (0, 1.5), 8: (1, 200 / TICKS_PER_S)}  # the second one without schedstat
    assert seen.waited_ns == (25_000_000, 0)
    assert (seen.minor_faults, seen.major_faults) == ((11, 0), (2, 0))
    assert seen.swapped_bytes == (12 * 4096, 34 * 4096)
    assert seen.throttled == {}


def test_the_other_hardware_thread_of_a_core_is_counted_too(tree: Path) -> None:
    write(tree, "sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1")
    seen = take_snapshot([], [[0]], tree)
    assert (set(seen.cpu_times), set(seen.stolen_s)) == ({0, 1}, {0})


def test_throttling_is_read_from_both_versions_of_cgroups(tree: Path) -> None:
    write(tree, "proc/self/cgroup", "3:cpu,cpuacct:/pod\n0::/box/inner")
    write(tree, "sys/fs/cgroup/box/cpu.stat", "usage_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 250000")
    write(tree, "sys/fs/cgroup/cpu.stat", "usage_usec 5")  # the root has no quota
    write(tree, "sys/fs/cgroup/cpu/pod/cpu.stat", "nr_periods 9\nnr_throttled 2\nthrottled_time 1500000000")
    seen = take_snapshot([], [[0]], tree).throttled
    assert {Path(group).name: counts for group, counts in seen.items()} == {"box": (4, 0.25), "pod": (2, 1.5)}


def test_cpus_keep_their_numbers_where_some_are_offline(tree: Path) -> None:
    write(tree, f"{ONLINE_CPU}/online", "0,3")
    assert {cpu: times.idle_s * TICKS_PER_S for cpu, times in cpu_times(tree).items()} == {0: 525, 3: 900}


def test_a_busy_share_is_between_0_and_1_though_counters_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = psutil.cpu_times()._replace
    zeros = dict.fromkeys(psutil.cpu_times()._fields, 0.0)
    before = [kinds(**zeros | {"user": 3.0, "idle": 5.0})] * 3
    after = [kinds(**zeros | {"user": 3 - 1e-12, "idle": 5.25}), kinds(**zeros | {"user": 3.25, "idle": 5 - 1e-12})]
    after.append(kinds(**zeros | {"user": 3.1, "idle": 5.1, "steal": 0.2}))
    looks = cycle([before, after])
    monkeypatch.setattr("dlrm_tvm.machine.os_counters.online_cpus", lambda: [0, 1, 7])
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: next(looks))
    for cpus, busiest in (([0], (0, 0.0)), ([1, 0], (1, 1.0)), ([0, 7], (7, 0.75)), ([9], (9, 0.0))):
        assert busiest_core(cpus, sample_s=1e-6) == busiest
