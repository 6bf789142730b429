"""What an instance does while LoadGen drives it: take a batch from the queue, run it, say that it is done.

    take -> copy its items' rows from the sample library into one batch of inputs -> run -> predictions into the ring
         -> a record of what was done, into the pipe that LoadGen's process reads

A copy and a cast of 2,600 indices take about 3 µs, a call of 100 items some milliseconds. Where a batch is not full,
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
    most_batches: int,
    clock: StopClock,
) -> Served:
    """Until the queue or the clock says stop. completions: the pipe's descriptor; most_batches: to take at a time."""
    staging = engine.open_batch()
    now = time.perf_counter_ns
    batches = items = busy_ns = 0
    while not queue.stopped and not clock.interrupted:
        seen = queue.changes
        taken = queue.take(most_batches)
        if not taken:
            queue.wait(seen)
            continue
        begin_ns = now()
        for part in taken:
            fill(staging, part, library)
            keep(engine.run(staging.batch), part, queue.ring)
            end_ns = now()
            os.write(completions, RECORD.pack(part.begin, part.items, end_ns, instance))
            batches, items = batches + 1, items + part.items
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
