"""The Python API: any number of items of any integer type, and a sentence for each mistake."""

from __future__ import annotations

import numpy as np
import pytest
from models import assert_close, build_plain, numpy_predictions, on_threads, random_batch, random_dlrm
from scripts import TWO_CORES

import dlrm_tvm
from dlrm_tvm.errors import UserError
from dlrm_tvm.kernels.isa import family_for
from dlrm_tvm.machine.cpu import host_flags
from dlrm_tvm.runtime.executor import Executor

BATCH = 5
ROWS = (11, 1, 300)
MODEL = random_dlrm(table_rows=ROWS, dim=20, seed=4)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_plain(MODEL, BATCH, tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def model(library) -> Executor:
    return dlrm_tvm.load(str(library))


@pytest.mark.parametrize("items", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 3])
def test_any_number_of_items_is_predicted(model, items):
    dense, indices = random_batch(MODEL, items)
    pred = model(dense, indices)
    assert pred.dtype == np.float32
    assert_close(pred, numpy_predictions(MODEL, dense, indices))


def test_a_short_call_after_a_long_one_sees_nothing_of_it(model):
    dense, indices = random_batch(MODEL, BATCH)
    first = model(dense, indices)
    model(dense[::-1], indices[::-1])
    np.testing.assert_array_equal(model(dense[:2], indices[:2]), first[:2])


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64])
def test_every_integer_type_serves_as_indices(model, dtype):
    dense, indices = random_batch(MODEL, 7)
    np.testing.assert_array_equal(model(dense, indices.astype(dtype)), model(dense, indices))


def test_inputs_need_not_be_contiguous_arrays(model):
    dense, indices = random_batch(MODEL, 7)
    wanted = model(dense, indices)
    np.testing.assert_array_equal(model(np.asfortranarray(dense), np.asfortranarray(indices)), wanted)
    np.testing.assert_array_equal(model(np.repeat(dense, 2, 0)[::2], np.repeat(indices, 2, 1)[:, ::2]), wanted)
    np.testing.assert_array_equal(model(dense, indices.tolist()), wanted)


def test_inputs_are_left_as_they_were_and_predictions_are_the_callers_own(model):
    dense, indices = random_batch(MODEL, BATCH)
    before = dense.copy(), indices.copy()
    first = model(dense, indices)
    kept = first.copy()
    model(dense + 1, indices)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(dense, before[0])
    np.testing.assert_array_equal(indices, before[1])


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    "dense, indices, message",
    [
        (zeros(4, 12), zeros(4, 3, dtype=int), r"dense is float32 \[4, 12\], float32 \[n, 13\] was wanted"),
        (zeros(4, 13, dtype=np.float64), zeros(4, 3, dtype=int), r"dense is float64 \[4, 13\]"),
        (zeros(13), zeros(1, 3, dtype=int), r"dense is float32 \[13\]"),
        (zeros(1, 13, 1), zeros(1, 3, dtype=int), r"dense is float32 \[1, 13, 1\]"),
        (np.float32(1), zeros(1, 3, dtype=int), r"dense is float32 \[\]"),
        (zeros(4, 13), zeros(3, 3, dtype=int), r"indices are int64 \[3, 3\], integers \[4, 3\] were wanted"),
        (zeros(4, 13), zeros(4, 2, dtype=int), r"indices are int64 \[4, 2\]"),
        (zeros(4, 13), zeros(3, 4, dtype=int), r"indices are int64 \[3, 4\]"),
        (zeros(4, 13), zeros(4, 3), r"indices are float32 \[4, 3\]"),
        (zeros(4, 13), zeros(4, 3, dtype=bool), r"indices are bool \[4, 3\]"),
        (zeros(4, 13), zeros(12, dtype=int), r"indices are int64 \[12\]"),
    ],
)
def test_wrong_shapes_and_types_are_refused_with_what_was_wanted(model, dense, indices, message):
    with pytest.raises(UserError, match=message):
        model(dense, indices)


@pytest.mark.parametrize(
    "table, index, dtype",
    [(0, 11, np.int64), (0, -1, np.int32), (1, 1, np.int64), (2, 1 << 40, np.int64), (2, 2**64 - 1, np.uint64)],
)
@pytest.mark.parametrize("item", [0, BATCH, 12])
def test_an_index_outside_its_table_is_named_with_table_item_and_value(model, item, table, index, dtype):
    dense, indices = random_batch(MODEL, 13)
    indices = indices.astype(dtype)
    indices[item, table] = index
    with pytest.raises(UserError) as error:
        model(dense, indices)
    assert str(error.value) == (
        f"item {item}: index {index} is outside table {table}, which has {ROWS[table]} rows (0..{ROWS[table] - 1})."
    )


@pytest.mark.parametrize("value, name", [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_dense_value_that_is_not_finite_is_named(model, value, name):
    dense, indices = random_batch(MODEL, 13)
    dense[7, 12] = value
    with pytest.raises(UserError, match=f"item 7: dense value 12 is {name}, finite values were wanted"):
        model(dense, indices)


def test_the_model_works_on_after_a_mistake(model):
    dense, indices = random_batch(MODEL, 6)
    wanted = model(dense, indices)
    bad = indices.copy()
    bad[3] = -1
    with pytest.raises(ValueError, match="item 3"):
        model(dense, bad)
    np.testing.assert_array_equal(model(dense, indices), wanted)


def test_a_prepared_batch_runs_any_number_of_times_with_the_same_result(model):
    batches = [random_batch(MODEL, BATCH, seed) for seed in (1, 2)]
    prepared = [model.prepare(*batch) for batch in batches]
    for _ in range(2):
        for batch, (dense, indices) in zip(prepared, batches):
            np.testing.assert_array_equal(model.run(batch), model(dense, indices))


def test_only_a_full_batch_can_be_prepared(model):
    with pytest.raises(ValueError, match="4 items for a library of batch size 5"):
        model.prepare(*random_batch(MODEL, BATCH - 1))
    with pytest.raises(UserError, match="indices are float64"):
        model.prepare(zeros(BATCH, 13), zeros(BATCH, 3, dtype=float))


def test_two_executors_of_one_library_do_not_disturb_each_other(library, model):
    other = dlrm_tvm.load(str(library))
    first, second = random_batch(MODEL, BATCH, 1), random_batch(MODEL, BATCH, 2)
    mine, others = model.prepare(*first), other.prepare(*second)
    kept = model.run(mine)
    before = kept.copy()
    assert_close(other.run(others), numpy_predictions(MODEL, *second))
    np.testing.assert_array_equal(kept, before)


@TWO_CORES
def test_two_threads_predict_the_same(library, model):
    dense, indices = random_batch(MODEL, 12)
    pred = on_threads(2, lambda: dlrm_tvm.load(str(library), threads=2)(dense, indices))
    np.testing.assert_array_equal(pred, model(dense, indices))


def test_peak_and_bandwidth_are_measured_in_about_the_time_given(model, require_fma):
    assert 1 < model.peak_gflops(0.02) < 10_000
    assert 0.1 < model.stream_gbps(0.02) < 10_000


def test_loading_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"nowhere_b100.so: no such file. Make it with: python compile.py"):
        dlrm_tvm.load(str(tmp_path / "nowhere_b100.so"))


def test_a_library_brings_the_peak_of_every_precision_that_the_cpu_has(model):
    manifest = model.artifact.manifest
    for precision in ("bf16", "int8"):
        family, peak = family_for(host_flags(), precision, tiles=False), manifest.peak_of(precision)
        assert (peak.precision, peak.family) == ((precision, family.name) if family else ("fp32", manifest.family))
        assert model.peak_gflops(0.01, precision) > 0
    assert manifest.peak_of(None) == manifest.peak_of("fp32") and manifest.peak_of("fp32").family == manifest.family
