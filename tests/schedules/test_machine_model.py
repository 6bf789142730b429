"""Blocks from caches and rates: the figures of machines that were measured, and the edges of the model."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from models import job_of, random_dlrm

from dlrm_tvm.compiler import summary
from dlrm_tvm.compiler.job import Job
from dlrm_tvm.compiler.options import CompileSettings
from dlrm_tvm.compiler.plan import layer_shapes
from dlrm_tvm.kernels.gather import Prefetch
from dlrm_tvm.kernels.isa import AMX_BF16, AMX_FP32, AVX2, AVX512, AVX512_BF16
from dlrm_tvm.machine.caches import Caches, caches_of
from dlrm_tvm.model.card import describe
from dlrm_tvm.model.precision import numerics_of, weight_bytes
from dlrm_tvm.schedules import machine_model
from dlrm_tvm.schedules.machine_model import MOST_ITEMS, MachineModel, measure_machine
from dlrm_tvm.schedules.rules import NetworkSchedule, Probed, Schedules
from dlrm_tvm.schedules.target import CpuTarget, cpu_target

# 1024 values wide: 8 KB of inputs and outputs per item in fp32, as MLPerf's model has.
MODEL = random_dlrm(dim=128, bottom=(256,), top=(1024, 1024, 512))
FP32 = numerics_of(MODEL, "fp32")
LAYERS = layer_shapes(MODEL, FP32)


def items(caches: Caches, *rates: float) -> int:
    return MachineModel(caches, *rates).block_items(MODEL, FP32, LAYERS)


def test_a_fast_last_level_cache_takes_small_blocks_and_a_slow_one_large_ones() -> None:
    """Of one core: a Zen 4 of 117 GFLOP/s and 92 GB/s, an Emerald Rapids of 164 GFLOP/s and 22 GB/s."""
    assert items(caches_of("znver4"), 117, 92) == pytest.approx(2 * 117 / 9.2, abs=1)
    assert items(caches_of("emeraldrapids"), 164, 22) == pytest.approx(2 * 164 / 2.2, abs=1)


def test_blocks_never_leave_l2_nor_exceed_512_items() -> None:
    assert items(caches_of("emeraldrapids"), 164, 1) == (2 << 20) // 8192
    assert items(Caches(32 << 10, 6 << 20), 164, 1) == MOST_ITEMS
    assert items(Caches(32 << 10, 1 << 10), 164, 1) == 1


def test_without_rates_a_block_is_as_large_as_l2_takes() -> None:
    assert items(caches_of("znver4")) == (1 << 20) // 8192


@pytest.mark.parametrize(
    "precision, family, first, inner", [("fp32", AVX2, 4, 4), ("bf16", AMX_BF16, 4, 2), ("fp32", AMX_FP32, 6, 6)]
)
def test_weights_are_counted_in_the_bytes_that_stream(precision, family, first, inner) -> None:
    """fp32 on tiles is three bf16 parts, but for the last layer, which runs on vectors."""
    between = sum(layer.weight.size for layer in MODEL.layers[1:-1])
    ends = first * MODEL.layers[0].weight.size + 4 * MODEL.layers[-1].weight.size
    job = Job(CompileSettings(), isa=family, model=MODEL, numerics=numerics_of(MODEL, precision))
    assert job.weight_bytes == inner * between + ends
    biases = sum(layer.bias.nbytes for layer in MODEL.layers)
    assert describe(MODEL, job.numerics, family.parts).mlp_bytes == job.weight_bytes + biases


def test_schedules_by_rule_are_told_with_the_share_that_the_largest_layer_reached() -> None:
    log = CompileSettings().tuning_log_file
    by_rule = f"by rule (no records of these kernels on znver3 in {os.path.relpath(log)}); --tune may find better"
    probed = Probed(NetworkSchedule(6, 17, Prefetch(4, 2)), ahead=False, unroll=4, gflops=71.3)
    schedules = Schedules(probed.network, {}, untuned=("network_fp32 batch=100",), probed=probed)
    cpu = CpuTarget("znver3", None, ("avx2", "fma"), is_host=True)
    machine = MachineModel(caches_of("znver3"), peak_gflops=92, stream_gbps=50)
    job = Job(CompileSettings(), cpu=cpu, isa=AVX2, machine=machine, schedules=schedules)
    first, second = summary.schedules(job)
    assert first.endswith(by_rule)
    found = "6 items a tile, 102 a block, 4 k a loop body, weights not prefetched: 0.78 of peak in the largest layer"
    assert found in second
    (only,) = summary.schedules(replace(job, schedules=replace(schedules, probed=None)))
    assert only == first, "of another CPU, and of weights that L2 keeps, nothing was measured"


@pytest.mark.parametrize("bf16, told", [(83.0, True), (490.0, False)])
def test_bf16_with_a_lower_peak_than_fp32_is_advised_against(monkeypatch, bf16: float, told: bool) -> None:
    """Made-up peaks of a CPU with vdpbf16ps at half of fp32's rate, as Intel's, and of one at twice."""
    peaks = {"avx512": 164.0, "avx512_bf16": bf16}
    monkeypatch.setattr(machine_model, "_SECONDS", 0)
    monkeypatch.setattr(machine_model, "_stream_gbps", lambda *_: 22.0)
    monkeypatch.setattr(machine_model, "Peak", lambda _, family: SimpleNamespace(gflops=lambda: peaks[family.name]))
    cpu = CpuTarget("emeraldrapids", None, ("avx512f", "avx512bw", "avx512_bf16"), is_host=True)
    found = measure_machine(cpu, AVX512_BF16, 1 << 20)
    assert (found.peak_gflops, found.fp32_gflops) == (bf16, 164)
    assert found.fields.keys() == {"l1d", "l2", "l3", "peak_gflops", "stream_gbps", "fp32_gflops"}
    assert measure_machine(cpu, AVX512, 1 << 20).fp32_gflops is None, "no slower than it was"
    job = Job(CompileSettings(), cpu=cpu, isa=AVX512_BF16, machine=found)
    advice = f"bf16 without AMX is not worth it here: {bf16:,.0f} GFLOP/s where fp32 does 164. Try --precision fp32"
    assert any(advice in line for line in summary.machine(job)) is told
    assert len(summary.machine(job)) == 1 + told


def test_rates_are_measured_on_this_machine(require_fma) -> None:
    cpu = cpu_target(None)
    found = measure_machine(cpu, job_of(MODEL, 4).family, 1 << 20)
    assert found.caches == cpu.caches
    assert 1 < found.peak_gflops < 10_000 and 0.5 < found.stream_gbps < 10_000


def test_weights_that_stay_in_l2_need_no_blocks() -> None:
    nbytes = weight_bytes(MODEL, FP32)
    roomy = Caches(32 << 10, 2 * nbytes)
    assert MachineModel(roomy).keeps(nbytes) and items(roomy, 164, 1) == 1
    assert not MachineModel(roomy).keeps(nbytes + 1)
