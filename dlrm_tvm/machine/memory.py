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
    left = [_left(*files) for files in _limits_and_uses(root)]
    return min([psutil.virtual_memory().available, *(each for each in left if each is not None)])


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
    texts = [system_text(limit) for limit, _ in _limits_and_uses(root)]
    limits = [int(text) for text in texts if text.isdecimal()]  # the rest is "max" or missing
    return min((limit for limit in limits if limit < _NO_LIMIT_V1), default=None)


def _limits_and_uses(root: Path) -> list[tuple[Path, Path]]:
    """The files of cgroup v2 and of v1."""
    v2, v1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folders = [(folder, v2) for folder in cgroup_folders(root, "")]
    folders += [(folder, v1) for folder in cgroup_folders(root, "memory")]
    return [(folder / limit, folder / use) for folder, (limit, use) in folders]


def _left(limit: Path, use: Path) -> int | None:
    """What is left of one cgroup's limit, clean file pages included; None where it has no limit."""
    try:
        most, used = limit.read_text().strip(), int(use.read_text())
        counters = limit.with_name("memory.stat").read_text()
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
