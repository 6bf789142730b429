"""Another engine in an executor's place, inside a worker: the same batches, placement and clock.

Our library is opened beside it, for two things: the peak loops, so that both engines are held against the same peak,
and its predictions for the first batch, which the other engine's must equal: within 1e-4 where both run at fp32, else
within what peer_precision.py allows on average. It takes part in nothing that is timed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .artifact import open_artifact
from .errors import UserError
from .executor import Executor
from .peer_precision import FP32_TOLERANCE, mean_error_limit
from .peers import PeerGraph, open_peer

if TYPE_CHECKING:
    from .assignment import Assignment


class PeerEngine:
    """What worker.py asks of an Executor, by another engine. Raises UserError where that refuses the graph."""

    def __init__(self, graph: PeerGraph, library: str, cores: Sequence[int]) -> None:
        # First, while this process may use all of its cores: our placement pins the calling thread to one of them,
        # which threads that are made later would inherit.
        self._graph = graph
        # Threads of our pool would spin on beside the other engine's ones, whose time slices they take.
        os.environ["TVM_THREAD_POOL_SPIN_COUNT"] = "0"
        self._peer = open_peer(graph, threads=len(cores), cores=cores)
        self._ours = Executor(open_artifact(library), threads=len(cores), cores=cores)
        self.artifact, self.batch_size = self._ours.artifact, graph.batch_size
        self.peak_gflops, self.stream_gbps = self._ours.peak_gflops, self._ours.stream_gbps
        self._compared = False

    def prepare(self, dense: np.ndarray, indices: np.ndarray, offsets: np.ndarray | None = None) -> Any:
        if offsets is not None:
            raise UserError("--engine takes one index per table and item; the inputs are bags.")
        bound = self._peer.prepare(dense, indices)
        if not self._compared:
            self._compare(bound, self._ours.prepare(dense, indices))
        return bound

    def run(self, bound: Any) -> np.ndarray:
        """Predictions [batch_size] float32, valid until the next run."""
        self._peer.run(bound)
        return self._peer.predictions()

    def _compare(self, bound: Any, batch: Any) -> None:
        errors = np.abs(self.run(bound) - self._ours.run(batch))
        precisions = self._graph.precision, self.artifact.manifest.precision
        error, limit, what = errors.max(), FP32_TOLERANCE, ""
        if precisions != ("fp32", "fp32"):
            error, limit, what = errors.mean(), mean_error_limit(len(errors), *precisions), " on average"
        if not error <= limit:
            raise UserError(
                f"{self._graph.title} predicts something else than the library, by {error:.2g}{what} where {limit:.2g} "
                f"is allowed: it gets no number. {self._remedy()}"
            )
        self.artifact.tables.let_go()  # rows that only our library reads are not the other engine's memory
        self._compared = True

    def _remedy(self) -> str:
        if self._graph.calibration:
            return f"It was calibrated with {self._graph.calibration}: give --ref-data items like those it is to serve."
        return "See accuracy.py for which of the two is wrong."


def open_peer_engine(assignment: Assignment) -> PeerEngine:
    return PeerEngine(PeerGraph.from_json(assignment.peer), assignment.library, assignment.cores)
