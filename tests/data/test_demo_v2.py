"""The second demo, DLRM-DCNv2: the same bits everywhere, MLPerf's shape, items that PyTorch has computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import assert_close, numpy_predictions

from dlrm_tvm.data import demo
from dlrm_tvm.data.demo_weights import V1, V2, V2_INDICES_PER_BAG, V2_TABLE_ROWS, index_names
from dlrm_tvm.frontend.reader import read_dlrm

SMALL_ROWS = 100
SMALL_SHA256 = "9ce8935d167a3aafcb63cf278a239c7e232cd64a96bb2335e0d794338d8a0129"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With the demo model of tables of at most 100 rows in it."""
    folder = tmp_path_factory.mktemp("demo")
    demo.demo_model_path(SMALL_ROWS, V2, directory=folder, announce=lambda line: None)
    return folder


def shipped(count: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
    """dense, indices of each table, PyTorch's predictions and labels of the first items."""
    with np.load(demo.demo_reference(V2)) as data:
        indices = [data[name][:count].astype(np.int64) for name in index_names(V2)]
        return data["dense_x"][:count], indices, data["pred"][:count], data["target"][:count]


def test_weights_are_the_same_bits_everywhere():
    assert demo.data_sha256(SMALL_ROWS, V2) == SMALL_SHA256


def test_its_shape_is_that_of_mlperfs_second_model(folder: Path):
    model = demo.demo_dlrm(SMALL_ROWS, V2, directory=folder)
    assert model.macs_per_item == 16_030_464
    assert [[layer.weight.shape for layer in each] for each in model.interaction.crossings] == [
        [(512, 3456), (3456, 512)]
    ] * 3
    assert [table.num_rows for table in model.tables] == [min(rows, SMALL_ROWS) for rows in V2_TABLE_ROWS]
    assert (sum(V2_TABLE_ROWS), sum(V2_INDICES_PER_BAG)) == (204_184_588, 214)


def test_its_graph_is_read_as_the_model_that_the_weights_make(folder: Path):
    read = read_dlrm(folder / f"demo_dlrm_v2_{SMALL_ROWS}.onnx")
    direct = demo.demo_dlrm(SMALL_ROWS, V2, directory=folder)
    assert read.fingerprint == direct.fingerprint
    assert read.graph_inputs == direct.graph_inputs


def test_shipped_items_are_the_demos_and_have_pytorchs_predictions():
    """Of tables of 10,000 rows, which the scripts' tests make; the reference is NumPy's, from the formulas."""
    model = demo.demo_dlrm(demo.DEMO_TABLE_ROWS, V2)
    dense, indices, pred, _ = shipped(24)
    expected_dense, expected_indices = demo.demo_bags(24, seed=2024)
    np.testing.assert_array_equal(dense, expected_dense)
    for found, expected in zip(indices, expected_indices, strict=True):
        np.testing.assert_array_equal(found, expected)
    offsets = [np.arange(24) * length for length in V2_INDICES_PER_BAG]
    assert_close(numpy_predictions(model, dense, [each.reshape(-1) for each in indices], offsets), pred, 2e-6)
    assert pred.std() > 0.1
    assert demo.reference_for(model.fingerprint) == demo.demo_reference(V2)


def test_labels_are_clicks_of_both_kinds_that_the_predictions_rank():
    _, _, pred, labels = shipped(4096)
    assert set(labels.tolist()) == {0, 1}
    assert pred[labels == 1].mean() > pred[labels == 0].mean() + 0.1


def test_a_category_always_brings_the_same_rows():
    _, bags = demo.demo_bags(2000, seed=1, table_rows=50)
    for bag, length, rows in zip(bags, V2_INDICES_PER_BAG, V2_TABLE_ROWS):
        assert bag.shape == (2000, length)
        assert bag.min() >= 0 and bag.max() < min(rows, 50)
        assert len(np.unique(bag, axis=0)) == len(np.unique(bag[:, 0]))
    long = bags[20]
    assert len(np.unique(long)) == 50, "bags of 100 reach all rows"


def test_items_of_an_unknown_model_are_those_of_the_first_demo():
    assert demo.reference_for("0" * 64) == demo.demo_reference(V1)
