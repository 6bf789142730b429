"""LoadGen's process: it issues samples into the queue, and reports to LoadGen which are done.

    multi_instance.py        this process                                instances
    settings | test  ->      LoadGen -> issue -> queue          ->       take, run
                             LoadGen <- complete <- pipe of records <-
                     <-      counts; LoadGen's logs hold its verdict

Two threads: LoadGen's own, which calls `issue`, and one that reads the pipe. It talks to its parent as workers do.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..data.query_samples import SampleLibrary, SampleSpec
from ..errors import UserError
from ..instances.protocol import Control, QueueEnds, die_with_parent
from ..instances.queue_service import RECORD
from ..instances.work_queue import WorkQueue
from ..runtime.artifact import open_artifact
from ..runtime.typed_json import read_as
from .ledger import SampleLedger
from .settings import LoadgenRequest, effective, test_settings

_PIPE_BYTES = 1 << 20
_OFFLINE_PAUSE_S = 0.1  # between reads of the pipe: offline nobody waits for any sample but the last
_PAUSES_TO_GO = 5  # as long as the outstanding samples will take so many pauses
_LOOK_S = 0.1


@dataclass(frozen=True)
class DriverAssignment:
    """The first line it reads. load_threads: to draw samples with."""

    library: str
    queue: QueueEnds
    cores: tuple[int, ...]
    load_threads: int
    instances: int
    parent_pid: int

    title = "LoadGen"

    @property
    def inherited(self) -> tuple[int, ...]:
        return self.queue.inherited


class Driver:
    """LoadGen's system under test and its sample library."""

    def __init__(self, loadgen: Any, assignment: DriverAssignment) -> None:
        self._loadgen = loadgen
        self._manifest = open_artifact(assignment.library).manifest
        self._assignment = assignment
        self.spec = read_as(SampleSpec, assignment.queue.spec, "samples")
        self._queue = WorkQueue(assignment.queue.queue_fd, assignment.queue.bell_fd)
        self._library = SampleLibrary(self.spec, assignment.queue.samples_fd)
        self._lengths = np.diff(self._library.begins)
        self._ledger = SampleLedger(self._queue.most_samples)
        self._ids = np.zeros(self._queue.most_samples, np.uint64)  # LoadGen's, of each issued sample
        self._sources = np.zeros(self._queue.most_samples, np.int64)  # where its items begin in the library
        self._with_labels = False
        self._items_done = np.zeros(assignment.instances, np.int64)

    def test(self, request: LoadgenRequest, wait_ns: int, silence_s: float) -> dict[str, object]:
        """Run one test of LoadGen's, with its logs in the request's folder, and count what was done.

        silence_s: the process ends when the instances, with work to do, report nothing for so long.
        """
        loadgen = self._loadgen
        settings = test_settings(loadgen, request, self.spec.samples)
        self._with_labels = request.is_accuracy
        self._items_done[:] = 0
        self._queue.configure(batch_size=self._manifest.batch_size, wait_ns=wait_ns)
        first = self._queue.published
        system = loadgen.ConstructFastSUT(self._issue, self._queue.flush)
        library = loadgen.ConstructQSL(
            self.spec.samples, settings.performance_sample_count_override, lambda _: None, lambda _: None
        )
        finished = threading.Event()
        completing = threading.Thread(target=self._complete_until, args=(finished, silence_s, request.is_offline))
        completing.start()
        cpu_s, began_s = time.process_time(), time.perf_counter()
        try:
            loadgen.StartTestWithLogSettings(system, library, settings, _log_settings(loadgen, request.log_dir))
        finally:
            finished.set()
            completing.join()
            loadgen.DestroyQSL(library)
            loadgen.DestroyFastSUT(system)
        issued = self._queue.published - first
        begins, ends = self._ledger.span(np.arange(first, first + issued))
        return {
            "samples": issued,
            "items": int((ends - begins).sum()),
            "items_per_instance": self._items_done.tolist(),
            "cpu_share": (time.process_time() - cpu_s) / (time.perf_counter() - began_s),
        }

    def load(self) -> None:
        """All samples, once, before LoadGen starts: it may ask for any."""
        self._library.load(self._manifest.model, self._assignment.load_threads)

    def _issue(self, ids: list[int], samples: list[int]) -> None:
        arrival_ns = time.perf_counter_ns()
        picked = np.array(samples)
        first, last = self._queue.published, self._queue.published + len(picked)
        if last > len(self._ids):
            _leave(UserError(f"LoadGen issued more than {len(self._ids):,} samples. Give a shorter --duration."))
        self._ids[first:last] = ids
        self._sources[first:last] = self._library.begins[picked]
        self._ledger.issue(self._lengths[picked])
        self._queue.publish(self._sources[first:last], self._lengths[picked], arrival_ns)

    def _complete_until(self, finished: threading.Event, silence_s: float, offline: bool) -> None:
        pipe, rest, completed = self._assignment.queue.completions_fd, b"", 0
        began_s = news_s = time.monotonic()
        try:
            while not finished.is_set():
                if not select.select([pipe], [], [], _LOOK_S)[0]:
                    if not self._ledger.outstanding:
                        news_s = time.monotonic()
                    elif time.monotonic() - news_s > silence_s:
                        raise UserError(
                            f"No instance finished anything for {silence_s:g} s, though there was work; the run was "
                            "ended. One of them may be stopped (SIGSTOP), or the machine overloaded: run again."
                        )
                    continue
                data = rest + os.read(pipe, _PIPE_BYTES)
                whole = len(data) - len(data) % RECORD.size
                rest = data[whole:]
                news_s = time.monotonic()
                completed += self._complete(np.frombuffer(data[:whole], np.int64).reshape(-1, 4))
                left_s = self._ledger.outstanding * (news_s - began_s) / max(completed, 1)
                if offline and left_s > _PAUSES_TO_GO * _OFFLINE_PAUSE_S:
                    time.sleep(_OFFLINE_PAUSE_S)
        except BaseException as error:
            _leave(error)

    def _complete(self, records: np.ndarray) -> int:
        """Report the samples that these records complete to LoadGen; how many. records [n, 4] int64, as RECORD."""
        np.add.at(self._items_done, records[:, 3], records[:, 1])
        samples = self._ledger.done(records[:, :2])
        if len(samples):
            data = self._pairs(samples) if self._with_labels else self._predictions(samples)
            lengths = np.diff(np.stack(self._ledger.span(samples)), axis=0)[0]
            nbytes = data.itemsize * data[0].size * lengths
            addresses = data.ctypes.data + np.cumsum(nbytes) - nbytes
            response = self._loadgen.QuerySampleResponse
            fields = zip(self._ids[samples].tolist(), addresses.tolist(), nbytes.tolist())
            self._loadgen.QuerySamplesComplete([response(*each) for each in fields])
        self._queue.release(self._ledger.settled_items)
        return len(samples)

    def _predictions(self, samples: np.ndarray) -> np.ndarray:
        """[items of all samples] float32."""
        begins, ends = self._ledger.span(samples)
        return self._queue.ring[_ranges(begins, ends) % len(self._queue.ring)]

    def _pairs(self, samples: np.ndarray) -> np.ndarray:
        """[items, 2] float32: prediction and label of each, as MLPerf's accuracy-dlrm.py wants them."""
        begins, ends = self._ledger.span(samples)
        sources = self._sources[samples]
        labels = self._library.labels[_ranges(sources, sources + ends - begins)]
        return np.stack([self._predictions(samples), labels.astype(np.float32)], axis=1)


def _ranges(begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """begins[0]..ends[0], begins[1]..ends[1], .. joined."""
    lengths = ends - begins
    offsets = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
    return np.arange(lengths.sum()) + offsets


def _log_settings(loadgen: Any, folder: str) -> Any:
    settings, output = loadgen.LogSettings(), loadgen.LogOutputSettings()
    output.outdir = folder
    output.copy_summary_to_stdout = False
    settings.log_output = output
    settings.enable_trace = False
    return settings


_control: Control | None = None


def _leave(error: BaseException) -> None:
    """Report the error and end the process: LoadGen cannot be told to give up a test."""
    if isinstance(error, UserError):
        _control.reply(error=str(error))
    else:
        _control.reply(crash="".join(traceback.format_exception(error)))
    os._exit(1)


def main() -> None:
    global _control
    _control = control = Control()
    fields = control.receive()
    if fields is None:
        return
    assignment = read_as(DriverAssignment, fields, "assignment")
    die_with_parent(assignment.parent_pid)
    try:
        serve(control, assignment)
    except BaseException as error:
        _leave(error)


def serve(control: Control, assignment: DriverAssignment) -> None:
    import mlperf_loadgen

    with suppress(OSError):  # a user has a limited number of pages for pipes
        fcntl.fcntl(assignment.queue.completions_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    driver = Driver(mlperf_loadgen, assignment)
    control.reply(ready=True)
    while (command := control.receive()) is not None:
        if command["do"] == "load":
            driver.load()
            os.sched_setaffinity(0, assignment.cores)  # only now: all may draw samples
            control.reply()
            continue
        request = read_as(LoadgenRequest, command["request"], "request")
        if command["do"] == "settings":
            settings = test_settings(mlperf_loadgen, request, driver.spec.samples)
            control.reply(**asdict(effective(settings, request)))
        elif command["do"] == "test":
            control.reply(**driver.test(request, command["wait_ns"], command["silence_s"]))
