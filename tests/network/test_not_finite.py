"""NaN through the two places where x86's max would lose it: ReLU, and the largest magnitude of a row for int8."""

from __future__ import annotations

import re

import numpy as np
import pytest
from bare_kernels import call, compiled, kernel
from tvm.tirx.script.builder import ir as T

from dlrm_tvm.kernels.activations import row_scales
from dlrm_tvm.kernels.vectors import LANES, load, relu, store
from dlrm_tvm.schedules.passes import compile_kernels
from dlrm_tvm.schedules.target import cpu_target

VECTORS = 6  # more than row_scales has accumulators, and a rest


def relu_function():
    return kernel(
        "relu", {"x": (16, "float32"), "y": (16, "float32")}, lambda b: store(b["y"], 0, relu(load(b["x"], 0)))
    )


def scales_function():
    def body(b) -> None:
        largest, inverse = row_scales([(VECTORS, lambda v: load(b["x"], v * LANES))], 127)
        T.buffer_store(b["y"], largest, [0])
        T.buffer_store(b["y"], inverse, [1])

    return kernel("scales", {"x": (VECTORS * LANES, "float32"), "y": (2, "float32")}, body)


@pytest.fixture(scope="module")
def module(require_fma):
    return compiled([relu_function(), scales_function()])


def test_relu_keeps_nan_and_infinity(module) -> None:
    x = np.float32([np.nan, -np.nan, np.inf, -np.inf, 1, -1, 0, -0.0, 3e38, -3e38, 1e-45, -1e-45, 5, -5, 7, np.nan])
    _, y = call(module["relu"], x, np.zeros(16, np.float32))
    np.testing.assert_array_equal(y, np.where(x < 0, 0, x))


def test_relu_is_one_instruction_of_avx512_with_its_input_as_the_operand_that_max_gives_for_nan() -> None:
    function = relu_function()
    code = compile_kernels({"relu": function}, cpu_target("znver4")).mod.inspect_source("asm")
    # Only the second source may be in memory; AT&T writes it first.
    assert re.search(r"vmaxps\s+[-\d]*\(%\w+\), %zmm\d+, %zmm\d+", code)
    assert not re.search(r"v(cmp|blend)\w*ps\s.*%zmm", code)


@pytest.mark.parametrize("at", [0, 17, 63, 64, 95])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -2.5])
def test_nan_is_the_largest_magnitude_of_all(module, at, value) -> None:
    x = np.random.default_rng(at).uniform(-2, 2, VECTORS * LANES).astype(np.float32)
    x[at] = value
    _, (largest, inverse) = call(module["scales"], x, np.zeros(2, np.float32))
    np.testing.assert_array_equal(largest, np.abs(x).max())
    assert inverse == (np.float32(127) / np.float32(2.5) if value == -2.5 else 0)
