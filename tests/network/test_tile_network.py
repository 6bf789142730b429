"""Whole networks on AMX's tiles, emulated: against the NumPy reference that rounds alike, as other families' are."""

from __future__ import annotations

import numpy as np
import pytest
from models import random_batch, random_dlrm
from quantized import QUANTIZED, SHAPES, check_one_hot_and_in_bags, dynamic, needs, on_tiles, static

from dlrm_tvm.model import reference_quantized

MODELS = {
    "small": {},
    "odd widths": {"dim": 20, "bottom": (30,), "top": (40, 17), "num_dense": 40},
    "27 vectors": {"dim": 64, "table_rows": (50,) * 26, "bottom": (64,), "top": (96, 33)},
    **SHAPES,
    "with itself, x in part of a tile": {"interaction": "dot_self", "dim": 96},
    "40 tables": {"table_rows": (9,) * 40, "dim": 32},
}
# (items, items per tile): a tile that is not full, an odd number of tiles, several blocks, one item.
SIZES = ((23, 5), (7, 7), (70, 16), (1, 1))
STEP = 0.02
QUICK = {("bf16", "signed x"), ("int8", "no hidden top"), ("int8", "with itself, x in part of a tile")}


def assert_agree(got: np.ndarray, wanted: np.ndarray) -> None:
    """Sums that differ in their last bit may round to another neighbour: few items, by little."""
    error = np.abs(got - wanted)
    assert error.max() <= STEP, error
    assert (error <= 1e-5).sum() >= len(error) - max(1, len(error) // 6), error


def cases() -> list:
    found = []
    for precision in QUANTIZED:
        for at, (name, shape) in enumerate(MODELS.items()):
            marks = [needs("bf16"), *([] if (precision, name) in QUICK else [pytest.mark.slow])]
            sizes = SIZES[at % len(SIZES)]
            found.append(pytest.param(precision, shape, *sizes, marks=marks, id=f"{precision} {name}"))
    return found


@pytest.mark.parametrize("precision, shape, batch, mr", cases())
def test_a_network_on_tiles_agrees_with_numpy_in_the_same_numbers(precision, shape, batch, mr) -> None:
    model = random_dlrm(**shape)
    numerics = dynamic(model, precision, "bf16")
    check_one_hot_and_in_bags(on_tiles(model, numerics, batch, mr), model, numerics, batch, assert_agree)


@needs("bf16")
@pytest.mark.parametrize(
    "name",
    [
        "odd widths",
        "concatenated",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("27 vectors", "signed x", "concatenated, no hidden top")
        ),
    ],
)
def test_static_scales_on_tiles_agree_with_numpy_in_the_same_numbers(name) -> None:
    model = random_dlrm(**MODELS[name])
    numerics = static(model, "bf16")
    run = on_tiles(model, numerics, 23, 6)
    dense, indices = random_batch(model, 23)
    assert_agree(run(dense, indices), reference_quantized.predict(model, numerics, dense, indices))


@needs("bf16")
@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=pytest.mark.slow), "int8"])
def test_wrong_inputs_poison_their_item_alone_on_tiles(precision) -> None:
    model = random_dlrm()
    numerics = dynamic(model, precision, "bf16")
    run = on_tiles(model, numerics, 23, 5)
    dense, indices = random_batch(model, 23)
    right = run(dense, indices)
    dense, indices = dense.copy(), indices.copy()
    dense[3, 2], dense[11, 0] = np.nan, np.inf
    indices[7, 1], indices[22, 0] = -1, model.tables[0].num_rows
    got = run(dense, indices)
    poisoned = np.isin(np.arange(23), (3, 7, 11, 22))
    assert np.isnan(got[poisoned]).all()
    np.testing.assert_array_equal(got[~poisoned], right[~poisoned])
