"""What else went on while something was measured: from the kernel's own counters, before and after.

    waiting   a thread of ours was ready to run, and its core ran something else   /proc/PID/task/*/schedstat
    stolen    the hypervisor ran another machine on our core                       /proc/stat
    faults    memory was not in place yet                                          /proc/PID/stat

Each finding is one line: what was seen, the likely cause, what to try. Reading costs the measured processes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_BUSY_SHARE = 0.1  # of a core, before the start: three ticks of the sample
_LOST_SHARE = 0.02  # of a core's time, during the window
_SPREAD = 0.05
_MINOR_FAULTS_PER_S = 5000  # about half a percent of a core


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment. Per process: ns its threads waited for a core, page faults; per cpu: stolen ticks."""

    time_s: float
    waited_ns: tuple[int, ...]
    minor_faults: tuple[int, ...]
    major_faults: tuple[int, ...]
    stolen_ticks: dict[int, int]


def take_snapshot(pids: Sequence[int], cpus: Iterable[int]) -> Snapshot:
    """A process that has just ended counts as zeros: its end is reported elsewhere."""
    faults = [_faults(pid) for pid in pids]
    ticks = _cpu_ticks()
    return Snapshot(
        time_s=time.monotonic(),
        waited_ns=tuple(_waited_ns(pid) for pid in pids),
        minor_faults=tuple(minor for minor, _ in faults),
        major_faults=tuple(major for _, major in faults),
        stolen_ticks={cpu: ticks[cpu][7] for cpu in cpus if cpu in ticks},
    )


def busiest_core(cpus: Sequence[int], sample_s: float = 0.25) -> tuple[int, float]:
    """Of `cpus`, the one that works most right now, and the share of its time."""
    before = _cpu_ticks()
    time.sleep(sample_s)
    after = _cpu_ticks()
    shares = {cpu: _busy_share(before[cpu], after[cpu]) for cpu in cpus if cpu in before and cpu in after}
    return max(shares.items(), key=lambda item: item[1], default=(cpus[0], 0.0))


def load_warnings(busiest: tuple[int, float]) -> list[str]:
    core, share = busiest
    if share <= _BUSY_SHARE:
        return []
    return [
        f"Core {core} was {share:.0%} busy before the start. Probably another program runs there: "
        "end it, or choose other cores with --cores."
    ]


def window_warnings(before: Snapshot, after: Snapshot) -> list[str]:
    """Findings about the timed window."""
    seconds = max(after.time_s - before.time_s, 1e-9)
    waited = [(b - a) / 1e9 / seconds for a, b in zip(before.waited_ns, after.waited_ns)]
    stolen = {
        cpu: (after.stolen_ticks.get(cpu, ticks) - ticks) / _TICKS_PER_S / seconds
        for cpu, ticks in before.stolen_ticks.items()
    }
    warnings = []
    if max(waited, default=0) > _LOST_SHARE:
        worst = waited.index(max(waited))
        warnings.append(
            f"Instance {worst} waited {waited[worst]:.1%} of the window for its cores. Probably another program ran "
            "there: end it, or choose other cores with --cores."
        )
    if max(stolen.values(), default=0) > _LOST_SHARE:
        worst = max(stolen, key=stolen.__getitem__)
        warnings.append(
            f"The hypervisor took core {worst} away for {stolen[worst]:.1%} of the window. Probably other virtual "
            "machines share the host: repeat the run, take the best, or use a dedicated host."
        )
    return warnings + _fault_warnings(before, after, seconds)


def _fault_warnings(before: Snapshot, after: Snapshot, seconds: float) -> list[str]:
    major = sum(after.major_faults) - sum(before.major_faults)
    minor_per_s = max((b - a for a, b in zip(before.minor_faults, after.minor_faults)), default=0) / seconds
    warnings = []
    if major > 0:
        warnings.append(
            f"{major} page faults read from disk during the window. Probably the tables are not in memory yet: "
            "repeat the run, give a longer --warmup, or free memory."
        )
    if minor_per_s > _MINOR_FAULTS_PER_S:
        warnings.append(
            f"An instance took {minor_per_s:,.0f} page faults per second. Probably it still met table pages for the "
            "first time: give a longer --warmup."
        )
    return warnings


def peak_warnings(before_gflops: float, after_gflops: float) -> list[str]:
    change = after_gflops / before_gflops - 1
    if abs(change) <= _SPREAD:
        return []
    return [
        f"The peak went from {before_gflops:.1f} to {after_gflops:.1f} GFLOP/s ({change:+.1%}) between before and "
        "after. Probably another program or machine ran there, or the clock frequency changed: wait and repeat, or "
        "fix the frequency."
    ]


def spread_warnings(batches_per_s: Sequence[float]) -> list[str]:
    slowest, fastest = min(batches_per_s), max(batches_per_s)
    if slowest >= fastest * (1 - _SPREAD):
        return []
    return [
        f"Instance {list(batches_per_s).index(slowest)} ran at {slowest / fastest:.0%} of the fastest one's rate. "
        "Probably its cores are shared, or its memory is on another NUMA node: look at the per-instance lines, "
        "choose other cores with --cores."
    ]


def _cpu_ticks() -> dict[int, list[int]]:
    """cpu -> user, nice, system, idle, iowait, irq, softirq, steal, .. in ticks since boot."""
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    return {int(line[0][3:]): [int(value) for value in line[1:]] for line in lines if line[0][3:].isdecimal()}


def _busy_share(before: list[int], after: list[int]) -> float:
    spent = [b - a for a, b in zip(before[:8], after[:8])]
    return 1 - (spent[3] + spent[4]) / max(sum(spent), 1)


def _waited_ns(pid: int) -> int:
    """0 where the kernel keeps no such counter."""
    waited = 0
    for task in _tasks(pid):
        try:
            waited += int((task / "schedstat").read_text().split()[1])
        except (OSError, IndexError):
            continue
    return waited


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _faults(pid: int) -> tuple[int, int]:
    """(minor, major). The command's name, in parentheses, may hold blanks: fields count from after it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, 0
    return int(fields[7]), int(fields[9])
