"""Cross layers in bf16 and int8 on vectors and on tiles, against NumPy that rounds as they do; on any CPU, as the
instructions are replaced by LLVM IR of the same meaning (portable_ir.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models import flat_bags, library_in_memory, random_bags, random_batch, random_dlrm
from portable_ir import portable
from quantized import check_one_hot_and_in_bags, dynamic, static

from dlrm_tvm.compiler.calibration import _largest, with_ranges
from dlrm_tvm.compiler.plan import layer_shapes
from dlrm_tvm.kernels.dense import DenseSchedule
from dlrm_tvm.kernels.gather import Prefetch
from dlrm_tvm.kernels.isa import AMX_BF16, AMX_INT8, AVX2_INT8, AVX512_BF16, AVX512_VNNI, Family
from dlrm_tvm.kernels.tile_dense import PANEL
from dlrm_tvm.model import reference_quantized
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.precision import Numerics
from dlrm_tvm.schedules.rules import NetworkSchedule, Schedules, default_dense

MODELS = {
    "low rank": {"ranks": (6, 40)},
    "odd widths": {"dim": 20, "ranks": (5, None, 7), "top": (40, 17)},
    # 6 vectors, of which 3 fill the registers best: x0 and x_l are read in pairs
    "no hidden top": {"ranks": (None, None), "top": (), "table_rows": (5, 7)},
    "no cross layers": {"interaction": "cat", "dim": 20},
}
STEP = 0.02
SLOW = [pytest.mark.slow]


def assert_agree(got: np.ndarray, wanted: np.ndarray) -> None:
    """Sums that differ in their last bit may round to another neighbour: few items, by little."""
    error = np.abs(got - wanted)
    assert error.max() <= STEP, error
    assert (error <= 1e-5).sum() >= len(error) - max(1, len(error) // 6), error


def network(model: Dlrm, family: Family, batch: int, mr: int, numerics: Numerics | None = None):
    numerics = numerics or dynamic(model, family.precision, "bf16" if family.tiles else "fp32", family)
    schedule = NetworkSchedule(mr, 4 if family.tiles else 2, Prefetch(every=4, locality=2))

    def dense(layer) -> DenseSchedule:
        return (
            DenseSchedule(PANEL, 1) if family.tiles else default_dense(mr, layer.outputs, family.registers, layer.unit)
        )

    schedules = Schedules.given(schedule, dense, layer_shapes(model, numerics, family))
    return numerics, library_in_memory(model, batch, schedules, numerics, portable(family))


def cases() -> list:
    """Compiling takes seconds each, on tiles half a minute."""
    quick = {("avx512_bf16", "odd widths"), ("avx512_bf16", "no hidden top"), ("avx512_vnni", "low rank")}
    quick |= {("avx2_int8", "odd widths")}
    return [
        pytest.param(family, name, id=f"{family.name} {name}", marks=[] if (family.name, name) in quick else SLOW)
        for family in (AVX512_BF16, AVX512_VNNI, AVX2_INT8, AMX_BF16, AMX_INT8)
        for name in MODELS
    ]


def static_cases() -> list:
    quick = {("avx512_vnni", "odd widths"), ("avx512_vnni", "no cross layers"), ("amx_int8", "low rank")}
    quick |= {("avx2_int8", "low rank")}
    return [
        pytest.param(family, name, id=f"{family.name} {name}", marks=[] if (family.name, name) in quick else SLOW)
        for family in (AVX512_VNNI, AVX2_INT8, AMX_INT8)
        for name in MODELS
    ]


@pytest.mark.parametrize("family, name", cases())
def test_a_network_agrees_with_numpy_in_the_same_numbers(family: Family, name: str, require_fma) -> None:
    model = random_dlrm(**{"interaction": "cross", **MODELS[name]})
    batch, mr = (23, 5) if family.tiles else (11, 5)
    numerics, run = network(model, family, batch, mr)
    check_one_hot_and_in_bags(run, model, numerics, batch, assert_agree)


@pytest.mark.slow
def test_a_batch_of_one_agrees_too(require_fma) -> None:
    model = random_dlrm(interaction="cross", ranks=(5, None))
    numerics, run = network(model, AVX512_VNNI, 1, 1)
    check_one_hot_and_in_bags(run, model, numerics, 1, assert_agree)


def from_bags(model: Dlrm, family: Family) -> Numerics:
    """Scales that were found on bags, of which few have ten times the rows of others: coarse, and some values are cut
    off."""
    numerics = dynamic(model, "int8", "bf16" if family.tiles else "fp32", family)
    items = (random_batch(model, 200, seed=9)[0], *random_bags(model, 200, seed=9))
    return with_ranges(model, numerics, _largest(model, *items), "random bags")


@pytest.mark.parametrize("family, name", static_cases())
def test_static_scales_agree_too(family: Family, name: str, require_fma) -> None:
    model = random_dlrm(**{"interaction": "cross", **MODELS[name]})
    batch, mr = (23, 5) if family.tiles else (11, 5)
    numerics, run = network(model, family, batch, mr, from_bags(model, family))
    assert (numerics.vector_factors(model) < 1).any()
    check_one_hot_and_in_bags(run, model, numerics, batch, assert_agree, within=None)


def test_bags_longer_than_any_of_calibration_are_cut_off_at_its_range(require_fma) -> None:
    """Sums of 300 bytes are beyond 16 bits; rows alone keep their tables' scales."""
    model = random_dlrm(interaction="cross", ranks=(6, 40))
    numerics, run = network(model, AVX512_VNNI, 11, 5, static(model))
    assert (numerics.vector_factors(model) == 1).all()
    dense, _ = random_batch(model, 11)
    indices = [np.repeat(np.arange(11) % table.num_rows, 300) for table in model.tables]
    offsets = [np.arange(11) * 300] * len(indices)
    wanted = reference_quantized.predict(model, numerics, dense, indices, offsets)
    flat, begins = flat_bags(indices, offsets, 11)
    assert_agree(run(dense, flat, offsets=begins), wanted)


def test_scales_keep_columns_apart_and_sums_of_rows_whole() -> None:
    """x0 has one for each vector, x_l one for each column with a margin of a tenth."""
    model = random_dlrm(interaction="cross", ranks=(6, None), table_rows=(5, 7), dim=4)
    rng = np.random.default_rng(0)
    largest = [rng.uniform(1, 2, layer.inputs).astype("f4") for layer in model.layers]
    first = len(model.bottom)
    largest[first][4:8] = 127 * 0.01
    numerics = dynamic(model, "int8")
    numerics = with_ranges(model, replace(numerics, table_scales=np.float32([0.01, 0.005])), largest, "here")
    x0, u, x1, x2 = (each.scales for each in numerics.layers[first : model.first_top + 1])
    scales = [largest[first][:4].max() / 127, 0.01, 1.1 * largest[first][8:].max() / 127]
    np.testing.assert_allclose(x0, np.repeat(scales, 4), rtol=1e-6)
    np.testing.assert_allclose(u, largest[first + 1].max() / 127)
    np.testing.assert_allclose(x1, largest[first + 2] * 1.1 / 127)
    np.testing.assert_allclose(x2, largest[first + 3] * 1.1 / 127)
    np.testing.assert_allclose(numerics.vector_factors(model), [1, 0.005 / x0[8]])
