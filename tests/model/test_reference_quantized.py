"""The NumPy reference of bf16 and int8 against formulas of its own, and how far those are from float32.

Where a value lies on the border between two numbers, the two may fall on different sides: few items, by little.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models import numpy_predictions, random_bags, random_batch, random_dlrm
from quantized import QUANTIZED, dynamic, rounded
from quantized_formulas import in_scale, quantized_predictions

from dlrm_tvm.model import reference_quantized
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.interactions import Concat
from dlrm_tvm.model.precision import LayerNumerics, Numerics, scales_of

MODELS = {
    "small": {},
    "odd widths": {"dim": 20, "bottom": (30,), "top": (40, 17)},
    "26 tables": {"dim": 64, "table_rows": (50,) * 26, "bottom": (48, 80), "top": (100, 33)},
    "no hidden layers": {"bottom": (), "top": ()},
    "with itself": {"interaction": "dot_self", "bottom": (24,)},
    "concatenated": {"interaction": "cat", "dim": 20},
    "concatenated, no hidden top": {"interaction": "cat", "top": ()},
    "crossed": {"interaction": "cross", "dim": 20, "ranks": (9, None), "top": (24, 16)},
    "crossed, no hidden layers": {"interaction": "cross", "top": ()},
    "signed x": {"bottom_activation": "none"},
    "sigmoids": {"sigmoid_layer": 0, "top": (24, 16), "bottom_activation": "sigmoid"},
}
CASES = [(precision, name) for precision in QUANTIZED for name in MODELS]
ITEMS = 60


def static(model: Dlrm, scale: float = 0.02) -> Numerics:
    """Steps that no data were looked at for: some values are cut off."""
    numerics = dynamic(model, "int8")
    rng = np.random.default_rng(0)
    layers = [
        each if each.precision == "fp32" else replace(each, scales=np.full(layer.inputs, scale / 2, np.float32))
        for layer, each in zip(model.layers, numerics.layers)
    ]
    first_top = len(model.bottom)
    if layers[first_top].precision == "int8":
        scales = rng.uniform(scale / 2, scale, model.top_inputs).astype(np.float32)
        if isinstance(model.interaction, Concat):  # one for each vector
            scales = np.repeat(scales[:: model.dim], model.dim)
        scales[: model.dim] = scale
        layers[first_top] = replace(layers[first_top], scales=scales)
    return replace(numerics, layers=tuple(layers), x_scale=scale)


def with_pooling(model: Dlrm) -> Dlrm:
    """Every other table averages, the last one's rows have weights."""
    tables = [replace(table, pooling="mean" if t % 2 else "sum") for t, table in enumerate(model.tables)]
    weights = np.random.default_rng(2).uniform(-1, 1, tables[-1].num_rows).astype(np.float32)
    return replace(model, tables=(*tables[:-1], replace(tables[-1], row_weights=weights)))


def assert_agree(got: np.ndarray, wanted: np.ndarray) -> None:
    error = np.abs(got - wanted)
    assert got.shape == wanted.shape
    assert error.max() <= 0.01
    assert np.mean(error <= 1e-6) >= 0.75, np.sort(error)[::-1]


@pytest.mark.parametrize("precision, name", CASES)
def test_quantized_reference_gives_the_numbers_of_its_description(precision, name):
    model = random_dlrm(**MODELS[name])
    numerics = dynamic(model, precision)
    dense, indices = random_batch(model, ITEMS)
    got = reference_quantized.predict(model, numerics, dense, indices)
    assert_agree(got, quantized_predictions(model, numerics, dense, indices))


@pytest.mark.parametrize("precision, name", CASES)
def test_quantized_reference_pools_bags_as_described(precision, name):
    model = with_pooling(random_dlrm(**MODELS[name]))
    numerics = dynamic(model, precision)
    dense, _ = random_batch(model, 20)
    bags = random_bags(model, 20, longest=12)
    got = reference_quantized.predict(model, numerics, dense, *bags)
    assert_agree(got, quantized_predictions(model, numerics, dense, *bags))


@pytest.mark.parametrize("name", MODELS)
def test_quantized_reference_takes_given_scales_as_described(name):
    model = random_dlrm(**MODELS[name])
    numerics = static(model)
    dense, indices = random_batch(model, ITEMS)
    got = reference_quantized.predict(model, numerics, dense, indices)
    assert_agree(got, quantized_predictions(model, numerics, dense, indices))
    if name != "no hidden layers":
        assert np.abs(got - reference_quantized.predict(model, static(model, 0.03), dense, indices)).max() > 1e-4


@pytest.mark.parametrize("precision, name", CASES)
def test_quantized_predictions_are_close_to_fp32s(precision, name):
    model = random_dlrm(**MODELS[name])
    dense, indices = random_batch(model, ITEMS)
    wanted = numpy_predictions(model, dense, indices)
    error = np.abs(reference_quantized.predict(model, dynamic(model, precision), dense, indices) - wanted)
    assert (error.max(), np.median(error)) < (0.05, 0.01)
    assert np.median(error) < 0.1 * wanted.std(), "what tells items apart stays"


def test_bags_of_one_row_are_that_row():
    model = random_dlrm(table_rows=(5, 7, 3))
    dense, indices = random_batch(model, 9)
    for precision in QUANTIZED:
        numerics = dynamic(model, precision)
        bags = reference_quantized.predict(model, numerics, dense, list(indices.T), [np.arange(9)] * 3)
        np.testing.assert_array_equal(bags, reference_quantized.predict(model, numerics, dense, indices))


def test_clamped_predictions_are_clamped_in_every_precision():
    model = random_dlrm()
    dense, indices = random_batch(model, ITEMS)
    for precision in QUANTIZED:
        free = reference_quantized.predict(model, dynamic(model, precision), dense, indices)
        least, most = np.quantile(free, (0.25, 0.75))
        clamped = replace(model, clamp=(least, most))
        got = reference_quantized.predict(clamped, dynamic(clamped, precision), dense, indices)
        np.testing.assert_array_equal(got, np.minimum(np.maximum(free, least), most))


@pytest.mark.parametrize("signed", [False, True])
def test_an_int8_layer_is_within_half_a_scale_per_input(signed):
    """|error| <= sum over k of |W| * step_x / 2 + |x| * step_W / 2 + step_x * step_W / 4."""
    rng = np.random.default_rng(4)
    layer = random_dlrm(bottom=(), num_dense=40, bottom_activation="none").bottom[0]
    x = rng.normal(size=(30, 40)).astype(np.float32)
    x = x if signed else np.abs(x)
    x[3] = 0
    got = reference_quantized.layer_outputs(layer, LayerNumerics("int8", signed), x)
    exact = x.astype("f8") @ layer.weight.T.astype("f8") + layer.bias
    step_x = np.abs(x).max(axis=1, keepdims=True) / (127 if signed else 255)
    step_w = scales_of(np.abs(layer.weight).max(axis=1))[None]
    bound = np.abs(layer.weight).sum(axis=1) * step_x / 2 + np.abs(x).sum(axis=1, keepdims=True) * step_w / 2
    error = np.abs(got - exact)
    assert np.all(error <= bound + 10 * step_x * step_w + 1e-6)
    assert error.max() > 1e-4, "int8 does round"
    np.testing.assert_array_equal(got[3], layer.bias)


def test_a_bf16_layer_is_float64_over_rounded_numbers():
    layer = random_dlrm(bottom=(), num_dense=40).bottom[0]
    x = np.random.default_rng(4).normal(size=(30, 40)).astype(np.float32)
    got = reference_quantized.layer_outputs(layer, LayerNumerics("bf16"), x)
    exact = np.maximum(rounded(x).astype("f8") @ rounded(layer.weight).astype("f8").T + layer.bias, 0)
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("most", [127, 255])
def test_a_row_in_bytes_has_its_largest_at_the_end_of_the_range_and_zeros_stay_zeros(most):
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(40, 30)) * 10.0 ** rng.integers(-30, 30, (40, 1))).astype(np.float32)
    x[7] = 0
    numbers, scales = reference_quantized.row_bytes(x, most)
    np.testing.assert_array_equal(numbers.max(axis=1), [most if row != 7 else 0 for row in range(40)])
    for row, own, scale in zip(x, numbers, scales[:, 0]):
        np.testing.assert_allclose(own * scale, in_scale(row.astype("f8"), row.max() / most, most), rtol=1e-5, atol=0)


def test_a_row_too_small_for_an_inverse_scale_is_zeros():
    numbers, scales = reference_quantized.row_bytes(np.float32([[1e-38, 0, -5e-39], [1e-45, 0, 0], [2, 0, -1]]), 127)
    np.testing.assert_array_equal(numbers, [[0, 0, 0], [0, 0, 0], [127, 0, -64]])
    assert np.isfinite(scales).all()
