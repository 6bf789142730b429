"""Other engines, each with the fastest call it offers, on the ONNX file that a library was compiled from.

    peer = open_peer(graph, threads=2, cores=(0, 1))
    bound = peer.prepare(dense, indices)          # once, before the clock runs
    peer.run(bound)                               # what is timed; the output stays in memory of the engine's own

They run in the graph's precision, on as many threads as they are given. An engine is imported where it is opened, so
that a process holds one of them only. What the file takes is found out by peer_graph.py; this module reads no graph.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

from .errors import UserError

OURS = "ours"  # the library itself, by its executor
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PEERS = tuple(TITLES)
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Feed:
    """One input of the graph. role: dense, indices or offsets; table: whose, None for all of them stacked;
    shape: with the batch size in its place."""

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    table: int | None = None

    def array(self, dense: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """What this input takes for dense [batch, D] and indices [batch, T], in memory of its own: bags of one."""
        if self.role == "dense":
            values = dense
        elif self.role == "indices":
            values = indices.T if self.table is None else indices[:, self.table]
        else:
            values = np.broadcast_to(np.arange(len(dense)), self.shape)
        return np.array(values, self.dtype, order="C").reshape(self.shape)

    def resized(self, batch: int) -> Feed:
        """The same for batches of another size."""
        shape = (batch, *self.shape[1:]) if self.role == "dense" else (*self.shape[:-1], batch)
        return replace(self, shape=shape)


@dataclass(frozen=True)
class PeerGraph:
    """An ONNX file for one engine, batch size and precision.

    sizes: of the dimensions that the file leaves open by a name. quantized: at int8, the file that peer_int8.py made
    of it; calibration: the items that set its activations' ranges, in words, None where none do.
    """

    engine: str
    version: str
    path: str
    batch_size: int
    feeds: tuple[Feed, ...]
    sizes: dict[str, int]
    precision: str = "fp32"
    quantized: str | None = None
    calibration: str | None = None

    @property
    def title(self) -> str:
        return f"{TITLES[self.engine]} {self.version}" + (f" at {self.precision}" if self.precision != "fp32" else "")

    def first_items(self) -> tuple[np.ndarray, np.ndarray]:
        """dense [batch, D] and indices [batch, T] of nothing but zeros, which every model takes."""
        (dense,) = (feed.shape for feed in self.feeds if feed.role == "dense")
        tables = sum(feed.shape[0] if feed.table is None else 1 for feed in self.feeds if feed.role == "indices")
        return np.zeros(dense, np.float32), np.zeros((self.batch_size, tables), np.int64)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> PeerGraph:
        feeds = [Feed(**{**feed, "shape": tuple(feed["shape"])}) for feed in fields["feeds"]]
        return PeerGraph(**{**fields, "feeds": tuple(feeds)})


@dataclass(frozen=True)
class Peer:
    """An engine opened. predictions: what the last run left, [batch] float32 in the engine's memory."""

    prepare: Callable[[np.ndarray, np.ndarray], Any]
    run: Callable[[Any], Any]
    predictions: Callable[[], np.ndarray]


def engine_version(engine: str) -> str:
    """Raises UserError where it is not installed."""
    if importlib.util.find_spec(engine) is None:
        raise UserError(f"{TITLES[engine]} is not installed. Type: pip install -r requirements-dev.txt")
    try:
        return metadata.version(engine)
    except metadata.PackageNotFoundError:  # the module comes in a package of another name
        return "of unknown version"


def open_peer(graph: PeerGraph, *, threads: int, cores: Sequence[int]) -> Peer:
    """Opened and run once. cores: those of this process, as many as threads, to which it is confined already.

    Raises UserError where the engine refuses the graph.
    """
    try:
        peer = _opener(graph.engine)(graph, threads, cores)
        peer.run(peer.prepare(*graph.first_items()))
        return peer
    except Exception as error:  # each engine has exceptions of its own, some have none but RuntimeError
        raise UserError(f"{graph.title} cannot run {graph.path}: {_reason(error)}") from error


def _opener(engine: str) -> Callable[[PeerGraph, int, Sequence[int]], Peer]:
    if engine == "onnxruntime":
        from .peer_onnxruntime import open_onnxruntime

        return open_onnxruntime
    from .peer_openvino import open_openvino

    return open_openvino


def _reason(error: Exception) -> str:
    """Its lines as one, without the places in OpenVINO's source that the exception passed."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said)[:_LONGEST_REASON] or type(error).__name__
