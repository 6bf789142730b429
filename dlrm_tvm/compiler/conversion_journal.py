"""How far the conversion of large tables has come, kept beside the library: what was killed goes on from there.

    .converting-NAME_bN-PRECISION/
        progress.json    what is converted to what (a digest), the largest magnitudes of int8's tables that were read
                         whole, and how many bytes of the tables are written, with their digest
        params           the parameter file so far

A hidden folder without a library or a manifest: nothing takes it for a finished one. The same command over the same
files goes on; any other begins anew. Bytes that were written are read and compared with the digest first, so that those
which a power failure took are written again. One process at a time has the folder, by a lock that dies with it; another
one converts without it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..console import VERSION, show
from ..errors import UserError
from ..machine.files import write_whole_file
from ..model.dlrm import Dlrm, Table
from ..runtime.manifest import FORMAT_VERSION
from ..runtime.parameters import Kept
from ..runtime.table_files import file_region, sample_sha256
from ..runtime.typed_json import parse, read_as

LEAST_BYTES = 1 << 30  # of the model's tables: smaller ones are converted within seconds


class NoRoomError(UserError):
    """The disk has no room for a library."""


class ConversionJournal:
    """largest: [T] of the tables whose scale is known, as far as it is; kept: what is written of the parameter file;
    build: the id in it."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key = folder, key
        self.largest: list[float] = []
        self.kept: Kept | None = None
        self.build = uuid.uuid4().hex
        self._load()

    @property
    def file(self) -> Path:
        """The parameter file so far."""
        return self.folder / "params"

    @property
    def found(self) -> bool:
        """Whether an earlier process has left anything."""
        return bool(self.largest or self.kept)

    @property
    def disk_bytes(self) -> int:
        """That the file takes already."""
        with suppress(OSError):
            return self.file.stat().st_blocks * 512
        return 0

    def add_largest(self, value: float) -> None:
        self.largest.append(float(value))
        self._save()

    def keep(self, kept: Kept) -> None:
        self.kept = kept
        self._save()

    def hand_over(self, path: Path) -> None:
        """The whole file as one more, so that nothing is lost if this process ends before the library is in place."""
        try:
            os.link(self.file, path)
        except OSError:  # a file system without hard links
            os.replace(self.file, path)

    def release(self) -> None:
        """The file belongs to a library from now on, which no later run may write to."""
        self.file.unlink(missing_ok=True)

    def _load(self) -> None:
        with suppress(OSError, ValueError):  # none yet, or a damaged one
            stored = read_as(_Progress, parse((self.folder / "progress.json").read_text()), "progress")
            if stored.key == self._key and stored.sha256 == stored.checksum:
                self.build, self.largest, self.kept = stored.build, list(stored.largest), stored.kept
        if not self.found:
            self.file.unlink(missing_ok=True)

    def _save(self) -> None:
        progress = _Progress(self._key, self.build, tuple(self.largest), self.kept, "")
        progress = replace(progress, sha256=progress.checksum)
        write_whole_file(self.folder / "progress.json", json.dumps(asdict(progress)).encode())


@dataclass(frozen=True)
class _Progress:
    """The content of progress.json."""

    key: str
    build: str
    largest: tuple[float, ...]
    kept: Kept | None
    sha256: str

    @property
    def checksum(self) -> str:
        """Of the other fields."""
        return hashlib.sha256(repr((self.key, self.build, self.largest, self.kept)).encode()).hexdigest()


@contextmanager
def conversion_journal(directory: Path, name: str, model: Dlrm, precision: str) -> Iterator[ConversionJournal | None]:
    """The journal of a library's tables; None where they are small, and where another process has it. Left where the
    process is interrupted or killed, or the disk or the memory is full; removed otherwise."""
    folder = directory / f".converting-{name}-{precision}"
    if model.table_bytes < LEAST_BYTES:
        yield None
        return
    with _lock(folder) as owned:
        if not owned:
            yield None
            return
        journal = ConversionJournal(folder, _key(model, precision))
        try:
            yield journal
        except (KeyboardInterrupt, SystemExit, NoRoomError, OSError, MemoryError):
            if journal.found:
                kept = f"{journal.disk_bytes / 1e9:,.1f} GB of converted tables stay in {os.path.relpath(folder)}"
                show(f"{kept}: the same command goes on from there.", to=sys.stderr)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Whether the folder, made if need be, is this process's alone; not where a file system has no locks."""
    descriptor = _opened(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owned = os.path.samestat(os.fstat(descriptor), folder.stat())  # not of one that was removed meanwhile
    except BlockingIOError:
        owned = False
    except OSError:
        owned = False
        with suppress(OSError):
            folder.rmdir()
    try:
        yield owned
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process is done and removes it
            return os.open(folder, os.O_RDONLY)


def _key(model: Dlrm, precision: str) -> str:
    """A digest of what is converted to what, by which version of this package."""
    digest = hashlib.sha256(repr((VERSION, FORMAT_VERSION, precision, model.fingerprint)).encode())
    for table in model.tables:
        for array in _sources(table):
            region = file_region(array)
            digest.update(repr((array.shape, array.dtype.str, region)).encode())
            if region is None:
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
                continue
            status = region.path.stat()
            sample = sample_sha256(region.path, [(region.offset, region.nbytes)], small_whole=True)
            digest.update(repr((status.st_size, status.st_mtime_ns, status.st_ino, sample)).encode())
    return digest.hexdigest()


def _sources(table: Table) -> list[np.ndarray]:
    """The arrays that a table is made of."""
    weights = [] if table.row_weights is None else [table.row_weights]
    return [*getattr(table.rows, "sources", (table.rows,)), *weights]
