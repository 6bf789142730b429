"""One instance: a process with T cores and one executor of its own, which obeys its parent.

    parent                       worker
    assignment (one line)   ->   pin, open, prepare inputs, run once
                            <-   ready
    peak | measure | stream | profile
                            ->   at the announced time, together with all others
                            <-   its result: one JSON line, followed by raw int64 for the ends of batches
    (end of input)          ->   exit

Started by paths.module_command, never forked: a fork of a process with a thread pool hangs. Commands
come on stdin, results go to what was stdout; output of TVM goes to stderr instead. Times are nanoseconds of
CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import UserError
from ..machine.numa import prefer_node
from ..runtime.thread_pool import verify_confined
from ..runtime.typed_json import read_as
from .loops import StopClock, timed_loop, wait_until
from .protocol import STOP_SIGNAL, Assignment, Control, die_with_parent

if TYPE_CHECKING:
    from ..runtime.executor import Batch, Executor
    from .queue_service import Served


def open_executor(assignment: Assignment) -> Executor:
    """The artifact with its threads placed, or the other engine in its place. Raises UserError."""
    if assignment.other_engine is not None:
        from ..engines.executor import EngineExecutor
        from ..engines.interface import EngineGraph

        graph = read_as(EngineGraph, assignment.other_engine, "engine")
        return EngineExecutor(graph, assignment.library, assignment.cores)
    from ..runtime.artifact import SharedCopies, open_artifact
    from ..runtime.executor import Executor

    copies = SharedCopies(assignment.tables_fd, assignment.parameters_fd)
    return Executor(
        open_artifact(assignment.library, copies=copies), threads=len(assignment.cores), cores=assignment.cores
    )


def main(open_engine: Callable[[Assignment], Executor] = open_executor) -> None:
    """Serve one parent until it closes the pipe. `open_engine`: opens what is measured, the executor or its like."""
    clock = StopClock()
    signal.signal(STOP_SIGNAL, clock.interrupt)
    control = Control()
    first_line = control.receive()
    if first_line is None:
        return  # the parent gave up at once
    assignment = read_as(Assignment, first_line, "assignment")
    die_with_parent(assignment.parent_pid)
    try:
        serve(control, clock, assignment, open_engine)
    except UserError as error:
        control.reply(error=str(error))
    except OSError as error:
        control.reply(error=f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception:
        control.reply(crash=traceback.format_exc())


def serve(
    control: Control, clock: StopClock, assignment: Assignment, open_engine: Callable[[Assignment], Executor]
) -> None:
    # Before any library starts threads: they inherit the set, and memory comes from the right node.
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
        arrivals_ns = requests(command, assignment) if command["do"] == "measure" else None
        wait_until(command["begin_ns"])
        if command["do"] == "peak":
            control.reply(gflops=engine.peak_gflops(command["seconds"]))
        elif command["do"] == "stream":
            control.reply(gbps=engine.stream_gbps(command["seconds"]))
        elif command["do"] == "profile":
            from .profiling import profile_calls  # few runs need it

            control.reply(**asdict(profile_calls(engine, batches, command["seconds"])))
        elif command["do"] == "measure":
            run = telling(engine.run, assignment) if command["telling"] else engine.run
            clock.set(command["stop_ns"])
            started_ns, ends_ns, stopped_ns = timed_loop(run, batches, clock, arrivals_ns)
            clock.reset()
            control.reply(memoryview(ends_ns).cast("B"), started_ns=started_ns, stopped_ns=stopped_ns)
        elif command["do"] == "queue":
            served = serve_queue(engine, assignment, command["most_batches"], clock)
            control.reply(**asdict(served))


def serve_queue(engine: Executor, assignment: Assignment, most_batches: int, clock: StopClock) -> Served:
    """LoadGen's batches, until the queue is stopped."""
    from ..data.query_samples import SampleLibrary, SampleSpec
    from .queue_service import serve_queue
    from .work_queue import WorkQueue

    ends = assignment.queue
    library = SampleLibrary(read_as(SampleSpec, ends.spec, "samples"), ends.samples_fd)
    return serve_queue(
        engine,
        WorkQueue(ends.queue_fd, ends.bell_fd),
        library,
        completions=ends.completions_fd,
        instance=assignment.instance,
        instances=assignment.instances,
        most_batches=most_batches,
        clock=clock,
    )


def prepare_batches(engine: Executor, assignment: Assignment) -> list[Batch]:
    """The rotating set, each batch in the executor's form."""
    from ..data.workload import items_to_rotate, random_bags, random_items, recorded_items
    from ..model.bags import Bags

    card, per_bag = engine.artifact.manifest.model, assignment.indices_per_bag
    items = items_to_rotate(card, engine.batch_size, assignment.l3_bytes, per_bag)
    who = {"instance": assignment.instance}
    if assignment.ref_data is not None:
        who |= {"instances": assignment.instances, "max_ind_range": assignment.max_ind_range}
        dense, lookups = recorded_items(assignment.ref_data, card, items, **who)
    elif assignment.bag_lengths is not None:
        dense, lookups = random_bags(card, items, assignment.bag_lengths, **who)
    else:
        dense, lookups = random_items(card, items, **who)
    parts = [slice(start, start + engine.batch_size) for start in range(0, items, engine.batch_size)]
    if isinstance(lookups, Bags):
        bags = [lookups.part(part.start, part.stop) for part in parts]
        return [engine.prepare(dense[part], each.indices, each.offsets) for part, each in zip(parts, bags)]
    return [engine.prepare(dense[part], lookups[part]) for part in parts]


def check_once(engine: Executor, batch: Batch) -> None:
    """A first run: a library whose predictions are no numbers is not measured."""
    predictions = engine.run(batch)
    if not (abs(predictions) < float("inf")).all():
        raise UserError("The library's predictions are not finite numbers. Check it with accuracy.py, recompile it.")


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
    """`run`, which also writes its progress to the board."""
    from .progress import ProgressBoard

    return ProgressBoard(assignment.instances, assignment.board_fd).telling(run, assignment.instance)
