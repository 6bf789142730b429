"""OpenVINO, with the fastest call it offers: a request per batch, its inputs bound before the clock runs.

Its int8 files have no tables (peer_int8.py says why): those are inputs there, and constants again when it is opened.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .cpu import host_flags
from .errors import UserError
from .numerics import INSTRUCTION_FLAG
from .peers import Peer, PeerGraph

_MOST_REQUESTS = 16_384  # each takes 10 KB and some 0.2 ms to make
_RUN_AS = {"fp32": ("f32",), "bf16": ("bf16",), "int8": ("i8", "u8")}  # in OpenVINO's words


def open_openvino(graph: PeerGraph, threads: int, cores: Sequence[int], most_requests: int = _MOST_REQUESTS) -> Peer:
    """A request per batch: binding takes about a tenth of a call at batch 1.

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
        "ENABLE_CPU_PINNING": False,  # it numbers cores in its own way; the process is confined to its cores
    }
    compiled = runtime.compile_model(model, "CPU", settings)
    _check_precision(compiled, graph)
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


def _hint(precision: str) -> str:
    """What runs in floating point. Beside int8 that is OpenVINO's default, bf16 where the CPU has it, which is the
    faster one and as accurate (tests/benchmarks/EXPERIMENTS.md); fp32 has to be asked for there."""
    if precision == "fp32":
        return "f32"
    return "bf16" if precision == "bf16" or INSTRUCTION_FLAG["bf16"] in host_flags() else "f32"


def _check_precision(compiled: Any, graph: PeerGraph) -> None:
    """By what the compiled model says of itself, as a precision hint is no more than a hint."""
    nodes = compiled.get_runtime_model().get_ops()
    found = {node.get_rt_info()["runtimePrecision"].astype(str) for node in nodes}
    if found.isdisjoint(_RUN_AS[graph.precision]):
        raise UserError(f"asked for {graph.precision}, it runs in {', '.join(sorted(found))}")


def _position(inputs: Sequence[Any], name: str) -> int:
    (found,) = (at for at, port in enumerate(inputs) if name in port.names)
    return found


def _model(runtime: Any, graph: PeerGraph) -> Any:
    original = runtime.read_model(graph.path)
    if graph.quantized is None:
        return original
    tables = {node.get_friendly_name(): node for node in original.get_ops() if node.get_type_name() == "Constant"}
    model = runtime.read_model(graph.quantized)
    for parameter in model.get_parameters():
        if parameter.get_friendly_name() in tables:
            _hand_over(parameter, tables[parameter.get_friendly_name()])
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model


def without_tables(model: Any) -> Any:
    """The model with its tables, constants that a Gather takes rows of, as inputs of their names; changed in place."""
    from openvino import opset13

    tables = {}
    for node in model.get_ops():
        if node.get_type_name() == "Gather":
            source = node.input_value(0).get_node()
            if source.get_type_name() == "Constant" and len(source.shape) == 2:
                tables[source.get_friendly_name()] = source
    for name, table in tables.items():
        parameter = opset13.parameter(list(table.shape), table.get_element_type(), name=name)
        _hand_over(table, parameter)
        model.add_parameters([parameter])
    model.validate_nodes_and_infer_types()
    return model


def _hand_over(old: Any, new: Any) -> None:
    """Everything that takes the output of the one takes that of the other."""
    for taker in old.output(0).get_target_inputs():
        taker.replace_source_output(new.output(0))
