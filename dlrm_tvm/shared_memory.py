"""Shared memory without a name (memfd), in pages as large as the kernel grants, on the NUMA nodes asked for.

    hugetlb   pages of 2 MiB set aside by the administrator (vm.nr_hugepages): certain, or not to be had
    shmem     ordinary shared memory, of which the kernel makes huge pages when it may (shmem_enabled, MADV_COLLAPSE)

What was got is read back from /proc/self/smaps: asking proves nothing.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

from .address_range import HUGE_PAGE, AddressRange
from .numa import MemoryPolicy, bind_memory

_HUGETLB_2MB = 21 << 26  # MFD_HUGE_2MB
_MADV_COLLAPSE = 25  # Linux 6.1
_POOL = "hugepages/hugepages-2048kB/free_hugepages"
_HUGE = re.compile(r"(?:ShmemPmdMapped|Shared_Hugetlb|Private_Hugetlb):\s+(\d+)")
_SMAPS = Path("/proc/self/smaps")


class SharedMemory:
    """nbytes of zeros, writable here; other processes map `descriptor`, which they inherit.

    huge: try for huge pages; policy: which nodes its pages come from, None for whichever touches them first.
    Raises OSError where the system has not that much memory to promise.
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
        """After filling: have the kernel gather what it gave in small pages into huge ones, if it can."""
        if self._huge and not self.is_hugetlb:
            self.range.advise(_MADV_COLLAPSE)

    @property
    def huge_bytes(self) -> int:
        """How much of it is mapped by huge pages here, as smaps says."""
        return _huge_bytes(_SMAPS.read_text(), self.range.address, self.nbytes)

    def close(self) -> None:
        os.close(self.descriptor)

    def _reserve_hugetlb(self) -> bool:
        """Whether the huge pages set aside could be had; mapping them reserves them all."""
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
    """What of the huge pages that the administrator has set aside is free, on the policy's nodes or on all."""
    pools = [system / "kernel/mm" / _POOL]
    if policy is not None:
        pools = [system / f"devices/system/node/node{node}" / _POOL for node in policy.nodes]
    try:
        return sum(int(pool.read_text()) for pool in pools) * HUGE_PAGE
    except (OSError, ValueError):
        return 0


def _huge_bytes(smaps: str, address: int, nbytes: int) -> int:
    """Of the mappings that lie in these addresses, what huge pages map."""
    total, inside = 0, False
    for line in smaps.splitlines():
        if header := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(part, 16) for part in header.groups())
            inside = address <= start and end <= address + nbytes
        elif inside and (size := _HUGE.match(line)):
            total += int(size[1]) * 1024
    return total
