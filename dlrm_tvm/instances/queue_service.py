"""An instance driven by LoadGen: take a batch from the queue, run it, report it as done.

    take -> copy its items' rows from the sample library into batches of inputs -> run them -> predictions into the ring
         -> a record of what was done, into the pipe that LoadGen's process reads

A call of some milliseconds evicts Python's own code from the caches: work of 5 µs takes 50 after it. So Offline several
batches are taken, filled, run back to back and handed back together; fewer towards the end, so that all instances
finish at one time. A batch that is not full keeps inputs of an earlier one in its other items; their predictions are
dropped.
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..data.query_samples import SampleLibrary, SampleSpec
from .work_queue import Taken, WorkQueue

if TYPE_CHECKING:
    from ..runtime.executor import Batch, Executor
    from .loops import StopClock

_TURNS_TO_GO = 2  # for each instance after this turn, if more than one batch is taken

RECORD = struct.Struct("<4q")  # first item of the stream, items, end in ns, instance: written in one piece


@dataclass(frozen=True)
class Served:
    """One instance's share of the work. busy_ns: in the library's calls, with the copies around them."""

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
    """Serve until the queue or the clock says stop. completions: descriptor of the pipe; most_batches: per turn."""
    staging = [open_staging(engine, library.spec) for _ in range(most_batches)]
    now, run = time.perf_counter_ns, engine.run
    share = _TURNS_TO_GO * instances * engine.batch_size
    batches = items = busy_ns = 0
    while not queue.stopped and not clock.interrupted:
        taken = queue.take(max(1, min(most_batches, queue.waiting_items // share)))
        if not taken:
            queue.wait()
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


@dataclass(frozen=True)
class Staging:
    """A batch to be written anew: dense [batch, D], and (indices [batch, number], their columns in the library) of all
    tables together or, with bags, of each."""

    batch: Batch
    dense: np.ndarray
    indices: list[tuple[np.ndarray, slice]]


def open_staging(engine: Executor, spec: SampleSpec) -> Staging:
    if spec.lengths is None:
        opened = engine.open_batch()
        return Staging(opened.batch, opened.dense, [(opened.indices, slice(None))])
    items = engine.batch_size
    zeros = [np.zeros(items * length, np.int64) for length in spec.lengths]
    offsets = [np.arange(items) * length for length in spec.lengths]
    batch = engine.prepare(np.zeros((items, spec.num_dense), np.float32), zeros, offsets)
    dense, flat, _ = map(np.from_dlpack, batch.inputs)
    tables = np.split(flat[: items * spec.indices_per_item], np.cumsum(spec.lengths)[:-1] * items)
    return Staging(batch, dense, [(each.reshape(items, -1), at) for each, at in zip(tables, spec.columns)])


def fill(staging: Staging, part: Taken, library: SampleLibrary) -> None:
    for segment in part.segments:
        source = slice(segment.source, segment.source + segment.items)
        target = slice(segment.target, segment.target + segment.items)
        staging.dense[target] = library.dense[source]
        for indices, columns in staging.indices:
            indices[target] = library.indices[source, columns]


def keep(pred: np.ndarray, part: Taken, ring: np.ndarray) -> None:
    """pred [batch] -> the ring, which may wrap."""
    at = part.begin % len(ring)
    fits = min(part.items, len(ring) - at)
    ring[at : at + fits] = pred[:fits]
    if fits < part.items:
        ring[: part.items - fits] = pred[fits : part.items]
