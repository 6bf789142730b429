"""Other engines, each with the fastest call it offers, on the ONNX file that a library was compiled from.

    peer = open_peer(graph, threads=2, cores=(0, 1))
    bound = peer.prepare(dense, indices)          # once, before the clock runs
    peer.run(bound)                               # what is timed; the output stays in memory of the engine's own

All run at fp32, on as many threads as they are given. An engine is imported where it is opened, so that a process
holds one of them only. What the file takes is found out by peer_graph.py; this module reads no graph.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from .errors import UserError

OURS = "ours"  # the library itself, by its executor
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PEERS = tuple(TITLES)
_LONGEST_REASON = 300
_MOST_REQUESTS = 16_384  # of OpenVINO's; each takes 10 KB and some 0.2 ms to make


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


@dataclass(frozen=True)
class PeerGraph:
    """An ONNX file for one engine and one batch size; sizes: of the dimensions that the file leaves open by a name."""

    engine: str
    version: str
    path: str
    batch_size: int
    feeds: tuple[Feed, ...]
    sizes: dict[str, int]

    @property
    def title(self) -> str:
        return f"{TITLES[self.engine]} {self.version}"

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
    opener = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino}[graph.engine]
    try:
        peer = opener(graph, threads, cores)
        peer.run(peer.prepare(*graph.first_items()))
        return peer
    except Exception as error:  # each engine has exceptions of its own, some have none but RuntimeError
        raise UserError(f"{graph.title} cannot run {graph.path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Its lines as one, without the places in OpenVINO's source that the exception passed."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said)[:_LONGEST_REASON] or type(error).__name__


def _open_onnxruntime(graph: PeerGraph, threads: int, cores: Sequence[int]) -> Peer:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what is fatal; errors arrive as exceptions
    if threads > 1:  # all but the calling thread, which our own placement puts on the first core; counted from 1
        options.add_session_config_entry(
            "session.intra_op_thread_affinities", ";".join(str(core + 1) for core in cores[1:])
        )
    for name, size in graph.sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    session = ort.InferenceSession(graph.path, options, providers=["CPUExecutionProvider"])
    (target,) = session.get_outputs()
    shape = (graph.batch_size, 1)[: len(target.shape)]
    output = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))

    def prepare(dense: np.ndarray, indices: np.ndarray) -> Any:
        values = [ort.OrtValue.ortvalue_from_numpy(feed.array(dense, indices)) for feed in graph.feeds]
        binding = session.io_binding()
        for feed, value in zip(graph.feeds, values):
            binding.bind_ortvalue_input(feed.name, value)
        binding.bind_ortvalue_output(target.name, output)
        return binding, values

    def run(bound: Any) -> None:
        session.run_with_iobinding(bound[0])

    return Peer(prepare, run, lambda: output.numpy().reshape(-1))


def _open_openvino(graph: PeerGraph, threads: int, cores: Sequence[int], most_requests: int = _MOST_REQUESTS) -> Peer:
    """A request per batch, its inputs bound when it is prepared: binding takes about a tenth of a call at batch 1."""
    import openvino as ov

    runtime = ov.Core()
    model = runtime.read_model(graph.path)
    model.reshape({feed.name: list(feed.shape) for feed in graph.feeds})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # the default on a CPU with AVX512-BF16 would be bfloat16
        "ENABLE_CPU_PINNING": False,  # it numbers cores in its own way; the process is confined to its cores
    }
    compiled = runtime.compile_model(model, "CPU", settings)
    output = np.zeros(tuple(compiled.output(0).shape), np.float32)
    target = ov.Tensor(output, shared_memory=True)
    positions = [_position(compiled.inputs, feed.name) for feed in graph.feeds]
    requests = []  # those that are bound once and for all

    def new_request() -> Any:
        request = compiled.create_infer_request()
        request.set_output_tensor(target)
        return request

    def bind(request: Any, tensors: list[Any]) -> None:
        for position, tensor in zip(positions, tensors):
            request.set_input_tensor(position, tensor)

    shared = new_request()

    def prepare(dense: np.ndarray, indices: np.ndarray) -> Any:
        """(request, tensors to bind to it at each call: none where it has a request of its own)."""
        tensors = [ov.Tensor(feed.array(dense, indices)) for feed in graph.feeds]
        if len(requests) == most_requests:
            print(
                f"{graph.title}: batches after the first {most_requests:,} bind their inputs at every call.",
                file=sys.stderr,
            )
            requests.append(shared)
        if len(requests) > most_requests:
            return shared, tensors
        requests.append(new_request())
        bind(requests[-1], tensors)
        return requests[-1], ()

    def run(bound: Any) -> None:
        request, tensors = bound
        if tensors:
            bind(request, tensors)
        request.infer(share_outputs=True)  # without that, outputs are copied

    return Peer(prepare, run, lambda: output.reshape(-1))


def _position(inputs: Sequence[Any], name: str) -> int:
    (found,) = (at for at, port in enumerate(inputs) if name in port.names)
    return found
