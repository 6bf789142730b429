"""The kernel's own counters at one moment, of some processes, their cpus and their container.

    waited, ran    each thread's time ready but without a core, and on one    /proc/PID/task/*/schedstat, stat
    cpu time       busy, idle and stolen time of each cpu                     psutil
    faults         pages that were not in place                               /proc/PID/stat
    swap           bytes read from and written to it, machine-wide            psutil
    throttled      times and seconds that a CPU quota stopped the container   cpu.stat of its cgroups

Only files are read, so the measured processes are not interrupted. bench/warnings.py says what two snapshots differ by.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .memory import swapped_bytes
from .topology import cgroup_folders, core_siblings, online_cpus, system_text

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuTime:
    """Seconds since boot. busy: programs, kernel and interrupts; idle: waiting for a disk included; stolen: the
    hypervisor ran another machine."""

    busy_s: float
    idle_s: float
    stolen_s: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment. Per process: ns its threads waited for a core, page faults.

    stolen_s: of the processes' cpus; cpu_times: of these, and of the other hardware threads of their cores; threads:
    thread id -> (the cpu it last ran on, its CPU seconds); swapped_bytes: in, out; throttled: per cgroup from this
    process's to the root: times, seconds (added up over its cpus). groups: per process the cpus that it is confined to,
    one per thread, between which its threads may move.
    """

    time_s: float
    waited_ns: tuple[int, ...]
    minor_faults: tuple[int, ...]
    major_faults: tuple[int, ...]
    stolen_s: dict[int, float]
    cpu_times: dict[int, CpuTime] = field(default_factory=dict)
    threads: dict[int, tuple[int, float]] = field(default_factory=dict)
    swapped_bytes: tuple[int, int] = (0, 0)
    throttled: dict[str, tuple[int, float]] = field(default_factory=dict)
    groups: tuple[tuple[int, ...], ...] = ()


def take_snapshot(pids: Sequence[int], groups: Sequence[Sequence[int]], root: Path = Path("/")) -> Snapshot:
    """groups: of each process, the cpus that it is confined to. root: of what is read here.

    What the kernel does not count, and a process that has just ended, are zeros: its end is reported elsewhere."""
    faults = [_faults(root / f"proc/{pid}/stat") for pid in pids]
    tasks = [_tasks(root / f"proc/{pid}/task") for pid in pids]
    times, now_s = cpu_times(root), time.monotonic()  # at once: idle time is compared with the time between
    cpus = [cpu for group in groups for cpu in group if cpu in times]
    siblings = {sibling for cpu in cpus for sibling in core_siblings(root, cpu)} & times.keys()
    return Snapshot(
        time_s=now_s,
        waited_ns=tuple(sum((_schedstat(task) or (0, 0))[1] for task in each) for each in tasks),
        minor_faults=tuple(minor for minor, _ in faults),
        major_faults=tuple(major for _, major in faults),
        stolen_s={cpu: times[cpu].stolen_s for cpu in cpus},
        cpu_times={cpu: times[cpu] for cpu in {*cpus, *siblings}},
        threads={int(task.name): ran for each in tasks for task in each if (ran := _ran(task))},
        swapped_bytes=swapped_bytes(),
        throttled=_throttled(root),
        groups=tuple(tuple(group) for group in groups),
    )


def cpu_times(root: Path = Path("/")) -> dict[int, CpuTime]:
    """cpu -> its time since boot. psutil lists the online cpus in their order, without their numbers."""
    return {
        cpu: CpuTime(
            busy_s=each.user + each.nice + each.system + each.irq + each.softirq,
            idle_s=each.idle + each.iowait,
            stolen_s=each.steal,
        )
        for cpu, each in zip(online_cpus(root), psutil.cpu_times(percpu=True))
    }


def busiest_core(cpus: Sequence[int], sample_s: float = 0.25) -> tuple[int, float]:
    """The one of `cpus` that is busiest right now, and its busy share; stolen time is another machine's work there."""
    shares = dict(zip(online_cpus(), psutil.cpu_percent(sample_s, percpu=True)))
    busiest = max(cpus, key=lambda cpu: shares.get(cpu, 0.0))
    return busiest, shares.get(busiest, 0.0) / 100


def _tasks(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _schedstat(task: Path) -> tuple[int, int] | None:
    """ns on a core, and ns of waiting for one; None where the kernel keeps no such counters."""
    fields = system_text(task / "schedstat").split()
    return (int(fields[0]), int(fields[1])) if fields else None


def _ran(task: Path) -> tuple[int, float] | None:
    """(cpu, seconds): schedstat's nanoseconds if it has any, else stat's ticks; None for a thread that ended."""
    fields = _stat_fields(task / "stat")
    if not fields:
        return None
    counters, ticks = _schedstat(task), int(fields[11]) + int(fields[12])
    return int(fields[36]), counters[0] / 1e9 if counters else ticks / TICKS_PER_S


def _faults(stat: Path) -> tuple[int, int]:
    """(minor, major)."""
    fields = _stat_fields(stat)
    return (int(fields[7]), int(fields[9])) if fields else (0, 0)


def _stat_fields(stat: Path) -> list[str]:
    """From the third, the state, on: the command's name, in parentheses, may hold blanks. Empty for one that ended."""
    return system_text(stat).rpartition(")")[2].split()


def _throttled(root: Path) -> dict[str, tuple[int, float]]:
    """Microseconds in cgroup v2, nanoseconds in v1."""
    folders = [*cgroup_folders(root, ""), *cgroup_folders(root, "cpu")]
    counters = {}
    for folder in folders:
        found = dict(re.findall(r"^(\w+) (\d+)$", system_text(folder / "cpu.stat"), re.MULTILINE))
        if "nr_throttled" in found:
            stopped_s = int(found.get("throttled_usec", 0)) / 1e6 + int(found.get("throttled_time", 0)) / 1e9
            counters[str(folder)] = int(found["nr_throttled"]), stopped_s
    return counters
