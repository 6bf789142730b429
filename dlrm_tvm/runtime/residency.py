"""How much of the tables is in memory, how much fits, and reading them in before they are measured.

    in memory now    mincore over the mapped range, whichever process read the pages
    fits             available memory, the tables' own clean pages included, within every cgroup's limit

A row that is not in memory costs a page fault and a read of the disk: 100 µs or more instead of 0.1 µs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from ..errors import UserError
from ..machine.address_range import AddressRange
from .artifact import Artifact, piece_path
from .manifest import Manifest, Piece

_READ_BYTES = 16 << 20
_READERS = 8  # more do not read faster: one NVMe drive is busy by then


@dataclass(frozen=True)
class TableMemory:
    """Bytes: of all tables, of their part in memory now, of available memory.

    resident_bytes: None where the kernel does not tell.
    """

    table_bytes: int
    resident_bytes: int | None
    available_bytes: int

    @property
    def fits(self) -> bool:
        return self.table_bytes <= max(self.available_bytes, self.resident_bytes or 0)

    def line(self) -> str:
        share = "an unknown part" if self.resident_bytes is None else f"{self.resident_bytes / self.table_bytes:.0%}"
        fit = "all fit" if self.fits else f"{self.available_bytes / self.table_bytes:.0%} fit"
        return (
            f"{self.table_bytes / 1e9:,.2f} GB of tables: {share} in memory now, {fit} "
            f"({self.available_bytes / 1e9:,.1f} GB available)"
        )


def table_memory(artifact: Artifact, available_bytes: int) -> TableMemory:
    """resident_bytes is known only for files that this user owns or may write; mincore calls all pages of others
    resident (Linux 5.2 and later, mm/mincore.c)."""
    pieces = artifact.manifest.table_range.pieces
    table_bytes = artifact.manifest.model.table_bytes
    if not all(_may_be_asked(piece_path(artifact.library, piece)) for piece in pieces):
        return TableMemory(table_bytes, None, available_bytes)
    resident = sum(artifact.tables.resident_bytes(piece.at, piece.nbytes) for piece in pieces)
    return TableMemory(table_bytes, min(resident, table_bytes), available_bytes)


def check_tables_fit(memory: TableMemory) -> None:
    """Raises UserError on a machine whose memory does not hold them: nothing shards them over machines."""
    if not memory.fits:
        raise UserError(
            f"tables of {memory.table_bytes / 1e9:,.1f} GB do not fit the {memory.available_bytes / 1e9:,.1f} GB of "
            "memory available here: compile with --precision bf16 or int8"
        )


def _may_be_asked(path: Path) -> bool:
    return os.access(path, os.W_OK) or path.stat().st_uid == os.geteuid()


def preload(library: Path, manifest: Manifest, memory: TableMemory, progress: Callable[[int], object]) -> None:
    """Read all tables in, by several threads; progress(nbytes) after each part.

    Raises UserError where they do not fit: reading the last ones would push the first ones out.
    """
    if not memory.fits:
        raise UserError(
            f"--preload: {memory.table_bytes / 1e9:,.1f} GB of tables do not fit into the "
            f"{memory.available_bytes / 1e9:,.1f} GB of memory available. Leave --preload out, or free memory."
        )
    buffers = [bytearray(_READ_BYTES) for _ in range(_READERS)]

    def read(part: tuple[Piece, int, int], reader: int) -> int:
        piece, at, nbytes = part
        with piece_path(library, piece).open("rb", buffering=0) as file:
            file.seek(piece.offset + at)
            return file.readinto(memoryview(buffers[reader])[:nbytes])

    run_parts(table_parts(manifest.table_range.pieces), read, progress)


def fill(library: Path, manifest: Manifest, memory: AddressRange, progress: Callable[[int], object]) -> None:
    """Copy all tables into `memory`, laid out as the table range."""
    target = memoryview(memory.writable_array)

    def read(part: tuple[Piece, int, int], reader: int) -> int:
        piece, at, nbytes = part
        with piece_path(library, piece).open("rb", buffering=0) as file:
            file.seek(piece.offset + at)
            return file.readinto(target[piece.at + at : piece.at + at + nbytes])

    run_parts(table_parts(manifest.table_range.pieces), read, progress)


def table_parts(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, int, int]]:
    """(piece, byte in it, how many) of each read."""
    for piece in pieces:
        for at in range(0, piece.nbytes, _READ_BYTES):
            yield piece, at, min(_READ_BYTES, piece.nbytes - at)


def run_parts(parts: Iterator, read: Callable[[tuple, int], int], progress: Callable[[int], object]) -> None:
    """read(part, reader) for every part, each by the reader that is free first.

    Raises the exception of a read, or KeyboardInterrupt, once the reads under way are done.
    """
    readers = min(_READERS, 2 * len(os.sched_getaffinity(0)))
    stop = Event()

    def work(reader: int) -> None:
        for part in parts_left:
            done = 0
            while done < part[2]:
                if stop.is_set():
                    return
                piece, at, nbytes = part
                size = read((piece, at + done, nbytes - done), reader)
                if not size:
                    raise UserError(f"{piece.file} ends early, at byte {piece.offset + at + done}. Compile again.")
                done += size
                progress(size)

    parts_left = iter(list(parts))  # for several threads: a list's, which the interpreter's lock guards
    with ThreadPoolExecutor(readers) as pool:
        try:
            for result in as_completed([pool.submit(work, reader) for reader in range(readers)]):
                result.result()
        finally:
            stop.set()
