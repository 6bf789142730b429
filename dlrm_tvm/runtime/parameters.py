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

_KEPT_EVERY = 64 << 20


@dataclass(frozen=True, eq=False)
class ParameterSource:
    """A parameter to be written. chunks(first): its data from that byte on, piece by piece, each C-contiguous and of
    `dtype`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[int], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return Parameter(self.name, self.dtype, self.shape, 0).nbytes


@dataclass(frozen=True)
class Kept:
    """How much of the first parameter an earlier process has written, whole huge pages of it, and the sha256 up to
    there as `write_parameters` takes it."""

    nbytes: int
    sha256: str


def array_source(name: str, array: np.ndarray) -> ParameterSource:
    """An array that is in memory already."""
    return ParameterSource(name, str(array.dtype), array.shape, lambda first: iter([np.ascontiguousarray(array)]))


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
    *,
    kept: Kept | None = None,
    keep: Callable[[Kept], object] | None = None,
) -> str:
    """Write the parameter file and return its sha256 (over header and parameters, gaps left out).

    Written in pieces that fill whole huge pages where they can: the page cache then keeps them as such.
    written(nbytes) is called after each of them. kept: what an earlier call with the same build has left in the file,
    which is read instead of being written again if its sha256 is still the same. keep: called with as much of the first
    parameter as is written, every 64 MiB.
    """
    header = json.dumps({"format": "dlrm_tvm parameters", "version": FORMAT_VERSION, "build": build}).encode()
    digest, first = hashlib.sha256(header), 0
    if kept is not None:
        found = _read_again(path, digest.copy(), entries[0].offset, kept.nbytes)
        if found.hexdigest() == kept.sha256:
            digest, first = found, kept.nbytes
            written(first)
    with path.open("r+b" if first else "wb", buffering=0) as file:
        write_whole(file, memoryview(header.ljust(HEADER_BYTES, b"\0")))
        file.truncate(entries[0].offset + first if first else None)
        for source, entry in zip(sources, entries):
            done = first if entry is entries[0] else 0
            file.seek(entry.offset + done)
            for block in whole_blocks(source.chunks(done)):
                digest.update(block)
                write_whole(file, block)
                written(len(block))
                done += len(block)
                if keep is not None and entry is entries[0] and done % _KEPT_EVERY == 0:
                    keep(Kept(done, digest.hexdigest()))
            if file.tell() != entry.offset + entry.nbytes:
                raise AssertionError(f"parameter {entry.name}: its parts do not fill its shape")
    return digest.hexdigest()


def _read_again(path: Path, digest: hashlib._Hash, offset: int, nbytes: int) -> hashlib._Hash:
    """The digest, and these bytes of the file, or those that there are."""
    if not path.is_file():
        return digest
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while nbytes and (block := file.read(min(nbytes, HUGE_PAGE))):
            digest.update(block)
            nbytes -= len(block)
    return digest


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
