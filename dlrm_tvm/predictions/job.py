"""What is scored with what, cut into shards, as DIR/job.json has it; and the folder that holds its parts.

    DIR/job.json              library (build, hashes), inputs with size and time, the shards
    DIR/part-000000.npz ..    one for each shard (parts.py)
    DIR/job.lock              held by the one driver

A shard is an input's number, its first item and a count. A job is known by its content: a folder of another is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.chunks import ReferenceData
from ..data.scoring import Score
from ..errors import UserError
from .parts import TEMPORARY, read_part, write_part, write_synced

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact

SHARD_ITEMS = 1_000_000
_FORMAT = 1
_JOB, _LOCK = "job.json", "job.lock"


class Shard(NamedTuple):
    input: int
    first: int
    count: int

    @property
    def items(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class Job:
    """fields: of job.json; library and inputs by absolute paths."""

    folder: Path
    fields: dict[str, Any]

    @staticmethod
    def read(folder: Path) -> Job:
        """Raises UserError where the folder has no job, or one of another version of this program."""
        path = folder / _JOB
        try:
            fields = json.loads(path.read_text())
            if fields["format"] == _FORMAT:
                return Job(folder, fields)  # whatever else it lacks makes it another job
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; the folder holds no predictions. Give another one.") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise UserError(f"{path} is not a job of this version. Give another folder for the predictions.")

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(self._text().encode()).hexdigest()

    @cached_property
    def shards(self) -> list[Shard]:
        return [Shard(*each) for each in self.fields["shards"]]

    @property
    def items(self) -> int:
        return sum(shard.count for shard in self.shards)

    def write(self) -> None:
        write_synced(self.folder / _JOB, self._text().encode())

    def write_part(self, number: int, score: Score) -> None:
        write_part(self._part_path(number), score, self._footer(number))

    def read_part(self, number: int) -> Score:
        return read_part(self._part_path(number), self._footer(number))

    def parts_done(self) -> tuple[list[int], list[str]]:
        """(numbers of the shards whose parts are there, why other parts are not taken)."""
        done, refused = [], []
        for number in range(len(self.shards)):
            if self._part_path(number).exists():
                try:
                    self.read_part(number)
                    done.append(number)
                except UserError as error:
                    refused.append(str(error))
        return done, refused

    def check_whole(self) -> None:
        """Raises UserError unless the parts are those of the plan, none missing and none too many."""
        wanted = {self._part_path(number).name for number in range(len(self.shards))}
        found = {path.name for path in self.folder.glob("part-*.npz")}
        if wrong := sorted(wanted ^ found):
            state = "is missing" if wrong[0] in wanted else "belongs to no shard of it"
            raise UserError(f"{self.folder}: {wrong[0]} {state}. Remove what is not of this job, then give --resume.")

    def check_inputs(self, numbers: Iterable[int]) -> None:
        """Raises UserError where an input's files are not what they were when the job was planned."""
        for number in numbers:
            for known in self.fields["inputs"][number]["files"]:
                if _file(Path(known["path"])) != known:
                    raise UserError(
                        f"{known['path']} was changed since the predictions in {self.folder} were begun. Put it back, "
                        "or begin again with another folder."
                    )

    def _part_path(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.npz"

    def _footer(self, number: int) -> dict[str, object]:
        shard = self.shards[number]
        path = self.fields["inputs"][shard.input]["path"]
        return {"job": self.hash, "shard": number, "input": path, "first": shard.first, "count": shard.count}

    def _text(self) -> str:
        return json.dumps(self.fields, indent=1) + "\n"


def plan_job(
    folder: Path, artifact: Artifact, inputs: Iterable[ReferenceData], *, shard_items: int, max_ind_range: int | None
) -> Job:
    manifest, inputs = artifact.manifest, list(inputs)
    shards = [
        Shard(number, items.start, len(items))
        for number, data in enumerate(inputs)
        for items in data.shards(shard_items)
    ]
    fields = {
        "format": _FORMAT,
        "library": str(artifact.library.resolve()),
        "build": manifest.build,
        "library_sha256": manifest.library_sha256,
        "parameter_sha256": manifest.parameter_sha256,
        "precision": manifest.precision,
        "max_ind_range": max_ind_range,
        "shard_items": shard_items,
        "inputs": [_input(data) for data in inputs],
        "shards": [list(shard) for shard in shards],
    }
    return Job(folder.resolve(), fields)


@contextmanager
def held_folder(job: Job, *, resume: bool) -> Iterator[None]:
    """The job's folder, made or gone on with, for this process alone. Raises UserError where it is not this job's."""
    folder = job.folder
    is_begun(job, resume=resume)  # before anything is written to somebody's folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"{folder}: process {lock.read().strip()} is at work in it. Wait for its end.") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} of {socket.gethostname()}")
        lock.flush()
        _remove_unfinished(folder)
        if not is_begun(job, resume=resume):
            job.write()
        yield
        _remove_unfinished(folder)


def _remove_unfinished(folder: Path) -> None:
    """What a killed worker was writing."""
    for left in folder.glob(f".*{TEMPORARY}"):
        left.unlink(missing_ok=True)


def is_begun(job: Job, *, resume: bool) -> bool:
    """Whether the folder holds this job. Raises UserError where it holds anything else, or the job is not to go on."""
    if job.folder.exists() and not job.folder.is_dir():
        raise UserError(f"{job.folder}: something else than a folder has that name. Give another name.")
    names = {path.name for path in job.folder.iterdir()} if job.folder.exists() else set()
    begun = {name for name in names if name.startswith(f".{_JOB}.") and name.endswith(TEMPORARY)}  # and no more
    others = names - {_LOCK} - begun
    if others and not resume:
        raise UserError(f"{job.folder} is not empty. Give --resume to go on with the job in it, or an empty folder.")
    if others:
        _check_same(Job.read(job.folder), job)
    return bool(others)


def _check_same(found: Job, wanted: Job) -> None:
    different = [key for key in wanted.fields if found.fields.get(key) != wanted.fields[key]]
    if different:
        key = different[0]
        values = (f"{str(job.fields.get(key))[:80]}" for job in (found, wanted))
        what = "; ".join(f"{who} {value}" for who, value in zip(("there", "now"), values))
        if key in ("inputs", "shards"):
            what = "other files, or files of another size or time"
        raise UserError(f"{wanted.folder} holds predictions of another job: {key} ({what}). Give another folder.")


def _input(data: ReferenceData) -> dict[str, object]:
    return {
        "path": str(data.path.resolve()),
        "kind": data.kind,
        "split": data.split,
        "items": [data.items.start, data.items.stop],
        "files": [_file(path) for path in data.files or (data.path,)],
    }


def _file(path: Path) -> dict[str, object]:
    status = path.stat()
    return {"path": str(path.resolve()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
