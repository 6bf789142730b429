"""The predictions of one shard as a file: an npz of pred, and of target and reference where the input has them.

The zip's comment, which ends the file, is JSON that proves what the part is: the job's hash, the shard's number, input,
first item and count, and the sha256 of the arrays. A part is written under another name, synced and renamed: under its
own name it is whole. The same arrays give the same bytes anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import zipfile
from pathlib import Path

import numpy as np

from ..data.npz import BROKEN
from ..data.scoring import Score
from ..errors import UserError, one_line

_KINDS = {"pred": np.float32, "target": np.uint8, "reference": np.float32}
TEMPORARY = ".tmp"


def write_part(path: Path, score: Score, footer: dict[str, object]) -> None:
    """Raises OSError where the disk does not take it; nothing has the part's name then."""
    arrays = {key: each for key, each in zip(_KINDS, _arrays(score)) if each is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = json.dumps({**footer, "sha256": _sha256(arrays)}).encode()
    write_synced(path, buffer.getbuffer())


def read_part(path: Path, footer: dict[str, object]) -> Score:
    """Raises UserError where there is none, or one that is not what its footer or this job says."""
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:
            found = json.loads(archive.comment)
        with np.load(content) as members:
            arrays = {key: members[key] for key in members.files}
        wanted = {**footer, "sha256": _sha256(arrays)}
        wrong = [key for key in wanted if found.get(key) != wanted[key]]
        found_kinds = {(key, each.dtype, each.shape) for key, each in arrays.items()}
        if not wrong and found_kinds <= {(key, np.dtype(kind), (footer["count"],)) for key, kind in _KINDS.items()}:
            return Score(arrays["pred"], arrays.get("reference"), arrays.get("target"))
        reason = f"its footer has another {wrong[0]}" if wrong else "it holds other arrays"
    except FileNotFoundError:
        reason = "no such file"
    except (*BROKEN, KeyError, AttributeError, TypeError, MemoryError) as error:
        reason = one_line(error)
    raise UserError(f"{path} is not the part of this job ({reason}). With --resume it is scored again.")


def write_synced(path: Path, content: memoryview | bytes) -> None:
    """At every moment the file is the old one or the new one, after a power cut too. Others may write it meanwhile."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _arrays(score: Score) -> tuple[np.ndarray | None, ...]:
    return score.predictions, score.labels, score.reference


def _sha256(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key, array in arrays.items():
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
