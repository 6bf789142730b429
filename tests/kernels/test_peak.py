"""The loops that measure the hardware do all the work that they are credited for."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi
from bare_kernels import call, compiled
from models import aligned, on_threads
from quantized import FAMILY, VALUES, quantized_cases, words_of

from dlrm_tvm.kernels.isa import AMX_BF16, AMX_FP32, AVX2, AVX512, Family
from dlrm_tvm.kernels.peak import MAX_THREADS, STEPS, PeakLoop, stream_read
from dlrm_tvm.kernels.vectors import LANES

STREAM = 256 * 3

CHAINS = {AVX512: 20, AVX2: 6}


@pytest.fixture(scope="module", params=CHAINS, ids=lambda family: family.name)
def family(request, require_fma) -> Family:
    return request.param


@pytest.fixture(scope="module")
def peak_loops(family):
    return compiled([PeakLoop(family).function(), stream_read(STREAM, family)])


@pytest.mark.parametrize("rounds, threads", [(0, 1), (1, 1), (3, 2)])
def test_peak_loop_runs_every_chain_as_often_as_it_is_credited_for(peak_loops, family, rounds, threads):
    sink = aligned(np.full(MAX_THREADS * LANES, -1, np.float32))
    factors = aligned(np.array([0.999, 0.01], np.float32))
    arguments = (rounds, tvm_ffi.from_dlpack(factors), tvm_ffi.from_dlpack(sink))
    on_threads(threads, lambda: peak_loops["peak_fma"](*arguments))
    chains = np.arange(1.0, CHAINS[family] + 1)
    for _ in range(rounds * STEPS):
        chains = chains * np.float64(factors[0]) + np.float64(factors[1])
    np.testing.assert_allclose(sink[: threads * LANES], chains.sum(), rtol=1e-6)
    np.testing.assert_array_equal(sink[threads * LANES :], -1)
    assert PeakLoop(family).flops_per_round == 2 * CHAINS[family] * STEPS * LANES


def test_stream_loop_reads_every_element(peak_loops):
    array = np.random.default_rng(0).integers(-1000, 1000, STREAM).astype(np.float32)
    sink = call(peak_loops["stream_read"], array, np.zeros(MAX_THREADS * LANES, np.float32))[1]
    np.testing.assert_array_equal(sink[:LANES], array.reshape(-1, LANES).sum(axis=0))


@pytest.mark.parametrize("precision, chains", quantized_cases(("bf16", 20), ("int8", 20)))
@pytest.mark.parametrize("rounds, threads", [(0, 1), (1, 1), (3, 2)])
def test_quantized_peak_loop_runs_every_chain_as_often_as_it_is_credited_for(precision, chains, rounds, threads):
    """Small numbers of a few bits, so that every sum is exact."""
    loop = PeakLoop(FAMILY[precision])
    x, w = {"bf16": ([1.5, -2.0], [4.0, 0.25]), "int8": ([1, 255, 3, 0], [7, -1, 100, 50])}[precision]
    factors = aligned(words_of(np.array([x, w]), precision).reshape(2))
    sink = aligned(np.full(MAX_THREADS * LANES, -1, np.float32))
    arguments = (rounds, tvm_ffi.from_dlpack(factors), tvm_ffi.from_dlpack(sink))
    function = compiled([loop.function()])["peak_fma"]
    on_threads(threads, lambda: function(*arguments))
    total = chains * (chains + 1) / 2 + chains * rounds * STEPS * np.dot(x, w)
    written = sink[: threads * LANES]
    np.testing.assert_array_equal(written if precision == "bf16" else written.view(np.int32), total)
    np.testing.assert_array_equal(sink[threads * LANES :], -1)
    assert (loop.family.chains, loop.flops_per_round) == (chains, 2 * VALUES[precision] * chains * STEPS * LANES)


def test_the_peak_of_fp32_on_tiles_counts_a_multiply_add_for_six_products():
    bf16, fp32 = PeakLoop(AMX_BF16), PeakLoop(AMX_FP32)
    assert fp32.flops_per_round == bf16.flops_per_round
    bf16, fp32 = (loop.function().script().count('"dlrm_tile_bf16_') for loop in (bf16, fp32))
    assert (bf16, fp32) == (4, 24)
