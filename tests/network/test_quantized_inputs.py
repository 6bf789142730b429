"""Networks in bf16 and int8 on inputs that stand out: outliers, values beyond given scales, tiny ones, bad bags.

What ordinary inputs give is in test_quantized_network.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from models import flat_bags, random_bags, random_batch, random_dlrm
from quantized import QUANTIZED, dynamic, needs_library, network_of, quantized_cases

from dlrm_tvm.kernels import embedding_bag
from dlrm_tvm.model import reference, reference_quantized
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.precision import Numerics

BATCH = 23
PRECISIONS = quantized_cases(*[(each,) for each in QUANTIZED])


@dataclass(frozen=True)
class Compiled:
    """A network and f(dense, indices, threads=1, offsets=None) -> predictions."""

    model: Dlrm
    numerics: Numerics
    run: Callable[..., np.ndarray]

    def narrow(self, *inputs: Any) -> np.ndarray:
        with np.errstate(all="ignore"):
            return reference_quantized.predict(self.model, self.numerics, *inputs)

    def fp32(self, dense: np.ndarray, indices: np.ndarray) -> np.ndarray:
        return reference.predict(self.model, dense, indices)


def linear(model: Dlrm) -> Dlrm:
    """The logit itself, which does not hide errors at the ends of a sigmoid; pooling of every kind."""
    last = replace(model.top[-1], activation="none")
    tables = [replace(table, pooling="mean" if t % 3 == 1 else "sum") for t, table in enumerate(model.tables)]
    weights = np.random.default_rng(5).uniform(-1, 1, tables[-1].num_rows).astype(np.float32)
    tables[-1] = replace(tables[-1], row_weights=weights)
    return replace(model, tables=tuple(tables), top=(*model.top[:-1], last))


MODEL = linear(random_dlrm(table_rows=(50, 1, 20, 30, 7, 9), dim=20, bottom=(24, 40), top=(40, 24)))


def static(scale: float, model: Dlrm = MODEL) -> Numerics:
    """Layers' inputs, x and dots in scales that reach 127 or 255 times `scale`."""
    numerics = dynamic(model, "int8")
    layers = [
        each if each.precision == "fp32" else replace(each, scales=np.full(layer.inputs, scale, np.float32))
        for layer, each in zip(model.layers, numerics.layers)
    ]
    return replace(numerics, layers=tuple(layers), x_scale=scale)


def compiled(numerics: Numerics, batch: int = BATCH, model: Dlrm = MODEL) -> Compiled:
    return Compiled(model, numerics, network_of(model, numerics, batch, every=2))


@pytest.fixture(scope="module")
def networks(require_fma) -> dict[str, Compiled]:
    """One per precision that this CPU has; tiles of 5 items, the last one not full."""
    return {
        precision: compiled(dynamic(MODEL, precision))
        for precision in QUANTIZED
        if not needs_library(precision).args[0]
    }


@pytest.fixture(scope="module")
def coarse(require_fma) -> Compiled:
    """Static scales that random_batch's values fit into, with little room above."""
    return compiled(static(0.05))


def assert_agree(got: np.ndarray, wanted: np.ndarray, *, most: int, scale: float = 0.02) -> None:
    """At most `most` items are off, and those by no more than `scale`."""
    error = np.abs(got - wanted)
    assert np.all(error <= scale), error
    assert np.sum(error > 2e-6 * np.maximum(1, np.abs(wanted))) <= most, error


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("outlier", [1e6, -1e6, 1e18, 1e30])
@pytest.mark.parametrize("column", [0, 12])
def test_a_dense_outlier_gives_a_prediction_close_to_fp32s_and_moves_no_other(networks, precision, outlier, column):
    network = networks[precision]
    dense, indices = random_batch(MODEL, BATCH)
    clean = network.run(dense, indices)
    dense[7, column] = outlier
    got = network.run(dense, indices)
    np.testing.assert_array_equal(np.delete(got, 7), np.delete(clean, 7))
    wanted = network.fp32(dense, indices)[7]
    assert abs(got[7] - wanted) <= 0.05 * abs(outlier)
    assert np.isfinite(got[7])
    np.testing.assert_allclose(got[7], network.narrow(dense, indices)[7], rtol=0.01)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outliers_in_every_row_of_a_tile_stay_in_their_rows(networks, precision):
    """Magnitudes from 1e-30 to 1e30 side by side: each prediction as if the item were alone."""
    network = networks[precision]
    dense, indices = random_batch(MODEL, BATCH)
    dense = dense * 10.0 ** np.linspace(-30, 30, BATCH, dtype=np.float32)[:, None]
    together = network.run(dense, indices)
    order = np.random.default_rng(0).permutation(BATCH)
    np.testing.assert_array_equal(network.run(dense[order], indices[order]), together[order])
    wanted, scale = network.narrow(dense, indices), np.maximum(1, np.abs(dense).max(axis=1))
    assert np.all(np.abs(together - wanted) <= 0.01 * scale), (together, wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiny_rows_give_what_zeros_give(precision):
    """Without biases every activation is as tiny as the inputs are; its row's inverse scale may be infinite."""
    bare = {
        part: tuple(replace(layer, bias=np.zeros_like(layer.bias)) for layer in getattr(MODEL, part))
        for part in ("bottom", "top")
    }
    network = compiled(dynamic(MODEL, precision), 3, replace(MODEL, **bare))
    dense, indices = random_batch(MODEL, 3)
    wanted = network.fp32(np.zeros_like(dense), indices)
    for magnitude in (0.0, 1e-45, 1e-38, 1e-36, 1e-30):
        got = network.run(dense * np.float32(magnitude), indices)
        assert_agree(got, wanted, most=3)


@needs_library("int8")
def test_given_scales_agree_with_numpy_in_the_same_steps(coarse):
    for seed in range(4):
        dense, indices = random_batch(MODEL, BATCH, seed)
        assert_agree(coarse.run(dense, indices), coarse.narrow(dense, indices), most=12, scale=0.1)
    assert np.abs(coarse.narrow(dense, indices) - coarse.fp32(dense, indices)).max() < 0.5


@needs_library("int8")
@pytest.mark.parametrize(
    "outlier",
    [30.0, -30.0, 1e3, 1e6, 1e12, 1e30],
)
def test_values_beyond_given_scales_are_cut_off_and_move_no_other_item(coarse, outlier):
    dense, indices = random_batch(MODEL, BATCH)
    clean = coarse.run(dense, indices)
    dense[7, 0] = outlier
    got = coarse.run(dense, indices)
    np.testing.assert_array_equal(np.delete(got, 7), np.delete(clean, 7))
    wanted = coarse.narrow(dense, indices)[7]
    assert abs(got[7] - wanted) <= 0.1 + 0.02 * abs(wanted), (got[7], wanted)


@needs_library("int8")
def test_negative_values_beyond_given_scales_are_cut_off_where_numpy_has_it():
    model = linear(random_dlrm(table_rows=(50, 1, 20), bottom=(24,), top=(40, 24), bottom_activation="none"))
    network = compiled(static(0.01, model), model=model)
    dense, indices = random_batch(model, BATCH)
    assert_agree(network.run(dense, indices), network.narrow(dense, indices), most=BATCH // 2, scale=0.1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bags_of_one_row_give_the_bits_of_one_row_per_table(networks, precision):
    network = networks[precision]
    dense, indices = random_batch(MODEL, BATCH)
    flat, begins = flat_bags(list(indices.T), [np.arange(BATCH)] * len(MODEL.tables), BATCH)
    np.testing.assert_array_equal(network.run(dense, flat, offsets=begins), network.run(dense, indices))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bags_are_summed_averaged_and_weighted_on_any_threads(networks, precision):
    network = networks[precision]
    dense, _ = random_batch(MODEL, BATCH)
    for seed in range(3):
        bags, offsets = random_bags(MODEL, BATCH, seed, longest=20)
        flat, begins = flat_bags(bags, offsets, BATCH)
        got = network.run(dense, flat, offsets=begins)
        assert_agree(got, network.narrow(dense, bags, offsets), most=8, scale=0.1)
        for threads in (2, 3):
            np.testing.assert_array_equal(network.run(dense, flat, threads, begins), got)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bad_bag_is_nan_for_its_item_alone(networks, precision):
    network = networks[precision]
    dense, _ = random_batch(MODEL, BATCH)
    flat, begins = flat_bags(*random_bags(MODEL, BATCH), BATCH)
    flat = flat[: begins[-1, -1]]
    clean = network.run(dense, flat, offsets=begins)
    assert np.isfinite(clean).all()
    last = clean.copy()
    last[-1] = np.nan
    for table, index in ((5, -1), (5, MODEL.tables[5].num_rows), (0, 1 << 40), (2, np.iinfo("i8").min)):
        changed = flat.copy()
        changed[begins[table, BATCH] - 1] = index  # of the last item
        np.testing.assert_array_equal(network.run(dense, changed, offsets=begins), last)
    for offset in (len(flat) + 1, -1, np.iinfo("i8").max):
        changed = begins.copy()
        changed[5, BATCH] = offset
        np.testing.assert_array_equal(network.run(dense, flat, offsets=changed), last)
    dense[3, 0] = np.nan
    clean[3] = np.nan
    np.testing.assert_array_equal(network.run(dense, flat, offsets=begins), clean)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_quantized_bags_are_pooled_in_as_many_groups_as_their_memory_takes(networks, precision, monkeypatch):
    dense, _ = random_batch(MODEL, BATCH)
    bags, offsets = random_bags(MODEL, BATCH)
    flat, begins = flat_bags(bags, offsets, BATCH)
    monkeypatch.setattr(embedding_bag, "POOLED_BYTES", 1)  # a tile each
    grouped = compiled(dynamic(MODEL, precision))
    for threads in (1, 2):
        np.testing.assert_array_equal(
            grouped.run(dense, flat, threads, begins), networks[precision].run(dense, flat, offsets=begins)
        )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_batch_of_one_gives_what_tiles_give(networks, precision):
    """The kernel that skips zero words adds in the same order: int8 whole numbers, bf16 up to rounding."""
    network = networks[precision]
    dense, indices = random_batch(MODEL, BATCH)
    dense[::3, ::2] = 0
    wanted = network.run(dense, indices)
    one = compiled(dynamic(MODEL, precision), 1)
    got = np.concatenate([one.run(dense[at : at + 1], indices[at : at + 1]) for at in range(BATCH)])
    assert_agree(got, wanted, most=3)
