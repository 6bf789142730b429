"""The machine's hardware threads, read from sysfs, and those that this process may use.

    package (socket) > NUMA node > last-level cache > core > hardware thread (a "cpu" in sysfs, a "core id" in taskset)

Reads files under one root, so that a pasted tree serves as well as `/`. Knows nothing of instances: cores.py chooses
for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

MAX_CPU = 65_535  # far above what Linux can be built for (8192 on x86)
_CPUS = "sys/devices/system/cpu"


@dataclass(frozen=True)
class HardwareThread:
    """One cpu of sysfs. `core`: the lowest cpu of its physical core, `cache`: the lowest cpu of its L3."""

    cpu: int
    core: int
    cache: int
    node: int
    package: int


@dataclass(frozen=True)
class Topology:
    """The machine's hardware threads that are online, and the limits of this process.

    usable: cpus in both the affinity mask and the cgroup's cpuset. quota: the cgroup's CPU time per wall time in
    CPUs, None where it is not limited. l3_bytes: the largest last-level cache, 0 where sysfs does not say.
    """

    threads: tuple[HardwareThread, ...]
    usable: frozenset[int]
    quota: float | None
    l3_bytes: int

    @property
    def usable_threads(self) -> tuple[HardwareThread, ...]:
        return tuple(thread for thread in self.threads if thread.cpu in self.usable)

    @property
    def num_cores(self) -> int:
        return len({thread.core for thread in self.threads})

    @property
    def num_nodes(self) -> int:
        return len({thread.node for thread in self.threads})


def read_topology(root: str | Path = "/", affinity: Iterable[int] | None = None) -> Topology:
    """The topology under `root`; `affinity` is this process's mask (default: asked of the kernel).

    Raises UserError where sysfs holds no CPUs.
    """
    root = Path(root)
    folder = root / _CPUS
    online = online_cpus(root)
    if not online:
        raise UserError(f"{folder}/online lists no CPUs; the core layout is read from sysfs, so mount /sys.")
    nodes = _nodes(root / "sys/devices/system/node")
    affinity = set(os.sched_getaffinity(0) if affinity is None else affinity)
    cpuset = cgroup_cpuset(root)
    return Topology(
        threads=tuple(_hardware_thread(folder / f"cpu{cpu}", cpu, nodes) for cpu in online),
        usable=frozenset(affinity & set(online) & (set(online) if cpuset is None else cpuset)),
        quota=cgroup_quota(root),
        l3_bytes=max(_l3(folder / f"cpu{cpu}")[1] for cpu in online),
    )


def parse_cpu_list(text: str) -> list[int]:
    """ "0-3,8" -> [0, 1, 2, 3, 8], in the order given; nothing gives none. Raises ValueError for anything else."""
    return parse_ranges(text, least=0, most=MAX_CPU, noun="a core id") if text.strip() else []


def parse_ranges(text: str, *, least: int, most: int, noun: str, of: str = "") -> list[int]:
    """Numbers and ranges of them, "1-4,8" -> [1, 2, 3, 4, 8], in the order given; "1-8*2" (or x) -> [1, 2, 4, 8] and
    "2-8+3" -> [2, 5, 8].

    Raises ValueError that names the wrong part, followed by `of`, and the `noun` that was wanted.
    """
    numbers: list[int] = []
    for part in (each.strip() for each in text.split(",")):
        first, dash, last = part.partition("-")
        last, sign, by = re.fullmatch(r"([^*x+]*)(?:([*x+])(.*))?", last, re.DOTALL).groups()
        low, high = _number(first.strip()), _number((last if dash else first).strip())
        step, grows = _number(by.strip()) if sign else 1, sign in ("*", "x")
        if low is None or high is None or not least <= low <= high or not step or (grows and (step < 2 or low < 1)):
            raise ValueError(f"{part!r}{of} is neither {noun} nor a range")
        if high > most:  # before a range of them fills the memory
            raise ValueError(f"{part!r}{of} goes beyond {most}")
        while low <= high:
            numbers.append(low)
            low = low * step if grows else low + step
    return numbers


def _number(text: str) -> int | None:
    """None: not a plain decimal number, which Arabic digits and thousands of digits are not either."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 100 else None


def format_cpu_list(cpus: Iterable[int]) -> str:
    """[0, 1, 2, 3, 8] -> "0-3,8", sorted."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def cgroup_quota(root: Path) -> float | None:
    """CPUs' worth of time per wall time: the tightest limit on the way from this process's cgroup to the root."""
    texts = [system_text(folder / "cpu.max").split() for folder in cgroup_folders(root, "")]
    v1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    texts += [[system_text(folder / name) for name in v1] for folder in cgroup_folders(root, "cpu")]
    limited = [text for text in texts if text and all(map(str.isdecimal, text))]  # the rest is "max", -1 or missing
    return min((int(quota) / int(period) for quota, period in limited), default=None)


def cgroup_cpuset(root: Path) -> set[int] | None:
    """The cpus that every cgroup from this process's to the root allows; None where none has a list."""
    texts = [system_text(folder / "cpuset.cpus.effective") for folder in cgroup_folders(root, "")]
    texts += [system_text(folder / "cpuset.cpus") for folder in cgroup_folders(root, "cpuset")]
    sets = [set(parse_cpu_list(text)) for text in texts if text]
    return set.intersection(*sets) if sets else None


def cgroup_folders(root: Path, controller: str) -> list[Path]:
    """This process's folder of a v1 `controller` ("" is v2) and all its parents, up to the mount.

    Inside a container the path in /proc may lie outside of the mount, which is then the container's own group: missing
    folders are no error.
    """
    mounts = ["cgroup", "cgroup/unified"] if controller == "" else [f"cgroup/{controller}", "cgroup/cpu,cpuacct"]
    for line in system_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inner = Path(path.lstrip("/"))
            return [root / "sys/fs" / mount / part for mount in mounts for part in (inner, *inner.parents)]
    return []


def online_cpus(root: Path = Path("/")) -> list[int]:
    """Ascending; empty where sysfs does not say."""
    return parse_cpu_list(system_text(root / _CPUS / "online"))


def core_siblings(root: Path, cpu: int) -> list[int]:
    """The hardware threads of this cpu's physical core, itself included; empty where sysfs does not say."""
    return _siblings(root / _CPUS / f"cpu{cpu}")


def _siblings(folder: Path) -> list[int]:
    # Linux before 4.20 has only the older name of the list.
    return parse_cpu_list(
        system_text(folder / "topology/core_cpus_list") or system_text(folder / "topology/thread_siblings_list")
    )


def _hardware_thread(folder: Path, cpu: int, nodes: dict[int, int]) -> HardwareThread:
    package = system_text(folder / "topology/physical_package_id")
    return HardwareThread(
        cpu=cpu,
        core=min(_siblings(folder), default=cpu),
        cache=_l3(folder)[0],
        node=nodes.get(cpu, 0),
        package=max(int(package or 0), 0),  # some virtual machines say -1
    )


def _l3(folder: Path) -> tuple[int, int]:
    """(lowest cpu that shares the L3, its bytes); (-1, 0) where there is none."""
    for index in sorted(folder.glob("cache/index*")):
        if system_text(index / "level") == "3":
            shared = parse_cpu_list(system_text(index / "shared_cpu_list"))
            return min(shared, default=-1), size_bytes(system_text(index / "size"))
    return -1, 0


def size_bytes(text: str) -> int:
    """ "32768K" -> 33554432."""
    units = {"K": 1024, "M": 1024**2, "G": 1024**3}
    return int(text.rstrip("KMG") or 0) * units.get(text[-1:], 1)


def _nodes(folder: Path) -> dict[int, int]:
    """cpu -> NUMA node; empty on a kernel without NUMA."""
    return {
        cpu: int(node.name.removeprefix("node"))
        for node in folder.glob("node[0-9]*")
        for cpu in parse_cpu_list(system_text(node / "cpulist"))
    }


def system_text(path: Path) -> str:
    """The file's text without the newline; "" where it is missing or may not be read, as is common in sysfs."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
