"""One instance: a process that owns T cores and one executor, and does what its parent says.

    parent                       worker
    assignment (one line)   ->   pin, open, prepare inputs, run once
                            <-   ready
    peak | measure | stream | profile
                            ->   at the announced time, together with all the others
                            <-   its result: one JSON line, for latencies followed by raw int64
    (end of input)          ->   exit

Started as `python -m dlrm_tvm.worker`, never forked: a fork of a process with a thread pool hangs. Commands come on
stdin, results go out on what was stdout; anything that TVM prints goes to stderr instead. Times are nanoseconds of
CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import signal
import sys
import time
import traceback
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .errors import UserError
from .numa import prefer_node
from .placement import verify_confined

if TYPE_CHECKING:
    from .executor import Batch, Executor
    from .queue_service import Served

STOP_SIGNAL = signal.SIGUSR1  # the parent's "stop now and hand over what you have"
_PR_SET_PDEATHSIG = 1
_SPIN_NS = 200_000  # before an arrival: a sleep ends up to 0.1 ms late
_SLEEP_NS = 50_000_000


@dataclass(frozen=True)
class QueueEnds:
    """Inherited descriptors of what LoadGen drives an instance by, and the sample library's SampleSpec as JSON."""

    queue_fd: int
    samples_fd: int
    completions_fd: int
    spec: dict


@dataclass(frozen=True)
class Assignment:
    """What one worker is to be: the first line it reads. `cores`: one cpu id per thread."""

    library: str
    instance: int
    instances: int
    cores: list[int]
    ref_data: str | None
    l3_bytes: int
    parent_pid: int
    indices_per_bag: float = 1  # of random bags, or the mean in ref_data
    tables_fd: int | None = None  # inherited descriptors of shared memory that holds the weights; see SharedCopies
    parameters_fd: int | None = None
    numa_node: int | None = None  # None: the machine has one
    queue: QueueEnds | None = None  # None: LoadGen has no part in the run
    board_fd: int | None = None  # of the ProgressBoard
    peer: dict | None = None  # a PeerGraph that another engine is to run in the library's place

    @property
    def inherited(self) -> tuple[int, ...]:
        queue = (self.queue.queue_fd, self.queue.samples_fd, self.queue.completions_fd) if self.queue else ()
        return tuple(fd for fd in (self.tables_fd, self.parameters_fd, self.board_fd, *queue) if fd is not None)

    @property
    def title(self) -> str:
        return f"Instance {self.instance}"

    @staticmethod
    def from_json(fields: dict) -> Assignment:
        return Assignment(**fields | {"queue": fields["queue"] and QueueEnds(**fields["queue"])})


@dataclass
class StopClock:
    """When the timed loop ends. Its own object, so that the signal handler can move it without costing the loop."""

    stop_ns: int = 0
    interrupted: bool = False

    def set(self, stop_ns: int) -> None:
        self.stop_ns = stop_ns
        if self.interrupted:  # looked at after setting: a signal in between is not lost
            self.stop_ns = 0

    def interrupt(self, *_: object) -> None:
        self.interrupted = True
        self.stop_ns = 0


class Control:
    """The two pipes to the parent."""

    def __init__(self) -> None:
        self._commands = os.fdopen(os.dup(0), "rb")
        self._results = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what TVM or a library prints must not end up among the results

    def receive(self) -> dict | None:
        """The next command; None when the parent has closed the pipe."""
        line = self._commands.readline()
        return json.loads(line) if line else None

    def reply(self, payload: bytes | memoryview = b"", **fields: object) -> None:
        self._results.write(json.dumps({**fields, "payload_bytes": len(payload)}).encode() + b"\n")
        self._results.write(payload)
        self._results.flush()


def open_executor(assignment: Assignment) -> Executor:
    """The artifact, its threads placed, or the other engine that is to run in its place. Raises UserError."""
    if assignment.peer is not None:
        from .peer_engine import open_peer_engine

        return open_peer_engine(assignment)
    from .artifact import SharedCopies, open_artifact
    from .executor import Executor

    copies = SharedCopies(assignment.tables_fd, assignment.parameters_fd)
    return Executor(
        open_artifact(assignment.library, copies=copies), threads=len(assignment.cores), cores=assignment.cores
    )


def main(open_engine: Callable[[Assignment], Executor] = open_executor) -> None:
    """Serve one parent until it closes the pipe. `open_engine`: what to measure, the executor or its equal."""
    clock = StopClock()
    signal.signal(STOP_SIGNAL, clock.interrupt)
    control = Control()
    first_line = control.receive()
    if first_line is None:
        return  # the parent gave up before it said anything
    assignment = Assignment.from_json(first_line)
    die_with_parent(assignment.parent_pid)
    try:
        serve(control, clock, assignment, open_engine)
    except UserError as error:
        control.reply(error=str(error))
    except OSError as error:
        control.reply(error=f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception:
        control.reply(crash=traceback.format_exc())


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends; costs the timed loop nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit("the parent ended before this worker was ready")


def serve(
    control: Control, clock: StopClock, assignment: Assignment, open_engine: Callable[[Assignment], Executor]
) -> None:
    # Before any library starts threads of its own: they inherit the set, and memory is taken from the right node.
    os.sched_setaffinity(0, assignment.cores)
    if assignment.numa_node is not None:
        prefer_node(assignment.numa_node)
    engine = open_engine(assignment)
    batches = prepare_batches(engine, assignment)
    check_once(engine, batches[0])
    verify_confined(assignment.cores)
    gc.collect()
    gc.freeze()
    gc.disable()
    control.reply(ready=True, batches=len(batches))
    while (command := control.receive()) is not None:
        wait_until(command["begin_ns"])
        if command["do"] == "peak":
            control.reply(gflops=engine.peak_gflops(command["seconds"]))
        elif command["do"] == "stream":
            control.reply(gbps=engine.stream_gbps(command["seconds"]))
        elif command["do"] == "profile":
            control.reply(**profile(engine, batches, command["seconds"]))
        elif command["do"] == "measure":
            run = telling(engine.run, assignment) if command["telling"] else engine.run
            clock.set(command["stop_ns"])
            started_ns, ends_ns, stopped_ns = timed_loop(run, batches, clock, requests(command, assignment))
            control.reply(memoryview(ends_ns).cast("B"), started_ns=started_ns, stopped_ns=stopped_ns)
        elif command["do"] == "queue":
            served = serve_queue(engine, assignment, command["most_batches"], clock)
            control.reply(**asdict(served))


def serve_queue(engine: Executor, assignment: Assignment, most_batches: int, clock: StopClock) -> Served:
    """What LoadGen sends, until it is stopped."""
    from .query_samples import SampleLibrary, SampleSpec
    from .queue_service import serve_queue
    from .work_queue import WorkQueue

    ends = assignment.queue
    library = SampleLibrary(SampleSpec.from_json(ends.spec), ends.samples_fd)
    served = serve_queue(
        engine,
        WorkQueue(ends.queue_fd),
        library,
        completions=ends.completions_fd,
        instance=assignment.instance,
        most_batches=most_batches,
        clock=clock,
    )
    return served


def prepare_batches(engine: Executor, assignment: Assignment) -> list[Batch]:
    """The rotating set, each batch in the executor's own form."""
    from .bags import Bags
    from .workload import items_to_rotate, random_bags, random_items, recorded_items

    card, per_bag = engine.artifact.manifest.model, assignment.indices_per_bag
    items = items_to_rotate(card, engine.batch_size, assignment.l3_bytes, per_bag)
    who = {"instance": assignment.instance}
    if assignment.ref_data is not None:
        dense, lookups = recorded_items(assignment.ref_data, card, items, **who, instances=assignment.instances)
    elif per_bag > 1:
        dense, lookups = random_bags(card, items, int(per_bag), **who)
    else:
        dense, lookups = random_items(card, items, **who)
    parts = [slice(start, start + engine.batch_size) for start in range(0, items, engine.batch_size)]
    if isinstance(lookups, Bags):
        bags = [lookups.part(part.start, part.stop) for part in parts]
        return [engine.prepare(dense[part], each.indices, each.offsets) for part, each in zip(parts, bags)]
    return [engine.prepare(dense[part], lookups[part]) for part in parts]


def check_once(engine: Executor, batch: Batch) -> None:
    """A first run; a library that gives no numbers gets none."""
    predictions = engine.run(batch)
    if not (abs(predictions) < float("inf")).all():
        raise UserError("The library's predictions are not finite numbers. Check it with accuracy.py, recompile it.")


def profile(engine: Executor, batches: list[Batch], seconds: float) -> dict[str, object]:
    from .profiling import profile_calls

    return asdict(profile_calls(engine, batches, seconds))


def wait_until(begin_ns: int) -> None:
    """Sleep most of the way, then spin: all instances leave this barrier within microseconds."""
    while (left_ns := begin_ns - time.perf_counter_ns()) > 0:
        if left_ns > 2_000_000:
            time.sleep((left_ns - 1_000_000) / 1e9)


def requests(command: dict, assignment: Assignment) -> list[int] | None:
    """When each batch of the phase is to begin, ns; None for a closed loop."""
    from .arrivals import Arrivals, schedule_ns

    arrivals = Arrivals(**command["arrivals"])
    if not arrivals.is_open:
        return None
    return schedule_ns(
        arrivals,
        instance=assignment.instance,
        instances=assignment.instances,
        begin_ns=command["begin_ns"],
        end_ns=command["last_ns"],
    ).tolist()


def telling(run: Callable[[Batch], object], assignment: Assignment) -> Callable[[Batch], object]:
    """`run`, which also puts its progress on the board."""
    from .progress import ProgressBoard

    return ProgressBoard(assignment.instances, assignment.board_fd).telling(run, assignment.instance)


def timed_loop(
    run: Callable[[Batch], object], batches: list[Batch], clock: StopClock, arrivals_ns: list[int] | None = None
) -> tuple[int, array, int]:
    """Run batch after batch until the clock says stop: (start, end of each batch, end of all), ns.

    arrivals_ns: when each is to begin, at the earliest; None: at once.
    """
    started_ns = time.perf_counter_ns()
    if arrivals_ns is None:
        ends_ns = closed_loop(run, batches, clock)
        return started_ns, ends_ns, ends_ns[-1]
    return started_ns, open_loop(run, batches, clock, arrivals_ns), time.perf_counter_ns()


def open_loop(run: Callable[[Batch], object], batches: list[Batch], clock: StopClock, arrivals_ns: list[int]) -> array:
    """A batch per arrival, in order, none before its time; those that the clock leaves no time for are not run."""
    now = time.perf_counter_ns
    ends_ns = array("q")
    for batch, arrival_ns in zip(itertools.cycle(batches), arrivals_ns):
        while (left_ns := arrival_ns - now()) > 0 and clock.stop_ns:
            if left_ns > _SPIN_NS:  # a short sleep at a time: Ctrl-C moves the clock, and ends no sleep
                time.sleep(min(left_ns - _SPIN_NS, _SLEEP_NS) / 1e9)
        if now() >= clock.stop_ns:
            break
        run(batch)
        ends_ns.append(now())
    return ends_ns


def closed_loop(run: Callable[[Batch], object], batches: list[Batch], clock: StopClock) -> array:
    """Nothing but the call, one look at the clock and eight bytes per batch: about 0.15 µs."""
    now = time.perf_counter_ns
    ends_ns = array("q")
    append = ends_ns.append
    for batch in itertools.cycle(batches):
        run(batch)
        end_ns = now()
        append(end_ns)
        if end_ns >= clock.stop_ns:
            break
    return ends_ns


if __name__ == "__main__":
    main()
