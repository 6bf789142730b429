"""Dot interaction in bf16 and int8 alone: every pair once, where the stated order has it, int8 exact before scaling.
"bytes": int8 on AVX2 without VNNI."""

from __future__ import annotations

import numpy as np
import pytest
from bare_kernels import call, compiled, kernel
from quantized import FAMILY, VALUES, needs, rounded, words_of
from tvm.tirx.script.builder import ir as T

from dlrm_tvm.kernels.isa import imported
from dlrm_tvm.kernels.vectors import LANES, load, store
from dlrm_tvm.kernels.words import Form
from dlrm_tvm.model.interactions import Dot
from dlrm_tvm.network.interaction import Int8Dots
from dlrm_tvm.network.pair_dots import dot_interaction, group_pairs

# Vectors below, at and above blocks of 4 and lanes of 16; words of one vector and of more; last groups full and not.
COUNTS = [
    (2, 16, False), (2, 16, True), (3, 32, True), (4, 16, False), (5, 16, True), (7, 16, False), (8, 64, False),
    (9, 16, True), (15, 16, False), (16, 16, True), (17, 32, False), (27, 64, False), (33, 16, False), (40, 16, True),
]  # fmt: skip
CASES = [(precision, *case) for precision in ("bf16", "int8", "bytes") for case in COUNTS]
MARKED = [pytest.param(*case, marks=needs(case[0]), id="-".join(map(str, case))) for case in CASES]


def pair_groups(count: int, with_self: bool):
    return group_pairs(Dot(with_self).pairs(count), count)


def interaction_function(precision: str, count: int, words: int, with_self: bool):
    """z [count, words], factors [count] f32 -> y [groups * 16] f32."""
    family = FAMILY[precision]
    form = Form(family.precision, signed=precision != "bf16", family=family)

    def body(b) -> None:
        def row(i):
            at = T.bind(i * words)
            return lambda chunk, lanes=LANES: load(b["z"], at + chunk * lanes, lanes)

        first_row = lambda: row(0)  # noqa: E731
        with imported(family):
            dots = None
            if precision != "bf16":
                dots = Int8Dots(count, form)
                with T.serial(count) as i:
                    T.buffer_store(dots.factors, b["factors"][i], [i])
                dots.start(words, row, first_row)

            def write(group, sums, i, j) -> None:
                store(b["y"], group * LANES, sums if dots is None else dots.dots(sums, i, j))

            dot_interaction(pair_groups(count, with_self), words, row, first_row, write, form, family.registers)

    sizes = {"z": count * words, "factors": count, "y": pair_groups(count, with_self).num_groups * LANES}
    return kernel("interaction", {name: (size, "float32") for name, size in sizes.items()}, body)


@pytest.fixture(scope="module")
def functions(require_fma):
    """Each in a module of its own: helpers of two precisions do not meet in one."""
    runnable = [case for case in CASES if not needs(case[0]).args[0]]
    return {case: compiled([interaction_function(*case)])["interaction"] for case in runnable}


def run(functions, case: tuple, z: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """A dot for each lane of the stated order."""
    y = np.full(len(pair_groups(case[1], case[3]).order), np.nan, np.float32)
    return call(functions[case], words_of(z, case[0]).reshape(-1), factors, y)[2]


@pytest.mark.parametrize("precision, count, words, with_self", MARKED)
def test_quantized_dots_are_those_of_the_order_that_is_stated(functions, precision, count, words, with_self):
    rng = np.random.default_rng(count)
    shape = (count, words * VALUES[precision])
    factors = np.ones(count, np.float32)
    if precision == "bf16":
        z = rounded(rng.normal(size=shape))
    else:
        z, factors = rng.integers(-127, 128, shape), rng.uniform(0.01, 10, count).astype(np.float32)
    y = run(functions, (precision, count, words, with_self), z, factors)
    exact = (z.astype("f8") @ z.T.astype("f8")) * np.outer(factors, factors).astype("f8")
    order = pair_groups(count, with_self).order
    wanted = np.array([np.nan if pair is None else exact[pair] for pair in order])
    taken = ~np.isnan(wanted)
    assert taken.sum() == len(Dot(with_self).pairs(count))
    tolerance = 1e-5 * np.sqrt(shape[1]) if precision == "bf16" else 0
    np.testing.assert_allclose(y[taken], wanted[taken], rtol=1e-6, atol=tolerance)
    assert np.isfinite(y).all(), "lanes of no pair are multiplied by 0 later"


@pytest.mark.parametrize("precision", [pytest.param(each, marks=needs(each)) for each in ("int8", "bytes")])
@pytest.mark.parametrize("left, right", [(127, 127), (-127, -127), (127, -127), (0, -127), (-127, 0)])
def test_int8_dots_of_the_largest_vectors_are_exact(functions, precision, left, right):
    """256 columns of one sign: what 128 adds to each byte comes off again to the last bit."""
    z = np.full((8, 256), right)
    z[::2] = left
    y = run(functions, (precision, 8, 64, False), z, np.ones(8, np.float32))
    exact = z @ z.T
    order = pair_groups(8, False).order
    np.testing.assert_array_equal(y[: len(order) - order.count(None)], [exact[pair] for pair in order if pair])
