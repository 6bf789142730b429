"""A graph that fixes the number of indices per bag: its arrays [n, number] in data, in calls, and in random inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cards import Card, save
from models import assert_close, build_plain, numpy_predictions, random_batch, random_dlrm
from scripts import score

from dlrm_tvm.data.reference_data import open_reference
from dlrm_tvm.data.workload import bag_lengths, mean_length, random_bags
from dlrm_tvm.errors import UserError
from dlrm_tvm.model.dlrm import Dlrm, GraphInputs
from dlrm_tvm.runtime.artifact import open_artifact
from dlrm_tvm.runtime.executor import Executor

TABLE_ROWS, NUMBERS, ITEMS = (11, 2, 300), (3, 1, 20), 37
FIXED = GraphInputs("dense_x", ("i_0", "i_1", "i_2"), (), "pred", indices_per_bag=NUMBERS)
CARD = Card(table_rows=TABLE_ROWS, table_names=("emb_0", "emb_1", "emb_2"), graph_inputs=FIXED)


def model_of() -> Dlrm:
    return replace(random_dlrm(table_rows=TABLE_ROWS, dim=8, interaction="cross"), graph_inputs=FIXED)


def items_of(model: Dlrm) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """dense, indices [n, number] per table, predictions by the formulas."""
    rng = np.random.default_rng(3)
    dense = random_batch(model, ITEMS)[0]
    indices = [rng.integers(0, rows, (ITEMS, number)) for rows, number in zip(TABLE_ROWS, NUMBERS)]
    flat, offsets = [each.reshape(-1) for each in indices], [np.arange(ITEMS) * number for number in NUMBERS]
    return dense, indices, numpy_predictions(model, dense, flat, offsets)


def recorded() -> dict[str, np.ndarray]:
    dense, indices, pred = items_of(model_of())
    labels = np.arange(ITEMS) % 2
    arrays = {"dense_x": dense, "pred": pred.astype(np.float32), "target": labels}
    return arrays | {f"i_{t}": each for t, each in enumerate(indices)}


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return build_plain(model_of(), 16, tmp_path_factory.mktemp("fixed"))


def test_accuracy_scores_such_data_with_labels_and_finds_a_wrong_output(library: Path, tmp_path: Path) -> None:
    arrays = recorded()
    status, result, printed = score(library, save(tmp_path, arrays))
    assert (status, result["passed"], result["items"]) == (0, True, ITEMS)
    assert 0 < result["auc"] == result["reference_auc"] < 1
    assert "8 indices per bag" in printed
    arrays["pred"][5] += 0.01
    status, result, _ = score(library, save(tmp_path, arrays))
    assert (status, result["mismatches"]) == (3, 1)


def test_a_call_takes_an_array_per_table_without_offsets(library: Path) -> None:
    dense, indices, wanted = items_of(model_of())
    executor = Executor(open_artifact(library))
    assert_close(executor(dense, indices), wanted)
    indices[1] = indices[1][:, 0]  # one index each needs no second dimension
    assert_close(executor(dense, indices), wanted)
    assert np.isfinite(executor(dense, np.zeros((ITEMS, 3), int))).all(), "one index per table and item, no list"


@pytest.mark.parametrize(
    ("table", "array", "message"),
    [
        (0, np.zeros((ITEMS, 4), int), r"indices of table 0 are int64 \[37, 4\], integers \[37, 3\] were wanted"),
        (2, np.zeros((ITEMS - 1, 20), int), r"indices of table 2 are int64 \[36, 20\], integers \[37, 20\]"),
        (1, np.zeros((ITEMS, 1)), "indices of table 1 are float64"),
        (2, np.full((ITEMS, 20), 300), "item 0: index 300 is outside table 2, which has 300 rows"),
    ],
)
def test_wrong_arrays_are_refused_in_one_line(library: Path, table: int, array: np.ndarray, message: str) -> None:
    dense, indices, _ = items_of(model_of())
    indices[table] = array
    with pytest.raises(UserError, match=message) as raised:
        Executor(open_artifact(library))(dense, indices)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"i_0": np.zeros((ITEMS, 2), int)}, r"i_0 has shape \[37, 2\]; this model and file need \[37, 3\]"),
        ({"i_2": np.full((ITEMS, 20), 300)}, r"item 0 takes row 300 of table 2 \(emb_2\), which has 300 rows"),
        ({"target": np.full(ITEMS, 2)}, "target of item 0 is 2; labels are 0 or 1"),
    ],
)
def test_data_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(open_reference(save(tmp_path, recorded() | changes), CARD))


def test_offsets_with_the_last_end_are_read_and_a_wrong_end_is_named(tmp_path: Path) -> None:
    names = GraphInputs("dense_x", ("i_0", "i_1", "i_2"), ("o_0", "o_1", "o_2"), "pred", last_offset=True)
    arrays = {key: each.reshape(-1) if key.startswith("i_") else each for key, each in recorded().items()}
    arrays |= {f"o_{t}": np.arange(ITEMS + 1) * number for t, number in enumerate(NUMBERS)}
    card = replace(CARD, graph_inputs=names)
    (chunk,) = open_reference(save(tmp_path, arrays), card)
    for table, number in enumerate(NUMBERS):
        np.testing.assert_array_equal(chunk.bags.begins[table], np.arange(ITEMS + 1) * number)
    arrays["o_2"][-1] -= 1
    with pytest.raises(UserError, match="the last offset of table 2 is 739, its 740 indices' end was wanted"):
        list(open_reference(save(tmp_path, arrays), card))


def test_random_bags_have_the_lengths_that_the_graph_fixes_unless_others_are_asked_for() -> None:
    assert bag_lengths(CARD) == NUMBERS
    assert bag_lengths(CARD, [4]) == (4, 4, 4)
    assert bag_lengths(CARD, (2, 1, 9)) == (2, 1, 9)
    assert bag_lengths(CARD, [1]) is None
    with pytest.raises(
        UserError, match=r"--indices-per-bag: 2 numbers were given, one for all tables or one for each of 3"
    ):
        bag_lengths(CARD, (2, 1))
    assert bag_lengths(replace(CARD, graph_inputs=replace(FIXED, indices_per_bag=()))) is None
    assert (mean_length(NUMBERS), mean_length(None)) == (8, 1)
    _, bags = random_bags(CARD, 50, NUMBERS, instance=0)
    assert [set(np.diff(begins)) for begins in bags.begins] == [{3}, {1}, {20}]
    assert [each.max() < rows for each, rows in zip(bags.indices, TABLE_ROWS)] == [True] * 3
