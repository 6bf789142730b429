"""Available memory, and how much of it processes take, each shared page counted once (PSS).

psutil reads the machine's and the processes' figures; cgroups, which it does not know, are read here.
"""

from __future__ import annotations

import mmap
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from .topology import cgroup_folders, system_text

_NO_LIMIT_V1 = 1 << 62  # cgroup v1 writes the largest multiple of a page in 63 bits


@dataclass(frozen=True)
class MemoryUse:
    """bytes: pss = private + this process's share of the pages that it shares with others."""

    pss_bytes: int
    private_bytes: int

    @property
    def shared_bytes(self) -> int:
        return self.pss_bytes - self.private_bytes


def memory_use(pid: int) -> MemoryUse:
    """Raises OSError when the process is gone or another user's."""
    try:
        used = psutil.Process(pid).memory_full_info()
    except psutil.Error as error:
        raise OSError(f"memory of process {pid}: {error.msg}") from error
    return MemoryUse(pss_bytes=used.pss, private_bytes=used.uss)


def available_bytes(root: Path = Path("/")) -> int:
    """Memory available without swapping, clean file pages included: the system's, or less where a cgroup limits it.

    root: where the cgroups are.
    """
    limits = [_left_v2(folder) for folder in cgroup_folders(root, "")]
    limits += [_left_v1(folder) for folder in cgroup_folders(root, "memory")]
    return min([psutil.virtual_memory().available, *(left for left in limits if left is not None)])


def total_bytes() -> tuple[int | None, int | None]:
    """(memory, swap) of the machine; None where the system does not say."""
    try:
        return psutil.virtual_memory().total, _swap()[0]
    except OSError:
        return None, None


def swapped_bytes() -> tuple[int, int]:
    """(in, out) since boot, machine-wide; zeros where the system does not say."""
    try:
        return _swap()[1:]
    except OSError:
        return 0, 0


def _swap() -> tuple[int, int, int]:
    """Bytes: in all, in and out since boot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a kernel that does not count pages in and out
        swap = psutil.swap_memory()
    return swap.total, swap.sin, swap.sout


def limit_bytes(root: Path = Path("/")) -> int | None:
    """The tightest limit of this process's cgroups; None where there is none."""
    files = [folder / "memory.max" for folder in cgroup_folders(root, "")]
    files += [folder / "memory.limit_in_bytes" for folder in cgroup_folders(root, "memory")]
    limits = [int(text) for text in map(system_text, files) if text.isdecimal()]  # the rest is "max" or missing
    return min((limit for limit in limits if limit < _NO_LIMIT_V1), default=None)


def _left_v2(folder: Path) -> int | None:
    """What is left of one cgroup's limit, clean file pages included; None where it has no limit."""
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
    # The older groups' plain counters leave out the groups below, whose usage counts.
    prefix = "total_" if "total_active_file" in counters else ""
    cached = sum(int(size) for size in re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", counters, re.MULTILINE))
    return max(int(most) - used + cached, 0)


def memory_map(array: np.ndarray) -> np.memmap | None:
    """The memory map that the array is a view of."""
    root: object = array
    while isinstance(root, np.ndarray) and not isinstance(root.base, mmap.mmap):
        root = root.base
    return root if isinstance(root, np.memmap) else None


def let_go(array: np.ndarray) -> None:
    """Unmap what was read of a memory map; it stays in the page cache.

    Where that holds large folios, as after copying a file, the kernel maps up to 2 MB around each row (Linux 6.18), all
    of which counts as this process's memory.
    """
    root = memory_map(array)
    if root is not None:
        root.base.madvise(mmap.MADV_DONTNEED)
