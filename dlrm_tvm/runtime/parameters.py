"""The parameter file beside a library: header, then what the library takes besides its inputs.

    NAME.params    4096 bytes of header (JSON: format, build), then each parameter from its own offset, 64-byte aligned;
                   those of 2 MiB and more, and tables, from a multiple of 2 MiB, so that the kernel can map huge pages

Written in a stream, so that tables of any size pass through little memory. Opening is artifact.py's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..machine.address_range import HUGE_PAGE
from ..machine.files import whole_blocks, write_whole
from .manifest import ALIGNMENT, FORMAT_VERSION, HEADER_BYTES, TABLES, Parameter


@dataclass(frozen=True, eq=False)
class ParameterSource:
    """A parameter to be written. chunks(): its data, piece by piece, each C-contiguous and of `dtype`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return Parameter(self.name, self.dtype, self.shape, 0).nbytes


def array_source(name: str, array: np.ndarray) -> ParameterSource:
    """An array that is in memory already."""
    return ParameterSource(name, str(array.dtype), array.shape, lambda: iter([np.ascontiguousarray(array)]))


def lay_out(sources: list[ParameterSource]) -> tuple[tuple[Parameter, ...], int]:
    """Offsets of the parameters and the size of their file."""
    entries, end = [], HEADER_BYTES
    for source in sources:
        alignment = HUGE_PAGE if source.name == TABLES or source.nbytes >= HUGE_PAGE else ALIGNMENT
        offset = -(-end // alignment) * alignment
        entries.append(Parameter(source.name, source.dtype, source.shape, offset))
        end = offset + source.nbytes
    return tuple(entries), end


def write_parameters(
    path: Path,
    build: str,
    sources: list[ParameterSource],
    entries: tuple[Parameter, ...],
    written: Callable[[int], object] = lambda nbytes: None,
) -> str:
    """Write the parameter file and return its sha256 (over header and parameters, gaps left out).

    Written in pieces that fill whole huge pages where they can: the page cache then keeps them as such.
    written(nbytes) is called after each of them.
    """
    digest = hashlib.sha256()
    header = json.dumps({"format": "dlrm_tvm parameters", "version": FORMAT_VERSION, "build": build}).encode()
    with path.open("wb", buffering=0) as file:
        digest.update(header)
        write_whole(file, memoryview(header.ljust(HEADER_BYTES, b"\0")))
        for source, entry in zip(sources, entries):
            file.seek(entry.offset)
            for block in whole_blocks(source.chunks()):
                digest.update(block)
                write_whole(file, block)
                written(len(block))
            if file.tell() != entry.offset + entry.nbytes:
                raise AssertionError(f"parameter {entry.name}: its parts do not fill its shape")
    return digest.hexdigest()


def rest_sha256(path: Path, entries: Sequence[Parameter]) -> str:
    """sha256 of the file's header and of all its parameters but the tables: MB, hashed in milliseconds."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(HEADER_BYTES))
        for entry in entries:
            if entry.name != TABLES:
                file.seek(entry.offset)
                digest.update(file.read(entry.nbytes))
    return digest.hexdigest()


def aligned(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros from a 64-byte boundary: what generated code takes for granted."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    at = -raw.ctypes.data % ALIGNMENT
    return raw[at : at + nbytes].view(dtype).reshape(shape)
