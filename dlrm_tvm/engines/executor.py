"""Another engine in place of our executor, inside a worker: the same batches, placement and clock.

Our library is opened beside it for two things: its peak loops, as the limit is that of the best instructions for the
precision whoever runs, and its predictions for the first batch, which the other engine must match: within 1e-4 if both
run at fp32, else on average within the limit of interface.py. Nothing of our library is timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..errors import UserError
from ..runtime.artifact import open_artifact
from ..runtime.executor import Executor
from .interface import FP32_TOLERANCE, EngineGraph, OpenEngine, mean_error_limit

_LONGEST_REASON = 300


class EngineExecutor:
    """An Executor for a worker, run by another engine; library: ours, for peak and comparison. Raises UserError where
    that engine refuses the graph."""

    def __init__(self, graph: EngineGraph, library: str, cores: Sequence[int]) -> None:
        # The other engine first: our placement pins the calling thread to one core, which threads made later inherit.
        self._graph = graph
        # Our pool's threads would spin and take time slices from the other engine's threads.
        os.environ["TVM_THREAD_POOL_SPIN_COUNT"] = "0"
        self._engine = open_engine(graph, threads=len(cores), cores=cores)
        self._ours = Executor(open_artifact(library), threads=len(cores), cores=cores)
        self.artifact, self.batch_size = self._ours.artifact, graph.batch_size
        self.peak_gflops = partial(self._ours.peak_gflops, precision=graph.precision)
        self.stream_gbps = self._ours.stream_gbps
        self._compared = False

    def prepare(self, dense: np.ndarray, indices: np.ndarray, offsets: np.ndarray | None = None) -> Any:
        if offsets is not None:
            self._check_bags(len(dense), indices, offsets)
            indices = list(indices)
        bound = self._engine.prepare(dense, indices)
        if not self._compared:
            self._compare(bound, self._ours.prepare(dense, indices, offsets))
        return bound

    def _check_bags(self, items: int, indices: Sequence, offsets: Sequence) -> None:
        numbers = self.artifact.manifest.model.graph_inputs.indices_per_bag
        if not numbers:
            raise UserError("--engine takes one index per table and item; the inputs are bags.")
        for table, number in enumerate(numbers):
            begins = np.append(offsets[table], len(indices[table]))
            if not np.array_equal(begins, np.arange(items + 1) * number):
                raise UserError(f"--engine takes {number} indices per bag of table {table}; the inputs are other bags.")

    def run(self, bound: Any) -> np.ndarray:
        """Predictions [batch_size] float32, valid until the next run."""
        self._engine.run(bound)
        return self._engine.predictions()

    def _compare(self, bound: Any, batch: Any) -> None:
        errors = np.abs(self.run(bound) - self._ours.run(batch))
        precisions = self._graph.precision, self.artifact.manifest.precision
        error, limit, measure = errors.max(), FP32_TOLERANCE, ""
        if precisions != ("fp32", "fp32"):
            error, limit, measure = errors.mean(), mean_error_limit(len(errors), *precisions), " on average"
        if not error <= limit:
            raise UserError(
                f"{self._graph.title} differs from the library's predictions by {error:.2g}{measure}; {limit:.2g} is "
                f"allowed: it gets no number. {self._remedy()}"
            )
        self.artifact.tables.let_go()  # rows that only our library read must not count as the other engine's memory
        self._compared = True

    def _remedy(self) -> str:
        if self._graph.calibration:
            return f"It was calibrated with {self._graph.calibration}: give --ref-data items like those it will serve."
        return "Run accuracy.py to see which of the two is wrong."


def open_engine(graph: EngineGraph, *, threads: int, cores: Sequence[int]) -> OpenEngine:
    """The engine, opened and run once. cores: one per thread; this process is confined to them already.

    Raises UserError where the engine refuses the graph.
    """
    if threads > 1:  # PyTorch's OpenMP reads it when it is loaded
        os.environ["GOMP_CPU_AFFINITY"] = " ".join(map(str, cores))
    try:
        engine = _opener(graph.engine)(graph, threads, cores)
        engine.run(engine.prepare(*graph.first_items()))
        return engine
    except Exception as error:  # each engine has its own exceptions, some raise only RuntimeError
        raise UserError(f"{graph.title} cannot run {graph.path}: {_reason(error)}") from error


def _opener(engine: str) -> Callable[[EngineGraph, int, Sequence[int]], OpenEngine]:
    if engine == "onnxruntime":
        from .onnxruntime import open_onnxruntime

        return open_onnxruntime
    if engine == "openvino":
        from .openvino import open_openvino

        return open_openvino
    from .pytorch import open_pytorch

    return open_pytorch


def _reason(error: Exception) -> str:
    """The error's text as one line, without the places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said)[:_LONGEST_REASON] or type(error).__name__
