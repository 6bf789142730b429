"""Files that fix a large batch size, as static exports do, with a Loop over the bags of each table."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_surgery import add_constant, changed, node_of, refusal
from graphs import onnxruntime_outputs, onnxruntime_session, random_items
from onnx import TensorProto, helper
from recorded_bags import feed, random_bags

from dlrm_tvm.frontend.probes import shrunk
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.reference import predict
from dlrm_tvm.symbols.graph import OnnxGraph

SMALL = {"num_dense": 4, "dim": 4, "bottom": (4,), "top": (4,), "inputs": "separate"}


def pool_by_loops(graph: onnx.GraphProto, batch: int, tables: int, per_bag: int) -> None:
    """Bags in place of single indices, as torch's own exporter writes them: offsets_t [batch], indices_t [total]."""
    constants = {"zero": [0], "one": [1], "end": [2**63 - 1], "trips": batch, "total": [batch * per_bag]}
    for name, value in constants.items():
        add_constant(graph, name, np.array(value, np.int64))
    add_constant(graph, "true", np.array(True))
    for t in range(tables):
        indices = next(value for value in graph.input if value.name == f"indices_{t}")
        indices.type.tensor_type.shape.dim[0].dim_value = batch * per_bag
        graph.input.append(helper.make_tensor_value_info(f"offsets_{t}", TensorProto.INT64, [batch]))
        lookup = next(node for node in graph.node if node.input[0] == f"table.{t}")
        place = list(graph.node).index(lookup)
        graph.node.remove(lookup)
        for at, node in enumerate(_bag_nodes(t, lookup.output[0])):
            graph.node.insert(place + at, node)


def _bag_nodes(t: int, output: str) -> list[onnx.NodeProto]:
    def named(*names: str) -> list[str]:
        return [f"{name}_{t}" for name in names]

    steps = [
        ("Gather", [f"starts_{t}", f"trip_{t}"], "start"),
        ("Gather", [f"ends_{t}", f"trip_{t}"], "stop"),
        ("Unsqueeze", [*named("start"), "zero"], "from"),
        ("Unsqueeze", [*named("stop"), "zero"], "to"),
        ("Slice", [*named("indices", "from", "to"), "zero"], "bag"),
        ("Gather", [f"table.{t}", f"bag_{t}"], "rows"),
        ("ReduceSum", [*named("rows"), "zero"], "pooled"),
        ("Identity", [f"go_{t}"], "on"),
    ]
    nodes = [helper.make_node(operator, inputs, named(made)) for operator, inputs, made in steps]
    set_keepdims = next(node for node in nodes if node.op_type == "ReduceSum")
    set_keepdims.attribute.append(helper.make_attribute("keepdims", 0))
    kinds = {"trip": (TensorProto.INT64, []), "go": (TensorProto.BOOL, [])}
    given = [helper.make_tensor_value_info(f"{name}_{t}", *kind) for name, kind in kinds.items()]
    made = [
        helper.make_tensor_value_info(f"on_{t}", TensorProto.BOOL, []),
        helper.make_tensor_value_info(f"pooled_{t}", TensorProto.FLOAT, None),
    ]
    body = helper.make_graph(nodes, f"bags_{t}", given, made)
    return [
        helper.make_node("Concat", [f"offsets_{t}", "total"], named("starts"), axis=0),
        helper.make_node("Slice", [f"starts_{t}", "one", "end", "zero"], named("ends")),
        helper.make_node("Loop", ["trips", "true"], [output], body=body, name=f"Loop_{t}"),
    ]


def reshape_to_constants(graph: onnx.GraphProto, batch: int, tables: int) -> None:
    add_constant(graph, "all_vectors", np.array([batch, tables + 1, SMALL["dim"]]))
    node_of(graph, "Reshape").input[1] = "all_vectors"


@pytest.mark.parametrize(
    ("batch", "per_bag"),
    [(2048, 3), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2048, 1), (128, 20)))],
)
def test_26_loops_over_a_large_fixed_batch_are_read_in_seconds_as_onnx_runtime_computes_them(
    batch: int, per_bag: int, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    rows = [9] * 26

    def change(graph: onnx.GraphProto) -> None:
        pool_by_loops(graph, batch, len(rows), per_bag)
        reshape_to_constants(graph, batch, len(rows))

    path = changed(tmp_path, change, table_rows=rows, batch=batch, **SMALL)
    started = time.process_time()
    model = read_dlrm(path)
    assert time.process_time() - started < 60
    assert len(model.graph_inputs.offsets) == 26
    dense, _ = random_items(batch, num_dense=4, table_rows=rows)
    bags = random_bags(np.random.default_rng(0), items=batch, table_rows=rows, total=batch * per_bag, empty=True)
    wanted = onnxruntime_outputs(onnxruntime_session(path), feed(model.graph_inputs, dense, *bags))
    assert np.abs(predict(model, dense, *bags) - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("first", [True, False])
def test_a_float_input_that_is_ignored_does_not_keep_a_large_fixed_batch_from_being_read_small(
    tmp_path: Path, first: bool
) -> None:
    def ignore(graph: onnx.GraphProto) -> None:
        labels = helper.make_tensor_value_info("labels", TensorProto.FLOAT, [5])
        graph.input.insert(0 if first else len(graph.input), labels)

    small = shrunk(OnnxGraph(changed(tmp_path, ignore, batch=2048)))
    sizes = [next(source.dims[0] for source in graph.inputs if source.name == "dense_x") for graph in small]
    assert sizes and max(sizes) < 100


def test_two_items_that_trade_places_far_into_a_large_fixed_batch_are_refused(tmp_path: Path) -> None:
    def trade(graph: onnx.GraphProto) -> None:
        order = np.arange(100)
        order[[90, 91]] = order[[91, 90]]
        add_constant(graph, "order", order)
        gemm = node_of(graph, "Gemm")
        gemm.input[0] = "traded"
        graph.node.insert(0, helper.make_node("Gather", ["dense_x", "order"], ["traded"], axis=0, name="Gather_x"))

    message = refusal(changed(tmp_path, trade, batch=100))
    assert "takes something other than 'dense_x', and no layer is before it" in message


def test_a_bias_that_is_the_size_of_a_large_fixed_batch_is_read_as_a_number(tmp_path: Path) -> None:
    """The file has one batch size, at which it is a DLRM with that bias."""

    def change(graph: onnx.GraphProto) -> None:
        add_constant(graph, "size", np.array([100], np.int64))
        graph.node.insert(0, helper.make_node("Cast", ["size"], ["bias"], name="Cast_x", to=1))
        node_of(graph, "Gemm", 3).input[2] = "bias"

    model = read_dlrm(changed(tmp_path, change, batch=100))
    assert model.top[-1].bias.tolist() == [100]
