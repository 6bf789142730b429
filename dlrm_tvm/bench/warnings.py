"""All warnings about disturbances of a measurement, and about figures that are easily misread.

    other load    a cpu of ours was busy for longer than our threads ran on it
    waiting       a thread of ours was ready to run, and its core ran something else
    stolen        the hypervisor ran another machine on our core
    throttled     a CPU quota stopped us
    faults, swap  memory was not in place yet, or no longer; tables that do not fit, or were not read yet
    stall         one instance finished nothing for much longer than usual
    spread, peak  instances differ, the peak changed, throughput did not settle, the queue grew

Each is one line: what was seen, the likely cause, what to try. machine/os_counters.py reads the kernel's counters.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np

from ..engines.interface import EngineGraph
from ..instances.group import MeasuredRun
from ..instances.progress import TOLERANCE, WINDOWS
from ..instances.window import Measurement
from ..machine.os_counters import Snapshot
from ..machine.topology import format_cpu_list
from ..paths import COMPILE_COMMAND
from ..runtime.manifest import Manifest
from ..runtime.weight_copies import TableSetup

_BUSY_SHARE = 0.1  # of a core, before the start: three ticks of the sample
_LOST_SHARE = 0.02  # of a core's time, during the window
_OTHER_LOAD_SHARE, _OTHER_LOAD_LEAST_S = 0.05, 0.05  # of a core, during the window; below 5 ticks nothing is certain
_SPREAD = 0.05
_MINOR_FAULTS_PER_S = 5000  # about half a percent of a core
_MAJOR_FAULTS_PER_S = 10  # each takes some 0.1 ms of an SSD
_SWAPPED_BYTES_PER_S = 1_000_000  # machine-wide
_SOON_READ = 256 << 20  # bytes of tables that a warm-up reads
_STALL_LEAST_S, _STALL_TIMES_USUAL = 0.2, 10
_LATE_SHARE, _LATE_LEAST = 0.05, 5  # of the batches asked for; fewer are chance
_CLOSE_TO_CLOSED_LOOP = 1.05


def load_warnings(busiest: tuple[int, float]) -> list[str]:
    core, share = busiest
    if share <= _BUSY_SHARE:
        return []
    return [
        f"Core {core} was {share:.0%} busy before the start. Probably another program runs there: "
        "end it, or choose other cores with --cores."
    ]


def table_warnings(tables: TableSetup) -> list[str]:
    memory = tables.memory
    if tables.copies:  # they are in memory
        return []
    if not memory.fits:
        return [
            f"Only {memory.available_bytes / 1e9:,.1f} GB of memory are available for {memory.table_bytes / 1e9:,.1f} "
            "GB of tables. Page faults that read the disk will dominate unless few rows are in use: take a "
            "machine with more memory, or give inputs as skewed as yours with --ref-data."
        ]
    missing = 0 if memory.resident_bytes is None else memory.table_bytes - memory.resident_bytes
    if missing <= _SOON_READ:
        return []
    return [
        f"{missing / 1e9:,.1f} GB of the tables are not in memory yet. Page faults that read the disk will "
        "dominate until they are: add --preload."
    ]


def engine_warnings(manifest: Manifest, engine: EngineGraph | None, flags: Set[str]) -> list[str]:
    """About the peak. engine: the other one that ran, if any; flags: the CPU's."""
    if engine is None:
        return []
    peak = manifest.peak_of(engine.precision)
    if peak.precision != engine.precision:
        return [
            f"The engine ran at {engine.precision}, the peak is that of the library's {peak.precision}: its share is "
            f"of another limit. Make a library with: {COMPILE_COMMAND} --precision {engine.precision}"
        ]
    tiles = "amx_int8" if engine.precision == "int8" else "amx_bf16"
    if tiles in flags and not peak.family.startswith("amx"):
        return [
            f"The peak is that of {peak.family}, this CPU has {tiles} too, which the engine may use: its share is of a "
            f"lower limit than the CPU's. Make a library with: {COMPILE_COMMAND} --isa amx"
        ]
    return []


def beyond_peak_warnings(share: float, family: str) -> list[str]:
    if share <= 1:
        return []
    return [
        f"The throughput is {share:.2f} of the peak of {family}: this is not the limit. Probably faster instructions "
        "ran than those of the peak (compile with --isa auto), or the peak was disturbed: repeat the run."
    ]


def run_warnings(run: MeasuredRun, *, with_arrivals: bool = False) -> list[str]:
    """Of one timed window. with_arrivals: then chance gives instances different rates."""
    return [
        *window_warnings(run.before, run.after),
        *other_load_warnings(run.before, run.after),
        *stall_warnings(run.measurement.services_ns),
        *([] if with_arrivals else spread_warnings(run.measurement.batches_per_s)),
    ]


def window_warnings(before: Snapshot, after: Snapshot) -> list[str]:
    """About waiting, stolen time, quotas and memory in the timed window."""
    seconds = _seconds(before, after)
    threads = [len(group) for group in before.groups] or [1] * len(before.waited_ns)
    waited = [(b - a) / 1e9 / seconds / n for a, b, n in zip(before.waited_ns, after.waited_ns, threads)]
    stolen = {cpu: (after.stolen_s.get(cpu, was_s) - was_s) / seconds for cpu, was_s in before.stolen_s.items()}
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
    return warnings + _throttling_warnings(before, after) + _memory_warnings(before, after, seconds)


def other_load_warnings(before: Snapshot, after: Snapshot) -> list[str]:
    """About other programs on the cores of the snapshots' processes, in the timed window."""
    shares, least = other_load(before, after), max(_OTHER_LOAD_SHARE, _OTHER_LOAD_LEAST_S / _seconds(before, after))
    # Each core's counters are off by a little, and independently: n of them by the root of n times as much.
    worst = max(shares, key=lambda cpus: shares[cpus] / len(cpus) ** 0.5, default=())
    if not worst or shares[worst] <= least * len(worst) ** 0.5:
        return []
    which = f"of core {worst[0]}"
    if len(worst) > 1:
        which = f"of one core's time on cores {format_cpu_list(worst)}"
    elif worst[0] not in before.stolen_s:
        which += ", the other half of a chosen one,"
    return [
        f"Other programs took {shares[worst]:.0%} {which} during the window. Probably something else runs there: "
        "see top, end it, or choose other cores with --cores."
    ]


def other_load(before: Snapshot, after: Snapshot) -> dict[tuple[int, ...], float]:
    """cpus -> share of their time in which other threads than the snapshots' ran, added up: 0 to their number.

    Cpus between which a process's threads may move are taken together: of a thread only its last cpu is known. Of two
    busy times of a cpu the smaller one counts: the kernel samples busy time at its ticks, which a program that sleeps
    in step with them evades; idle time is exact, but the moments of reading are not.
    """
    seconds = _seconds(before, after)
    ours_s = dict.fromkeys(before.cpu_times, 0.0)
    for thread, (cpu, ran_s) in after.threads.items():
        ours_s[cpu] = ours_s.get(cpu, 0.0) + ran_s - before.threads.get(thread, (cpu, 0.0))[1]
    not_ours_s = {}
    for cpu in before.cpu_times.keys() & after.cpu_times.keys():
        first, last = before.cpu_times[cpu], after.cpu_times[cpu]
        stolen_s = after.stolen_s.get(cpu, 0) - before.stolen_s.get(cpu, 0)
        not_idle_s = seconds - (last.idle_s - first.idle_s) - stolen_s
        not_ours_s[cpu] = min(last.busy_s - first.busy_s, not_idle_s) - ours_s[cpu]
    together = [cpus for group in before.groups if (cpus := tuple(cpu for cpu in group if cpu in not_ours_s))]
    alone = [(cpu,) for cpu in not_ours_s.keys() - {cpu for cpus in together for cpu in cpus}]
    return {
        cpus: min(max(sum(not_ours_s[cpu] for cpu in cpus) / seconds, 0.0), float(len(cpus)))
        for cpus in (*together, *alone)
    }


def _throttling_warnings(before: Snapshot, after: Snapshot) -> list[str]:
    """Only the cgroup that was stopped longest: those above it may count the same time again."""
    stops = []
    for group, (times, stopped_s) in after.throttled.items():
        times_before, stopped_before_s = before.throttled.get(group, (times, stopped_s))
        stops.append((stopped_s - stopped_before_s, times - times_before))
    stopped_s, times = max(stops, default=(0.0, 0))
    if times <= 0:
        return []
    return [
        f"The CPU quota stopped this container {times:,} times during the window, for {stopped_s:.2f} s added up over "
        "its cores. Probably it has fewer CPUs than busy threads: use fewer instances or threads, or raise the quota."
    ]


def _memory_warnings(before: Snapshot, after: Snapshot, seconds: float) -> list[str]:
    major = sum(after.major_faults) - sum(before.major_faults)
    read, written = (b - a for a, b in zip(before.swapped_bytes, after.swapped_bytes))
    minor_per_s = max((b - a for a, b in zip(before.minor_faults, after.minor_faults)), default=0) / seconds
    warnings = []
    if major > _MAJOR_FAULTS_PER_S * seconds:
        warnings.append(
            f"{major} page faults read from disk during the window. Probably the tables are not in memory yet: "
            "repeat the run, give a longer --warmup, or free memory."
        )
    if minor_per_s > _MINOR_FAULTS_PER_S:
        warnings.append(
            f"An instance took {minor_per_s:,.0f} page faults per second. Probably it still met table pages for the "
            "first time: give a longer --warmup."
        )
    if read + written > _SWAPPED_BYTES_PER_S * seconds:
        warnings.append(
            f"The machine swapped during the window: {read / 1e6:,.1f} MB in, {written / 1e6:,.1f} MB out. Probably "
            "memory is short: end other programs, use fewer instances, or turn swap off."
        )
    return warnings


def stall_warnings(services_ns: Sequence[np.ndarray]) -> list[str]:
    """services_ns: of each batch, one int64 array per instance. Names the worst of the stalled instances."""
    longest_s = [each.max() / 1e9 if len(each) else 0.0 for each in services_ns]
    usual_s = [float(np.median(each)) / 1e9 if len(each) else 0.0 for each in services_ns]
    stalled = [
        instance
        for instance, (longest, usual) in enumerate(zip(longest_s, usual_s))
        if longest > _STALL_LEAST_S and longest > _STALL_TIMES_USUAL * usual
    ]
    if not stalled:
        return []
    worst = max(stalled, key=longest_s.__getitem__)
    others = f" So did {len(stalled) - 1} more, for less long." if len(stalled) > 1 else ""
    return [
        f"Instance {worst} finished nothing for {longest_s[worst]:.1f} s ({usual_s[worst] * 1e3:.3g} ms is usual)."
        f"{others} Probably it was paused (SIGSTOP, the hypervisor, a suspended machine) or waited for a disk: "
        "repeat the run, and do not trust this one's p99.9 and max."
    ]


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


def overload_warnings(measurement: Measurement) -> list[str]:
    """The queue grew: latencies then only tell the length of the window."""
    offered = measurement.offered_per_s
    if offered is None or measurement.late <= max(_LATE_SHARE * offered * measurement.duration_s, _LATE_LEAST):
        return []
    done = measurement.total_batches_per_s
    given_up = f", {measurement.given_up:,} were given up 2 s later" if measurement.given_up else ""
    return [
        f"{offered:,.1f} batches/s were asked for and {done:,.1f} done: {measurement.late:,} still waited when the "
        f"window closed{given_up}. The queue grows, and latencies with the length of the window: try --rate "
        f"{0.8 * done:.3g}."
    ]


def stability_warnings(stable: bool | None, interrupted: bool) -> list[str]:
    if stable is not False or interrupted:
        return []
    return [
        f"Throughput did not become stable: no {WINDOWS} windows in a row within {TOLERANCE:.0%} of their mean. "
        "Probably something else ran from time to time, or the window was short: give a longer --duration, or look "
        "for what else runs."
    ]


def faster_than_closed_warnings(ratio: float) -> list[str]:
    """ratio: of LoadGen's Offline throughput to the closed loop's. No queue makes a machine faster: something slowed
    the closed loop down, and LoadGen was told too little."""
    if ratio <= _CLOSE_TO_CLOSED_LOOP:
        return []
    return [
        f"LoadGen's run was {ratio:.2f} times as fast as the closed loop before it. Probably something else ran then: "
        "repeat the run."
    ]


def _seconds(before: Snapshot, after: Snapshot) -> float:
    return max(after.time_s - before.time_s, 1e-9)
