"""Files that a run leaves: looked at before the slow part, written under a temporary name, then renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import UserError


def check_writable(option: str, path: Path, *, missing_folder_is_made: bool = False) -> None:
    """Raises UserError where no file of that name can be written."""
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {path}: something else than a file has that name. Give another name.")
    try:
        if missing_folder_is_made:
            path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise UserError(
            f"{option} {path}: {error.strerror} ({path.resolve().parent}). Give a name in a folder that can be "
            "written to."
        ) from None


def write_whole_file(path: Path, content: bytes) -> None:
    """The file is the old one or the new one at every moment, never half of it."""
    path = path.resolve()  # a link stays a link
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
