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
from pathlib import Path

import numpy as np

from ..console import VERSION, show
from ..machine.files import write_whole_file
from ..model.dlrm import Dlrm, Table
from ..runtime.manifest import FORMAT_VERSION
from ..runtime.parameters import Kept
from ..runtime.table_files import file_region, sample_sha256

LEAST_BYTES = 1 << 30  # of the model's tables: smaller ones are converted within seconds


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
        try:
            stored = json.loads((self.folder / "progress.json").read_text())
            if stored["key"] == self._key:
                self.build, self.largest = str(stored["build"]), [float(each) for each in stored["largest"]]
                self.kept = None if stored["kept"] is None else Kept(int(stored["kept"][0]), str(stored["kept"][1]))
        except (OSError, ValueError, KeyError, TypeError):
            self.largest, self.kept = [], None
        if not self.found:
            self.file.unlink(missing_ok=True)

    def _save(self) -> None:
        kept = None if self.kept is None else [self.kept.nbytes, self.kept.sha256]
        content = {"key": self._key, "build": self.build, "largest": self.largest, "kept": kept}
        write_whole_file(self.folder / "progress.json", json.dumps(content).encode())


@contextmanager
def conversion_journal(directory: Path, name: str, model: Dlrm, precision: str) -> Iterator[ConversionJournal | None]:
    """The journal of a library's tables; None where they are small, and where another process has it. Left where the
    process is interrupted or killed, removed otherwise."""
    folder = directory / f".converting-{name}-{precision}"
    if model.table_bytes < LEAST_BYTES:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder) as owned:
        if not owned:
            yield None
            return
        journal = ConversionJournal(folder, _key(model, precision))
        try:
            yield journal
        except (KeyboardInterrupt, SystemExit):
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
    """Whether the folder is this process's alone; not where a file system has no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owned = os.path.samestat(os.fstat(descriptor), folder.stat())  # not of one that was removed meanwhile
    except OSError:
        owned = False
    try:
        yield owned
    finally:
        os.close(descriptor)


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
