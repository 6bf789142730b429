"""LoadGen's process as the run sees it: started, asked for tests, and the memory that it shares with the instances.

driver.py is the other end.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from ..bench.session import Session
from ..console import Bar
from ..data.query_samples import SampleSpec
from ..errors import UserError, interrupts_blocked
from ..instances.process import WorkerProcess
from ..instances.protocol import QueueEnds
from ..instances.work_queue import WorkQueue
from ..machine.files import check_writable
from ..machine.memory import available_bytes
from ..machine.shared_memory import SharedArrays
from ..paths import module_command, packages_command
from .driver import DriverAssignment
from .logs import Verdict, read_verdict
from .settings import EffectiveSettings, LoadgenRequest

DRIVER_COMMAND = module_command("loadgen.driver")

_ROOM = 1 << 30  # of memory, left to everything else
_LEAVE_S = 2.0


@dataclass(frozen=True)
class LoadgenTest:
    """One test: the request, what LoadGen issued, its verdict. items_per_instance: by their own records.

    cpu_share: of LoadGen's process, of one core's time. Of a test that was cut short, cut_after_s, samples and items
    are those that were done, and the rest is unknown.
    """

    request: LoadgenRequest
    samples: int
    items: int
    items_per_instance: tuple[int, ...] = ()
    cpu_share: float | None = None
    verdict: Verdict | None = None  # in accuracy mode too
    cut_after_s: float | None = None

    @property
    def is_valid(self) -> bool:
        return bool(self.verdict and self.verdict.is_valid)

    @property
    def samples_per_s(self) -> float:
        return self.verdict.samples_per_s if self.verdict else self.samples / self.cut_after_s

    @property
    def items_per_s(self) -> float:
        return self.samples_per_s * self.items / max(self.samples, 1)


class CutShortError(KeyboardInterrupt):
    """Ctrl-C came during a test."""

    def __init__(self, test: LoadgenTest) -> None:
        super().__init__()
        self.test = test


class LoadgenProcess:
    """LoadGen, its samples loaded. The instances are watched while it works: the death of one raises UserError."""

    def __init__(self, process: WorkerProcess, ask: Callable[[WorkerProcess], dict], queue: WorkQueue) -> None:
        """ask: waits for a process's next message, as Instances.answer_of."""
        self._process = process
        self._ask = ask
        self._queue = queue
        self.is_testing = False

    def settings(self, request: LoadgenRequest) -> EffectiveSettings:
        return EffectiveSettings(**self._answer(do="settings", request=asdict(request)))

    def load(self) -> None:
        """Read or draw the samples. Raises UserError for bad values in a file."""
        with Bar("loading samples"):
            self._answer(do="load")

    def test(self, request: LoadgenRequest, *, wait_ms: float, silence_s: float) -> LoadgenTest:
        """wait_ms: how long an item may wait for its batch to fill; silence_s: after which instances count as stuck.

        Raises UserError for a test without a verdict, and for one that LoadGen did not begin; CutShortError.
        """
        folder = Path(request.log_dir)
        make_log_folder(folder)
        fields = {"wait_ns": int(wait_ms * 1e6), "silence_s": silence_s}
        began_s, before, self.is_testing = time.monotonic(), self._queue.done, True
        try:
            done = self._answer(do="test", request=asdict(request), **fields)
        except KeyboardInterrupt:
            samples, items = (now - then for now, then in zip(self._queue.done, before))
            cut = LoadgenTest(request, samples, items, cut_after_s=time.monotonic() - began_s)
            raise CutShortError(cut) from None
        self.is_testing = False
        if not done["samples"]:
            raise UserError(f"LoadGen issued nothing; it may be unable to write to {folder}. Give another --log-dir.")
        verdict = None if request.is_accuracy else read_verdict(folder)
        per_instance = tuple(done["items_per_instance"])
        return LoadgenTest(request, done["samples"], done["items"], per_instance, done["cpu_share"], verdict)

    def _answer(self, **command: object) -> dict:
        self._process.send(**command)
        return self._ask(self._process)


def make_log_folder(folder: Path) -> None:
    """The folder, without logs of an earlier test, which could be taken for those of the next one.

    Raises UserError where LoadGen cannot write.
    """
    check_writable("--log-dir", folder / "mlperf_log_summary.txt", missing_folder_is_made=True)
    for log in folder.glob("mlperf_log_*"):
        log.unlink()


def require_loadgen() -> None:
    """Raises UserError where the package is missing."""
    if find_spec("mlperf_loadgen") is None:
        raise UserError(
            "--scenario needs MLPerf's LoadGen, which is not installed. Try "
            f"{os.path.relpath(sys.executable)} -m {packages_command('loadgen')}"
        )


def check_room(spec: SampleSpec) -> None:
    """Raises UserError where memory does not hold the samples."""
    available = available_bytes()
    if spec.nbytes + _ROOM > available:
        fit = int(spec.samples * max(available - _ROOM, 0) / spec.nbytes)
        raise UserError(
            f"{spec.samples:,} samples take {spec.nbytes / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are "
            f"available, of which {_ROOM / 1e9:.1f} are kept free. Try --samples {max(fit, 1)}."
        )


@contextmanager
def shared_with_loadgen(spec: SampleSpec) -> Iterator[tuple[WorkQueue, QueueEnds, QueueEnds]]:
    """The queue; queue, samples and pipe as the instances inherit them, and as LoadGen's process does."""
    queue, samples = WorkQueue.create(), SharedArrays.create(spec.layout)
    reading, writing = os.pipe()
    ends = QueueEnds(queue.descriptor, queue.bell, samples.descriptor, writing, asdict(spec))
    try:
        yield queue, ends, replace(ends, completions_fd=reading)
    finally:
        queue.close()
        samples.close()
        os.close(reading)
        os.close(writing)


@contextmanager
def loadgen_process(session: Session, queue: WorkQueue, ends: QueueEnds) -> Iterator[LoadgenProcess]:
    """Started beside the session's instances. Killed in the middle of a test: LoadGen cannot be told to give up."""
    assignment = DriverAssignment(
        library=str(session.plan.settings.model),
        queue=ends,
        cores=session.plan.placement.other_cpus,
        load_threads=sum(map(len, session.plan.cores)),
        instances=len(session.plan.cores),
        parent_pid=os.getpid(),
    )
    with interrupts_blocked():
        process = WorkerProcess(assignment, DRIVER_COMMAND)
    leave_s = 0.0
    try:
        with Bar("starting LoadGen"):
            session.instances.answer_of(process)
        loadgen = LoadgenProcess(process, session.instances.answer_of, queue)
        yield loadgen
        leave_s = 0.0 if loadgen.is_testing else _LEAVE_S
    finally:
        process.close()
        process.end(time.monotonic() + leave_s)
