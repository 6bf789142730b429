"""Whole networks in bf16 and int8 against NumPy that rounds as they do, and beside the float32 model.

A float32 sum that differs in its last bit may round to another neighbour, which later layers carry on: a few items may
be off by a scale of a narrow number, nearly all agree to 1e-6.
"""

from dataclasses import replace

import numpy as np
import pytest
from models import random_batch, random_dlrm
from quantized import QUANTIZED, SHAPES, check_one_hot_and_in_bags, dynamic, needs_library, network_of, on_tiles, static

from dlrm_tvm.model import reference, reference_quantized

MODELS = {
    "small": {},
    "odd widths": {"dim": 20, "bottom": (30,), "top": (40, 17)},
    "MLPerf's tables": {"dim": 128, "table_rows": (50,) * 26, "bottom": (64,), "top": (128, 64)},
    **SHAPES,
    "40 tables": {"table_rows": (9,) * 40, "dim": 32},
}
LARGE = ("MLPerf's tables", "40 tables")
BATCHES = (1, 7, 23)
CLOSE, STEP = 1e-6, 0.02


def assert_agree(got: np.ndarray, wanted: np.ndarray, off: int = 8) -> None:
    """At most one item, or every `off`-th, may be off by a scale."""
    error = np.abs(got - wanted)
    assert error.max() <= STEP
    assert (error <= CLOSE).sum() >= len(error) - max(1, len(error) // off), error


def cases() -> list:
    found = []
    for precision in QUANTIZED:
        for at, (name, shape) in enumerate(MODELS.items()):
            is_slow = precision == "bf16" and name in LARGE
            marks = [needs_library(precision), *([pytest.mark.slow] if is_slow else [])]
            found.append(pytest.param(precision, shape, BATCHES[at % 3], marks=marks, id=f"{precision} {name}"))
    return found


@pytest.mark.parametrize("precision, shape, batch", cases())
def test_a_network_agrees_with_numpy_in_the_same_numbers_one_hot_and_in_bags(precision, shape, batch):
    model = random_dlrm(**shape)
    numerics = dynamic(model, precision)
    check_one_hot_and_in_bags(network_of(model, numerics, batch), model, numerics, batch, assert_agree)


@needs_library("int8")
@pytest.mark.parametrize(
    "name",
    [
        "odd widths",
        "signed x",
        "sigmoid inside",
        "no hidden top",
        "concatenated",
        "concatenated, no hidden top",
        pytest.param("MLPerf's tables", marks=pytest.mark.slow),
    ],
)
def test_static_scales_agree_with_numpy_in_the_same_numbers(name):
    model = random_dlrm(**MODELS[name])
    numerics = static(model)
    run = network_of(model, numerics, 23)
    dense, indices = random_batch(model, 23)
    # Steps are folded into weights in float32, which moves more sums across a border than anywhere else.
    assert_agree(run(dense, indices), reference_quantized.predict(model, numerics, dense, indices), off=2)
    assert np.abs(run(dense, indices) - reference.predict(model, dense, indices)).max() < 0.05


@pytest.mark.parametrize("precision", [pytest.param(each, marks=needs_library(each)) for each in QUANTIZED])
def test_wrong_input_is_nan_for_its_item_alone(precision):
    model = random_dlrm(table_rows=(50,) * 6, dim=32)
    run = network_of(model, dynamic(model, precision), 23)
    dense, indices = random_batch(model, 23)
    right = run(dense, indices)
    dense[3, 5], dense[8, 0] = np.nan, np.inf
    indices[11, 2], indices[20, 5] = 50, -1
    got = run(dense, indices)
    wrong = [3, 8, 11, 20]
    assert np.isnan(got[wrong]).all()
    np.testing.assert_array_equal(np.delete(got, wrong), np.delete(right, wrong))


@needs_library("bf16")
@pytest.mark.parametrize("tiles", [False, True])
def test_rows_that_are_not_finite_give_nan_in_bf16(tiles):
    model = random_dlrm(table_rows=(5, 40, 7), bottom=(20,), top=(24, 17))
    rows = model.tables[1].rows.copy()
    rows[3, 3], rows[4, 5] = np.nan, np.inf
    model = replace(model, tables=(model.tables[0], replace(model.tables[1], rows=rows), model.tables[2]))
    numerics = dynamic(model, "bf16", "bf16" if tiles else "fp32")
    run = on_tiles(model, numerics, 7, 5) if tiles else network_of(model, numerics, 7)
    dense, indices = random_batch(model, 7)
    indices[:, 1] = [0, 3, 1, 4, 2, 3, 39]
    got, wanted = run(dense, indices), reference_quantized.predict(model, numerics, dense, indices)
    assert np.isnan(got[np.isnan(wanted)]).all() and np.isnan(got[[1, 5]]).all()
    assert np.abs(got - wanted)[[0, 2, 4, 6]].max() <= STEP


@needs_library("int8")
def test_a_table_of_zeros_and_inputs_of_zeros_divide_by_nothing():
    model = random_dlrm(table_rows=(5, 7, 3))
    zero = replace(model.tables[1], rows=np.zeros_like(model.tables[1].rows))
    model = replace(model, tables=(model.tables[0], zero, model.tables[2]))
    numerics = dynamic(model, "int8")
    dense, indices = random_batch(model, 7)
    dense[2] = 0
    got = network_of(model, numerics, 7)(dense, indices)
    assert_agree(got, reference_quantized.predict(model, numerics, dense, indices))
