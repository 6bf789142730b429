"""Bags through the Python API, given as torch.nn.EmbeddingBag takes them; a sentence for each mistake."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models import assert_close, build_plain, numpy_mlp, numpy_predictions, random_bags, random_batch, random_dlrm

import dlrm_tvm
from dlrm_tvm.errors import UserError
from dlrm_tvm.runtime.executor import Executor

BATCH = 5
ROWS = (11, 1, 300)


def averaged(model, *tables: int):
    changed = [replace(each, pooling="mean") if t in tables else each for t, each in enumerate(model.tables)]
    return replace(model, tables=tuple(changed))


MODEL = averaged(random_dlrm(table_rows=ROWS, dim=20, seed=4), 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Executor:
    return dlrm_tvm.load(str(build_plain(MODEL, BATCH, tmp_path_factory.mktemp("library"))))


def dense_for(items: int) -> np.ndarray:
    return random_batch(MODEL, items)[0]


@pytest.mark.parametrize("items", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 3])
def test_bags_of_any_number_of_items_are_predicted(model, items):
    dense, (indices, offsets) = dense_for(items), random_bags(MODEL, items)
    pred = model(dense, indices, offsets)
    assert pred.dtype == np.float32
    assert_close(pred, numpy_predictions(MODEL, dense, indices, offsets))


def test_bags_that_are_all_empty_give_the_prediction_of_zero_vectors(model):
    nothing, starts = [np.empty(0, int)] * 3, [np.zeros(7, int)] * 3
    pred = model(dense_for(7), nothing, starts)
    x = numpy_mlp(MODEL.bottom, dense_for(7))
    dots = np.zeros((7, 6))
    assert_close(pred, numpy_mlp(MODEL.top, np.concatenate([x, dots], axis=1))[:, 0])
    np.testing.assert_array_equal(model(dense_for(7), [[], [], []], starts), pred)


def test_bags_of_one_index_are_the_same_as_no_bags(model):
    dense, indices = random_batch(MODEL, 13)
    np.testing.assert_array_equal(model(dense, indices.T, [np.arange(13)] * 3), model(dense, indices))


def test_bags_may_be_stacked_in_one_array_and_of_every_integer_type(model):
    dense, (indices, _) = dense_for(4), random_bags(MODEL, 4)
    stacked = np.stack([np.resize(each, 9) if len(each) else np.zeros(9, int) for each in indices])
    offsets = np.array([[0, 2, 2, 9], [0, 0, 3, 4], [0, 8, 9, 9]])
    wanted = model(dense, list(stacked), list(offsets))
    assert_close(wanted, numpy_predictions(MODEL, dense, stacked, offsets))
    for dtype in (np.int16, np.int32, np.uint16, np.uint64):
        np.testing.assert_array_equal(model(dense, stacked.astype(dtype), offsets.astype(dtype)), wanted)
    np.testing.assert_array_equal(model(dense, stacked.tolist(), offsets.tolist()), wanted)


@pytest.mark.parametrize("items", [0, 1, BATCH + 2])
def test_offsets_may_have_the_last_bags_end_as_with_include_last_offset(model, items):
    dense, (indices, offsets) = dense_for(items), random_bags(MODEL, items)
    ended = [[*begins, len(values)] for values, begins in zip(indices, offsets)]
    np.testing.assert_array_equal(model(dense, indices, ended), model(dense, indices, offsets))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_are_what_torch_makes_of_them(tmp_path, mode):
    torch = pytest.importorskip("torch")
    tables = averaged(random_dlrm(table_rows=(50, 9), interaction="cat", bottom=(), top=()), *[0, 1] * (mode == "mean"))
    dense, (indices, offsets) = random_batch(tables, 8)[0], random_bags(tables, 8)
    pooled = [
        torch.nn.functional.embedding_bag(torch.tensor(i), torch.tensor(t.rows), torch.tensor(o), mode=mode).numpy()
        for t, i, o in zip(tables.tables, indices, offsets)
    ]
    wanted = numpy_mlp(tables.top, np.concatenate([numpy_mlp(tables.bottom, dense), *pooled], axis=1))[:, 0]
    library = dlrm_tvm.load(str(build_plain(tables, 3, tmp_path)))
    assert_close(library(dense, indices, offsets), wanted)


def test_a_prepared_batch_of_bags_runs_any_number_of_times_with_the_same_result(model):
    inputs = [(dense_for(BATCH), *random_bags(MODEL, BATCH, seed)) for seed in (1, 2)]
    prepared = [model.prepare(*each) for each in inputs]
    for _ in range(2):
        for batch, each in zip(prepared, inputs):
            np.testing.assert_array_equal(model.run(batch), model(*each))
    with pytest.raises(ValueError, match="4 items for a library of batch size 5"):
        model.prepare(dense_for(4), *random_bags(MODEL, 4))


def test_one_index_each_and_bags_may_follow_one_another(model):
    dense, indices = random_batch(MODEL, 7)
    bags = random_bags(MODEL, 7)
    first, second = model(dense, indices), model(dense, *bags)
    np.testing.assert_array_equal(model(dense, indices), first)
    np.testing.assert_array_equal(model(dense, *bags), second)


STARTS = [np.arange(4)] * 3
VALUES = [np.zeros(4, int)] * 3
ENDED = [[*range(4), 4]] * 3


def with_table(arrays: list, table: int, given) -> list:
    return [given if at == table else array for at, array in enumerate(arrays)]


@pytest.mark.parametrize(
    "indices, offsets, message",
    [
        (VALUES[:2], STARTS, "indices: 2 given, one array for each of 3 tables was wanted."),
        (VALUES, [*STARTS, 0], "offsets: 4 given, one array for each of 3 tables was wanted."),
        (VALUES, 7, "offsets: int given, one array for each of 3 tables was wanted."),
        (np.zeros((3, 4)), STARTS, "indices of table 0 are float64 [4], integers in one dimension were wanted."),
        (with_table(VALUES, 1, [[1]]), STARTS, "indices of table 1 are int64 [1, 1], integers in one"),
        (VALUES, with_table(STARTS, 2, [0.0, 1, 2, 3]), "offsets of table 2 are float64 [4], integers in one"),
        (VALUES, with_table(STARTS, 1, [0, 1, 2]), "offsets of table 1: 3 given, one for each of 4 items was wanted."),
        (VALUES, with_table(STARTS, 1, range(6)), "offsets of table 1: 6 given, one for each of 4 items was wanted."),
        (VALUES, with_table(STARTS, 1, [0, 1, 2, 3, 4]), "offsets of table 1: 5 given, one for each of 4 items was"),
        (VALUES, with_table(ENDED, 1, [0, 1, 2, 3, 3]), "table 1 is 3, its 4 indices' end was wanted: 5 offsets were"),
        (VALUES, with_table(STARTS, 1, [1, 1, 2, 3]), "item 0: the offset of table 1 is 1, bags begin at 0."),
        (VALUES, with_table(STARTS, 1, [-1, 1, 2, 3]), "item 0: the offset of table 1 is -1, bags begin at 0."),
        (VALUES, with_table(STARTS, 2, [0, 2, 1, 3]), "item 2: the offset of table 2 is 1, less than the one before"),
        (VALUES, with_table(STARTS, 0, [0, 1, 2, 5]), "item 3: the offset of table 0 is 5, beyond its 4 indices."),
        (VALUES, with_table(STARTS, 0, [0, 1, 2, -3]), "item 3: the offset of table 0 is -3, less than the one before"),
        (VALUES, with_table(STARTS, 0, np.array([0, 1, 2, 2**64 - 1], np.uint64)), "beyond its 4 indices."),
    ],
)  # fmt: skip
def test_what_are_no_bags_is_refused_with_table_and_item(model, indices, offsets, message):
    with pytest.raises(UserError) as error:
        model(dense_for(4), indices, offsets)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("item", [0, BATCH, 12])
@pytest.mark.parametrize("table, index", [(0, 11), (1, -1), (2, 1 << 40), (2, 2**64 - 1)])
def test_an_index_outside_its_table_is_named_though_it_is_one_of_a_bag(model, item, table, index):
    dtype = np.uint64 if index > 1 << 62 else np.int64
    indices, offsets = [np.zeros(39, dtype)] * 3, [3 * np.arange(13)] * 3
    changed = indices[table].copy()
    changed[3 * item + 2] = index
    with pytest.raises(UserError) as error:
        model(dense_for(13), with_table(indices, table, changed), offsets)
    assert str(error.value) == (
        f"item {item}: index {index} is outside table {table}, which has {ROWS[table]} rows (0..{ROWS[table] - 1})."
    )


def test_a_dense_value_that_is_not_finite_is_named_beside_bags(model):
    dense = dense_for(7)
    dense[6, 3] = np.inf
    with pytest.raises(UserError, match="item 6: dense value 3 is inf, finite values were wanted"):
        model(dense, *random_bags(MODEL, 7))
    with pytest.raises(UserError, match=r"dense is float64"):
        model(dense.astype(float), *random_bags(MODEL, 7))


def test_bags_for_no_items_are_refused(model):
    with pytest.raises(UserError, match="indices of table 0: 4 given for no items"):
        model(dense_for(0), VALUES, [[]] * 3)
