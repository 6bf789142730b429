"""Shared memory without a name (memfd), in pages as large as the kernel grants, on the wanted NUMA nodes.

    hugetlb   pages of 2 MiB reserved by the administrator (vm.nr_hugepages): all of them, or none
    shmem     ordinary shared memory, which the kernel may put into huge pages (shmem_enabled, MADV_COLLAPSE)

How much is in huge pages is read back from /proc/self/smaps: asking proves nothing. SharedArrays are named arrays in
one such memory, made by one process and attached by others. Their layout has dtype and shape of each; it travels as
JSON beside the descriptor. Pages are taken when they are first written, so that a generous shape costs nothing.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .address_range import HUGE_PAGE, AddressRange
from .numa import MemoryPolicy, bind_memory

_HUGETLB_2MB = 21 << 26  # MFD_HUGE_2MB
_MADV_COLLAPSE = 25  # Linux 6.1
_POOL = "hugepages/hugepages-2048kB/free_hugepages"
_HUGE = re.compile(r"(?:ShmemPmdMapped|Shared_Hugetlb|Private_Hugetlb):\s+(\d+)")
_SMAPS = Path("/proc/self/smaps")

Layout = Mapping[str, tuple[str, Sequence[int]]]  # name -> (dtype, shape)
_ALIGNMENT = 64


class SharedMemory:
    """nbytes of zeros, writable here; other processes map `descriptor`, which they inherit.

    huge: try huge pages; policy: the nodes of its pages, None for whichever touches them first. Raises OSError where
    the system does not grant that much memory.
    """

    def __init__(self, nbytes: int, *, huge: bool, policy: MemoryPolicy | None = None) -> None:
        self.nbytes = -(-nbytes // HUGE_PAGE) * HUGE_PAGE
        self.range = AddressRange(self.nbytes)
        self._huge = huge
        self.is_hugetlb = huge and self.nbytes <= free_hugetlb_bytes(policy) and self._reserve_hugetlb()
        if not self.is_hugetlb:
            self.descriptor = os.memfd_create("dlrm_tvm", os.MFD_CLOEXEC)
            os.ftruncate(self.descriptor, self.nbytes)
            self.range.map_file(self.descriptor, 0, self.nbytes, at=0, writable=True)
            if huge:
                self.range.advise(mmap.MADV_HUGEPAGE)
        if policy is not None:
            bind_memory(self.range.address, self.nbytes, policy)

    def settle(self) -> None:
        """After filling: the kernel is to collapse small pages into huge ones, if it can."""
        if self._huge and not self.is_hugetlb:
            self.range.advise(_MADV_COLLAPSE)

    @property
    def huge_bytes(self) -> int:
        """How much of it is mapped by huge pages here, as smaps says."""
        return _huge_bytes(_SMAPS.read_text(), self.range.address, self.nbytes)

    def close(self) -> None:
        os.close(self.descriptor)

    def _reserve_hugetlb(self) -> bool:
        """Whether there were enough reserved huge pages; mapping takes them all."""
        descriptor = os.memfd_create("dlrm_tvm", os.MFD_CLOEXEC | os.MFD_HUGETLB | _HUGETLB_2MB)
        try:
            os.ftruncate(descriptor, self.nbytes)
            self.range.map_file(descriptor, 0, self.nbytes, at=0, writable=True)
        except OSError:  # another program took them in between
            os.close(descriptor)
            return False
        self.descriptor = descriptor
        return True


def free_hugetlb_bytes(policy: MemoryPolicy | None = None, system: Path = Path("/sys")) -> int:
    """Free huge pages among those that the administrator reserved, on the policy's nodes or on all."""
    pools = [system / "kernel/mm" / _POOL]
    if policy is not None:
        pools = [system / f"devices/system/node/node{node}" / _POOL for node in policy.nodes]
    try:
        return sum(int(pool.read_text()) for pool in pools) * HUGE_PAGE
    except (OSError, ValueError):
        return 0


def _huge_bytes(smaps: str, address: int, nbytes: int) -> int:
    """Bytes mapped by huge pages, of the mappings in these addresses."""
    total, inside = 0, False
    for line in smaps.splitlines():
        if header := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(part, 16) for part in header.groups())
            inside = address <= start and end <= address + nbytes
        elif inside and (size := _HUGE.match(line)):
            total += int(size[1]) * 1024
    return total


class SharedArrays:
    """Arrays by name, writable, zeros at first. The creator closes them when nobody is to attach any more."""

    def __init__(self, descriptor: int, layout: Layout) -> None:
        """Attach to the memory that `create` made with the same layout."""
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, layout_bytes(layout))
        self._arrays = {}
        for name, (dtype, shape, at) in _placed(layout).items():
            count = int(np.prod(shape, dtype=np.int64))
            self._arrays[name] = np.frombuffer(self._memory, dtype, count, at).reshape(shape)

    @classmethod
    def create(cls, layout: Layout) -> SharedArrays:
        """Raises OSError where the system has no descriptor left."""
        descriptor = os.memfd_create("dlrm_tvm", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, layout_bytes(layout))
        return cls(descriptor, layout)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def close(self) -> None:
        """The descriptor; arrays stay valid here as long as they are held."""
        os.close(self.descriptor)


def layout_bytes(layout: Layout) -> int:
    """Size of the whole memory, at least one byte."""
    return max([1, *(at + _array_bytes(dtype, shape) for dtype, shape, at in _placed(layout).values())])


def _placed(layout: Layout) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """name -> (dtype, shape, offset), each array from a cache line of its own."""
    placed, end = {}, 0
    for name, (dtype, shape) in layout.items():
        placed[name] = (dtype, tuple(shape), end)
        end += -(-_array_bytes(dtype, shape) // _ALIGNMENT) * _ALIGNMENT
    return placed


def _array_bytes(dtype: str, shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
