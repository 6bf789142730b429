"""Predictions of all items of some files, each exactly once, in shards: accuracy.py --predictions.

    files -> job of shards -> a part for each shard -> figures over all parts

The result is the folder of parts, or for a name that ends in .npz one file, made of them in the end: its parts lie in
NAME.npz.parts until then. Figures are added up part by part, so that memory does not grow with the items, but for the
exact AUC of up to 10^8 of them (metrics.AucSum).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ..console import Bar, show
from ..data.demo import reference_for
from ..data.metrics import EXACT_ITEMS
from ..data.reference_data import open_reference
from ..data.scoring import Gate, Score, Verdict, judge_parts
from ..errors import UserError, printable
from ..runtime.artifact import open_artifact
from .job import SHARD_ITEMS, Job, held_folder, is_begun, plan_job
from .parts import TEMPORARY, sync_folder
from .scorer import Scorer, ShardDone

_MOST_LINES = 10

if TYPE_CHECKING:
    from ..data.chunks import ReferenceData
    from ..runtime.manifest import Manifest


ScoreShards = Callable[[Job, list[int], Callable[[int], object]], Generator[ShardDone, None, None]]


@dataclass(frozen=True)
class PredictionSettings:
    """As accuracy.py was asked. files: none for the demo's own."""

    model: Path
    files: tuple[Path, ...]
    output: Path
    shard_items: int = SHARD_ITEMS
    resume: bool = False
    split: str | None = None
    first_item: int = 0
    max_items: int | None = None
    max_ind_range: int | None = None

    @property
    def is_file(self) -> bool:
        return self.output.suffix == ".npz"

    @property
    def folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.parts") if self.is_file else self.output

    @property
    def spent(self) -> Path:
        """The folder's name once its one file is whole: it is renamed at one moment, and removed bit by bit."""
        folder = self.folder.resolve()
        return folder.with_name(f".{folder.name}{TEMPORARY}")


@dataclass(frozen=True)
class Predictions:
    """verdict over all items; done: the shards of this run, the others were there before."""

    job: Job
    verdict: Verdict
    done: tuple[ShardDone, ...]

    def to_json(self, output: Path) -> dict[str, object]:
        items = sum(each.items for each in self.done)
        seconds = max((each.ended for each in self.done), default=0) - min(
            (each.begun for each in self.done), default=0
        )
        return {
            "predictions": str(output),
            "shards": len(self.job.shards),
            "shards_of_this_run": len(self.done),
            "items_per_s": items / seconds if seconds > 0 else None,
            "auc_error_bound": self.verdict.auc_error,
        }


def plan_predictions(settings: PredictionSettings) -> tuple[Manifest, list[ReferenceData], Job]:
    """All that can be refused before anything is written. Raises UserError."""
    if settings.is_file and settings.output.exists() and not (settings.resume and settings.folder.is_dir()):
        shutil.rmtree(settings.spent, ignore_errors=True)  # of a driver that was killed meanwhile
        raise UserError(f"{settings.output} is there already. Give another name, or remove it.")
    artifact = open_artifact(settings.model)
    part = {"split": settings.split, "first_item": settings.first_item, "max_items": settings.max_items}
    options = {**part, "max_ind_range": settings.max_ind_range, "outputs_optional": True}
    card = artifact.manifest.model
    files = settings.files or (reference_for(card.fingerprint),)
    inputs = [open_reference(path, card, **options) for path in files]
    plan = {"shard_items": settings.shard_items, "max_ind_range": settings.max_ind_range}
    job = plan_job(settings.folder, artifact, inputs, **plan)
    is_begun(job, resume=settings.resume)
    return artifact.manifest, inputs, job


def plan_lines(settings: PredictionSettings, inputs: list[ReferenceData], job: Job) -> list[str]:
    """What is read, and into how many shards it is cut, for people."""
    lines = []
    for number, data in enumerate(inputs[:_MOST_LINES]):
        shards = sum(shard.input == number for shard in job.shards)
        why = "" if data.borders != () or data.num_items <= settings.shard_items else ", as it cannot be entered midway"
        cut = f"; {cut}" if (cut := data.cut()) else ""
        found = f"{data.kind}, {data.num_items:,} items, {shards} shard{'s' * (shards != 1)}"
        lines.append(f"data   {os.path.relpath(data.path)}: {found}{why}{cut}")
    if more := len(inputs) - len(lines):
        lines.append(f"data   and {more:,} more files")
    several = "s" * (len(job.shards) != 1)
    lines.append(f"job    {job.items:,} items in {len(job.shards):,} shard{several}, into {settings.output}")
    return [printable(each) for each in lines]


def score_here(job: Job, numbers: list[int], advance: Callable[[int], object]) -> Generator[ShardDone, None, None]:
    """These shards one after another, on one thread of this process. advance: is told the number of items."""
    if numbers:
        scorer = Scorer(job.folder)
        for number in numbers:
            yield scorer.score(number, advance)


def predict_all(
    settings: PredictionSettings, job: Job, gate: Gate, *, is_logit: bool, score: ScoreShards
) -> Predictions:
    """Score what is not there yet, check that all is there, and judge it. Raises UserError; parts stay."""
    with held_folder(job, resume=settings.resume):
        done = _score_missing(job, score)
        job.check_whole()
        job.check_inputs(range(len(job.fields["inputs"])))
        verdict = judge_parts(_Parts(job), gate, is_logit=is_logit, exact_auc=job.items <= EXACT_ITEMS)
        if verdict.items != job.items:
            raise UserError(
                f"{job.folder}: parts of {verdict.items:,} items; the job has {job.items:,}. Give --resume."
            )
        if settings.is_file:
            _write_one_file(settings.output, job)
            shutil.rmtree(settings.spent, ignore_errors=True)
            os.replace(job.folder, settings.spent)
    if settings.is_file:
        shutil.rmtree(settings.spent, ignore_errors=True)
    return Predictions(job, verdict, tuple(done))


def _score_missing(job: Job, score: ScoreShards) -> list[ShardDone]:
    there, refused = job.parts_done()
    for reason in refused:
        show(f"Warning: {reason}", to=sys.stderr)
    left = sorted(set(range(len(job.shards))) - set(there))
    done: list[ShardDone] = []
    with Bar("scoring", job.items, "items") as bar:
        bar.update(sum(job.shards[number].count for number in there))
        try:
            with closing(score(job, left, bar.update)) as scored:
                done.extend(scored)
        except KeyboardInterrupt:
            count = len(job.parts_done()[0])
            show(f"{count} of {len(job.shards)} shards are done; --resume goes on with them.", to=sys.stderr)
            raise
    return done


class _Parts:
    """The parts in the order of the items; each iteration reads and checks them anew."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __iter__(self) -> Iterator[Score]:
        return map(self._job.read_part, range(len(self._job.shards)))


def _write_one_file(output: Path, job: Job) -> None:
    """An npz of pred, and of target and reference where all inputs have them; not held in memory."""
    named = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:8]  # of two jobs whose names begin alike
    temporary = output.with_name(f".{output.name[:40]}.{named}{TEMPORARY}")  # the next driver's, after a killed one
    columns = {"pred": "predictions", "target": "labels", "reference": "reference"}
    there = {key for key, name in columns.items() if all(getattr(part, name) is not None for part in _Parts(job))}
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for key, name in columns.items():
                if key in there:
                    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                        _write_column(member, job, name)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, output)
        sync_folder(output.resolve().parent)
    finally:
        temporary.unlink(missing_ok=True)


def _write_column(member: IO[bytes], job: Job, name: str) -> None:
    dtype = np.dtype(np.uint8 if name == "labels" else np.float32)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (job.items,)}
    np.lib.format.write_array_header_1_0(member, header)
    for part in _Parts(job):
        member.write(np.ascontiguousarray(getattr(part, name), dtype).data)
