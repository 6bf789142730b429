"""The engines under comparison on the demo model, each on one thread at fp32: ours, and those of dlrm_tvm/peers.py.

Ours is compiled for the batch size, the others take the ONNX file with that batch size fixed. Inputs are bound before
the clock runs. An engine is imported where it is opened, so that a process holds one of them only.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np

from dlrm_tvm import peers
from dlrm_tvm.demo_weights import BOTTOM, CRITEO_TABLE_ROWS
from dlrm_tvm.peers import OURS, Feed, Peer, PeerGraph


def open_engine(engine: str, model: str, batch: int, core: int) -> Peer:
    """model: our library, or the demo's ONNX file. Raises UserError where the engine refuses it."""
    if engine == OURS:
        return _open_ours(model, core)
    feeds = (
        Feed("dense_x", "dense", "float32", (batch, BOTTOM[0])),
        Feed("indices", "indices", "int64", (len(CRITEO_TABLE_ROWS), batch)),
    )
    graph = PeerGraph(engine, engine_version(engine), model, batch, feeds, sizes={"batch": batch})
    return peers.open_peer(graph, threads=1, cores=[core])


def engine_version(engine: str) -> str:
    """Of the package that the engine comes in. Raises UserError where it is not installed."""
    return metadata.version("apache-tvm") if engine == OURS else peers.engine_version(engine)


def _open_ours(library: str, core: int) -> Peer:
    from dlrm_tvm.artifact import open_artifact
    from dlrm_tvm.executor import Executor

    executor = Executor(open_artifact(library), threads=1, cores=[core])
    last = [np.empty(0, np.float32)]

    def run(bound: Any) -> None:
        last[0] = executor.run(bound)  # valid until the next run

    return Peer(executor.prepare, run, lambda: last[0])
