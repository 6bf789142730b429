"""All instances of a run: started, kept in step, watched, ended.

    with Instances(assignments) as instances:        # N processes, pinned, loaded, each has run once
        before = instances.peak_gflops(1.0)          # every phase begins at one announced time
        run = instances.measure(duration_s=10, warmup_s=2)

Whatever goes wrong in one of them ends all: a worker's death is noticed as the end of its pipe, at once. Workers are
killed by the kernel should this process die first. Knows nothing of models; worker.py does the work.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from .errors import UserError
from .kernel_counters import Snapshot, take_snapshot
from .window import Measurement, Run, merge_runs
from .worker import Assignment
from .worker_process import WORKER_COMMAND, WorkerProcess

_BARRIER_LEAD_S = 0.02  # from announcing a time to that time, plus this per worker:
_BARRIER_LEAD_PER_WORKER_S = 0.001
_MARGIN_S = 0.05  # everyone runs on past the window, so that nobody's last batches have the machine to themselves
_LISTEN_S = 3600  # at most at a time: epoll takes no more than 24 days; callers listen again
_SILENCE_S = 60  # longer than its phase lasts without an answer: it hangs

_EXIT_WAIT_S = 2.0


@dataclass(frozen=True)
class MeasuredRun:
    """The timed window's results, the kernel's counters at its borders, and whether Ctrl-C ended it."""

    measurement: Measurement
    before: Snapshot
    after: Snapshot
    interrupted: bool


class Instances:
    """N worker processes, as a context. Raises UserError when one fails or dies, naming its signal."""

    def __init__(self, assignments: Sequence[Assignment], command: Sequence[str] = WORKER_COMMAND) -> None:
        """command: what to start per worker; tests put a stand-in for the executor here."""
        self._assignments = assignments
        self._command = command
        self._workers: list[WorkerProcess] = []
        self._messages: dict[WorkerProcess, tuple[dict, bytes]] = {}  # arrived, not gathered yet

    def __enter__(self) -> Instances:
        try:
            with interrupts_blocked():
                for assignment in self._assignments:
                    self._workers.append(WorkerProcess(assignment, self._command))
            self._gather()
        except BaseException:
            self._end(wait_s=0)
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end(wait_s=_EXIT_WAIT_S if kind is None else 0)

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def peak_gflops(self, seconds: float) -> list[float]:
        """Each instance's FMA peak, all cores at it at once."""
        return [fields["gflops"] for fields, _ in self._phase("peak", seconds)]

    def stream_gbps(self, seconds: float) -> list[float]:
        """Each instance's rate of reading its MLP weights over and over, all at once."""
        return [fields["gbps"] for fields, _ in self._phase("stream", seconds)]

    def measure(self, *, duration_s: float, warmup_s: float) -> MeasuredRun:
        """Warm up, then the timed window. Ctrl-C ends it early with what there is.

        Raises UserError when no batch fits in the window, KeyboardInterrupt when Ctrl-C came before it began.
        """
        begin_ns = self._barrier_ns()
        open_ns = begin_ns + int(warmup_s * 1e9)
        close_ns = open_ns + int(duration_s * 1e9)
        with _interrupts() as interrupts:
            self._send("measure", begin_ns, stop_ns=close_ns + int(_MARGIN_S * 1e9))
            self._watch(interrupts, until_ns=open_ns)
            before = self.snapshot()
            self._watch(interrupts, until_ns=close_ns)
            after = self.snapshot()
            if interrupts.seen:
                self._stop()
            answers = self._gather(silence_s=_SILENCE_S)
        runs = [Run(fields["started_ns"], np.frombuffer(payload, np.int64)) for fields, payload in answers]
        measurement = merge_runs(runs, open_ns, close_ns)
        if measurement is None or not measurement.batches:
            if interrupts.seen:
                raise KeyboardInterrupt
            raise UserError(f"No batch was done within the window of {duration_s:g} s. Try --duration 10 or more.")
        return MeasuredRun(measurement, before, after, interrupts.seen)

    def begin_service(self, most_batches: int) -> None:
        """Have all take from the queue, up to so many batches at a time, until it is stopped."""
        self._send("queue", self._barrier_ns(), most_batches=most_batches)

    def end_service(self) -> list[dict]:
        """What each has done (queue_service.Served), once the queue is stopped."""
        return [_without_size(fields) for fields, _ in self._gather(silence_s=_SILENCE_S)]

    def answer_of(self, other: WorkerProcess) -> dict:
        """The next message of another process, while the instances are watched: the death of one raises UserError."""
        while other not in self._messages:
            self._listen(None, other)
        return _without_size(self._messages.pop(other)[0])

    def _phase(self, name: str, seconds: float) -> list[tuple[dict, bytes]]:
        self._send(name, self._barrier_ns(), seconds=seconds)
        return self._gather(silence_s=seconds + _SILENCE_S)

    def _barrier_ns(self) -> int:
        lead_s = _BARRIER_LEAD_S + _BARRIER_LEAD_PER_WORKER_S * len(self._workers)
        return time.perf_counter_ns() + int(lead_s * 1e9)

    def _send(self, do: str, begin_ns: int, **fields: object) -> None:
        for worker in self._workers:
            worker.send(do=do, begin_ns=begin_ns, **fields)

    def snapshot(self) -> Snapshot:
        """The kernel's counters of these processes and their cores, now."""
        return take_snapshot(self.pids, [core for worker in self._workers for core in worker.assignment.cores])

    def _stop(self) -> None:
        for worker in self._workers:
            worker.stop()

    def _watch(self, interrupts: Interrupts, until_ns: int) -> None:
        """Sleep until then, or until Ctrl-C, or until a worker fails, which raises."""
        while not interrupts.seen and (left_ns := until_ns - time.perf_counter_ns()) > 0:
            self._listen(left_ns / 1e9, interrupts.descriptor)

    def _gather(self, silence_s: float | None = None) -> list[tuple[dict, bytes]]:
        """One message of each, in their order. Raises UserError when one dies, fails or stays silent."""
        deadline_s = float("inf") if silence_s is None else time.monotonic() + silence_s
        while silent := [worker for worker in self._workers if worker not in self._messages]:
            if time.monotonic() > deadline_s:
                raise UserError(
                    f"{silent[0].assignment.title} (process {silent[0].pid}) gave no answer for "
                    f"{silence_s:g} s and was ended. See whether the machine is overloaded, then run again."
                )
            self._listen(None if silence_s is None else max(deadline_s - time.monotonic(), 0))
        return [self._messages.pop(worker) for worker in self._workers]

    def _listen(self, timeout_s: float | None, *wake: int | WorkerProcess) -> None:
        """Take what arrives next, if only a part of a message; returns too when a `wake` descriptor has data."""
        with selectors.DefaultSelector() as selector:
            for source in (*self._workers, *wake):
                selector.register(source, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(timeout_s and min(timeout_s, _LISTEN_S))]
        for worker in ready:
            if isinstance(worker, WorkerProcess) and (message := worker.receive()) is not None:
                self._messages[worker] = message

    def _end(self, wait_s: float) -> None:
        for worker in self._workers:
            worker.close()
        deadline_s = time.monotonic() + wait_s
        for worker in self._workers:
            worker.end(deadline_s)
        self._workers = []


def _without_size(fields: dict) -> dict:
    return {key: value for key, value in fields.items() if key != "payload_bytes"}


class Interrupts:
    """Ctrl-C as something to look at and to wait for, so that it cannot tear a message in two."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.seen = False


@contextmanager
def _interrupts() -> Iterator[Interrupts]:
    """While this lasts the first Ctrl-C is noted and its descriptor becomes readable; the second one raises."""
    reading, writing = os.pipe()
    interrupts = Interrupts(reading)

    def note(number: int, frame: object) -> None:
        if interrupts.seen:
            raise KeyboardInterrupt
        interrupts.seen = True
        os.write(writing, b"!")

    previous: Callable | int | None = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)
        os.close(reading)
        os.close(writing)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """No Ctrl-C between starting a worker and knowing of it. What is blocked stays blocked over exec: workers never
    see a Ctrl-C, at no moment of their lives; the parent decides."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
