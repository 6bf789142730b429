"""What the reader reads, against ONNX Runtime on the same file and outputs recorded from PyTorch."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_surgery import (
    EXPORTS,
    SHARED_EXPORTS,
    SHARED_NAMES,
    add_before_output,
    add_constant,
    changed,
    changed_file,
    node_of,
    read_export,
    shared_export,
)
from graphs import onnx_feed, onnxruntime_predictions, random_items, write_dlrm
from onnx import helper

from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.interactions import Concat, Dot
from dlrm_tvm.model.reference import predict

VARIANTS = {
    "dot": {},
    "dot_of_wide_vectors": {"dim": 130, "table_rows": (9, 4)},
    "dot_self": {"interaction": "dot_self"},
    "cat": {"interaction": "cat"},
    "one_table": {"table_rows": (11,)},
    "widths_of_no_multiple": {"num_dense": 5, "dim": 21, "bottom": (33, 17), "top": (19, 7, 3)},
    "no_hidden_layers": {"bottom": (), "top": ()},
    "matmul_and_add": {"layers": "matmul"},
    "matmul_without_bias": {"layers": "matmul", "bias": False},
    "gemm_without_transposition": {"layers": "gemm_plain"},
    "gemm_without_bias": {"bias": False},
    "indices_by_split": {"inputs": "split"},
    "indices_by_name": {"inputs": "separate"},
    "sigmoid_on_the_first_top_layer": {"sigmoid_layer": 0},
    "fixed_batch": {"batch": 8},
    "external_data_in_one_file": {"external": "one_file"},
    "external_data_in_a_file_per_tensor": {"external": "per_tensor"},
}


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_export_read_by_us_gives_pytorchs_recorded_outputs(name: str) -> None:
    model = read_dlrm(shared_export(name))
    with np.load(SHARED_EXPORTS / f"{name}.npz") as recorded:
        names = model.graph_inputs.indices
        columns = recorded[names[0]] if len(names) == 1 else np.stack([recorded[one] for one in names])
        starts = recorded[model.graph_inputs.offsets[0]]
        assert (starts == np.arange(starts.shape[1])).all(), "recorded with one index per bag"
        error = np.abs(predict(model, recorded[model.graph_inputs.dense], columns.T) - recorded["pred"][:, 0])
    assert error.max() <= 1e-6
    assert model.macs_per_item == 2_410_112
    assert [table.name for table in model.tables] == [f"emb_l.{t}.weight" for t in range(26)]


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_export_read_by_us_gives_onnx_runtimes_outputs_at_another_batch_size(name: str) -> None:
    pytest.importorskip("onnxruntime")
    model = read_dlrm(shared_export(name))
    dense, indices = random_items(37, table_rows=[table.num_rows for table in model.tables])
    difference = predict(model, dense, indices) - onnxruntime_predictions(shared_export(name), dense, indices)
    assert np.abs(difference).max() <= 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_read_by_us_gives_onnx_runtimes_outputs(variant: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    options = VARIANTS[variant]
    path = write_dlrm(tmp_path / "small.onnx", **options)
    model = read_dlrm(path)
    shape = {key: options[key] for key in ("num_dense", "table_rows") if key in options}
    dense, indices = random_items(8, **shape)
    predictions = onnxruntime_predictions(path, dense, indices)
    assert np.abs(predict(model, dense, indices) - predictions).max() <= 2e-6
    assert predictions.std() > 0.01, "predictions are spread, so that a wrong one shows"


def test_graph_inputs_are_recorded_under_the_graphs_own_names(tmp_path: Path) -> None:
    stacked = read_dlrm(write_dlrm(tmp_path / "stacked.onnx")).graph_inputs
    assert (stacked.dense, stacked.indices, stacked.offsets, stacked.output) == ("dense_x", ("indices",), (), "pred")
    named = read_dlrm(write_dlrm(tmp_path / "named.onnx", inputs="separate")).graph_inputs
    assert named.indices == ("indices_0", "indices_1", "indices_2")
    bags = read_dlrm(shared_export("t213_legacy_onehot")).graph_inputs
    assert bags.offsets == ("offsets",)
    assert bags.indices == tuple(f"indices_{t}" for t in range(26))


def test_interaction_is_recognised_with_and_without_self(tmp_path: Path) -> None:
    for kind, wanted in (
        ("dot", Dot()),
        ("dot_self", Dot(with_self=True)),
        ("cat", Concat()),
    ):
        assert read_dlrm(write_dlrm(tmp_path / "small.onnx", interaction=kind)).interaction == wanted


def test_tables_that_trade_places_everywhere_are_recorded_where_they_are_used(tmp_path: Path) -> None:
    def trade(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [{"table.0": "table.1", "table.1": "table.0"}.get(name, name) for name in node.input]

    model = read_dlrm(changed(tmp_path, trade))
    assert [(table.name, table.num_rows) for table in model.tables] == [("table.1", 7), ("table.0", 5), ("table.2", 3)]


def test_names_and_order_of_nodes_do_not_matter(tmp_path: Path) -> None:
    def anonymise(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.name = ""
        # The embedding nodes first, then the rest: still in topological order.
        lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0] != "Reshape_out"][:6]
        rest = [node for node in graph.node if node not in lookups]
        del graph.node[:]
        graph.node.extend(lookups + rest)

    assert read_dlrm(changed(tmp_path, anonymise)).fingerprint == read_dlrm(write_dlrm(tmp_path / "a.onnx")).fingerprint


def clip(*bounds: float | None, graph: onnx.GraphProto) -> onnx.NodeProto:
    names = []
    for value in bounds:
        names.append("" if value is None else f"bound_{len(graph.initializer)}")
        if value is not None:
            add_constant(graph, names[-1], np.float32(value))
    return helper.make_node("Clip", names, [], name=f"Clip_{len(graph.initializer)}")


def limit(op_type: str, value: float, *, graph: onnx.GraphProto) -> onnx.NodeProto:
    name = f"bound_{len(graph.initializer)}"
    add_constant(graph, name, np.array([value], np.float32))
    return helper.make_node(op_type, [name], [], name=f"{op_type}_{name}")


LOWEST, HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
CLAMPS = {
    "Clip": (lambda graph: [clip(0.45, 0.6, graph=graph)], (0.45, 0.6)),
    "Clip from below": (lambda graph: [clip(0.5, graph=graph)], (0.5, HIGHEST)),
    "Clip from above": (lambda graph: [clip(None, 0.55, graph=graph)], (LOWEST, 0.55)),
    "Clip of a Clip": (lambda graph: [clip(0.3, 0.6, graph=graph), clip(0.5, 0.9, graph=graph)], (0.5, 0.6)),
    "Clip of a Clip beside it": (lambda graph: [clip(0.7, 0.9, graph=graph), clip(0.1, 0.2, graph=graph)], (0.2, 0.2)),
    "Max, then Min": (lambda graph: [limit("Max", 0.4, graph=graph), limit("Min", 0.6, graph=graph)], (0.4, 0.6)),
    "Min, then Max": (lambda graph: [limit("Min", 0.6, graph=graph), limit("Max", 0.4, graph=graph)], (0.4, 0.6)),
    "Min alone": (lambda graph: [limit("Min", 0.5, graph=graph)], (LOWEST, 0.5)),
}


@pytest.mark.parametrize("case", CLAMPS)
def test_clamp_of_the_prediction_is_read_as_onnx_runtime_computes_it(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    nodes, wanted = CLAMPS[case]
    path = changed(tmp_path, lambda graph: add_before_output(graph, *nodes(graph)))
    model = read_dlrm(path)
    assert model.clamp == pytest.approx(wanted)
    dense, indices = random_items(40)
    predictions = onnxruntime_predictions(path, dense, indices)
    assert np.abs(predict(model, dense, indices) - predictions).max() <= 2e-6
    unclamped = predict(dataclasses.replace(model, clamp=None), dense, indices)
    assert np.abs(unclamped - predictions).max() > 0.01


def test_weights_in_constant_nodes_are_read(tmp_path: Path) -> None:
    def into_nodes(graph: onnx.GraphProto) -> None:
        constants = [helper.make_node("Constant", [], [one.name], value=one) for one in graph.initializer]
        del graph.initializer[:]
        nodes = [*constants, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)

    for name in ("op17_mean", "op11_stacked", "op16_weighted_lists", "dynamo18_stacked"):
        same = read_export(name)
        model = read_dlrm(changed_file(tmp_path, into_nodes, EXPORTS / f"{name}.onnx"))
        assert model.fingerprint == same.fingerprint
        assert model.graph_inputs == same.graph_inputs


def test_a_models_own_functions_are_read_where_they_are_called(tmp_path: Path) -> None:
    path = write_dlrm(tmp_path / "small.onnx")
    model = onnx.load(path)
    body = [
        helper.make_node("Gemm", ["x", "w", "b"], ["product"], transB=1),
        helper.make_node("Relu", ["product"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("torch", "layer", ["x", "w", "b"], ["y"], body, opsets))
    model.opset_import.append(helper.make_opsetid("torch", 1))
    relu = node_of(model.graph, "Relu", 1)
    gemm = next(node for node in model.graph.node if relu.input[0] in node.output)
    gemm.op_type, gemm.domain = "layer", "torch"
    del gemm.attribute[:]
    gemm.output[0] = relu.output[0]
    model.graph.node.remove(relu)
    onnx.save(model, tmp_path / "called.onnx")
    assert read_dlrm(tmp_path / "called.onnx").fingerprint == read_dlrm(path).fingerprint


def test_graph_fixed_to_many_items_is_read_in_seconds(tmp_path: Path) -> None:
    path = write_dlrm(tmp_path / "fixed.onnx", batch=2048, table_rows=[9] * 26, bottom=(512,), top=(512,))
    started = time.perf_counter()
    assert read_dlrm(path).num_vectors == 27
    assert time.perf_counter() - started < 20


def test_onnx_feed_gives_one_index_per_bag() -> None:
    dense, indices = random_items(2)
    feed = onnx_feed(["dense_x", "offsets", "indices", "indices_1"], dense, indices)
    np.testing.assert_array_equal(feed["offsets"], [[0, 1]] * 3)
    np.testing.assert_array_equal(feed["indices"], indices.T)
    np.testing.assert_array_equal(feed["indices_1"], indices[:, 1])
