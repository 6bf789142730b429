"""An ONNX file made int8 for another engine by that engine's own tool: once, before its instances start.

    ONNX Runtime   quantize_dynamic: the layers' weights per output channel, activations at run time -> an ONNX file
    OpenVINO       nncf.quantize: weights, and activations by the ranges that sample items give     -> OpenVINO's IR

Lookups and the interaction's dots stay in floating point: quantize_dynamic quantises constant weights alone, and NNCF
is told to. With both of them quantised, as its defaults do, the demo's AUC falls to 0.834 of the reference's; without,
to 0.9997.

Tables are left out of what is written, and read where the ONNX model has them: they may be larger than the disk.

The tools run in a process of their own (`python -m dlrm_tvm.peer_int8 GRAPH FOLDER`): they print, import a great deal
and start threads, none of which belongs beside what is measured.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .bags import Bags
from .errors import UserError, one_line, run_script
from .peer_openvino import without_tables
from .peers import PeerGraph
from .reference_data import read_inputs
from .workload import random_items

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

    from .manifest import ModelCard

CALIBRATION_ITEMS = 2_000
_CALIBRATION_BATCH = 100  # unless the file fixes one; a range is the mean of the batches' ranges
_NO_INSTANCE = 1 << 20  # whose random items are no instance's
_FILES = {"onnxruntime": "int8.onnx", "openvino": "int8.xml"}
_SAMPLE = "sample.npz"
_LAYERS = ("Gemm", "MatMul")


def with_int8(graph: PeerGraph, card: ModelCard, ref_data: Path | None = None) -> PeerGraph:
    """The graph with the file that int8 takes, which stays as long as this process; at other precisions as it is.

    ref_data: whose items calibrate; None: random ones. Raises UserError where the tool fails.
    """
    if graph.precision != "int8":
        return graph
    calibration = None
    if graph.engine == "openvino":
        calibration = f"{CALIBRATION_ITEMS:,} random items like the workload's"
        if ref_data is not None:
            calibration = f"items of {ref_data}, the first {CALIBRATION_ITEMS:,} at most"
    return replace(graph, quantized=_made(json.dumps(asdict(graph)), card, ref_data), calibration=calibration)


@functools.cache  # a sweep opens one graph many times
def _made(graph: str, card: ModelCard, ref_data: Path | None) -> str:
    """Path of the int8 file of the graph, a PeerGraph as JSON."""
    fields = json.loads(graph)
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    if fields["engine"] == "openvino":
        dense, indices = _sample(card, ref_data)
        np.savez(folder / _SAMPLE, dense=dense, indices=indices)
    command = [sys.executable, "-m", "dlrm_tvm.peer_int8", graph, str(folder)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    # NNCF reports its use to its makers, unless it is told that this is an automatic test.
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path, "CI": "true"}, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended with status {done.returncode}"]
        raise UserError(said[-1])
    return str(folder / _FILES[fields["engine"]])


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """Removed when this process ends."""
    return tempfile.TemporaryDirectory(prefix="dlrm_int8_")


def _sample(card: ModelCard, ref_data: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """dense [n, D] float32, indices [n, T] int64 of the items that calibrate."""
    if ref_data is None:
        return random_items(card, CALIBRATION_ITEMS, instance=_NO_INSTANCE)
    dense, indices = read_inputs(ref_data, card, CALIBRATION_ITEMS)
    if isinstance(indices, Bags):
        raise UserError(f"{ref_data} has bags; other engines are measured with one index per table and item.")
    return dense, indices


def quantize_onnxruntime(graph: PeerGraph, target: Path) -> None:
    """Raises UserError where a layer's weights are no constants that the tool sees."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from .cpu import host_flags
    from .numerics import INSTRUCTION_FLAG

    model = onnx.load(graph.path, load_external_data=False)
    layers = _count(model, *_LAYERS)
    tables = _take_out(model)
    load_external_data_for_model(model, str(Path(graph.path).parent))
    quantize_dynamic(
        model,
        target,
        op_types_to_quantize=list(_LAYERS),
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=INSTRUCTION_FLAG["int8"] not in host_flags(),  # without it pairs of products saturate 16 bits
    )
    made = onnx.load(target)
    done, dots = _count(made, "MatMulInteger"), _count(made, "MatMul")
    if not done or done + dots != layers:
        raise UserError(f"{graph.title} quantises {done} of the {layers - dots} layers of {graph.path}.")
    _put_back(made, tables)
    target.write_bytes(made.SerializeToString())


def _count(model: ModelProto, *op_types: str) -> int:
    return sum(node.op_type in op_types for node in model.graph.node)


def _take_out(model: ModelProto) -> list[TensorProto]:
    """External tensors that no layer takes, made inputs of the graph: the tool would load them all."""
    from onnx import TensorProto, helper

    weights = {name for node in model.graph.node if node.op_type in _LAYERS for name in node.input}
    taken = [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL and tensor.name not in weights
    ]
    for tensor in taken:
        model.graph.initializer.remove(tensor)
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return taken


def _put_back(model: ModelProto, tensors: list[TensorProto]) -> None:
    names = {tensor.name for tensor in tensors}
    for value in [value for value in model.graph.input if value.name in names]:
        model.graph.input.remove(value)
    model.graph.initializer.extend(tensors)


def quantize_openvino(graph: PeerGraph, sample: Path, target: Path) -> None:
    """sample: npz of dense [n, D] and indices [n, T], whose last, partial batch is filled up from its beginning."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(graph.path)
    with np.load(sample) as arrays:
        dense, indices = arrays["dense"], arrays["indices"]
    is_open = all(dim.is_dynamic for dim in _batch_dims(model, graph))
    size = _CALIBRATION_BATCH if is_open else graph.batch_size
    feeds = [feed.resized(size) for feed in graph.feeds]
    batches = []
    for begin in range(0, len(dense), size):
        rows = np.arange(begin, begin + size) % len(dense)
        batches.append({feed.name: feed.array(dense[rows], indices[rows]) for feed in feeds})
    quantized = nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(types=["Gather"], names=_dots(model), validate=False),
    )
    ov.save_model(without_tables(quantized), target, compress_to_fp16=False)


def _batch_dims(model: Any, graph: PeerGraph) -> list[Any]:
    """Of each input: the dimension that counts items."""
    shapes = {name: port.partial_shape for port in model.inputs for name in port.names}
    return [shapes[feed.name][0 if feed.role == "dense" else len(feed.shape) - 1] for feed in graph.feeds]


def _dots(model: Any) -> list[str]:
    """Names of the multiplications of which neither side is constant."""
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [node.get_friendly_name() for node in products if not any(map(_is_constant, node.input_values()))]


def _is_constant(output: Any) -> bool:
    """A constant, or one turned or cast."""
    node = output.get_node()
    return node.get_type_name() == "Constant" or (
        node.get_type_name() in ("Transpose", "Convert") and _is_constant(node.input_value(0))
    )


def main() -> int:
    graph, folder = PeerGraph.from_json(json.loads(sys.argv[1])), Path(sys.argv[2])
    target = folder / _FILES[graph.engine]
    try:
        if graph.engine == "openvino":
            quantize_openvino(graph, folder / _SAMPLE, target)
        else:
            quantize_onnxruntime(graph, target)
    except UserError:
        raise
    except Exception as error:  # each tool has exceptions of its own
        raise UserError(f"{graph.title} cannot make {graph.path} int8: {one_line(error)}") from error
    return 0


if __name__ == "__main__":
    run_script(main)
