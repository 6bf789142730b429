"""Which family is chosen when, what --isa refuses, and what LLVM makes of tile statements."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from models import random_dlrm
from quantized import dynamic

from dlrm_tvm.compiler.instructions import (
    AMX,
    AUTO,
    AVX512,
    LEAST_TILE_BATCH,
    check_target,
    choose_family,
    families_to_time,
)
from dlrm_tvm.compiler.job import Job
from dlrm_tvm.compiler.options import CompileSettings
from dlrm_tvm.compiler.pipeline import choose, choose_instructions, compile_model, look_at_machine, machine_code
from dlrm_tvm.compiler.table_layout import lay_out_tables
from dlrm_tvm.errors import UserError
from dlrm_tvm.kernels.isa import AMX_BF16, AMX_FP32, AMX_INT8, AVX512_BF16, AVX512_VNNI, Family
from dlrm_tvm.kernels.isa import AVX512 as AVX512_FP32
from dlrm_tvm.machine import tile_state
from dlrm_tvm.schedules.target import CpuTarget, cpu_target

MODEL = random_dlrm()
INTEL = ("sapphirerapids", "emeraldrapids", "graniterapids")


def elsewhere(cpu: str):
    """The CPU as a target that is not this machine, whatever this machine is."""
    return replace(cpu_target(cpu), is_host=False)


@pytest.mark.parametrize("cpu", INTEL)
def test_tiles_are_chosen_where_the_cpu_has_them_and_the_batch_fills_them(cpu: str) -> None:
    target = elsewhere(cpu)
    if not target.has("amx_tile"):
        pytest.skip("this virtual machine hides its CPU's tiles")
    assert choose_family(target, "bf16", AUTO, 100, MODEL) == AMX_BF16
    assert choose_family(target, "int8", AUTO, 100, MODEL) == AMX_INT8
    assert choose_family(target, "int8", AUTO, LEAST_TILE_BATCH["int8"] - 1, MODEL) == AVX512_VNNI
    assert choose_family(target, "int8", AMX, 1, MODEL) == AMX_INT8
    assert choose_family(target, "bf16", AVX512, 100, MODEL) == AVX512_BF16
    assert choose_family(target, "fp32", AUTO, 100, MODEL) == AMX_FP32
    assert choose_family(target, "fp32", AUTO, LEAST_TILE_BATCH["fp32"] - 1, MODEL) == AVX512_FP32
    assert choose_family(target, "fp32", AVX512, 100, MODEL) == AVX512_FP32


def test_both_families_of_a_small_batch_are_timed() -> None:
    target = elsewhere("sapphirerapids")
    if not target.has("amx_tile"):
        pytest.skip("this virtual machine hides its CPU's tiles")
    assert families_to_time(target, "int8", AUTO, 1, MODEL) == [AVX512_VNNI, AMX_INT8]
    assert families_to_time(target, "bf16", AUTO, LEAST_TILE_BATCH["bf16"], MODEL) == [AMX_BF16, AVX512_BF16]
    assert families_to_time(target, "bf16", AUTO, 100, MODEL) == [AMX_BF16], "where tiles win by far"
    assert families_to_time(target, "bf16", AVX512, 1, MODEL) == [AVX512_BF16]
    assert families_to_time(target, "fp32", AUTO, 1, MODEL) == [AVX512_FP32, AMX_FP32]
    assert families_to_time(elsewhere("znver4"), "int8", AUTO, 1, MODEL) == [AVX512_VNNI]


def test_tiles_that_a_cpu_lacks_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"--isa amx: znver4 lacks amx_tile, amx_int8, amx_bf16\. .*--isa avx512"):
        choose_family(elsewhere("znver4"), "int8", AMX, 100, MODEL)


def test_a_kernel_that_grants_no_tile_state_is_the_reason(monkeypatch) -> None:
    monkeypatch.setattr(tile_state, "host_flags", lambda: frozenset(tile_state.TILE_FLAGS))
    if tile_state.tile_refusal() is None:
        pytest.skip("this kernel grants it")
    assert "the kernel does not grant AMX's tile state (arch_prctl: " in tile_state.tile_refusal()
    with pytest.raises(UserError, match=r"small\.so is made of AMX tile instructions, but the kernel.*--isa avx512"):
        tile_state.require_tiles("small.so")


VECTORS = CpuTarget("znver4", None, ("avx512f", "avx512bw", "avx512_bf16", "avx512_vnni"), is_host=True)


@pytest.mark.parametrize(
    "settings, cpu, said",
    [
        ({"tune": True}, replace(VECTORS, is_host=False), r"--tune .* not a znver4\. .*--target-cpu"),
        ({"precision": "auto"}, replace(VECTORS, is_host=False), r"--precision auto .* not a znver4\. .*--target-cpu"),
        ({}, CpuTarget("sandybridge", None, ("avx",), is_host=True), "sandybridge.*AVX-512"),
        ({"precision": "auto"}, CpuTarget("sandybridge", None, ("avx",), is_host=True), "sandybridge.*AVX-512"),
        ({"precision": "bf16"}, CpuTarget("znver3", None, ("avx2", "fma"), is_host=True), "bf16 needs avx512bw"),
        ({"isa": AMX}, VECTORS, "--isa amx: znver4 lacks amx_tile"),
    ],
)
def test_what_a_cpu_can_do_for_no_model_is_refused_before_one_is_read(settings, cpu, said) -> None:
    with pytest.raises(UserError, match=said):
        check_target(CompileSettings(**settings), cpu)
    check_target(replace(CompileSettings(**settings), isa=AUTO), VECTORS)
    check_target(CompileSettings(tuning_log_file=None), cpu)


def scaled(model, at: int, factor: float):
    """The model with the weights of layer `at` of its top MLP so many times as large."""
    layer = model.top[at]
    larger = replace(layer, weight=layer.weight * np.float32(factor))
    return replace(model, top=(*model.top[:at], larger, *model.top[at + 1 :]))


def test_weights_beyond_what_three_parts_hold_take_vectors_and_say_so(tmp_path, capsys) -> None:
    target = elsewhere("sapphirerapids")
    if not target.has("amx_tile"):
        pytest.skip("this virtual machine hides its CPU's tiles")
    largest = np.abs(MODEL.top[0].weight).max()
    assert choose_family(target, "fp32", AUTO, 100, scaled(MODEL, 0, 1e19 / largest)) == AMX_FP32
    wild = scaled(MODEL, 0, 1e25 / largest)
    assert choose_family(target, "fp32", AUTO, 100, wild) == AVX512_FP32
    assert choose_family(target, "bf16", AUTO, 100, wild) == AMX_BF16
    with pytest.raises(UserError, match=r"--isa amx: layer 3 of 4 has a weight of 1e\+25, .*--isa avx512"):
        choose_family(target, "fp32", AMX, 100, wild)
    settings = CompileSettings(batch_size=40, target_cpu="sapphirerapids", directory=tmp_path)
    done = compile_model(Job(settings, cpu=target, onnx_model=tmp_path / "wild.onnx", model=wild))
    assert "  no tiles: layer 3 of 4 has a weight of 1e+25, three bfloat16 parts take 1e+20" in capsys.readouterr().out
    assert json.loads(done.library.with_suffix(".json").read_text())["family"] == "avx512"


def test_default_code_generation_takes_no_tiles() -> None:
    target = elsewhere("sapphirerapids")
    job = Job(CompileSettings(batch_size=100, tuning_log_file=None), cpu=target, model=MODEL, precision="fp32")
    assert choose_instructions(job).isa == AVX512_FP32


def assembly_of(cpu: CpuTarget, precision: str, family: Family) -> str:
    numerics = dynamic(MODEL, precision, "bf16" if family.tiles else "fp32", family)
    job = Job(
        CompileSettings(batch_size=40, precision=precision), quiet=True, cpu=cpu, model=MODEL, isa=family,
        numerics=numerics, tables=lay_out_tables(MODEL, numerics=numerics),
    )  # fmt: skip
    assembly = machine_code(choose(look_at_machine(job))).executable.mod.imports[0].inspect_source("asm")
    return re.sub(r"^\s*\.\w.*$|^\S.*$", "", assembly, flags=re.MULTILINE)


@pytest.mark.parametrize("cpu, wanted, other", [
    ("haswell", "vpmaddubsw", "vpdpbusd"), ("sierraforest", "vpdpbusd", "vpmaddubsw"),
])  # fmt: skip
def test_int8_without_avx512_is_made_of_what_the_cpu_multiplies_bytes_with(cpu: str, wanted: str, other: str) -> None:
    target = elsewhere(cpu)
    assembly = assembly_of(target, "int8", choose_family(target, "int8", AUTO, 40, MODEL))
    assert wanted in assembly and other not in assembly and "dlrm_dot" not in assembly and "zmm" not in assembly


@pytest.mark.parametrize(
    "cpu, precision", [("sapphirerapids", "int8"), ("graniterapids", "bf16"), ("sapphirerapids", "fp32")]
)
def test_tile_instructions_are_inlined(cpu: str, precision: str) -> None:
    target = elsewhere(cpu)
    assembly = assembly_of(target, precision, choose_family(target, precision, AMX, 40, MODEL))
    wanted = ["ldtilecfg", "tileloadd", "tileloaddt1", "tilestored", "tilezero", "tdpbf16ps"]
    for instruction in wanted + (["tdpbusd", "tdpbssd"] if precision == "int8" else []):
        assert re.search(rf"^\s+{instruction}\s", assembly, re.MULTILINE), instruction
    assert "dlrm_tile_" not in assembly
