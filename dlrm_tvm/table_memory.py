"""How much of the tables is in memory, how much can be, and bringing them there before they are measured.

    in memory now    mincore over the mapped range, whoever brought the pages there
    fits             available memory, which the tables' own clean pages count to, within every cgroup's limit

A row that is not in memory costs a page fault and a read of the disk: 100 µs or more where 0.1 µs was meant.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from .address_range import AddressRange
from .artifact import Artifact, piece_path
from .errors import UserError
from .manifest import Manifest, Piece

_READ_BYTES = 16 << 20
_READERS = 8  # more do not read faster: one NVMe drive is busy by then
_SOON_READ = 256 << 20  # less than that is read within a warm-up


@dataclass(frozen=True)
class TableMemory:
    """Bytes: of all tables, of those in memory now, of memory that is free or can be freed for them.

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

    def warnings(self) -> list[str]:
        if not self.fits:
            return [
                f"Only {self.available_bytes / 1e9:,.1f} GB of memory are available for {self.table_bytes / 1e9:,.1f} "
                "GB of tables. Page faults that read the disk will dominate unless few rows are in use: take a "
                "machine with more memory, or give inputs as skewed as yours with --ref-data."
            ]
        missing = self.table_bytes - (self.table_bytes if self.resident_bytes is None else self.resident_bytes)
        if missing > _SOON_READ:
            return [
                f"{missing / 1e9:,.1f} GB of the tables are not in memory yet. Page faults that read the disk will "
                "dominate until they are: add --preload."
            ]
        return []


def table_memory(artifact: Artifact, available_bytes: int) -> TableMemory:
    """What is in memory is told only of files that this user owns or may write; of others mincore calls all pages
    resident (Linux 5.2 and later, mm/mincore.c)."""
    pieces = artifact.manifest.table_range.pieces
    table_bytes = artifact.manifest.model.table_bytes
    if not all(_may_be_asked(piece_path(artifact.library, piece)) for piece in pieces):
        return TableMemory(table_bytes, None, available_bytes)
    resident = sum(artifact.tables.resident_bytes(piece.at, piece.nbytes) for piece in pieces)
    return TableMemory(table_bytes, min(resident, table_bytes), available_bytes)


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
    """Copy all tables into `memory`, which is laid out as the table range is."""
    target = memoryview(memory.writable_array)

    def read(part: tuple[Piece, int, int], reader: int) -> int:
        piece, at, nbytes = part
        with piece_path(library, piece).open("rb", buffering=0) as file:
            file.seek(piece.offset + at)
            return file.readinto(target[piece.at + at : piece.at + at + nbytes])

    run_parts(table_parts(manifest.table_range.pieces), read, progress)


def table_parts(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, int, int]]:
    """(piece, byte in it, how many): what one read takes."""
    for piece in pieces:
        for at in range(0, piece.nbytes, _READ_BYTES):
            yield piece, at, min(_READ_BYTES, piece.nbytes - at)


def run_parts(parts: Iterator, read: Callable[[tuple, int], int], progress: Callable[[int], object]) -> None:
    """read(part, reader) for every part, each by whichever of the readers is free first.

    Raises what a read raises, or KeyboardInterrupt, once the reads under way are done.
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

    parts_left = _shared(parts)
    with ThreadPoolExecutor(readers) as pool:
        try:
            for result in as_completed([pool.submit(work, reader) for reader in range(readers)]):
                result.result()
        finally:
            stop.set()


def _shared(parts: Iterator) -> Iterator:
    """An iterator that several threads may draw from: a list's, which the interpreter's lock guards."""
    return iter(list(parts))
