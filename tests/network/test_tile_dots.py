"""Dot interaction on AMX tiles, emulated: every pair once, where the stated order has it, int8 exact before scaling."""

from __future__ import annotations

import numpy as np
import pytest
from bare_kernels import call, compiled, kernel
from quantized import VALUES, rounded, words_of
from tvm.tirx.script.builder import ir as T

from dlrm_tvm.kernels.tile_unit import TileUnit
from dlrm_tvm.kernels.vectors import LANES, load, store
from dlrm_tvm.network.tile_dots import PairOrder, TileDots, transpose

pytestmark = pytest.mark.usefixtures("require_fma")

COUNTS = [(2, 16, False), (2, 16, True), (15, 16, False), (16, 32, True), (17, 16, False), (27, 32, False),
          (27, 16, True), (33, 16, False), (49, 16, True)]  # fmt: skip
CASES = [(precision, *case) for precision in ("bf16", "int8") for case in COUNTS]


@pytest.mark.parametrize("count, with_self", [(n, s) for n in (*range(2, 40), 64, 65) for s in (False, True)])
def test_every_pair_has_one_lane(count: int, with_self: bool) -> None:
    order = PairOrder(count, with_self)
    found = [pair for pair in order.order if pair is not None]
    assert sorted(found) == sorted((i, j) for i in range(count) for j in range(i + with_self))
    assert len(order.order) == order.num_groups * LANES


def test_the_dots_of_the_mlperf_model_fill_22_vectors() -> None:
    assert PairOrder(27).num_groups == 22


def test_a_tile_is_transposed() -> None:
    def body(b) -> None:
        transpose(b["x"], b["y"], T.int32(0))

    function = kernel("transposed", {"x": (256, "float32"), "y": (256, "float32")}, body)
    x = np.arange(256, dtype=np.float32)
    y = call(compiled([function])["transposed"], x, np.zeros(256, np.float32))[1]
    np.testing.assert_array_equal(y.reshape(16, 16), x.reshape(16, 16).T)


def function(precision: str, count: int, words: int, with_self: bool):
    """z [count, words], factors -> y [groups * 16] float32."""
    order = PairOrder(count, with_self)

    def body(b) -> None:
        unit = TileUnit(16, emulated=True)
        dots = TileDots(order, words, "signed" if precision == "int8" else "bf16", unit)
        unit.configure()
        with T.serial(2) as which:
            for chunk in range(words // LANES):
                buffer, at = dots.row_at(LANES, chunk)
                store(buffer, at, load(b["z"], chunk * LANES))
            dots.take(lambda i: lambda chunk: load(b["z"], i * words + chunk * LANES))
            if precision == "int8":
                with T.serial(count) as i:
                    T.buffer_store(dots.factors, b["factors"][i], [dots.factors_at(which) + i])
            dots.transpose()
            dots.collect(1 - which, lambda group, values: store(b["y"], group * LANES, values))
            dots.multiply(which)
        dots.collect(1, lambda group, values: store(b["y"], group * LANES, values))

    sizes = {"z": count * words, "factors": count, "y": order.num_groups * LANES}
    return kernel("interaction", {name: (size, "float32") for name, size in sizes.items()}, body)


@pytest.mark.parametrize("precision, count, words, with_self", CASES)
def test_dots_on_tiles_are_those_of_the_order_that_is_stated(precision, count, words, with_self) -> None:
    rng = np.random.default_rng(count)
    shape = (count, words * VALUES[precision])
    scales = np.ones(count, np.float32)
    if precision == "bf16":
        z = rounded(rng.normal(size=shape))
    else:
        z, scales = rng.integers(-128, 128, shape), rng.uniform(0.01, 10, count).astype(np.float32)
    order = PairOrder(count, with_self).order
    y = np.full(len(order), np.nan, np.float32)
    # Of the emulation LLVM makes little in seconds; the fewest vectors have its passes all the same.
    built = compiled([function(precision, count, words, with_self)], optimized=count == 2)["interaction"]
    y = call(built, words_of(z, precision).reshape(-1), scales, y)[2]
    dots = z.astype("f8") @ z.astype("f8").T * np.outer(scales, scales)
    for lane, pair in enumerate(order):
        if pair is None:
            assert y[lane] == 0
        else:
            np.testing.assert_allclose(y[lane], dots[pair], rtol=3e-6, atol=2e-5 if precision == "bf16" else 0)
