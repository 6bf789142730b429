"""Whole fp32 networks on AMX's tiles, emulated: the paper's numbers within fp32's tolerance, NaN for bad items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graph_surgery import EXPORTS, read_export
from models import assert_close, flat_bags, numpy_predictions, random_bags, random_batch, random_dlrm
from quantized import on_tiles
from recorded_bags import recorded_patterns

from dlrm_tvm.model.precision import numerics_of

pytestmark = pytest.mark.usefixtures("require_fma")

CLOSE = 1e-6
# name: (shape, items, items per tile); blocks are of 4 tiles. A tile that is not full, an odd number of tiles, several
# blocks, one item; x alone in its unit of 32 columns or not; first layers of several k tiles.
CASES = {
    "small": ({}, 23, 5),
    "concatenated": ({"interaction": "cat", "dim": 20}, 7, 7),
    "27 vectors": ({"dim": 48, "table_rows": (50,) * 26, "bottom": (64,), "top": (33,)}, 9, 3),
    "k blocks": ({"num_dense": 140, "bottom": (), "top": ()}, 70, 16),
    "odd widths": ({"dim": 20, "bottom": (30,), "top": (40, 17), "num_dense": 40}, 1, 1),
    "with itself": ({"interaction": "dot_self", "dim": 32, "bottom_activation": "none"}, 33, 4),
    "concatenated, no hidden top": ({"interaction": "cat", "top": ()}, 5, 5),
    "sigmoid inside": ({"sigmoid_layer": 0, "top": (24, 16), "last_activation": "relu"}, 16, 8),
    "cross": ({"interaction": "cross", "dim": 20}, 7, 3),
}
QUICK = ("concatenated", "k blocks")


def compiled(model, batch: int, mr: int):
    return on_tiles(model, numerics_of(model, "fp32"), batch, mr)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_network_on_tiles_gives_the_papers_numbers_for_rows_and_for_bags_on_any_threads(name: str) -> None:
    shape, batch, mr = CASES[name]
    model = random_dlrm(**shape)
    run = compiled(model, batch, mr)
    dense, indices = random_batch(model, batch)
    for threads in (1, 2):
        assert_close(run(dense, indices, threads), numpy_predictions(model, dense, indices), CLOSE)
    bags, offsets = random_bags(model, batch)
    flat, begins = flat_bags(bags, offsets, batch)
    assert_close(run(dense, flat, offsets=begins), numpy_predictions(model, dense, bags, offsets), CLOSE)


def test_wrong_inputs_and_rows_that_are_not_finite_poison_their_item_alone() -> None:
    model = random_dlrm(table_rows=(5, 7, 9))
    rows = model.tables[2].rows.copy()
    rows[5:] = 1
    rows[[5, 6, 7], [0, 3, 15]] = np.nan, np.inf, -np.inf
    model = replace(model, tables=(*model.tables[:2], replace(model.tables[2], rows=rows)))
    run = compiled(model, 23, 5)
    dense, indices = random_batch(model, 23)
    indices[:, 2] %= 5
    right = run(dense, indices)
    assert np.isfinite(right).all()
    dense, indices = dense.copy(), indices.copy()
    dense[3, 2], dense[11, 0] = np.nan, np.inf
    dense[15] = np.where(np.arange(13) % 2, 3e38, -3e38)  # finite, but sums of them are not
    indices[7, 1], indices[22, 0] = -1, len(model.tables[0].rows)
    indices[[1, 9, 18], 2] = 5, 6, 7
    got = run(dense, indices)
    poisoned = [1, 3, 7, 9, 11, 15, 18, 22]
    assert np.isnan(got[poisoned]).all()
    others = np.setdiff1d(np.arange(23), poisoned)
    np.testing.assert_array_equal(got[others], right[others])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["op11_stacked", "op11_cat_mixed", "op9_aten_mean_self", "op16_weighted_lists"])
def test_recorded_exports_on_tiles_give_what_pytorch_computed(name: str) -> None:
    model = read_export(name)
    patterns = recorded_patterns(EXPORTS / f"{name}.npz")
    batch = max(len(dense) for dense, *_ in patterns.values())
    run = compiled(model, batch, min(batch, 16))
    for dense, indices, offsets, wanted in patterns.values():
        flat, begins = flat_bags(indices, offsets, batch)
        whole = np.pad(dense, ((0, batch - len(dense)), (0, 0)))
        assert_close(run(whole, flat, offsets=begins)[: len(dense)], wanted, 1e-5)
