"""All instances of a run: started, kept in step, watched, ended.

    with Instances(assignments) as instances:        # N processes, pinned, loaded, each has run once
        before = instances.peak_gflops(1.0)          # every phase begins at one announced time
        run = instances.measure(duration_s=10, warmup_s=2)

A failure of one ends all: a worker's death is noticed at once, as the end of its pipe. If this process dies first, the
kernel kills the workers. Knows nothing of models; worker.py does the work.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType

import numpy as np

from ..console import Bar
from ..errors import UserError, interrupts_blocked
from ..machine.cpu import clock_mhz
from ..machine.os_counters import Snapshot, take_snapshot
from .arrivals import CLOSED, Arrivals, schedule_ns
from .interrupts import Interrupts, noted_interrupts
from .process import WORKER_COMMAND, WorkerProcess
from .profiling import ProfiledCalls
from .progress import ProgressBoard, StabilityWatch
from .protocol import Assignment
from .window import Measurement, Run, merge_runs

_BARRIER_LEAD_S = 0.02  # from announcing a time to that time, plus this per worker:
_BARRIER_LEAD_PER_WORKER_S = 0.001
_MARGIN_S = 0.05  # all run on past the window, so that nobody's last batches have the machine to themselves
_LISTEN_S = 3600  # at most at a time: epoll takes no more than 24 days; callers listen again
_OPENING_S, _OPENING_BYTES_PER_S = 600, 100e6  # tables may come from a slow disk
_SILENCE_S = 60  # after the end of its phase: a worker without an answer hangs

_DRAIN_S = 2.0  # after the window, for batches that were asked for in it
_LOOK_S = 0.1  # between looks at the progress board

_CLOCK_LOOKS, _CLOCK_EVERY_NS = 10, 1e9  # at most, and no more often than that
_EXIT_WAIT_S = 2.0


class NoBatchError(UserError):
    """The window was too short for this library."""


@dataclass(frozen=True)
class MeasuredRun:
    """The timed window's results, the kernel's counters at its borders, and whether Ctrl-C ended it.

    stable: whether throughput became stable, None where nobody asked. clocks_mhz: mean clock of the instances' cores at
    moments in the window; empty where the kernel does not tell. opened_at: of the window, seconds since
    1970.
    """

    measurement: Measurement
    before: Snapshot
    after: Snapshot
    interrupted: bool
    stable: bool | None = None
    clocks_mhz: tuple[float, ...] = ()
    opened_at: float = 0.0


@dataclass(frozen=True)
class _Timetable:
    """ns: the loop begins, the window opens and closes, the last batch may be asked for, all stop."""

    begin_ns: int
    open_ns: int
    close_ns: int
    last_ns: int
    stop_ns: int


def _timetable(begin_ns: int, warmup_s: float, duration_s: float, *, drains: bool) -> _Timetable:
    open_ns = begin_ns + int(warmup_s * 1e9)
    close_ns = open_ns + int(duration_s * 1e9)
    last_ns = close_ns + int(_MARGIN_S * 1e9)
    return _Timetable(begin_ns, open_ns, close_ns, last_ns, last_ns + int(_DRAIN_S * 1e9) * drains)


class Instances:
    """N worker processes, as a context. Raises UserError when one fails or dies, naming its signal."""

    def __init__(
        self, assignments: Sequence[Assignment], command: Sequence[str] = WORKER_COMMAND, table_bytes: int = 0
    ) -> None:
        """command: what to start per worker; tests put a stand-in for the executor here. table_bytes: to be read before
        they are ready, perhaps."""
        self._opening_s = _OPENING_S + table_bytes / _OPENING_BYTES_PER_S
        self._board = ProgressBoard(len(assignments))
        self._assignments = [replace(each, board_fd=self._board.descriptor) for each in assignments]
        self._command = command
        self._workers: list[WorkerProcess] = []
        self._messages: dict[WorkerProcess, tuple[dict, bytes]] = {}  # arrived, not gathered yet

    def __enter__(self) -> Instances:
        try:
            with interrupts_blocked():
                for assignment in self._assignments:
                    self._workers.append(WorkerProcess(assignment, self._command))
            with Bar(f"starting {len(self._workers)} instance{'s' * (len(self._workers) > 1)}"):
                self._gather(silence_s=self._opening_s)
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
        """Each instance's FMA peak, all at once."""
        return [fields["gflops"] for fields, _ in self._phase("peak", seconds)]

    def stream_gbps(self, seconds: float) -> list[float]:
        """Each instance's rate of reading its MLP weights over and over, all at once."""
        return [fields["gbps"] for fields, _ in self._phase("stream", seconds)]

    def profile(self, seconds: float) -> list[ProfiledCalls]:
        """Time of each part of the instances' calls, all at once."""
        return [ProfiledCalls(**fields) for fields, _ in self._phase("profile", seconds)]

    def measure(
        self, *, duration_s: float, warmup_s: float, arrivals: Arrivals = CLOSED, until_stable: bool = False
    ) -> MeasuredRun:
        """Warm up, then the timed window. Ctrl-C ends it early with what there is; until_stable: stable throughput.

        Raises UserError when no batch fits in the window, KeyboardInterrupt when Ctrl-C came before it began.
        """
        times = _timetable(self._barrier_ns(), warmup_s, duration_s, drains=arrivals.is_open)
        watch = StabilityWatch() if until_stable else None
        with noted_interrupts() as interrupts, Bar("measuring", (times.last_ns - times.begin_ns) / 1e9):
            fields = {"stop_ns": times.stop_ns, "last_ns": times.last_ns}
            self._send("measure", times.begin_ns, **fields, arrivals=asdict(arrivals), telling=until_stable)
            before, after, clocks_mhz = self._watch_window(interrupts, times, watch)
            close_ns = times.close_ns
            if interrupts.seen or (watch and watch.is_stable):
                close_ns = self._end_early(close_ns, drains=arrivals.is_open)
            answers = self._gather(silence_s=_SILENCE_S)
        runs = [self._run_of(instance, arrivals, times, *answer) for instance, answer in enumerate(answers)]
        measurement = merge_runs(runs, times.open_ns, close_ns)
        if measurement is None or not measurement.batches:
            if interrupts.seen:
                raise KeyboardInterrupt
            raise NoBatchError(f"No batch was done within the window of {duration_s:g} s. Try --duration 10 or more.")
        stable = watch.is_stable if watch else None
        opened_at = time.time() - (time.perf_counter_ns() - times.open_ns) / 1e9
        return MeasuredRun(measurement, before, after, interrupts.seen, stable, clocks_mhz, opened_at)

    def _watch_window(
        self, interrupts: Interrupts, times: _Timetable, watch: StabilityWatch | None
    ) -> tuple[Snapshot, Snapshot, tuple[float, ...]]:
        """Counters at the window's borders, the clock between: a look takes milliseconds on large machines."""
        self._watch(interrupts, until_ns=times.open_ns)
        before, clocks_mhz = self.snapshot(), []
        looks = max(min(_CLOCK_LOOKS, int((times.close_ns - times.open_ns) / _CLOCK_EVERY_NS)), 1)
        for look in range(looks):
            middle_ns = times.open_ns + (times.close_ns - times.open_ns) * (2 * look + 1) // (2 * looks)
            self._watch(interrupts, until_ns=middle_ns, watch=watch)
            if interrupts.seen or (watch and watch.is_stable):
                break
            clocks_mhz.append(clock_mhz(core for worker in self._workers for core in worker.assignment.cores))
        else:
            self._watch(interrupts, until_ns=times.close_ns, watch=watch)
        return before, self.snapshot(), tuple(filter(None, clocks_mhz))

    def _end_early(self, close_ns: int, *, drains: bool) -> int:
        """When the window closed, ns. drains: batches that were asked for have as long as after a whole window."""
        close_ns = min(close_ns, time.perf_counter_ns())
        if drains:
            self._watch(None, until_ns=close_ns + int(_DRAIN_S * 1e9))
        self._stop()
        return close_ns

    def _run_of(self, instance: int, arrivals: Arrivals, times: _Timetable, fields: dict, payload: bytes) -> Run:
        ends_ns = np.frombuffer(payload, np.int64)
        if not arrivals.is_open:
            return Run(fields["started_ns"], ends_ns)
        span = {"begin_ns": times.begin_ns, "end_ns": times.last_ns}
        asked_ns = schedule_ns(arrivals, instance=instance, instances=len(self._workers), **span)
        stopped_ns = fields["stopped_ns"]
        if len(ends_ns) == len(asked_ns):  # with its last arrival done, it would have gone on waiting until then
            stopped_ns = max(stopped_ns, times.last_ns)
        return Run(fields["started_ns"], ends_ns, asked_ns, stopped_ns)

    def begin_service(self, most_batches: int) -> None:
        """All take from the queue, up to so many batches at a time, until it is stopped."""
        self._send("queue", self._barrier_ns(), most_batches=most_batches)

    def end_service(self) -> list[dict]:
        """Each one's share of the work (queue_service.Served), once the queue is stopped."""
        return [fields for fields, _ in self._gather(silence_s=_SILENCE_S)]

    def answer_of(self, other: WorkerProcess) -> dict:
        """The next message of another process. The instances are watched: the death of one raises UserError."""
        while other not in self._messages:
            self._listen(None, other)
        return self._messages.pop(other)[0]

    def _phase(self, name: str, seconds: float) -> list[tuple[dict, bytes]]:
        self._send(name, self._barrier_ns(), seconds=seconds)
        with Bar(name, seconds):
            return self._gather(silence_s=seconds + _SILENCE_S)

    def _barrier_ns(self) -> int:
        lead_s = _BARRIER_LEAD_S + _BARRIER_LEAD_PER_WORKER_S * len(self._workers)
        return time.perf_counter_ns() + int(lead_s * 1e9)

    def _send(self, do: str, begin_ns: int, **fields: object) -> None:
        for worker in self._workers:
            worker.send(do=do, begin_ns=begin_ns, **fields)

    def snapshot(self) -> Snapshot:
        """The kernel's counters of these processes and their cores, now."""
        return take_snapshot(self.pids, [worker.assignment.cores for worker in self._workers])

    def _stop(self) -> None:
        for worker in self._workers:
            worker.stop()

    def _watch(self, interrupts: Interrupts | None, until_ns: int, watch: StabilityWatch | None = None) -> None:
        """Sleep until then, until Ctrl-C, or until `watch` finds throughput stable. Raises when a worker fails."""
        wake = (interrupts.descriptor,) if interrupts else ()
        while not (interrupts and interrupts.seen) and (left_ns := until_ns - time.perf_counter_ns()) > 0:
            if watch and watch.look(*self._board.read()):
                break
            look_s = _LOOK_S if watch else left_ns / 1e9
            self._listen(min(left_ns / 1e9, look_s), *wake)

    def _gather(self, silence_s: float) -> list[tuple[dict, bytes]]:
        """One message of each, in their order. Raises UserError when one dies, fails or stays silent."""
        deadline_s = time.monotonic() + silence_s
        while silent := [worker for worker in self._workers if worker not in self._messages]:
            if time.monotonic() > deadline_s:
                raise UserError(
                    f"{silent[0].assignment.title} (process {silent[0].pid}) gave no answer for "
                    f"{silence_s:g} s and was ended. See whether the machine is overloaded, then run again."
                )
            self._listen(max(deadline_s - time.monotonic(), 0))
        return [self._messages.pop(worker) for worker in self._workers]

    def _listen(self, timeout_s: float | None, *wake: int | WorkerProcess) -> None:
        """Receive what arrives next, perhaps a part of a message; returns too when a `wake` descriptor has data."""
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
        self._board.close()
        self._workers = []
