"""A range of addresses in which parts of several files are mapped side by side, read-only, shared by all processes.

    range = AddressRange(nbytes)                       # reserved, nothing behind it yet
    range.map_file(fd, offset, nbytes, at=0)           # no copy: pages come when they are touched
    range.array                                        # [nbytes] uint8

Python's mmap can neither reserve addresses nor map at a given one, so the system calls are made here. Addresses without
a file may not be touched (PROT_NONE).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Iterator

import numpy as np

HUGE_PAGE = 2 << 20
_PAGE = mmap.PAGESIZE
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value
_RESIDENCY_BYTES = 1 << 30  # looked at per call of mincore

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


class AddressRange:
    """nbytes of addresses from a multiple of 2 MiB on, unmapped when neither this nor an array of it is left."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._reserved = nbytes + 2 * HUGE_PAGE
        start = _map(None, self._reserved, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
        self.address = -(-start // HUGE_PAGE) * HUGE_PAGE
        self._give_back = weakref.finalize(self, _libc.munmap, start, self._reserved)
        self._give_back.atexit = False  # arrays may still be in use then; the kernel unmaps all at the end

    def map_file(self, fd: int, offset: int, nbytes: int, *, at: int, writable: bool = False) -> None:
        """Put a file's bytes from `offset` on at byte `at` of the range; both multiples of a page. Raises OSError."""
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        _map(self.address + at, nbytes, access, mmap.MAP_SHARED | _MAP_FIXED, fd, offset)

    def advise(self, advice: int, *, at: int = 0, nbytes: int | None = None) -> bool:
        """madvise, from the page of `at` on; whether the kernel accepted it."""
        start = at // _PAGE * _PAGE
        length = (self.nbytes if nbytes is None else nbytes) + at - start
        return _libc.madvise(self.address + start, length, advice) == 0

    def let_go(self) -> None:
        """Unmap the pages that were touched, of files: they stay in the page cache and come back when touched."""
        self.advise(mmap.MADV_DONTNEED)

    @property
    def array(self) -> np.ndarray:
        """The whole range, [nbytes] uint8, read-only; a view that keeps the range."""
        return np.asarray(_Memory(self, self.address, self.nbytes, read_only=True))

    @property
    def writable_array(self) -> np.ndarray:
        """The same, writable; only for files that were mapped so."""
        return np.asarray(_Memory(self, self.address, self.nbytes, read_only=False))

    def resident_bytes(self, at: int, nbytes: int) -> int:
        """How much of this part is in memory (mincore), whichever process read it; no page is touched."""
        return sum(
            int(np.count_nonzero(pages & 1)) * _PAGE
            for start, size in _steps(at // _PAGE * _PAGE, at + nbytes, _RESIDENCY_BYTES)
            if (pages := self._mincore(start, size)) is not None
        )

    def _mincore(self, at: int, nbytes: int) -> np.ndarray | None:
        pages = np.zeros(-(-nbytes // _PAGE), np.uint8)
        done = _libc.mincore(self.address + at, nbytes, pages.ctypes.data)
        return pages if done == 0 else None


def writable_view(array: np.ndarray) -> np.ndarray:
    """The same memory without NumPy's read-only flag, which DLPack refuses. Writing to a mapped file is a fault."""
    memory = np.asarray(_Memory(array, array.ctypes.data, array.nbytes, read_only=False))
    return memory.view(array.dtype).reshape(array.shape)


class _Memory:
    """Memory for NumPy's array interface; keeps its owner."""

    def __init__(self, owner: object, address: int, nbytes: int, *, read_only: bool) -> None:
        self._owner = owner
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, read_only)}


def _map(address: int | None, nbytes: int, access: int, flags: int, fd: int, offset: int) -> int:
    mapped = _libc.mmap(address, nbytes, access, flags, fd, offset)
    if mapped == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"mapping {nbytes:,} bytes: {os.strerror(number)}")
    return mapped


def _steps(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    for at in range(start, end, size):
        yield at, min(size, end - at)
