"""What the queue costs offline: closed loop and queue in turn, in one process on one core, with the same library.

    PYTHONPATH=. python tests/benchmarks/queue_cost.py __prebuilt/dlrm_avx512_b100.so [core] [rounds]

Leaves out LoadGen's own process, which multi_instance.py --scenario reports ("its process took ..").
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from dlrm_tvm.data.query_samples import SampleLibrary, plan_samples
from dlrm_tvm.data.workload import random_items
from dlrm_tvm.instances.loops import StopClock, closed_loop
from dlrm_tvm.instances.queue_service import serve_queue
from dlrm_tvm.instances.work_queue import WorkQueue
from dlrm_tvm.machine.shared_memory import SharedArrays
from dlrm_tvm.runtime.artifact import open_artifact
from dlrm_tvm.runtime.executor import Executor

SLICE_S, SAMPLES, CLOSED_ITEMS, TAKE_S = 1.5, 20_000, 10_000, 0.05


class Stopping(WorkQueue):
    """A queue that ends when nothing waits."""

    @property
    def stopped(self) -> bool:
        return self.waiting_items == 0


def main() -> None:
    path = Path(sys.argv[1])
    core, rounds = (int(argument) for argument in (*sys.argv[2:], "0", "12")[:2])
    os.sched_setaffinity(0, [core])
    engine = Executor(open_artifact(path), threads=1, cores=[core])
    card, batch = engine.artifact.manifest.model, engine.batch_size
    spec = plan_samples(card, SAMPLES, None)
    library = SampleLibrary(spec, SharedArrays.create(spec.layout).descriptor)
    library.load(card, 1)
    dense, indices = random_items(card, CLOSED_ITEMS - CLOSED_ITEMS % batch, instance=0)
    batches = [engine.prepare(dense[at : at + batch], indices[at : at + batch]) for at in range(0, len(dense), batch)]
    created = WorkQueue.create()
    queue = Stopping(created.descriptor, created.bell)
    queue.configure(batch_size=batch, wait_ns=0)
    ratios, at = [], 0
    for _ in range(rounds):
        closed = closed_rate(engine, batches)
        count = max(int(closed * batch * SLICE_S / spec.items * SAMPLES), 1)
        picked = np.arange(at, at + count) % SAMPLES
        at += count
        began_s = time.perf_counter()
        served = serve(engine, queue, library, picked, max(1, int(TAKE_S * closed)))
        ratios.append(served / (time.perf_counter() - began_s) / batch / ((closed + closed_rate(engine, batches)) / 2))
    print(f"queue / closed loop: median {median(ratios):.4f}, " + " ".join(f"{ratio:.3f}" for ratio in sorted(ratios)))


def closed_rate(engine: Executor, batches: list) -> float:
    """Batches per second."""
    clock = StopClock()
    began_ns = time.perf_counter_ns()
    clock.set(began_ns + int(SLICE_S / 2 * 1e9))
    ends_ns = closed_loop(engine.run, batches, clock)
    return len(ends_ns) / (ends_ns[-1] - began_ns) * 1e9


def serve(engine: Executor, queue: WorkQueue, library: SampleLibrary, samples: np.ndarray, most: int) -> int:
    """Items done; the pipe is large enough for all records of a slice."""
    reading, writing = os.pipe()
    lengths = np.diff(library.begins)[samples]
    queue.publish(library.begins[samples], lengths, time.perf_counter_ns())
    queue.flush()
    queue.release(queue.published_items)
    served = serve_queue(
        engine, queue, library, completions=writing, instance=0, instances=1, most_batches=most, clock=StopClock()
    )
    os.close(reading)
    os.close(writing)
    return served.items


if __name__ == "__main__":
    main()
