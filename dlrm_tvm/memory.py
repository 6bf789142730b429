"""How much memory there is to be had, and how much processes take, each shared page counted once (PSS)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .topology import cgroup_folders, system_text

_NO_LIMIT_V1 = 1 << 62  # cgroup v1 writes the largest multiple of a page in 63 bits


@dataclass(frozen=True)
class MemoryUse:
    """bytes: pss = private + this process's share of the pages that it has in common with others."""

    pss_bytes: int
    private_bytes: int

    @property
    def shared_bytes(self) -> int:
        return self.pss_bytes - self.private_bytes


def available_bytes(root: Path = Path("/")) -> int:
    """What can be had without swapping, clean file pages included: the system's, or less where a cgroup limits it."""
    system = 1024 * int(re.search(r"^MemAvailable:\s+(\d+)", (root / "proc/meminfo").read_text(), re.MULTILINE)[1])
    limits = [_left_v2(folder) for folder in cgroup_folders(root, "")]
    limits += [_left_v1(folder) for folder in cgroup_folders(root, "memory")]
    return min([system, *(left for left in limits if left is not None)])


def total_bytes(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """(memory, swap) of the machine; None where /proc/meminfo does not say."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None, None
    kilobytes = dict(re.findall(r"^(MemTotal|SwapTotal):\s+(\d+) kB", text, re.MULTILINE))
    memory, swap = (int(kilobytes[name]) * 1024 if name in kilobytes else None for name in ("MemTotal", "SwapTotal"))
    return memory, swap


def limit_bytes(root: Path = Path("/")) -> int | None:
    """The tightest limit of this process's cgroups; None where there is none."""
    files = [folder / "memory.max" for folder in cgroup_folders(root, "")]
    files += [folder / "memory.limit_in_bytes" for folder in cgroup_folders(root, "memory")]
    limits = [int(text) for text in map(system_text, files) if text.isdecimal()]  # the rest is "max" or missing
    return min((limit for limit in limits if limit < _NO_LIMIT_V1), default=None)


def _left_v2(folder: Path) -> int | None:
    """Of one cgroup's limit, what is not used, or used by clean file pages; None where it has no limit."""
    return _left(folder / "memory.max", folder / "memory.current", folder / "memory.stat")


def _left_v1(folder: Path) -> int | None:
    return _left(folder / "memory.limit_in_bytes", folder / "memory.usage_in_bytes", folder / "memory.stat")


def _left(limit: Path, usage: Path, stat: Path) -> int | None:
    try:
        most, used, counters = limit.read_text().strip(), int(usage.read_text()), stat.read_text()
    except (OSError, ValueError):
        return None
    if not most.isdecimal():  # "max"
        return None
    # In the older groups plain counters leave out the groups below, whose usage is counted in.
    prefix = "total_" if "total_active_file" in counters else ""
    cached = sum(int(size) for size in re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", counters, re.MULTILINE))
    return max(int(most) - used + cached, 0)


def memory_use(pid: int) -> MemoryUse:
    """From /proc/PID/smaps_rollup. Raises OSError when the process is gone or another user's."""
    return parse_smaps(Path(f"/proc/{pid}/smaps_rollup").read_text())


def parse_smaps(text: str) -> MemoryUse:
    kilobytes = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return MemoryUse(pss_bytes=kilobytes["Pss"] * 1024, private_bytes=private * 1024)
