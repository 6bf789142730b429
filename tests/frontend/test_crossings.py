"""Cross layers are read as what they are; what differs from them is refused by node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_surgery import EXPORTS, add_constant, changed, changed_file, node_of, read_export, refusal
from graphs import onnxruntime_predictions, random_items, write_dlrm
from models import assert_close
from onnx import helper

from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.reference import predict

# Of write_dlrm's cross graph: Gemm 2 and 3 are V and W of the first layer, 4 is W of the second.


@pytest.mark.parametrize("layers", ["gemm", "gemm_plain", "matmul"])
@pytest.mark.parametrize("ranks", [(1,), (None,), (3, None, 5), (16, 16)])
def test_cross_layers_of_any_rank_are_read_as_onnxruntime_computes_them(ranks: tuple, layers: str, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    path = write_dlrm(tmp_path / "cross.onnx", interaction="cross", ranks=ranks, layers=layers, dim=4)
    model = read_dlrm(path)
    found = [None if len(each) == 1 else each[0].outputs for each in model.interaction.crossings]
    assert found == list(ranks)
    dense, indices = random_items(9)
    assert_close(predict(model, dense, indices), onnxruntime_predictions(path, dense, indices))


def test_factors_and_summands_may_come_in_any_order(tmp_path: Path) -> None:
    def turn(graph: onnx.GraphProto) -> None:
        for node in (node_of(graph, "Mul", 1), node_of(graph, "Add", 0)):
            node.input[:] = list(node.input)[::-1]

    plain = read_dlrm(write_dlrm(tmp_path / "plain.onnx", interaction="cross"))
    assert read_dlrm(changed(tmp_path, turn, interaction="cross")).fingerprint == plain.fingerprint


def _relu_between(graph: onnx.GraphProto) -> None:
    _insert_before(graph, node_of(graph, "Gemm", 3), 0, "Relu")


def _relu_after(graph: onnx.GraphProto) -> None:
    _insert_before(graph, node_of(graph, "Mul", 1), 1, "Relu")


def _insert_before(graph: onnx.GraphProto, node: onnx.NodeProto, place: int, op_type: str) -> None:
    at = list(graph.node).index(node)
    graph.node.insert(at, helper.make_node(op_type, [node.input[place]], ["between"], name=f"{op_type}_between"))
    graph.node[at + 1].input[place] = "between"


def _multiplies_x_l(graph: onnx.GraphProto) -> None:
    node_of(graph, "Mul", 1).input[0] = node_of(graph, "Add", 0).output[0]


def _adds_x0(graph: onnx.GraphProto) -> None:
    node_of(graph, "Add", 1).input[1] = node_of(graph, "Concat").output[0]


def _takes_x0_again(graph: onnx.GraphProto) -> None:
    node_of(graph, "Gemm", 4).input[0] = node_of(graph, "Concat").output[0]


def _no_sum(graph: onnx.GraphProto) -> None:
    add, mul = node_of(graph, "Add", 1), node_of(graph, "Mul", 1)
    mul.output[0] = add.output[0]
    graph.node.remove(add)


def _bias_on_the_product(graph: onnx.GraphProto) -> None:
    add_constant(graph, "more", np.ones(64, np.float32))
    add = node_of(graph, "Add", 1)
    at = list(graph.node).index(add)
    graph.node.insert(at, helper.make_node("Add", [add.input[0], "more"], ["between"], name="Add_between"))
    graph.node[at + 1].input[0] = "between"


def _halved_sum(graph: onnx.GraphProto) -> None:
    add_constant(graph, "half", np.full(1, 0.5, np.float32))
    add = node_of(graph, "Add", 1)
    at = list(graph.node).index(add)
    graph.node.insert(at, helper.make_node("Mul", [add.input[1], "half"], ["between"], name="Mul_between"))
    graph.node[at + 1].input[1] = "between"


def _table_joined_twice(graph: onnx.GraphProto) -> None:
    concat = node_of(graph, "Concat")
    concat.input[2] = concat.input[1]


REFUSALS = {
    "an activation between V and W": (_relu_between, "Gemm_", "is not W (V x) + b of the x that is added"),
    "an activation behind W": (_relu_after, "Relu_", "is not W (V x) + b of the x that is added"),
    "x_l in the place of x0": (_multiplies_x_l, "Add_", "multiplies by other values than the cross layers after it"),
    "x0 in the place of x_l": (_adds_x0, "Gemm_", "of the x that is added"),
    "a layer of x0 in the place of x_l": (_takes_x0_again, "Gemm_", "of the x that is added"),
    "nothing added": (_no_sum, "Mul_", "gives a layer products of computed values"),
    "a bias on the product": (_bias_on_the_product, "Add_", ""),
    "a factor on x_l": (_halved_sum, "Gemm_", "of the x that is added"),
    "a table joined twice": (_table_joined_twice, "", "no table is looked up with indices, row 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_graph_that_is_no_cross_network_is_refused_with_node_and_reason(case: str, tmp_path: Path) -> None:
    change, node, reason = REFUSALS[case]
    message = refusal(changed(tmp_path, change, interaction="cross"))
    assert node in message
    assert reason in message


def test_multi_hot_sum_over_another_axis_is_refused(tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        axes = node_of(graph, "ReduceSum").input[1]
        tensor = next(node.attribute[0].t for node in graph.node if axes in node.output)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([2])))

    refusal(changed_file(tmp_path, change, EXPORTS / "op13_cross_multihot.onnx"))


def test_fixed_batch_of_multi_hot_indices_is_read_at_smaller_sizes(tmp_path: Path) -> None:
    """A file of 4096 items is not run on 4096 symbols: it would take minutes."""

    def widen(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 4096

    large = read_dlrm(changed_file(tmp_path, widen, EXPORTS / "op17_cross_multihot_fixed.onnx"))
    assert large.fingerprint == read_export("op17_cross_multihot_fixed").fingerprint
    assert large.graph_inputs.indices_per_bag == (3, 1, 4)
