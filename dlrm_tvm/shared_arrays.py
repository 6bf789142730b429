"""Named arrays in one piece of shared memory without a name (memfd): made by one process, attached by others.

The layout says dtype and shape of each; it travels as JSON beside the descriptor. Pages are taken when they are
first written, so that a generous shape costs nothing.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence

import numpy as np

Layout = Mapping[str, tuple[str, Sequence[int]]]  # name -> (dtype, shape)

_ALIGNMENT = 64


class SharedArrays:
    """Arrays by name, writable, zeros at first. Close the one that created them when nobody is to attach any more."""

    def __init__(self, descriptor: int, layout: Layout) -> None:
        """Attach to what `create` made with the same layout."""
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
    """Of the whole memory, at least one byte."""
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
