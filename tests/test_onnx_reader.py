"""What the reader reads, against ONNX Runtime on the same file and outputs recorded from PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_surgery import (
    SHARED_EXPORTS,
    SHARED_NAMES,
    body_of,
    changed,
    node_of,
    shared_export,
)
from graphs import onnx_feed, onnxruntime_predictions, random_items, write_dlrm

from dlrm_tvm.model import Interaction
from dlrm_tvm.onnx_reader import read_dlrm
from dlrm_tvm.reference import predict

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
        ("dot", Interaction("dot")),
        ("dot_self", Interaction("dot", with_self=True)),
        ("cat", Interaction("cat")),
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


def test_mean_in_place_of_the_sum_of_a_bag_is_read_for_that_table_alone(tmp_path: Path) -> None:
    model = onnx.load(shared_export("t171_stacked"))
    body = body_of(node_of(model.graph, "Loop", 3))
    node_of(body, "ReduceSum").op_type = "ReduceMean"
    onnx.save(model, tmp_path / "mean.onnx")
    pooled = [table.pooling for table in read_dlrm(tmp_path / "mean.onnx").tables]
    assert pooled == ["mean" if t == 3 else "sum" for t in range(26)]


def test_onnx_feed_gives_one_index_per_bag() -> None:
    dense, indices = random_items(2)
    feed = onnx_feed(["dense_x", "offsets", "indices", "indices_1"], dense, indices)
    np.testing.assert_array_equal(feed["offsets"], [[0, 1]] * 3)
    np.testing.assert_array_equal(feed["indices"], indices.T)
    np.testing.assert_array_equal(feed["indices_1"], indices[:, 1])
