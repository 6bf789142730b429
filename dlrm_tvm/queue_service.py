"""What an instance does while LoadGen drives it: take a batch from the queue, run it, say that it is done.

    take -> copy its items' rows from the sample library into batches of inputs -> run them -> predictions into the ring
         -> a record of what was done, into the pipe that LoadGen's process reads

Between two calls of some milliseconds, each of which goes through all caches, Python's own code is cold: steps that
take 5 µs in a row take 50 there. So Offline several batches are taken, filled and handed back at a time, and between
their calls nothing is done; fewer towards the end, so that all instances finish together. Where a batch is not full,
the rest of its inputs are those of an earlier one; their predictions are dropped.
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .query_samples import SampleLibrary
from .work_queue import Taken, WorkQueue

if TYPE_CHECKING:
    from .executor import Executor, OpenBatch
    from .timed_loops import StopClock

_TURNS_TO_GO = 2  # that each instance should have left after this one, where more than a batch is taken

RECORD = struct.Struct("<4q")  # first item of the stream, items, end in ns, instance: written in one piece


@dataclass(frozen=True)
class Served:
    """One instance's share. busy_ns: in calls of the library and the copying around them."""

    batches: int
    items: int
    busy_ns: int


def serve_queue(
    engine: Executor,
    queue: WorkQueue,
    library: SampleLibrary,
    *,
    completions: int,
    instance: int,
    instances: int,
    most_batches: int,
    clock: StopClock,
) -> Served:
    """Until the queue or the clock says stop. completions: the pipe's descriptor; most_batches: to take at a time."""
    staging = [engine.open_batch() for _ in range(most_batches)]
    now, run = time.perf_counter_ns, engine.run
    share = _TURNS_TO_GO * instances * engine.batch_size
    batches = items = busy_ns = 0
    while not queue.stopped and not clock.interrupted:
        seen = queue.changes
        taken = queue.take(max(1, min(most_batches, queue.waiting_items // share)))
        if not taken:
            queue.wait(seen)
            continue
        begin_ns = now()
        for opened, part in zip(staging, taken):
            fill(opened, part, library)
        predictions = [run(opened.batch) for opened, _ in zip(staging, taken)]
        for pred, part in zip(predictions, taken):
            keep(pred, part, queue.ring)
        done = sum(part.items for part in taken)
        os.write(completions, RECORD.pack(taken[0].begin, done, now(), instance))
        batches, items = batches + len(taken), items + done
        busy_ns += now() - begin_ns
    return Served(batches, items, busy_ns)


def fill(staging: OpenBatch, part: Taken, library: SampleLibrary) -> None:
    for segment in part.segments:
        source = slice(segment.source, segment.source + segment.items)
        target = slice(segment.target, segment.target + segment.items)
        staging.dense[target] = library.dense[source]
        staging.indices[target] = library.indices[source]


def keep(pred: np.ndarray, part: Taken, ring: np.ndarray) -> None:
    """pred [batch] -> the ring, which may wrap."""
    at = part.begin % len(ring)
    fits = min(part.items, len(ring) - at)
    ring[at : at + fits] = pred[:fits]
    if fits < part.items:
        ring[: part.items - fits] = pred[fits : part.items]
