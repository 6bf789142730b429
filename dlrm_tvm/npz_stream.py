"""Arrays of an npz read row by row, so that a member larger than memory can be scored.

`np.load` gives a member whole; Criteo's day 23 unpacks to 57 GB. An npz is a zip of .npy members, each a header and
then the rows in order (numpy.lib.format), so a member is read through the zip's own stream, compressed or not.
Knows the container, not what the arrays mean.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from errno import EINVAL
from pathlib import Path
from typing import IO

import numpy as np

from .errors import UserError

try:
    from lzma import LZMAError
except ImportError:  # a Python without it: zipfile refuses such members (RuntimeError)
    LZMAError = zlib.error

# RuntimeError: an encrypted member; NotImplementedError, which is one too: an unknown compression.
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, LZMAError, struct.error, EOFError, RuntimeError)
_BROKEN_HEADER = (ValueError, SyntaxError, tokenize.TokenError)  # NumPy parses it as Python


@dataclass(frozen=True)
class NpyHeader:
    """Shape and dtype of one member; `fortran_order`: stored column by column."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


def require_keys(path: Path, headers: dict[str, NpyHeader], keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if key not in headers]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; has {', '.join(headers)}, want {', '.join(keys)}.")


def require(path: Path, key: str, headers: dict[str, NpyHeader], shape: tuple[int, ...], *, kinds: str) -> None:
    """Shape and dtype of one array; an [N] array may come as [N, 1]."""
    header = headers[key]
    if header.shape != shape and not (len(shape) == 1 and header.shape == (*shape, 1)):
        raise UserError(f"{path}: {key} has shape {list(header.shape)}; this model and file need {list(shape)}.")
    # float32 cannot hold the row numbers of the big tables.
    narrow = kinds == "iuf" and header.dtype.kind == "f" and header.dtype.itemsize < 8
    if header.dtype.kind not in kinds or narrow:
        wanted = {"f": "floating point", "iu": "integers", "iuf": "integers or float64", "iufb": "numbers"}[kinds]
        raise UserError(f"{path}: {key} is {header.dtype}; want {wanted}.")


def is_npz(path: Path) -> bool:
    """Whether the file starts as a zip does; it may still be truncated."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def read_headers(path: Path) -> dict[str, NpyHeader]:
    """Every array of the npz by key, without its values. Raises UserError for a damaged or pickled file."""
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        headers = {}
        for name in names:
            with archive.open(name) as member:
                headers[name.removesuffix(".npy")] = _read_header(member)
    for key, header in headers.items():
        if header.dtype.hasobject:
            raise UserError(f"{path}: {key} holds pickled objects; want plain numbers (numpy.savez of such arrays).")
    return headers


def read_arrays(path: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """These members, whole. Raises UserError where they are damaged."""
    with _damage_named(path), np.load(path) as arrays:
        return {key: arrays[key] for key in keys}


class NpzStream:
    """Some members of one npz, read side by side, the same number of rows from each. A context manager."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self._path = path
        self._keys = keys
        self._open = ExitStack()
        self._members: dict[str, IO[bytes]] = {}
        self._headers: dict[str, NpyHeader] = {}
        self._whole: dict[str, np.ndarray] = {}
        self._position = 0

    def __enter__(self) -> NpzStream:
        with _damage_named(self._path), ExitStack() as opened:
            archive = opened.enter_context(zipfile.ZipFile(self._path))
            for key in self._keys:
                self._members[key] = opened.enter_context(archive.open(f"{key}.npy"))
                self._headers[key] = _read_header(self._members[key])
            self._open = opened.pop_all()  # what fails above is closed at once
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def next_rows(self, count: int) -> dict[str, np.ndarray]:
        """The next `count` rows of every member, in the member's own dtype. UserError where the file ends early."""
        with _damage_named(self._path):
            rows = {key: self._read(key, count) for key in self._keys}
        self._position += count
        return rows

    def _read(self, key: str, count: int) -> np.ndarray:
        header = self._headers[key]
        if header.fortran_order and len(header.shape) > 1:
            return self._whole_member(key)[self._position : self._position + count]
        data = self._members[key].read(count * header.row_bytes)
        return np.frombuffer(data, header.dtype).reshape(count, *header.shape[1:])

    def _whole_member(self, key: str) -> np.ndarray:
        """Stored by columns, a row is spread over the whole member: read it all, once."""
        if key not in self._whole:
            header = self._headers[key]
            values = np.frombuffer(self._members[key].read(), header.dtype)
            self._whole[key] = values.reshape(header.shape, order="F")
        return self._whole[key]


def _read_header(member: IO[bytes]) -> NpyHeader:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    return NpyHeader(shape, dtype, fortran_order)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What zipfile, its decompressors and NumPy raise over bad content becomes one UserError line."""
    try:
        yield
    except (*_BROKEN_ZIP, *_BROKEN_HEADER, OSError) as error:
        # Bad content is an OSError without a number from bz2, EINVAL from seeking where a damaged zip points to.
        if isinstance(error, OSError) and error.errno not in (None, EINVAL):
            raise
        found = " ".join(str(error).split())  # NumPy's own texts have several lines
        raise UserError(
            f"{path}: damaged, truncated or encrypted ({found}); want a complete npz. Copy or make it again."
        ) from error
