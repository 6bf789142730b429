"""The choice of cores for each instance.

N instances of T threads take T physical cores each, one hardware thread per core unless hyper-threading is asked for.
Where the counts allow it, an instance stays within one last-level cache, else within one NUMA node.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterable, Sequence

from ..errors import UserError
from .topology import HardwareThread, Topology, format_cpu_list, parse_cpu_list

_CORES_WITHOUT_A_SPARE = 4


def choose_cores(
    topology: Topology,
    *,
    instances: int | None,
    threads: int,
    hyper_threading: bool = False,
    core_list: str | None = None,
) -> tuple[tuple[int, ...], ...]:
    """The cpu ids of each instance, one per thread; thread i of an instance runs on its i-th.

    instances: None means as many as fit. core_list: "0-3,8", used in the order given; it overrides the choice.
    Raises UserError when that many do not fit, or the list names a core that is unknown, not usable or taken.
    """
    if core_list is not None:
        cpus = _listed(topology, core_list, hyper_threading)
        place, slots = f"--cores names {len(cpus)}", _chunks(cpus, threads)[0]
    else:
        candidates = _candidates(topology, hyper_threading)
        place, slots = _place(topology, len(candidates)), _slots(candidates, threads)
        cpus = [thread.cpu for thread in candidates]
    if instances is None:
        instances = max(len(slots), 1)
    if instances > len(slots):
        raise UserError(_too_many(instances, threads, len(cpus), place, "threads" if hyper_threading else "cores"))
    return tuple(tuple(slot) for slot in slots[:instances])


def spare_cpus(topology: Topology) -> frozenset[int]:
    """The hardware threads of the first usable core, if more than 4 cores are usable; else none."""
    cores = sorted({thread.core for thread in topology.usable_threads})
    if len(cores) <= _CORES_WITHOUT_A_SPARE or (topology.quota or math.inf) <= _CORES_WITHOUT_A_SPARE:
        return frozenset()
    return frozenset(thread.cpu for thread in topology.usable_threads if thread.core == cores[0])


def claimed_core() -> tuple[int, socket.socket] | None:
    """A usable CPU that no other process which asked here has, and what holds it: an abstract socket, gone with the
    process. None where all are taken."""
    for core in sorted(os.sched_getaffinity(0)):
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0dlrm_tvm core {core}")
            return core, name
        except OSError:
            name.close()
    return None


def _candidates(topology: Topology, hyper_threading: bool) -> list[HardwareThread]:
    """Usable hardware threads in the order of use, no more than the CPU quota allows."""
    order = sorted(topology.usable_threads, key=lambda t: (t.package, t.node, t.cache, t.core, t.cpu))
    if not hyper_threading:
        order = list({thread.core: thread for thread in reversed(order)}.values())[::-1]  # lowest usable sibling
    limit = len(order) if topology.quota is None else max(math.floor(topology.quota), 1)
    return order[:limit]


def _slots(threads: list[HardwareThread], size: int) -> list[list[int]]:
    """As many groups of `size` as fit: within a cache first, then within a node, then across nodes."""
    slots: list[list[int]] = []
    for locality in (lambda t: (t.node, t.cache), lambda t: t.node, lambda t: 0):
        leftovers: list[HardwareThread] = []
        for place in sorted({locality(thread) for thread in threads}):
            groups, rest = _chunks([thread for thread in threads if locality(thread) == place], size)
            slots += [[thread.cpu for thread in group] for group in groups]
            leftovers += rest
        threads = leftovers
    return slots


def _chunks(items: Sequence, size: int) -> tuple[list[list], list]:
    """Whole groups of `size`, and what is left."""
    whole = len(items) - len(items) % size
    return [list(items[start : start + size]) for start in range(0, whole, size)], list(items[whole:])


def _listed(topology: Topology, core_list: str, hyper_threading: bool) -> list[int]:
    try:
        cpus = parse_cpu_list(core_list)
    except ValueError as error:
        raise UserError(f"--cores {core_list}: {error}. Write it like 0-3,8,10-11.") from None
    if not cpus:
        raise UserError("--cores names no core. Write it like 0-3,8,10-11.")
    known = {thread.cpu: thread for thread in topology.threads}
    _refuse(cpus, {cpu for cpu in cpus if cpu not in known}, f"unknown; this machine has {format_cpu_list(known)}")
    usable = format_cpu_list(topology.usable)
    _refuse(cpus, set(cpus) - topology.usable, f"not usable here; usable are {usable} (affinity mask and cgroup)")
    if len(set(cpus)) < len(cpus):
        twice = next(cpu for cpu in cpus if cpus.count(cpu) > 1)
        raise UserError(f"--cores {core_list}: core {twice} is named twice; each thread needs a core of its own.")
    if not hyper_threading:
        _refuse_siblings(core_list, [known[cpu] for cpu in cpus])
    return cpus


def _refuse(cpus: list[int], wrong: set[int], why: str) -> None:
    if wrong:
        first = next(cpu for cpu in cpus if cpu in wrong)
        raise UserError(f"Core {first} of --cores is {why}.")


def _refuse_siblings(core_list: str, threads: Iterable[HardwareThread]) -> None:
    seen: dict[int, int] = {}
    for thread in threads:
        if thread.core in seen:
            raise UserError(
                f"--cores {core_list}: {seen[thread.core]} and {thread.cpu} are hardware threads of one core. "
                "Name one of them, or add --hyper-threading."
            )
        seen[thread.core] = thread.cpu


def _place(topology: Topology, count: int) -> str:
    usable = f"{count} {'is' if count == 1 else 'are'} usable here"
    if topology.quota is not None and topology.quota < len(topology.usable):
        return f"{usable} (this container's CPU quota is {topology.quota:g})"
    return usable


def _too_many(instances: int, threads: int, available: int, place: str, unit: str) -> str:
    one = "instance" if instances == 1 else "instances"
    each = "thread" if threads == 1 else "threads"
    fit = available // threads
    if fit:
        remedy = f"--num-instances {fit}"
    elif available >= instances:
        remedy = f"--num-threads {available // instances}"
    else:
        remedy = f"--num-instances {available} --num-threads 1"
    return f"{instances} {one} × {threads} {each} need {instances * threads} {unit}; {place}. Try {remedy}."
