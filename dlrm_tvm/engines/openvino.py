"""OpenVINO by its fastest call: a request per batch, whose inputs are bound before the clock runs.

Its int8 files hold no tables (see quantization.py): tables are inputs there, and become constants again on opening.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from ..machine.cpu import BF16_FLAG, host_flags
from .interface import EngineGraph, OpenEngine

_MOST_REQUESTS = 16_384  # each takes 10 KB, and about 0.2 ms to make
_RUN_AS = {"fp32": ("f32",), "bf16": ("bf16",), "int8": ("i8", "u8")}  # OpenVINO's names


def open_openvino(
    graph: EngineGraph, threads: int, cores: Sequence[int], most_requests: int = _MOST_REQUESTS
) -> OpenEngine:
    """A request per batch, as binding takes about a tenth of a call at batch 1.

    Raises UserError where nothing would run in the graph's precision.
    """
    import openvino as ov

    runtime = ov.Core()
    model = _model(runtime, graph)
    model.reshape({feed.name: list(feed.shape) for feed in graph.feeds})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": _hint(graph.precision),
        "ENABLE_CPU_PINNING": False,  # OpenVINO numbers cores differently; the process is confined to its cores
    }
    compiled = runtime.compile_model(model, "CPU", settings)
    _check_precision(compiled, graph)
    output = np.zeros(tuple(compiled.output(0).shape), np.float32)
    target = ov.Tensor(output, shared_memory=True)
    positions = [_position(compiled.inputs, feed.name) for feed in graph.feeds]
    requests = []  # those bound once, before the clock runs

    def new_request() -> Any:
        request = compiled.create_infer_request()
        request.set_output_tensor(target)
        return request

    def bind(request: Any, tensors: list[Any]) -> None:
        for position, tensor in zip(positions, tensors):
            request.set_input_tensor(position, tensor)

    shared = new_request()

    def prepare(dense: np.ndarray, indices: np.ndarray) -> Any:
        """(request, tensors to bind at each call: none for a batch with its own request)."""
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
        request.infer(share_outputs=True)  # otherwise outputs are copied

    return OpenEngine(prepare, run, lambda: output.reshape(-1))


def _hint(precision: str) -> str:
    """The precision of floating-point operations. Beside int8 it is OpenVINO's default: bf16 where the CPU has it,
    which is faster and as accurate (tests/benchmarks/EXPERIMENTS.md). fp32 must be asked for there."""
    if precision == "fp32":
        return "f32"
    return "bf16" if precision == "bf16" or BF16_FLAG in host_flags() else "f32"


def _check_precision(compiled: Any, graph: EngineGraph) -> None:
    """Ask the compiled model for the precisions it runs in, as a precision hint is only a hint."""
    nodes = compiled.get_runtime_model().get_ops()
    found = {node.get_rt_info()["runtimePrecision"].astype(str) for node in nodes}
    if found.isdisjoint(_RUN_AS[graph.precision]):
        raise UserError(f"asked for {graph.precision}, it runs in {', '.join(sorted(found))}")


def _position(inputs: Sequence[Any], name: str) -> int:
    (found,) = (at for at, port in enumerate(inputs) if name in port.names)
    return found


def _model(runtime: Any, graph: EngineGraph) -> Any:
    original = runtime.read_model(graph.path)
    if graph.quantized is None:
        return original
    tables = {node.get_friendly_name(): node for node in original.get_ops() if node.get_type_name() == "Constant"}
    model = runtime.read_model(graph.quantized)
    for parameter in model.get_parameters():
        if parameter.get_friendly_name() in tables:
            _replace(parameter, tables[parameter.get_friendly_name()])
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model


def without_tables(model: Any) -> Any:
    """The model, changed in place: its tables (constants that a Gather reads rows of) become inputs of their names."""
    from openvino import opset13

    tables = {}
    for node in model.get_ops():
        if node.get_type_name() == "Gather":
            source = node.input_value(0).get_node()
            if source.get_type_name() == "Constant" and len(source.shape) == 2:
                tables[source.get_friendly_name()] = source
    for name, table in tables.items():
        parameter = opset13.parameter(list(table.shape), table.get_element_type(), name=name)
        _replace(table, parameter)
        model.add_parameters([parameter])
    model.validate_nodes_and_infer_types()
    return model


def _replace(old: Any, new: Any) -> None:
    """Connect all readers of the old node's output to the new node's."""
    for reader in old.output(0).get_target_inputs():
        reader.replace_source_output(new.output(0))
