"""One worker of a job: it opens what job.json names and scores shards by their numbers.

Knows nothing of other workers: all that it is told is the folder and, for each shard, its number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.reference_data import open_reference
from ..data.scoring import score
from ..errors import UserError
from ..runtime.artifact import open_artifact
from .job import Job

if TYPE_CHECKING:
    from ..data.chunks import ReferenceData
    from ..runtime.executor import Executor


@dataclass(frozen=True)
class ShardDone:
    """begun, ended: seconds since 1970 by this machine's clock."""

    shard: int
    items: int
    begun: float
    ended: float


class Scorer:
    """Raises UserError where the folder's library or an input is not here, or is another one than when it was planned.

    cores: of the one thread that calls it; None: where it may run.
    """

    def __init__(self, folder: str | Path, cores: list[int] | None = None) -> None:
        self.job = Job.read(Path(folder))
        self._cores = cores
        self._opened: tuple[int, ReferenceData] | None = None

    @cached_property
    def _model(self) -> Executor:
        artifact = open_artifact(self.job.fields["library"])
        if artifact.manifest.build != self.job.fields["build"]:
            raise UserError(f"{artifact.library} is another build than that of {self.job.folder}. Copy it anew.")
        from ..runtime.executor import Executor  # imports TVM, after whoever calls has set what it reads then

        return Executor(artifact, cores=self._cores)

    def score(self, number: int, advance: Callable[[int], object] = lambda _: None) -> ShardDone:
        """Score a shard and leave its part. advance: is told the number of items, chunk by chunk."""
        shard, begun = self.job.shards[number], time.time()
        scored = score(self._model, self._data(shard.input).only(shard.items), advance, keep_part=False)
        self.job.write_part(number, scored)
        return ShardDone(number, shard.count, begun, time.time())

    def _data(self, number: int) -> ReferenceData:
        if self._opened is None or self._opened[0] != number:
            self.job.check_inputs([number])
            known = self.job.fields["inputs"][number]
            part = {"split": "all", "max_ind_range": self.job.fields["max_ind_range"]}
            data = open_reference(known["path"], self._model.artifact.manifest.model, outputs_optional=True, **part)
            self._opened = number, data
        return self._opened[1]
