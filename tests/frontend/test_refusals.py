"""Graphs that compute something else than a DLRM are refused, in one line that names the node at fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_surgery import (
    add_before_output,
    add_constant,
    changed,
    node_of,
    refusal,
    set_attribute,
    set_constant,
    shared_export,
)
from graphs import write_dlrm
from onnx import helper, numpy_helper

from dlrm_tvm.frontend.reader import read_dlrm


def _tanh(graph: onnx.GraphProto) -> None:
    node_of(graph, "Relu", 1).op_type = "Tanh"


def _join_dots_on_axis_0(graph: onnx.GraphProto) -> None:
    set_attribute(node_of(graph, "Concat", 1), "axis", 0)


def _join_vectors_on_axis_0(graph: onnx.GraphProto) -> None:
    set_attribute(node_of(graph, "Concat"), "axis", 0)


def _index_column_used_twice(graph: onnx.GraphProto) -> None:
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0].startswith("table.")]
    lookups[1].input[1] = lookups[0].input[1]


def _table_looked_up_by_columns(graph: onnx.GraphProto) -> None:
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0].startswith("table.")]
    lookups[1].input[0] = "table.0"
    set_attribute(lookups[1], "axis", 1)


def _rows_joined_with_dots(graph: onnx.GraphProto) -> None:
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0].startswith("table.")]
    node_of(graph, "Concat", 1).input[0] = lookups[0].output[0]


def _skipped_layer(graph: onnx.GraphProto) -> None:
    node_of(graph, "Gemm", 1).input[0] = "dense_x"


def _alpha_2(graph: onnx.GraphProto) -> None:
    set_attribute(node_of(graph, "Gemm", 2), "alpha", 2.0)


def _transpose_items(graph: onnx.GraphProto) -> None:
    set_attribute(node_of(graph, "Transpose"), "perm", [1, 2, 0])


def _no_transposition(graph: onnx.GraphProto) -> None:
    set_attribute(node_of(graph, "Transpose"), "perm", [0, 1, 2])


def _relu_twice(graph: onnx.GraphProto) -> None:
    graph.node.insert(2, helper.make_node("Relu", [graph.node[1].output[0]], ["again"], name="Relu_again"))
    graph.node[3].input[0] = "again"


def _only_the_first_items(graph: onnx.GraphProto) -> None:
    # Identity at the probes' batch sizes, and at no batch over 64.
    for name, value in (("slice_start", 0), ("slice_end", 64)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    gemm = node_of(graph, "Gemm")
    graph.node.insert(0, helper.make_node("Slice", ["dense_x", "slice_start", "slice_end"], ["cut"], name="Slice_cut"))
    gemm.input[0] = "cut"


def _not_finite_weight(graph: onnx.GraphProto) -> None:
    weight = np.ones((24, 22), np.float32)
    weight[3, 4] = np.nan
    set_constant(graph, "top.0.weight", weight)


def _half_weight(graph: onnx.GraphProto) -> None:
    set_constant(graph, "top.0.weight", np.ones((24, 22), np.float16))


def _bias_from_the_batch(graph: onnx.GraphProto) -> None:
    graph.node.insert(0, helper.make_node("Shape", ["dense_x"], ["size"], name="Shape_0", start=0, end=1))
    graph.node.insert(1, helper.make_node("Cast", ["size"], ["size_float"], name="Cast_0", to=1))
    node_of(graph, "Gemm", 3).input[2] = "size_float"


def _foreign_operator(graph: onnx.GraphProto) -> None:
    node_of(graph, "Relu").domain = "com.example"


def _reads_its_own_output(graph: onnx.GraphProto) -> None:
    node_of(graph, "Concat", 1).input[1] = node_of(graph, "Gemm", 3).output[0]


def _clamp_before_the_sigmoid(graph: onnx.GraphProto) -> None:
    sigmoid = node_of(graph, "Sigmoid")
    add_constant(graph, "bound", np.float32(0.5))
    graph.node.insert(
        len(graph.node) - 1, helper.make_node("Clip", [sigmoid.input[0], "bound"], ["cut"], name="Clip_x")
    )
    sigmoid.input[0] = "cut"


def _clamp_to_a_vector(graph: onnx.GraphProto) -> None:
    add_constant(graph, "bound", np.array([[0.1], [0.2], [0.3]], np.float32))
    add_before_output(graph, helper.make_node("Max", ["bound"], [], name="Max_x"))


def _clamp_to_nan(graph: onnx.GraphProto) -> None:
    add_constant(graph, "bound", np.float32("nan"))
    add_before_output(graph, helper.make_node("Clip", ["bound"], [], name="Clip_x"))


def _leaky_relu(graph: onnx.GraphProto) -> None:
    node_of(graph, "Relu", 0).op_type = "LeakyRelu"


def _doubled_prediction(graph: onnx.GraphProto) -> None:
    add_constant(graph, "two", np.float32(2))
    add_before_output(graph, helper.make_node("Mul", ["two"], [], name="Mul_x"))


def _halved_prediction(graph: onnx.GraphProto) -> None:
    add_constant(graph, "two", np.float32(2))
    add_before_output(graph, helper.make_node("Div", ["two"], [], name="Div_x"))


def _product_of_two_rows(graph: onnx.GraphProto) -> None:
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0].startswith("table.")]
    place = list(graph.node).index(lookups[-1]) + 1
    product = helper.make_node("Mul", [lookups[0].output[0], lookups[1].output[0]], ["product"], name="Mul_x")
    graph.node.insert(place, product)
    concat = node_of(graph, "Concat")
    concat.input[2] = "product"


REFUSALS = {
    "Tanh": (_tanh, "Relu_3 (Tanh)", "no operation"),
    "dots joined on the wrong axis": (_join_dots_on_axis_0, "Concat_16", "joins shapes (5, 16), (5, 6) on axis 0"),
    "vectors joined on the wrong axis": (_join_vectors_on_axis_0, "Concat_16", "joins 2 vectors beside the tables'"),
    "rows of a table joined with dots": (_rows_joined_with_dots, "Concat_16", "joins dots and rows themselves"),
    "an index column used twice": (_index_column_used_twice, "Gather_8", "indices, row 0"),
    "a table looked up by columns": (_table_looked_up_by_columns, "Gather_8", "axis 1"),
    "a rewired layer": (_skipped_layer, "Gemm_2", "multiplies 13 values by a weight for 32"),
    "alpha of 2": (_alpha_2, "Gemm_17", "alpha = 2"),
    "another transposition": (_transpose_items, "MatMul_13", ""),
    "no transposition": (_no_transposition, "MatMul_13", "multiplies rows"),
    "Relu of Relu": (_relu_twice, "", "no layer is before it"),
    "a slice of 64 items": (_only_the_first_items, "Slice_cut", "slices 0:64"),
    "a weight that is NaN": (_not_finite_weight, "Gemm_17", "not finite"),
    "float16 weights": (_half_weight, "Gemm_17", "float16"),
    "a bias that is the batch size": (_bias_from_the_batch, "", "depend on the batch size"),
    "an operator of another domain": (_foreign_operator, "Relu_1", "com.example"),
    "a clamp before the sigmoid": (_clamp_before_the_sigmoid, "(Sigmoid)", "is no layer of an MLP"),
    "a clamp to a bound for each item": (_clamp_to_a_vector, "Max_x", "something other than one float number"),
    "a clamp to NaN": (_clamp_to_nan, "Clip_x", "something other than one float number"),
    "LeakyRelu": (_leaky_relu, "(LeakyRelu)", "is no operation of a DLRM"),
    "a doubled prediction": (_doubled_prediction, "Mul_x", "gives the prediction, but is no layer of an MLP"),
    "a halved prediction": (_halved_prediction, "Div_x", "gives the prediction, but is no layer of an MLP"),
    "a product of two rows": (_product_of_two_rows, "Mul_x", "gives a layer products of computed values"),
    "a cycle": (_reads_its_own_output, "Concat_16", "nothing before it makes"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_graph_that_computes_something_else_is_refused_with_node_and_reason(case: str, tmp_path: Path) -> None:
    change, node, reason = REFUSALS[case]
    message = refusal(changed(tmp_path, change))
    assert node in message
    assert reason in message


def test_mlp_without_tables_is_refused(tmp_path: Path) -> None:
    def cut(graph: onnx.GraphProto) -> None:
        graph.output[0].name = node_of(graph, "Relu", 1).output[0]

    assert "a DLRM looks up embedding tables" in refusal(changed(tmp_path, cut))


def test_unused_index_input_is_refused_by_name(tmp_path: Path) -> None:
    def ignore(graph: onnx.GraphProto) -> None:
        graph.input.append(helper.make_tensor_value_info("indices_3", onnx.TensorProto.INT64, ["batch"]))

    assert "'indices_3' is not used" in refusal(changed(tmp_path, ignore, inputs="separate"))


def test_unused_float_input_is_no_matter(tmp_path: Path) -> None:
    """torch.export keeps all arguments, labels too."""

    def ignore(graph: onnx.GraphProto) -> None:
        graph.input.append(helper.make_tensor_value_info("labels", onnx.TensorProto.FLOAT, ["batch"]))

    plain = read_dlrm(write_dlrm(tmp_path / "plain.onnx"))
    assert read_dlrm(changed(tmp_path, ignore)).fingerprint == plain.fingerprint


def test_offsets_of_another_table_are_refused(tmp_path: Path) -> None:
    """With one index per bag the outputs would be the same; with real bags they would not."""
    model = onnx.load(shared_export("t171_stacked"))
    gathers = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] == "offsets"]
    gathers[4].input[1] = gathers[5].input[1]
    onnx.save(model, tmp_path / "swapped.onnx")
    assert "emb_l.4.weight" in refusal(tmp_path / "swapped.onnx")
