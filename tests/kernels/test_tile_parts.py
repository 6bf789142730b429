"""fp32 layers on AMX tiles, emulated: values in three bf16 parts, six products, against NumPy that does the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from bare_kernels import call, compiled, kernel
from quantized import rounded, words_of
from tile_layouts import activated, from_tiles, in_register_tiles, to_tiles, up

from dlrm_tvm.kernels.activations import Tiles
from dlrm_tvm.kernels.dense import DenseSchedule, PackedDense
from dlrm_tvm.kernels.isa import AMX_FP32
from dlrm_tvm.kernels.packing import pack_weight_parts
from dlrm_tvm.kernels.tile_dense import PANEL, TileScratch, tile_dense_layer
from dlrm_tvm.kernels.tile_unit import TileUnit
from dlrm_tvm.kernels.vectors import load, store
from dlrm_tvm.kernels.words import Form

pytestmark = pytest.mark.usefixtures("require_fma")

FORM = Form("bf16", family=replace(AMX_FP32, emulated=True))
ORDER = ((2, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 0))  # (part of x, part of w), small terms first


def cut(x: np.ndarray) -> list[np.ndarray]:
    """float32 -> three parts of 8 bits of mantissa each, cut off."""
    parts = []
    for _ in range(3):
        mantissa, exponent = np.frexp(x)
        parts.append(np.ldexp(np.trunc(mantissa * 256) / 256, exponent).astype(np.float32))
        x = x - parts[-1]
    return parts


def nearest(w: np.ndarray) -> list[np.ndarray]:
    parts = []
    for _ in range(3):
        parts.append(rounded(w))
        w = w - parts[-1]
    return parts


def in_words(parts: list[np.ndarray]) -> np.ndarray:
    """Parts [rows, K] -> words [rows, K / 32 * 48]: k tile by k tile its parts, word i of columns i and 16 + i."""
    rows = len(parts[0])
    pairs = [words_of(part.reshape(rows, -1, 2, 16).swapaxes(2, 3), "bf16") for part in parts]
    return np.stack(pairs, axis=2).reshape(rows, -1)


@dataclass(frozen=True)
class Layer:
    """last: k tiles of the last k block; x_size, w_size: the sizes of inputs and of weighted sums of ones."""

    mr: int
    tiles: int
    k_tiles: int
    last: int
    outputs: int
    activation: str = "relu"
    x_size: float = 1
    w_size: float = 1

    @property
    def items(self) -> int:
        """Of whole pairs of tiles."""
        return self.mr * -(-self.tiles // 2) * 2

    @property
    def columns(self) -> int:
        return 32 * self.k_tiles

    @property
    def packed(self) -> PackedDense:
        words = 48 * self.k_tiles
        schedule = DenseSchedule(PANEL, 1)
        return PackedDense(words, self.outputs, self.activation, 0, up(self.outputs) * words, schedule, FORM)

    def numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.outputs)
        x = rng.normal(size=(self.items, self.columns)) * self.x_size
        w = rng.normal(size=(self.outputs, self.columns)) / np.sqrt(self.columns) * self.w_size
        bias = rng.normal(size=self.outputs) * self.x_size * self.w_size
        return x.astype("f4"), w.astype("f4"), bias.astype("f4")


LAYERS = [
    Layer(16, 2, 1, 1, 32),
    Layer(15, 3, 2, 2, 33, "none"),
    Layer(13, 4, 4, 4, 64),
    Layer(16, 4, 5, 3, 31, "sigmoid"),
    Layer(1, 1, 12, 4, 16),
    Layer(5, 6, 15, 4, 47, "none"),
]


def function(case: Layer):
    def body(b) -> None:
        unit = TileUnit(case.mr, emulated=True)
        scratch = TileScratch(case.items // case.mr // 2, [case.packed])
        source, out = Tiles(b["x"], 0, case.packed.inputs, case.mr), Tiles(b["y"], 0, case.outputs, case.mr)

        def write(tile, row, block, values: list) -> None:
            for v, value in enumerate(values):
                store(b["y"], out.index(tile, row, block + v), value)

        unit.configure()
        tile_dense_layer(case.packed, b["w"], unit, scratch, source, write, case.tiles)

    packed = case.packed
    sizes = {"x": case.items * packed.inputs, "w": packed.bias_at + up(case.outputs)}
    return kernel("layer", {n: (s, "float32") for n, s in (sizes | {"y": case.items * up(case.outputs)}).items()}, body)


@cache
def built(shape: Layer):
    return compiled([function(shape)], optimized=False)["layer"]


def run(case: Layer, x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """y [items, outputs] of the emulated kernel."""
    packed = case.packed
    weights = np.zeros(packed.bias_at + up(case.outputs), np.float32)
    weights[: packed.bias_at] = in_register_tiles(in_words(nearest(w)), PANEL)
    weights[packed.bias_at : packed.bias_at + case.outputs] = bias
    y = np.full(case.items * up(case.outputs), np.nan, np.float32)
    with np.errstate(invalid="ignore"):  # parts of NaN and Inf
        y = call(built(replace(case, x_size=1, w_size=1)), to_tiles(in_words(cut(x)), case.mr), weights, y)[2]
    return from_tiles(y, case.items, case.outputs, case.mr)[:, : case.outputs]


def tile_sums(case: Layer, x: np.ndarray, w: np.ndarray, order=ORDER) -> np.ndarray:
    """Sums [items, outputs] as tdpbf16ps makes them: a k tile's first 16 columns and its last 16 each one after the
    other, fused from 0 on, then both on top of the sum. The last k block begins anew; those before are added to it."""
    xs, ws = ([part.astype("f8") for part in parts] for parts in (cut(x), nearest(w)))

    def chained(k_tiles: range) -> np.ndarray:
        sums = np.zeros((len(x), len(w)), np.float32)
        for k in k_tiles:
            for of_x, of_w in order:
                first, second = np.zeros((2, *sums.shape), np.float32)
                for column in range(32 * k, 32 * k + 16):
                    first = (first + np.outer(xs[of_x][:, column], ws[of_w][:, column])).astype("f4")
                    second = (second + np.outer(xs[of_x][:, column + 16], ws[of_w][:, column + 16])).astype("f4")
                sums = sums + (first + second)
        return sums

    early = case.k_tiles - case.last
    return chained(range(early, case.k_tiles)) + chained(range(early))


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_six_products_of_parts_are_those_of_numpy_bit_for_bit_and_as_exact_as_float32(case: Layer) -> None:
    x, w, bias = case.numbers()
    y = run(case, x, w, bias)
    same = activated(tile_sums(case, x, w) + bias, case.activation)
    if case.activation == "sigmoid":  # the C library's expf is not NumPy's
        np.testing.assert_allclose(y, same, rtol=1e-6)
    else:
        np.testing.assert_array_equal(y, same)
    exact = activated(x.astype("f8") @ w.astype("f8").T + bias, case.activation)
    np.testing.assert_allclose(y, exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("order", [ORDER[::-1], ORDER[1:], ORDER[:2] + ORDER[3:]], ids=["other", "a3b1", "a2b2"])
def test_another_order_or_a_product_less_gives_other_bits(order) -> None:
    """So that the test before can fail."""
    x, w, _ = LAYERS[2].numbers()
    assert (tile_sums(LAYERS[2], x, w) != tile_sums(LAYERS[2], x, w, order)).any()


SIZES = [(1e-30, 1), (1, 1e-30), (1e-30, 1e30), (1e30, 1e-30), (1e36, 1), (1, 1e19), (1e15, 1e20)]


@pytest.mark.parametrize("x_size, w_size", SIZES)
def test_small_and_large_numbers_are_as_exact_as_in_float32(x_size: float, w_size: float) -> None:
    case = replace(LAYERS[1], x_size=x_size, w_size=w_size)
    x, w, bias = case.numbers()
    exact = x.astype("f8") @ w.astype("f8").T + bias
    assert np.abs(run(case, x, w, bias) - exact).max() <= 4e-6 * np.abs(exact).mean()


def test_what_is_not_finite_poisons_its_item_alone_through_relu() -> None:
    x, w, bias = LAYERS[0].numbers()
    right = run(LAYERS[0], x, w, bias)
    poisoned = [1, 2, 3, 16]
    x[poisoned, [0, 5, 17, 31]] = np.nan, np.inf, -np.inf, np.uint32(0x7F800001).view(np.float32)
    y = run(LAYERS[0], x, w, bias)
    assert np.isnan(y[poisoned]).all()
    others = np.setdiff1d(np.arange(len(x)), poisoned)
    np.testing.assert_array_equal(y[others], right[others])
    assert (right == 0).any()


def test_values_are_cut_to_parts_that_add_up_to_them() -> None:
    def body(b) -> None:
        for part, words in enumerate(FORM.pack_parts([load(b["x"], 0), load(b["x"], 16)])):
            store(b["y"], 16 * part, words)

    split = compiled([kernel("split", {"x": (32, "float32"), "y": (48, "float32")}, body)])["split"]
    rng = np.random.default_rng(0)
    for size in (1, 1e-30, 1e30, 1e37):
        x = (rng.normal(size=32) * size).astype("f4")
        y = call(split, x, np.zeros(48, np.float32))[1]
        np.testing.assert_array_equal(y.view(np.uint32), in_words(cut(x[None])).view(np.uint32).reshape(-1))
        halves = y.view(np.uint16).reshape(3, 16, 2).transpose(0, 2, 1).reshape(3, 32).astype(np.uint32) << 16
        np.testing.assert_array_equal(halves.view(np.float32).astype("f8").sum(axis=0), x)
    strange = np.resize(np.uint32([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001]), 32).view(np.float32)
    halves = call(split, strange, np.zeros(48, np.float32))[1].view(np.uint16).reshape(3, -1).astype(np.uint32) << 16
    assert np.isnan(halves.view(np.float32)).any(axis=0).all()


def test_weights_lie_part_by_part_with_columns_in_the_order_asked_for() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(33, 40)).astype("f4")
    columns = np.full(64, -1)
    columns[rng.choice(64, 40, replace=False)] = rng.permutation(40)
    placed = np.where(columns < 0, 0, w[:, columns]).astype("f4")
    wanted = in_register_tiles(in_words(nearest(placed)), PANEL)
    np.testing.assert_array_equal(pack_weight_parts(w, PANEL, columns, 3), wanted)
    assert (np.sum(nearest(w), axis=0, dtype="f8") == w).all()
