"""Output files: checked before the slow part, written under a temporary name, then renamed."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import numpy as np

from ..console import result_line, show_result
from ..errors import UserError
from .address_range import HUGE_PAGE


def check_writable(option: str, path: Path, *, missing_folder_is_made: bool = False) -> None:
    """Raises UserError where no file of this name can be written."""
    folder = os.path.dirname(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path}: something else than a file has that name. Give another name.")
        if missing_folder_is_made:
            path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.stat()  # refuses a link that leads to itself
        temporary = temporary_path(Path(os.path.realpath(path)))
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise UserError(
            f"{option} {path}: {error.strerror} ({folder}). Give a name in a folder that can be written to."
        ) from None


def check_not_read(written: Mapping[str, Path | None], read: Iterable[Path | str | None]) -> None:
    """written: by the options that name them. Raises UserError where one of them, or what it links to, is read too or
    is written twice."""
    taken = {os.path.realpath(path) for path in read if path is not None}
    for option, path in written.items():
        if path is not None and os.path.realpath(path) in taken:
            raise UserError(f"{option} {path}: that file is read, or written by another option. Give another name.")
        taken |= set() if path is None else {os.path.realpath(path)}


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


def temporary_path(path: Path) -> Path:
    """Beside it, of this process; short where the name is as long as names may be."""
    return path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")


def write_whole_file(path: Path, content: bytes) -> None:
    """At every moment the file is the old one or the new one, never half of it."""
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def leave_result(
    fields: Mapping[str, object],
    output: Path | None,
    others: Mapping[Path, Callable[[], bytes]] | None = None,
    show_fields: Callable[[Mapping[str, object]], bool] = show_result,
    of_file: Mapping[str, object] | None = None,
) -> None:
    """A script's result in the file `output`, other files, and what is shown of it: each whatever becomes of the rest.

    others: made one after another once the result is written: an interrupt while a picture is drawn costs that alone.
    show_fields: gives whether all figures are shown; of_file: fields that the file alone has. Raises UserError that
    names the files which could not be written.
    """
    result = {output: lambda: result_line({**(of_file or {}), **fields}).encode() + b"\n"} if output else {}
    failed: dict[Path | None, str] = {}
    try:
        for path, content in {**result, **(others or {})}.items():
            try:
                write_whole_file(path, content())
            except OSError as error:
                failed[path] = unwritten(path, error)
    finally:
        is_whole = show_fields(fields)
        if output in failed and not is_whole and sys.stdout.isatty():  # people have been shown all but this
            print(result_line(fields), flush=True)
            is_whole = True
    if failed:
        said = " What is printed before has all figures." if output in failed and is_whole else ""
        raise UserError(f"{'; '.join(failed.values())}.{said}")


def unwritten(path: Path, error: OSError) -> str:
    return f"{path} could not be written ({error.strerror or error})"


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
