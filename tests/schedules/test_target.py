"""Targets: LLVM's names only, and no instruction that a manifest does not ask for."""

from __future__ import annotations

import pytest
import tvm
from tvm.target import codegen

from dlrm_tvm.errors import UserError
from dlrm_tvm.kernels.isa import FAMILIES
from dlrm_tvm.machine.cpu import FLAG_OF_FEATURE, host_flags
from dlrm_tvm.schedules import target

NEEDS = {
    "znver4": {"avx512f", "avx512_vnni", "avx512_bf16", "avx512_vbmi2", "gfni", "vaes", "sse4a"},
    "sapphirerapids": {"avx512f", "avx512_fp16", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "avx_vnni"},
    "skylake-avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "fma"},
    "diamondrapids": {"avx512f", "apx", "amx_fp16"},
    "haswell": {"avx2", "fma", "bmi2", "abm", "f16c"},
}


def llvm_features(cpu: str, *attributes: str) -> set[str]:
    options = {"kind": "llvm", "mcpu": cpu} | ({"mattr": list(attributes)} if attributes else {})
    return {str(feature) for feature in codegen.llvm_get_cpu_features(tvm.target.Target(options))}


@pytest.mark.parametrize("cpu", NEEDS)
def test_a_target_needs_the_flags_of_its_cpu(cpu):
    made = target.cpu_target(cpu)
    assert made.cpu == cpu
    if not made.is_host:  # a virtual machine may hide some of the host's
        assert NEEDS[cpu] <= set(made.flags)
    assert made.has("fma")
    assert made.has("avx512f") == (cpu != "haswell")


@pytest.mark.parametrize("cpu", ["znver4", "znver5", "sapphirerapids", "icelake-server", "cascadelake", "cooperlake"])
def test_every_vector_and_matrix_feature_that_llvm_reports_maps_to_a_flag(cpu):
    wide = {f for f in llvm_features(cpu) if f.startswith(("avx", "amx", "sse", "fma", "f16c", "gfni", "vaes", "vpcl"))}
    assert "avx512f" in wide
    assert sorted(wide - FLAG_OF_FEATURE.keys()) == []


def test_this_host_is_the_default_and_its_code_needs_only_what_it_has():
    made = target.cpu_target(None)
    assert made.is_host
    assert set(made.flags) <= host_flags()
    assert target.cpu_target(made.cpu).is_host


SAPPHIRE_RAPIDS = frozenset(FLAG_OF_FEATURE[f] for f in llvm_features("sapphirerapids") if f in FLAG_OF_FEATURE)


@pytest.mark.parametrize(
    "named, vendor, flags, cpu",
    [
        ("rocketlake", "intel", SAPPHIRE_RAPIDS, "sapphirerapids"),  # a Granite Rapids under QEMU said so
        ("rocketlake", "intel", SAPPHIRE_RAPIDS | {"amx_fp16"}, "graniterapids"),
        ("x86-64", "intel", {"fma", "avx2", "bmi2"}, "haswell"),
        ("x86-64", "amd", SAPPHIRE_RAPIDS, "znver5"),  # a Zen that LLVM does not know yet
        ("emeraldrapids", "intel", SAPPHIRE_RAPIDS, "emeraldrapids"),
        ("sapphirerapids", "intel", {"fma", "avx2"}, "sapphirerapids"),  # instructions hidden: the name stays
        ("x86-64", "other", SAPPHIRE_RAPIDS, "x86-64"),
    ],
)
def test_a_host_whose_model_number_hides_instructions_that_it_has_is_named_by_them(
    monkeypatch, named, vendor, flags, cpu
):
    monkeypatch.setattr(codegen, "llvm_get_system_cpu", lambda: named)
    monkeypatch.setattr(codegen, "llvm_get_system_x86_vendor", lambda: vendor)
    monkeypatch.setattr(target, "host_flags", lambda: frozenset(flags))
    made = target.cpu_target(None)
    assert (made.cpu, made.is_host) == (cpu, True)
    assert made.by_number == (None if cpu == named else named)
    assert set(made.flags) <= flags
    of_kernels = {flag for family in FAMILIES for flag in family.flags}
    assert vendor != "intel" or of_kernels & set(flags) <= set(made.flags)


def test_instructions_that_a_virtual_machine_hides_are_switched_off(monkeypatch):
    shown = target.cpu_target(None)
    hidden = [flag for flag in ("avx512_bf16", "gfni") if shown.has(flag)]
    if not hidden:
        pytest.skip("this CPU has neither avx512_bf16 nor gfni to hide")
    monkeypatch.setattr(target, "host_flags", lambda: host_flags() - set(hidden))
    made = target.cpu_target(None)
    assert set(shown.flags) - set(made.flags) == set(hidden)
    attributes = [str(attribute) for attribute in made.tvm_target.attrs["mattr"]]
    enabled = llvm_features(made.cpu, *attributes)
    assert not {feature for feature in enabled if FLAG_OF_FEATURE.get(feature) in hidden}


@pytest.mark.parametrize("name, near", [("znver44", "znver4"), ("sapphirerapid", "sapphirerapids"), ("@@@", "znver4")])
def test_an_unknown_cpu_is_refused_with_names_near_it(name, near):
    with pytest.raises(UserError, match=f"--target-cpu {name} is not a CPU that LLVM knows. Try .*{near}"):
        target.cpu_target(name)


@pytest.mark.parametrize("name", ["", "native", "generic-nonsense"])
def test_names_that_llvm_would_take_for_generic_code_are_refused(name):
    with pytest.raises(UserError, match="is not a CPU that LLVM knows"):
        target.cpu_target(name)
