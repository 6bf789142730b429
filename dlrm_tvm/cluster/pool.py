"""The shards of a job on all free CPUs of a Ray cluster: Ray Data's actor pool, which carries their numbers, no rows.

An actor is a `Scorer` on a core of its own. It reads inputs and writes parts itself: all nodes see both at one path.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import UserError, one_line
from ..instances.process import thread_environment
from ..machine.cores import claimed_core
from ..machine.memory import available_bytes
from ..predictions.job import Job
from ..predictions.run import ScoreShards
from ..predictions.scorer import Scorer, ShardDone
from ..runtime.artifact import open_artifact
from ..runtime.residency import check_tables_fit, table_memory
from .connection import connected

_RETRIES = 3  # of an actor that died, and of the shard that it had
_FREE_S = 20.0


@contextmanager
def on_ray(address: str, *, resume: bool = False) -> Iterator[ScoreShards]:
    """What scores the shards of a job on the cluster at HOST:PORT. Raises UserError as soon as one shard cannot be.

    resume: the job may have no shards left, and then needs no CPU."""
    with connected(address) as ray:
        if not resume:
            _free_cpus(ray)  # refused before a folder is made
        yield partial(_score, ray)


def _score(
    ray: ModuleType, job: Job, numbers: list[int], advance: Callable[[int], object]
) -> Generator[ShardDone, None, None]:
    if not numbers:
        return
    try:
        for row in _scored(ray, job, numbers, min(_free_cpus(ray), len(numbers))):
            if row["error"]:
                raise UserError(row["error"])
            advance(row["items"])
            yield ShardDone(row["shard"], row["items"], row["begun"], row["ended"])
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise UserError(f"Ray gave up ({one_line(error)}). The parts that are done stay: --resume.") from None


def _scored(ray: ModuleType, job: Job, numbers: list[int], workers: int) -> Any:
    """Rows of `ShardWorker`, as they come. The numbers lie in Ray's store: no task that reads them wants a CPU."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.max_errored_blocks = False, 0
    shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
    pool = {"compute": ray.data.ActorPoolStrategy(size=workers), "batch_size": 1, "num_cpus": 1}
    with warnings.catch_warnings():  # Ray 2.60 has no other way to bound retries, and says that 2.64 will have none
        warnings.simplefilter("ignore", DeprecationWarning)
        lives = {"max_restarts": _RETRIES, "max_task_retries": _RETRIES}
        return shards.map_batches(ShardWorker, fn_constructor_args=(str(job.folder),), **pool, **lives).iter_rows()


def _free_cpus(ray: ModuleType) -> int:
    """Raises UserError where others hold them all."""
    deadline_s = time.monotonic() + _FREE_S
    while (free := int(ray.available_resources().get("CPU", 0))) < 1:
        if time.monotonic() > deadline_s:
            raise UserError(f"The cluster's CPUs are taken, for {_FREE_S:g} s now. Wait for its other jobs to end.")
        time.sleep(0.2)
    return free


class ShardWorker:
    """In an actor: {"shard": [n]} -> the same with items, begun, ended and error, "" for a part that is there."""

    def __init__(self, folder: str) -> None:
        os.environ.update(thread_environment(threads=1))  # before TVM is imported
        self._folder, self._mine = folder, threading.local()
        self._core = claimed_core()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [self._row(int(number)) for number in batch["shard"]]
        return {key: np.array([row[key] for row in rows]) for key in rows[0]}

    def _row(self, number: int) -> dict[str, Any]:
        try:
            if not hasattr(self._mine, "scorer"):  # a thread's own, as the executor pins the thread that calls it
                scorer = Scorer(self._folder, cores=self._core and [self._core[0]])
                library = open_artifact(scorer.job.fields["library"])
                check_tables_fit(table_memory(library, available_bytes()))
                self._mine.scorer = scorer
            return {**vars(self._mine.scorer.score(number)), "error": ""}
        except (UserError, OSError) as error:
            reason = f"{one_line(error)} (on {socket.gethostname()})"
            return {**vars(ShardDone(number, 0, 0.0, 0.0)), "error": reason}
