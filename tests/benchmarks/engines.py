"""The engines under comparison on the demo model, each on one thread: ours, and those of dlrm_tvm/peers.py.

Ours is compiled for the batch size, the others take the ONNX file with that batch size fixed. Inputs are bound before
the clock runs. An engine is imported where it is opened, so that a process holds one of them only.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrm_tvm import peers
from dlrm_tvm.demo_weights import BOTTOM, CRITEO_TABLE_ROWS
from dlrm_tvm.errors import UserError
from dlrm_tvm.peer_int8 import with_int8
from dlrm_tvm.peer_precision import refusal
from dlrm_tvm.peers import OURS, Feed, Peer, PeerGraph

if TYPE_CHECKING:
    from dlrm_tvm.manifest import ModelCard

_ANY_BATCH = 100  # an int8 file takes batches of all sizes


def open_engine(
    engine: str, model: str, batch: int, core: int, *, precision: str, quantized: str | None = None
) -> Peer:
    """model: our library, which has a precision of its own, or the demo's ONNX file; quantized: at int8, its int8_file.

    Raises UserError where the engine refuses it.
    """
    if engine == OURS:
        return _open_ours(model, core)
    graph = replace(_demo_graph(engine, model, batch, precision), quantized=quantized)
    return peers.open_peer(graph, threads=1, cores=[core])


def why_not(engine: str, precision: str) -> str | None:
    """Why the engine takes no part at this precision; None where it does. What ours has is compile.py's to say."""
    if engine == OURS:
        return None
    try:
        engine_version(engine)
    except UserError:
        return "not installed (pip install -r requirements-dev.txt)"
    return refusal(engine, precision)


def int8_file(engine: str, model: Path, card: ModelCard) -> str | None:
    """What the engine's tool makes of the demo's ONNX file with random items; None for ours.

    Raises UserError where the tool fails.
    """
    if engine == OURS:
        return None
    return with_int8(_demo_graph(engine, str(model), _ANY_BATCH, "int8"), card).quantized


def _demo_graph(engine: str, model: str, batch: int, precision: str) -> PeerGraph:
    feeds = (
        Feed("dense_x", "dense", "float32", (batch, BOTTOM[0])),
        Feed("indices", "indices", "int64", (len(CRITEO_TABLE_ROWS), batch)),
    )
    return PeerGraph(engine, engine_version(engine), model, batch, feeds, {"batch": batch}, precision)


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
