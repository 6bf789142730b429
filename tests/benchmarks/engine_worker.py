"""The process of one engine: opens it for every batch size on one core, then does what the benchmark asks.

    the benchmark                     this process
    assignment (one JSON line)   ->   pin, import, open, bind the inputs
                                 <-   ready, or why not
    predict | slice | peak | stream   <-> its result, predictions as raw float32
    (end of input)               ->   exit

One process per engine, so that no engine inherits another's thread pool, allocator or affinity. They take turns on
the same core; the one whose turn it is not sleeps in a read.
"""

from __future__ import annotations

import gc
import itertools
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from engines import engine_version, open_engine

from dlrm_tvm.control import Control, die_with_parent
from dlrm_tvm.errors import UserError
from dlrm_tvm.peers import Peer
from dlrm_tvm.placement import verify_confined

_WARM_UP_SHARE = 0.1  # of a slice, untimed: caches and page tables were another engine's a moment ago


@dataclass(frozen=True)
class Opened:
    """One engine at one batch size and its rotating set of bound inputs; `turn`: where the last slice stopped."""

    engine: Peer
    bound: list[Any]
    turn: Iterator[Any]


def main() -> None:
    control = Control()
    assignment = control.receive()
    if assignment is None:
        return
    die_with_parent(assignment["parent_pid"])
    os.sched_setaffinity(0, [assignment["core"]])
    try:
        version = engine_version(assignment["engine"])
    except UserError as error:
        control.reply(missing=str(error))
        return
    try:
        opened = {batch: open_at(assignment, batch) for batch in assignment["batches"]}
        verify_confined([assignment["core"]])
        gc.collect()
        gc.freeze()
        gc.disable()
        control.reply(version=version)
        serve(control, assignment, opened)
    except UserError as error:
        control.reply(error=str(error))
    except Exception:
        control.reply(crash=traceback.format_exc())


def open_at(assignment: dict, batch: int) -> Opened:
    """dense.npy [N, 13] and indices.npy [N, 26] are cut into as many batches as they hold."""
    dense, indices = (np.load(os.path.join(assignment["inputs"], f"{name}.npy")) for name in ("dense", "indices"))
    engine = open_engine(
        assignment["engine"],
        assignment["models"][str(batch)],
        batch,
        assignment["core"],
        precision=assignment["precision"],
        quantized=assignment["quantized"],
    )
    parts = [slice(at, at + batch) for at in range(0, len(dense) - batch + 1, batch)]
    bound = [engine.prepare(dense[part], indices[part]) for part in parts]
    return Opened(engine, bound, itertools.cycle(bound))


def serve(control: Control, assignment: dict, opened: dict[int, Opened]) -> None:
    rates = None
    while (command := control.receive()) is not None:
        if command["do"] == "predict":
            control.reply(predict(opened[command["batch"]], command["batches"]).tobytes())
        elif command["do"] == "slice":
            control.reply(calls_per_s=timed_slice(opened[command["batch"]], command["seconds"]))
        else:
            rates = rates or rate_executor(assignment)
            measure = {"peak": rates.peak_gflops, "stream": rates.stream_gbps}[command["do"]]
            control.reply(rate=measure(command["seconds"]))


def predict(opened: Opened, batches: int) -> np.ndarray:
    """Predictions of the first `batches` batches, one after the other: [batches * batch] float32."""
    results = []
    for bound in opened.bound[:batches]:
        opened.engine.run(bound)
        results.append(opened.engine.predictions().copy())
    return np.concatenate(results)


def timed_slice(opened: Opened, seconds: float) -> float:
    """Calls per second over about `seconds`, after a warm-up; at least one call each."""
    run_for(opened, seconds * _WARM_UP_SHARE)
    calls, elapsed_s = run_for(opened, seconds)
    return calls / elapsed_s


def run_for(opened: Opened, seconds: float) -> tuple[int, float]:
    """(calls, seconds they took)"""
    run, start = opened.engine.run, perf_counter()
    for calls, bound in enumerate(opened.turn, start=1):
        run(bound)
        if (elapsed_s := perf_counter() - start) >= seconds:
            return calls, elapsed_s


def rate_executor(assignment: dict) -> Any:
    """An executor of ours for what the core can do: multiply-adds and weight streaming at their limits."""
    from dlrm_tvm.artifact import open_artifact
    from dlrm_tvm.executor import Executor

    library = next(iter(assignment["models"].values()))
    return Executor(open_artifact(library), threads=1, cores=[assignment["core"]])


if __name__ == "__main__":
    main()
