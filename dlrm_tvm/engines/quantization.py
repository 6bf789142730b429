"""An ONNX file quantized to int8 for another engine by that engine's own tool, once, before its instances start.

    ONNX Runtime   quantize_dynamic: the layers' weights per output channel, activations at run time -> an ONNX file
    OpenVINO       nncf.quantize: weights, and activations by their ranges over sample items         -> OpenVINO's IR
    torch.compile  torchao, the same way, by every instance for itself (pytorch.py)                  -> the sample items

Lookups, the interaction's dots, and what cross layers multiply and add element by element stay in floating point:
quantize_dynamic quantizes constant weights alone, and NNCF is told to leave them. With lookups and dots quantized,
NNCF's default, the demo's AUC falls to 0.834 of the reference's; without, to 0.9997.

Tables are not written but read from the ONNX model: they may be larger than the disk.

The tools run in a process of their own (paths.module_command): they print, import
many packages and start threads, which would disturb a measurement.
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

from ..data.reference_data import read_inputs
from ..data.workload import bag_lengths, random_bags, random_items
from ..errors import UserError, one_line, run_script
from ..machine.cpu import host_flags
from ..model.bags import Bags
from ..paths import module_command
from ..runtime.typed_json import read_as
from .interface import EngineGraph
from .openvino import without_tables

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

    from ..model.card import ModelCard

CALIBRATION_ITEMS = 2_000
_CALIBRATION_BATCH = 100  # unless the file fixes one; a range is the mean of the batches' ranges
_NO_INSTANCE = 1 << 20  # a seed that no instance has
_SAMPLE = "sample.npz"
_FILES = {"onnxruntime": "int8.onnx", "openvino": "int8.xml", "torch": _SAMPLE}
_LAYERS = ("Gemm", "MatMul")
_VNNI = {"avx512_vnni", "avx_vnni"}  # in /proc/cpuinfo


def with_int8(
    graph: EngineGraph, card: ModelCard, ref_data: Path | None = None, max_ind_range: int | None = None
) -> EngineGraph:
    """The graph with its int8 file, which is removed when this process ends; unchanged at other precisions.

    ref_data: the file of items for calibration, its indices modulo `max_ind_range`; None: random items. Raises
    UserError where the tool fails.
    """
    if graph.precision != "int8":
        return graph
    calibration = None
    if graph.engine != "onnxruntime":
        calibration = f"{CALIBRATION_ITEMS:,} random items like the workload's"
        if ref_data is not None:
            calibration = f"items of {ref_data}, the first {CALIBRATION_ITEMS:,} at most"
    return replace(
        graph, quantized=_made(json.dumps(asdict(graph)), card, ref_data, max_ind_range), calibration=calibration
    )


@functools.cache  # a sweep opens one graph many times
def _made(graph: str, card: ModelCard, ref_data: Path | None, max_ind_range: int | None) -> str:
    """Path of the int8 file of the graph, an EngineGraph as JSON."""
    fields = json.loads(graph)
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    if fields["engine"] != "onnxruntime":
        np.savez(folder / _SAMPLE, **_sample(card, ref_data, max_ind_range))
    if fields["engine"] == "torch":
        return str(folder / _SAMPLE)
    command = [*module_command("engines.quantization"), graph, str(folder)]
    # NNCF sends usage statistics to its makers, unless it is told that this is an automatic test.
    done = subprocess.run(command, env={**os.environ, "CI": "true"}, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended with status {done.returncode}"]
        raise UserError(said[-1])
    return str(folder / _FILES[fields["engine"]])


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """A folder that is removed when this process ends."""
    return tempfile.TemporaryDirectory(prefix="dlrm_int8_")


def _sample(card: ModelCard, ref_data: Path | None, max_ind_range: int | None) -> dict[str, np.ndarray]:
    """The calibration items: dense [n, D] float32, and indices [n, T] int64 or, where the graph fixes bags, of each
    table t bags_t [n, number]."""
    lengths = bag_lengths(card)
    if ref_data is not None:
        how = {"for_calibration": True, "max_ind_range": max_ind_range}
        dense, lookups = read_inputs(ref_data, card, CALIBRATION_ITEMS, **how)
    elif lengths is not None:
        dense, lookups = random_bags(card, CALIBRATION_ITEMS, lengths, instance=_NO_INSTANCE)
    else:
        dense, lookups = random_items(card, CALIBRATION_ITEMS, instance=_NO_INSTANCE)
    if not isinstance(lookups, Bags):
        return {"dense": dense, "indices": lookups}
    found = [set(np.diff(begins).tolist()) for begins in lookups.begins]
    if found != [{length} for length in lengths or ()]:
        takes = "bags as its file fixes them" if lengths else "one index per table and item"
        raise UserError(f"{ref_data} has other bags; another engine is measured with {takes}.")
    bags = zip(lookups.indices, lengths)
    return {"dense": dense, **{f"bags_{t}": indices.reshape(-1, length) for t, (indices, length) in enumerate(bags)}}


def quantize_onnxruntime(graph: EngineGraph, target: Path) -> None:
    """Raises UserError where the tool does not find a layer's weights as constants."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from ..machine.cpu import VNNI_FLAG, host_flags

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
        reduce_range=VNNI_FLAG not in host_flags(),  # without VNNI pairs of products saturate int16
    )
    made = onnx.load(target)
    done, dots = _count(made, "MatMulInteger"), _count(made, "MatMul")
    if not done or done + dots != layers:
        raise UserError(f"{graph.title} quantizes {done} of the {layers - dots} layers of {graph.path}.")
    _put_back(made, tables)
    target.write_bytes(made.SerializeToString())


def _count(model: ModelProto, *op_types: str) -> int:
    return sum(node.op_type in op_types for node in model.graph.node)


def _take_out(model: ModelProto) -> list[TensorProto]:
    """Make external tensors that no layer reads inputs of the graph, as the tool would load them all."""
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


def quantize_openvino(graph: EngineGraph, sample: Path, target: Path) -> None:
    """sample: npz as `_sample` has it; the last batch is filled up with items from the beginning."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(graph.path)
    with np.load(sample) as arrays:
        dense, *lookups = arrays.values()
        has_bags = "indices" not in arrays
    is_open = all(dim.is_dynamic for dim in _batch_dims(model, graph))
    size = _CALIBRATION_BATCH if is_open else graph.batch_size
    feeds = [feed.resized(size) for feed in graph.feeds]
    batches = []
    for begin in range(0, len(dense), size):
        rows = np.arange(begin, begin + size) % len(dense)
        picked = [each[rows] for each in lookups]
        indices = picked if has_bags else picked[0]
        batches.append({feed.name: feed.array(dense[rows], indices) for feed in feeds})
    # Without VNNI pairs of products are added in 16 bits and saturate; NNCF's remedy is weights of 7 bits.
    remedy = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(types=["Gather"], names=_products(model), validate=False),
        advanced_parameters=None if host_flags() & _VNNI else remedy,
    )
    ov.save_model(without_tables(quantized), target, compress_to_fp16=False)


def _batch_dims(model: Any, graph: EngineGraph) -> list[Any]:
    """The dimension that counts items of each input in use."""
    shapes = {name: port.partial_shape for port in model.inputs for name in port.names}
    return [shapes[feed.name][feed.batch_place] for feed in graph.feeds if feed.role != "unused"]


def _products(model: Any) -> list[str]:
    """Names of the multiplications and additions without a constant operand: of dots and cross layers."""
    products = [node for node in model.get_ordered_ops() if node.get_type_name() in ("MatMul", "Multiply", "Add")]
    return [node.get_friendly_name() for node in products if not any(map(_is_constant, node.input_values()))]


def _is_constant(output: Any) -> bool:
    """Whether it is a constant, or one transposed or converted."""
    node = output.get_node()
    return node.get_type_name() == "Constant" or (
        node.get_type_name() in ("Transpose", "Convert") and _is_constant(node.input_value(0))
    )


def main() -> None:
    run_script(_main)


def _main() -> int:
    graph, folder = read_as(EngineGraph, json.loads(sys.argv[1]), "graph"), Path(sys.argv[2])
    target = folder / _FILES[graph.engine]
    try:
        if graph.engine == "openvino":
            quantize_openvino(graph, folder / _SAMPLE, target)
        else:
            quantize_onnxruntime(graph, target)
    except UserError:
        raise
    except Exception as error:  # each tool has its own exceptions
        raise UserError(f"{graph.title} cannot quantize {graph.path}: {one_line(error)}") from error
    return 0
