"""Output files: checked before the slow part, written under a temporary name, then renamed."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import numpy as np

from ..console import result_line
from ..errors import UserError
from .address_range import HUGE_PAGE


def check_writable(option: str, path: Path, *, missing_folder_is_made: bool = False) -> None:
    """Raises UserError where no file of this name can be written."""
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {path}: something else than a file has that name. Give another name.")
    folder = os.path.dirname(os.path.realpath(path))
    try:
        if missing_folder_is_made:
            path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.stat()  # refuses a link that leads to itself
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{option} {path}: {error.strerror} ({folder}). Give a name in a folder that can be written to."
        ) from None


def check_regular(path: Path, wanted: str) -> None:
    """Raises UserError for a folder, a pipe or a device: to read from those may take for ever."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: no regular file; {wanted} was wanted. Copy it into one.")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process at a time; the system releases the lock when its holder dies."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_whole_file(path: Path, content: bytes) -> None:
    """At every moment the file is the old one or the new one, never half of it."""
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_result(path: Path | None, fields: Mapping[str, object]) -> None:
    """A script's result where --output names a file."""
    if path:
        write_whole_file(path, result_line(fields).encode() + b"\n")


def write_whole(file: FileIO, block: memoryview) -> None:
    """An unbuffered file may write a part only; it raises OSError when the disk takes nothing."""
    while block:
        block = block[file.write(block) :]


def whole_blocks(chunks: Iterator[np.ndarray]) -> Iterator[memoryview]:
    """The same bytes in pieces of a huge page's size, the last one shorter; each is valid until the next."""
    buffer, filled = bytearray(HUGE_PAGE), 0
    for chunk in chunks:
        data = memoryview(chunk.reshape(-1).view(np.uint8))
        while data:
            size = min(HUGE_PAGE - filled, len(data))
            buffer[filled : filled + size] = data[:size]
            filled, data = filled + size, data[size:]
            if filled == HUGE_PAGE:
                yield memoryview(buffer)
                filled = 0
    if filled:
        yield memoryview(buffer)[:filled]
