"""Arrays of an npz read row by row, so that a member larger than memory can be scored.

`np.load` reads a member whole, and Criteo's day 23 unpacks to 57 GB. An npz is a zip of .npy members, each a header
and then the rows in order (numpy.lib.format). So a member is read as the zip's own stream, compressed or not.
Knows the container, not the meaning of the arrays.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from errno import EINVAL
from os import SEEK_CUR
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import UserError

_LONGEST = 200  # characters of an error that somebody else raised

try:
    from lzma import LZMAError
except ImportError:  # a Python without lzma: zipfile refuses such members (RuntimeError)
    LZMAError = zlib.error

# RuntimeError: an encrypted member. Its subclass NotImplementedError: an unknown compression.
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, LZMAError, struct.error, EOFError, RuntimeError)
_BROKEN_HEADER = (ValueError, SyntaxError, tokenize.TokenError)  # NumPy parses the header as Python
BROKEN = (*_BROKEN_ZIP, *_BROKEN_HEADER)
_LOCAL_HEADER = 30  # bytes before a member's name; its lengths end it (APPNOTE.TXT 4.3.7)


@dataclass(frozen=True)
class NpyHeader:
    """Shape and dtype of one member; fortran_order: stored column by column; is_stored: neither compressed nor
    encrypted, so that its bytes lie in the zip as they are."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    is_stored: bool = False

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def by_columns(self) -> bool:
        """Rows are spread over all of the member."""
        return self.fortran_order and len(self.shape) > 1


def require_keys(path: Path, headers: dict[str, NpyHeader], keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if key not in headers]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; has {', '.join(headers)}, want {', '.join(keys)}.")


def require(path: Path, key: str, headers: dict[str, NpyHeader], shape: tuple[int, ...], *, kinds: str) -> None:
    """Check shape and dtype of one array; an [N] array may be stored as [N, 1]."""
    header = headers[key]
    if header.shape != shape and not (len(shape) == 1 and header.shape == (*shape, 1)):
        found = f"shape {list(header.shape)}" if len(header.shape) < 9 else f"{len(header.shape)} dimensions"
        raise UserError(f"{path}: {key} has {found}; this model and file need {list(shape)}.")
    # float32 cannot hold the row numbers of the big tables.
    too_short = kinds == "iuf" and header.dtype.kind == "f" and header.dtype.itemsize < 8
    if header.dtype.kind not in kinds or too_short:
        wanted = {"f": "floating point", "iu": "integers", "iuf": "integers or float64", "iufb": "numbers"}[kinds]
        raise UserError(f"{path}: {key} is {header.dtype}; want {wanted}.")


def is_npz(path: Path) -> bool:
    """Whether the file starts like a zip; it may still be truncated."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def read_headers(path: Path) -> dict[str, NpyHeader]:
    """The header of every array in the npz, by key. Raises UserError for a damaged or pickled file."""
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        headers = {}
        for info in members_of(archive):
            if info.filename.endswith(".npy"):
                with archive.open(info) as member:
                    header = _read_header(member)
                headers[info.filename.removesuffix(".npy")] = replace(header, is_stored=_is_stored(info))
    for key, header in headers.items():
        if header.dtype.hasobject:
            raise UserError(f"{path}: {key} holds pickled objects; want plain numbers (numpy.savez of such arrays).")
    return headers


def read_arrays(path: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """The members of these keys, whole. Raises UserError where they are damaged."""
    with _damage_named(path), np.load(path) as arrays:
        return {key: arrays[key] for key in keys}


class NpzStream:
    """Some members of one npz, read in parallel: each read gives the same rows of all. A context manager."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self._path = path
        self._keys = keys
        self._open = ExitStack()
        self._archive: zipfile.ZipFile | None = None
        self._members: dict[str, IO[bytes]] = {}
        self._headers: dict[str, NpyHeader] = {}
        self._whole: dict[str, np.ndarray] = {}
        self._position = 0

    def __enter__(self) -> NpzStream:
        with _damage_named(self._path), ExitStack() as opened:
            self._archive = opened.enter_context(zipfile.ZipFile(self._path))
            for key in self._keys:
                self._members[key] = opened.enter_context(self._archive.open(f"{key}.npy"))
                self._headers[key] = _read_header(self._members[key])
            self._open = opened.pop_all()  # after a failure above, all are closed at once
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def next_rows(self, count: int) -> dict[str, np.ndarray]:
        """The next `count` rows of every member, in its own dtype. Raises UserError where the file ends early."""
        with _damage_named(self._path):
            rows = {key: self._read(key, count) for key in self._keys}
        self._position += count
        return rows

    def skip_rows(self, count: int) -> None:
        """Leave out the next `count` rows. A compressed member is unpacked up to there all the same; a stored one is
        not read, and from there on no CRC checks it."""
        with _damage_named(self._path):
            for key, header in self._headers.items():
                if count and not header.by_columns:
                    self._skip(key, count * header.row_bytes)
        self._position += count

    def _skip(self, key: str, nbytes: int) -> None:
        member, info = self._members[key], self._archive.getinfo(f"{key}.npy")
        if isinstance(member, zipfile.ZipExtFile) and _is_stored(info):  # its own seek reads, before Python 3.13
            at, header = member.tell(), self._headers[key]
            if info.file_size < at + header.num_rows * header.row_bytes:
                raise EOFError(f"{key} is shorter than its shape {list(header.shape)}")
            member = self._members[key] = self._open.enter_context(self._path.open("rb"))
            member.seek(stored_at(self._path, member, info) + at)
        member.seek(nbytes, SEEK_CUR)

    def _read(self, key: str, count: int) -> np.ndarray:
        header = self._headers[key]
        if header.by_columns:
            return self._whole_member(key)[self._position : self._position + count]
        data = self._members[key].read(count * header.row_bytes)
        return np.frombuffer(data, header.dtype).reshape(count, *header.shape[1:])

    def _whole_member(self, key: str) -> np.ndarray:
        """A member stored by columns, read whole once: its rows are spread over all of it."""
        if key not in self._whole:
            header = self._headers[key]
            values = np.frombuffer(self._members[key].read(), header.dtype)
            self._whole[key] = values.reshape(header.shape, order="F")
        return self._whole[key]


def map_npy(path: Path) -> np.ndarray:
    """The array of a .npy file as a read-only memory map. Raises UserError for a damaged or pickled one."""
    with _damage_named(path, "npy"), path.open("rb") as file:
        return _mapped(path, file, path.name, path.stat().st_size)


def map_members(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed npz, by key, as read-only memory maps of it, whose CRCs nobody checks.

    Raises UserError as `read_headers` does, and for a compressed member.
    """
    arrays = {}
    with _damage_named(path), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in members_of(archive):
            begin = stored_at(path, file, member)
            file.seek(begin)
            arrays[member.filename.removesuffix(".npy")] = _mapped(
                path, file, member.filename, begin + member.file_size
            )
    return arrays


def members_of(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Raises BadZipFile where two have one name: programs differ in which of them they read."""
    members = archive.infolist()
    if len(members) > len({member.filename for member in members}):
        raise zipfile.BadZipFile("two members of one name")
    return members


def stored_at(path: Path, file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where in the zip at `path`, open as `file`, an uncompressed member's bytes begin.

    Raises UserError for a compressed or encrypted one, BadZipFile where there is no member.
    """
    if not _is_stored(member):
        raise UserError(
            f"{path}: {member.filename} is compressed or encrypted, and too large to unpack. Store it plain."
        )
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no member at byte {member.header_offset}")
    name_length, extra_length = struct.unpack("<HH", header[-4:])
    return member.header_offset + _LOCAL_HEADER + name_length + extra_length


def _is_stored(member: zipfile.ZipInfo) -> bool:
    return member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1


def _mapped(path: Path, file: IO[bytes], name: str, end: int) -> np.ndarray:
    """The .npy array that begins where `file` stands, and ends by byte `end`."""
    header = _read_header(file)
    if header.dtype.hasobject:
        raise UserError(f"{path}: {name} holds pickled objects; want plain numbers.")
    found, wanted = end - file.tell(), header.num_rows * header.row_bytes
    if wanted > found:
        raise UserError(
            f"{path}: {name} of shape {list(header.shape)} holds {found} bytes, {wanted} wanted. Copy it again."
        )
    if not wanted:
        return np.empty(header.shape, header.dtype)
    order = "F" if header.fortran_order else "C"
    return np.memmap(path, header.dtype, "r", file.tell(), header.shape, order)


def _read_header(member: IO[bytes]) -> NpyHeader:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {list(shape)}")
    return NpyHeader(shape, dtype, fortran_order)


@contextmanager
def _damage_named(path: Path, kind: str = "npz") -> Iterator[None]:
    """Turn the errors of zipfile, its decompressors and NumPy over bad content into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (*BROKEN, OSError) as error:
        # For bad content, bz2 raises an OSError without a number; seeking to a damaged zip's offset gives EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, EINVAL):
            raise
        found = " ".join(str(error).split())[:_LONGEST]  # NumPy's messages have several lines
        raise UserError(
            f"{path}: damaged, truncated or encrypted ({found}); want a complete {kind}. Copy or make it again."
        ) from error
