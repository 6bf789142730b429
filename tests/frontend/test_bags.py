"""How bags are pooled and weighted: what is read for it, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_surgery import (
    EXPORTS,
    Change,
    add_constant,
    body_of,
    changed_file,
    node_of,
    read_export,
    refusal,
    set_attribute,
    set_constant,
)
from onnx import helper
from recorded_bags import recorded_patterns

from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.bags import check_bags
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.reference import predict


def refusal_after(tmp_path: Path, change: Change, export: str) -> str:
    return refusal(changed_file(tmp_path, change, EXPORTS / f"{export}.onnx"))


def model_after(tmp_path: Path, change: Change, export: str) -> Dlrm:
    return read_dlrm(changed_file(tmp_path, change, EXPORTS / f"{export}.onnx"))


def set_pooling(op_type: str, place: int) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        body = body_of(node_of(graph, "Loop", place))
        next(node for node in body.node if node.op_type.startswith("Reduce")).op_type = op_type

    return change


def on_aten(place: int = 1, **attributes: object) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        for name, value in attributes.items():
            set_attribute(node_of(graph, "ATen", place), name, value)

    return change


def weigh(values: list[float], place: int = 1) -> Change:
    """Constant per-sample weights for one ATen embedding bag."""

    def change(graph: onnx.GraphProto) -> None:
        add_constant(graph, "per_sample_weights", np.array(values, np.float32))
        node_of(graph, "ATen", place).input.append("per_sample_weights")

    return change


def test_one_tables_mean_among_sums_is_read_for_that_table_alone(tmp_path: Path) -> None:
    model = model_after(tmp_path, set_pooling("ReduceMean", 1), "op11_stacked")
    assert [table.pooling for table in model.tables] == ["sum", "mean", "sum"]


@pytest.mark.parametrize(
    ("change", "export", "node", "reason"),
    [
        (set_pooling("ReduceMax", 2), "op11_stacked", "(ReduceMax)", "takes the maximum of a bag"),
        (on_aten(mode=2), "op9_aten", "(ATen)", "pools bags in mode 2"),
        (on_aten(operator="embedding"), "op9_aten", "(ATen)", "is PyTorch's 'embedding'"),
        (on_aten(place=3, operator="index_put"), "op9_aten", "(ATen)", "is PyTorch's 'index_put'"),
        (on_aten(max_norm=1.0), "op9_aten", "(ATen)", "unexpected keyword argument 'max_norm'"),
        (weigh([0.5, 0.5, 0.5, 0.25]), "op9_aten", "(ATen)", "weights that depend on more than the row"),
        (weigh([0.5, 0.5]), "op9_aten", "(ATen)", "per-sample weights of shape (2,) for 4 indices"),
        (weigh([0.5, 0.5, np.nan, 0.5]), "op9_aten", "(ATen)", "weights that depend on more"),
    ],
)
def test_other_pooling_is_refused(change: Change, export: str, node: str, reason: str, tmp_path: Path) -> None:
    message = refusal_after(tmp_path, change, export)
    assert node in message
    assert reason in message


def test_the_row_of_a_padding_index_counts_as_zeros_in_sums(tmp_path: Path) -> None:
    plain = read_export("op9_aten").tables[1]
    table = model_after(tmp_path, on_aten(padding_idx=2), "op9_aten").tables[1]
    wanted = np.array(plain.rows)
    wanted[2] = 0
    np.testing.assert_array_equal(table.rows[:], wanted)
    assert table.rows.origin.startswith("padding_idx")


def test_a_mean_without_a_padding_index_is_read_for_bags_of_one_index_alone(tmp_path: Path) -> None:
    inputs = model_after(tmp_path, on_aten(mode=1, padding_idx=2), "op9_aten").graph_inputs
    assert "mean of rows other than the one of padding_idx 2" in inputs.one_index
    with pytest.raises(UserError, match=r"bags of one index each were wanted: .* padding_idx 2"):
        check_bags([[1, 2]] * 3, [[0, 0]] * 3, 2, 3).check_one_index(inputs.one_index)


def test_offsets_include_the_last_bags_end_in_their_size_and_in_each_operator_or_in_neither(tmp_path: Path) -> None:
    def lengthen(graph: onnx.GraphProto) -> None:
        (offsets,) = [value for value in graph.input if value.name == "lS_o"]
        offsets.type.tensor_type.shape.dim[1].dim_value = 5

    def tell(graph: onnx.GraphProto) -> None:
        for place in range(3):
            on_aten(place, include_last_offset=1)(graph)

    def both(graph: onnx.GraphProto) -> None:
        lengthen(graph)
        tell(graph)

    assert "cannot be followed" in refusal_after(tmp_path, lengthen, "op9_aten")
    assert "cannot be followed" in refusal_after(tmp_path, tell, "op9_aten")
    assert "cannot be followed" in refusal_after(tmp_path, on_aten(include_last_offset=1), "op9_aten")
    model = model_after(tmp_path, both, "op9_aten")
    assert model.graph_inputs.last_offset
    assert model.fingerprint == read_export("op9_aten").fingerprint


@pytest.mark.parametrize("export", ["op9_aten", "op9_aten_clamped"])
def test_equal_per_sample_weights_become_row_weights(export: str, tmp_path: Path) -> None:
    weighted = model_after(tmp_path, weigh([-1.5] * 4), export)
    assert [table.row_weights is None for table in weighted.tables] == [True, False, True]
    plain = read_export(export)
    tables = list(plain.tables)
    tables[1] = dataclasses.replace(tables[1], rows=tables[1].rows * np.float32(-1.5))
    dense, indices, offsets, _ = recorded_patterns(EXPORTS / f"{export}.npz")["bags"]
    wanted = predict(dataclasses.replace(plain, tables=tuple(tables)), dense, indices, offsets)
    found = predict(weighted, dense, indices, offsets)
    assert np.abs(found - wanted).max() <= 1e-6
    assert np.abs(found - predict(plain, dense, indices, offsets)).max() > 0.01


def test_per_sample_weights_of_one_are_no_weights(tmp_path: Path) -> None:
    model = model_after(tmp_path, weigh([1.0] * 4), "op9_aten")
    assert all(table.row_weights is None for table in model.tables)


def test_row_weights_are_the_files_own_numbers() -> None:
    for export in ("op16_weighted_lists", "dynamo18_weighted"):
        constants = {tensor.name: tensor for tensor in onnx.load(EXPORTS / f"{export}.onnx").graph.initializer}
        for t, table in enumerate(read_export(export).tables):
            wanted = onnx.numpy_helper.to_array(constants[f"row_weights.{t}"])
            np.testing.assert_array_equal(table.row_weights, wanted)


@pytest.mark.parametrize("count", [30, 8])
def test_row_weights_of_another_number_count_as_far_as_both_reach(tmp_path: Path, count: int) -> None:
    weights = np.linspace(1, 2, count, dtype=np.float32)

    def lengthen(graph: onnx.GraphProto) -> None:
        set_constant(graph, "row_weights.1", weights)

    path = EXPORTS / "op16_weighted_lists.onnx"
    table, plain = read_dlrm(changed_file(tmp_path, lengthen, path)).tables[1], read_dlrm(path).tables[1]
    rows = min(count, plain.num_rows)
    np.testing.assert_array_equal(table.rows[:], plain.rows[:rows] * weights[:rows, None])


def test_row_weights_looked_up_with_another_tables_indices_are_refused(tmp_path: Path) -> None:
    def cross(graph: onnx.GraphProto) -> None:
        node_of(graph, "GatherElements", 1).input[1] = node_of(graph, "GatherElements", 0).input[1]

    assert "gives a layer products of computed values" in refusal_after(tmp_path, cross, "op16_weighted_lists")


def test_rows_weighted_twice_are_a_table_that_is_computed(tmp_path: Path) -> None:
    def again(graph: onnx.GraphProto) -> None:
        body = body_of(node_of(graph, "Loop"))
        place, product = next((place, node) for place, node in enumerate(body.node) if node.op_type == "Mul")
        twice = helper.make_node("Mul", [product.output[0], product.input[1]], ["twice"], name="Mul_again")
        body.node.insert(place + 1, twice)
        next(node for node in body.node if node.op_type == "ReduceSum").input[0] = "twice"

    plain = read_export("op16_weighted_lists").tables[0]
    table = read_dlrm(changed_file(tmp_path, again, EXPORTS / "op16_weighted_lists.onnx")).tables[0]
    np.testing.assert_allclose(table.rows[:], plain.rows * plain.row_weights[:, None] ** 2, rtol=1e-6)


def test_a_table_used_twice_in_the_same_way_is_read_and_in_two_ways_is_refused(tmp_path: Path) -> None:
    def share(graph: onnx.GraphProto) -> None:
        gathers = [node for t in range(3) for node in body_of(node_of(graph, "Loop", t)).node]
        for node in gathers:
            node.input[:] = ["emb.0.weight" if name == "emb.1.weight" else name for name in node.input]

    def share_and_average(graph: onnx.GraphProto) -> None:
        share(graph)
        set_pooling("ReduceMean", 1)(graph)

    model = model_after(tmp_path, share, "op11_stacked")
    assert [table.name for table in model.tables] == ["emb.0.weight", "emb.0.weight", "emb.2.weight"]
    message = refusal_after(tmp_path, share_and_average, "op11_stacked")
    assert "table 'emb.0.weight' is used twice, in different ways" in message


def test_a_constant_in_place_of_an_empty_bags_zeros_is_refused(tmp_path: Path) -> None:
    def fill(graph: onnx.GraphProto) -> None:
        body = body_of(node_of(graph, "Loop", 1))
        branch = next(a.g for a in node_of(body, "If").attribute if a.name == "then_branch")
        branch.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((1, 4), np.float32), branch.output[0].name))

    assert "where a DLRM has" in refusal_after(tmp_path, fill, "dynamo18_fixed")


def test_a_loop_that_never_ends_is_refused(tmp_path: Path) -> None:
    def stand_still(graph: onnx.GraphProto) -> None:
        body = body_of(node_of(graph, "Loop"))
        before, after = (
            next(one for one in names if one.name.startswith("index")) for names in (body.input, body.output)
        )
        after.name = before.name  # the number of the bag

    message = refusal_after(tmp_path, stand_still, "dynamo18_fixed")
    assert "(Loop) cannot be followed: runs more than 1,0" in message


def keep_sizes_below(bound: int, place: int = 0) -> Change:
    """A bag's end is at most `bound` indices after the beginning of all: nothing changes while there are fewer."""

    def change(graph: onnx.GraphProto) -> None:
        add_constant(graph, "bound", np.array([bound], np.int64))
        body = body_of(node_of(graph, "Loop", place))
        at, cut = next((at, node) for at, node in enumerate(body.node) if node.op_type == "Slice")
        body.node.insert(at, helper.make_node("Min", [cut.input[2], "bound"], ["bounded"], name="Min_x"))
        body.node[at + 1].input[2] = "bounded"

    return change


@pytest.mark.parametrize("bound", [1, 7, 24, 1000, 10**9])
def test_sizes_cut_at_any_bound_are_refused_though_smaller_ones_are_not_cut(bound: int, tmp_path: Path) -> None:
    message = refusal_after(tmp_path, keep_sizes_below(bound), "op13_lists")
    assert (
        bound == 1 or f"node Min_x (Min) depends on whether a size or position is above or below {bound}; " in message
    )


def test_another_branch_for_many_items_is_refused(tmp_path: Path) -> None:
    """Up to 100 bags the mean is PyTorch's."""

    def change(graph: onnx.GraphProto) -> None:
        add_constant(graph, "hundred", np.array(100, np.int64))
        body = body_of(node_of(graph, "Loop"))
        chosen = [node for node in body.node if node.op_type == "If"][-1]
        position = next(one.name for one in body.input if one.name.startswith("index"))
        body.node.insert(0, helper.make_node("Less", [position, "hundred"], ["few"], name="Less_x"))
        other = onnx.helper.make_graph(
            [],
            "other",
            [],
            [onnx.ValueInfoProto(name="zeros")],
            [onnx.numpy_helper.from_array(np.zeros((1, 4), np.float32), "zeros")],
        )
        same = onnx.helper.make_graph(
            [helper.make_node("Identity", [chosen.output[0]], ["same"])], "same", [], [onnx.ValueInfoProto(name="same")]
        )
        insert = next(node for node in body.node if node.op_type == "SequenceInsert")
        at = list(body.node).index(insert)
        body.node.insert(
            at, helper.make_node("If", ["few"], ["either"], name="If_x", then_branch=same, else_branch=other)
        )
        body.node[at + 1].input[1] = "either"

    message = refusal_after(tmp_path, change, "dynamo18_mean")
    assert "node Less_x (Less) depends on whether a size or position is above or below 100; " in message
