"""Libraries, and other engines, in turn in one process on one core: items/s and share of the peak measured between.

    A=__prebuilt/dlrm_avx512_b100.so PYTHONPATH=. python tests/benchmarks/turns.py $A openvino:$A --core 1 --real-time

For machines whose speed changes from second to second, where two runs of multi_instance.py one after the other cannot
be compared. A turn is some 30 ms of closed loop on random rows of whole tables, with 5 ms of the library's peak loop
before and after. Only turns count whose two peaks are both within 10 % of the run's best: while another guest of the
host runs on the same core, both peak and rate are lower, but not by the same factor. Ends when each has --turns of
those, or after --seconds. A ratio is one's median rate / the first one's.
ENGINE:LIBRARY runs the ONNX file of the library in that engine, at the library's precision (int8: calibrated with
--ref-data). --rows: draw from so many rows of each table, which then stay in cache. --real-time needs root: whatever
else runs on the core waits. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_tvm.data.workload import bag_lengths, random_bags, random_items
from dlrm_tvm.engines.executor import EngineExecutor
from dlrm_tvm.engines.graph import engine_graph
from dlrm_tvm.engines.quantization import with_int8
from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.machine.cpu import host_model
from dlrm_tvm.runtime.artifact import open_artifact
from dlrm_tvm.runtime.executor import Executor

PEAK_S, SLICE_S, BAG_ITEMS, QUIET = 0.005, 0.03, 4096, 0.9


class Runner:
    """One library or engine, its batches, and what its turns gave."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        engine, _, library = name.rpartition(":")
        self.name = name
        self.executor: Any = opened(engine, library, options)
        self.card = self.executor.artifact.manifest.model
        self.batches = batches(self.executor, self.card, options)
        self.next, self.best, self.turns = 0, 0.0, []
        for batch in self.batches:  # all of them: the first touch of a page of rows takes microseconds
            self.executor.run(batch)

    def turn(self) -> None:
        before = self._peak()
        if before < QUIET * self.best:
            return
        calls, begin = 0, time.perf_counter()
        while (gone := time.perf_counter() - begin) < SLICE_S or not calls:
            self.executor.run(self.batches[self.next % len(self.batches)])
            self.next, calls = self.next + 1, calls + 1
        self.turns.append((calls * self.executor.batch_size / gone, before, self._peak()))

    def _peak(self) -> float:
        peak = self.executor.peak_gflops(PEAK_S)
        self.best = max(self.best, peak)
        return peak

    @property
    def quiet(self) -> np.ndarray:
        """[turns that count][rate, peak before, peak after]"""
        turns = np.array(self.turns).reshape(-1, 3)
        return turns[(turns[:, 1:] > QUIET * self.best).all(axis=1)]

    def result(self, first: Runner) -> dict[str, Any]:
        turns = self.quiet
        if not len(turns):
            raise UserError(f"{self.name}: no turn at full speed. Another guest of the host is busy: try again later.")
        peak = float(turns[:, 1:].mean())
        low, middle, high = np.percentile(turns[:, 0], [25, 50, 75])
        share = self.card.flops_per_item / 1e9 / peak
        return {
            "name": self.name,
            "turns": len(turns),
            "items_per_s": {"median": middle, "quartiles": [low, high]},
            "share_of_peak": {"median": middle * share, "quartiles": [low * share, high * share]},
            "peak_gflops": peak,
            "ratio": middle / float(np.median(first.quiet[:, 0])),
        }


def opened(engine: str, library: str, options: argparse.Namespace) -> Executor | EngineExecutor:
    artifact, cores = open_artifact(library), [options.core]
    if not engine:
        return Executor(artifact, threads=1, cores=cores)
    graph = engine_graph(engine, None, artifact.manifest, library, precision=artifact.manifest.precision)
    return EngineExecutor(with_int8(graph, artifact.manifest.model, options.ref_data), library, cores)


def batches(executor: Any, card: Any, options: argparse.Namespace) -> list[Any]:
    size, lengths, prepared = executor.batch_size, bag_lengths(card), []
    items = max(2, (options.items if lengths is None else BAG_ITEMS) // size) * size
    within: Callable = (lambda rows: rows) if options.rows is None else (lambda rows: rows % options.rows)
    if lengths is None:
        dense, indices = random_items(card, items, instance=0)
        for at in range(0, items, size):
            prepared.append(executor.prepare(dense[at : at + size], within(indices[at : at + size])))
        return prepared
    for number in range(items // size):
        dense, bags = random_bags(card, size, lengths, instance=number)
        prepared.append(
            executor.prepare(dense, [within(each) for each in bags.indices], [each[:-1] for each in bags.begins])
        )
    return prepared


def main() -> int:
    parser = argparse.ArgumentParser(description="libraries and engines in turn, on one core")
    parser.add_argument("names", nargs="+", metavar="[ENGINE:]LIBRARY")
    parser.add_argument("--core", type=int, default=0, help="where all of them run; default %(default)s")
    parser.add_argument("--turns", type=int, default=60, help="of each, at full speed; default %(default)s")
    parser.add_argument("--seconds", type=float, default=300, help="begin no round after them; default %(default)s")
    parser.add_argument("--items", type=int, default=65_536, help="in rotation, without bags; default %(default)s")
    parser.add_argument("--rows", type=int, help="draw from so many of each table; default: all")
    parser.add_argument("--ref-data", type=Path, help="calibrates other engines at int8; default: random items")
    parser.add_argument("--real-time", action="store_true", help="whatever else runs on the core waits; needs root")
    options = parser.parse_args()
    os.sched_setaffinity(0, [options.core])
    if options.real_time:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    runners = [Runner(name, options) for name in options.names]
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end and (few := [each for each in runners if len(each.quiet) < options.turns]):
        for runner in few:
            runner.turn()
    results = [runner.result(runners[0]) for runner in runners]
    width = max(len(name) for name in options.names)
    print(f"{'':{width}}  turns  items/s (quartiles)              of peak (quartiles)     ratio")
    for each in results:
        rate, share = each["items_per_s"], each["share_of_peak"]
        print(
            f"{each['name']:{width}}  {each['turns']:5}  {rate['median']:9,.0f} "
            f"({' to '.join(f'{value:,.0f}' for value in rate['quartiles'])})".ljust(width + 42)
            + f"{share['median']:.3f} ({' to '.join(f'{value:.3f}' for value in share['quartiles'])})   "
            f"{each['ratio']:.3f}"
        )
    print(json.dumps({"turns": options.turns, "cpu": host_model(), "results": results}))
    return 0


if __name__ == "__main__":
    run_script(main)
