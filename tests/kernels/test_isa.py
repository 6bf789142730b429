"""Instruction families: each CPU gets the fastest of a precision that it has, and the table says what each needs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from dlrm_tvm.errors import UserError
from dlrm_tvm.kernels.isa import (
    AMX_FP32,
    AVX2,
    AVX2_INT8,
    AVX512,
    AVX512_BF16,
    AVX512_VNNI,
    AVX_VNNI,
    FAMILIES,
    family_for,
)
from dlrm_tvm.kernels.vectors import LANES
from dlrm_tvm.kernels.words import VALUES, Form
from dlrm_tvm.machine.cpu import BF16_FLAG, FLAG_OF_FEATURE, PRECISION_FLAGS, VNNI_FLAG
from dlrm_tvm.model.precision import PRECISIONS
from dlrm_tvm.schedules.target import cpu_target

FAMILIES_OF_CPUS = [
    ("znver4", AVX512, AVX512_BF16, AVX512_VNNI),
    ("sapphirerapids", AVX512, AVX512_BF16, AVX512_VNNI),
    ("cascadelake", AVX512, None, AVX512_VNNI),
    ("skylake-avx512", AVX512, None, AVX2_INT8),
    ("haswell", AVX2, None, AVX2_INT8),
    ("sierraforest", AVX2, None, AVX_VNNI),
    ("sandybridge", None, None, None),
]


@pytest.mark.parametrize("cpu, families", [(cpu, each) for cpu, *each in FAMILIES_OF_CPUS])
def test_a_cpu_gets_the_family_of_each_precision_that_it_has(cpu, families):
    target = cpu_target(cpu)
    if target.is_host:
        pytest.skip("a virtual machine may hide some of this host's instructions")
    assert [target.find_family(precision) for precision in PRECISIONS] == families


def test_a_cpu_without_a_family_is_refused_with_what_to_type():
    with pytest.raises(UserError, match=r"sandybridge has neither AVX-512 nor AVX2.*--tuning-log-file none"):
        cpu_target("sandybridge").family("fp32")
    with pytest.raises(UserError, match=r"--precision int8 needs avx2, fma, which sandybridge lacks"):
        cpu_target("sandybridge").family("int8")
    with pytest.raises(UserError, match=r"--precision bf16 needs avx512_bf16, which (cascadelake|this CPU) lacks"):
        cpu_target("cascadelake").family("bf16")


def test_every_precision_has_a_family_whose_flags_proc_cpuinfo_has():
    assert {family.precision for family in FAMILIES} == set(PRECISIONS)
    assert {flag for family in FAMILIES for flag in family.flags} <= set(FLAG_OF_FEATURE.values())
    assert all(family.flags for family in FAMILIES)
    assert BF16_FLAG in AVX512_BF16.flags and VNNI_FLAG in AVX512_VNNI.flags


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_refused_where_one_of_its_flags_is_missing(family):
    assert family_for(family.flags, family.precision) is family
    for missing in family.flags:
        assert family_for(set(family.flags) - {missing}, family.precision) is not family


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_multiply_add_counts_two_for_every_value_of_16_words(family):
    words = 16 * 16 * LANES if family.tiles else LANES  # tiles: 16 items x 16 outputs over 16 words
    assert family.flops_per_step == 2 * words * VALUES[family.takes]


def test_fp32_on_tiles_takes_all_products_of_parts_but_the_three_smallest():
    parts = [(x, w) for x in range(3) for w in range(3) if x + w < 3]
    assert sorted(AMX_FP32.products) == parts and len(parts) == 6
    assert all((x == y) != (w == v) for (x, w), (y, v) in pairwise(AMX_FP32.products)), "one side changes"
    assert (AMX_FP32.takes, AMX_FP32.tile_dots) == ("bf16", False)


def test_a_form_takes_no_family_of_another_precision():
    with pytest.raises(AssertionError):
        Form("int8", family=AVX512_BF16)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_flags_that_the_machine_wing_names_are_those_of_the_simplest_family(precision):
    *_, simplest = (family for family in FAMILIES if family.precision == precision)
    assert PRECISION_FLAGS[precision] == simplest.flags
