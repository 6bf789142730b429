"""One sweep at a time per state file: a lock beside it, which the kernel gives back however its holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Hold the lock of this state file. Raises UserError where another sweep has it."""
    path = state.resolve()
    path = path.with_name(f".{path.name}.lock")
    descriptor = _taken(path, state)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held; _taken sees to one who has opened it already
        os.close(descriptor)


def _taken(path: Path, state: Path) -> int:
    """The descriptor that holds the lock; of a file that an ending sweep has just removed, anew."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file_of(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"Another sweep is at work on {state}. Wait for it, or give this one a state of its own: --json FILE."
            ) from None
        os.close(descriptor)


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
