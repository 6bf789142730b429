"""Networks of random shapes with the rule's schedules against the formulas of their precision, item by item
(models.py, quantized_formulas.py), for rows and for bags; on any CPU, as portable_ir.py replaces the instructions."""

from __future__ import annotations

import numpy as np
import pytest
from models import assert_close, flat_bags, library_in_memory, numpy_predictions, random_bags, random_batch, random_dlrm
from portable_ir import portable
from quantized import dynamic, static
from quantized_formulas import quantized_predictions

from dlrm_tvm.compiler.plan import layer_shapes
from dlrm_tvm.kernels.gather import Prefetch
from dlrm_tvm.kernels.isa import AVX2, AVX2_INT8, AVX512, AVX512_BF16, AVX512_VNNI, AVX_VNNI, Family
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.precision import Numerics, numerics_of
from dlrm_tvm.schedules.rules import NetworkSchedule, Schedules, default_dense, default_network

CLOSE, STEP = 1e-5, 0.05
FAMILIES = (AVX512, AVX512_BF16, AVX512_VNNI, AVX2, AVX2_INT8, AVX_VNNI, AVX512_BF16, AVX512_VNNI)


def random_shape(rng: np.random.Generator) -> dict:
    """Arguments of random_dlrm; in half of them an MLP has no hidden layer."""

    def widths() -> list[int]:
        return rng.integers(1, 90, rng.integers(0, 4)).tolist()

    tables = int(rng.integers(1, 9))
    return {
        "num_dense": int(rng.integers(1, 60)),
        "table_rows": rng.integers(1, 60, tables).tolist(),
        "dim": int(rng.choice([rng.integers(1, 20), rng.integers(20, 90)])),
        "bottom": widths(),
        "top": widths(),
        "interaction": str(rng.choice(["cross", "dot", "cat", "cross", "dot_self"])),
        "ranks": [None if rank > 40 else rank for rank in rng.integers(1, 60, rng.integers(1, 4)).tolist()],
        "bottom_activation": str(rng.choice(["relu", "none"])),
    }


def schedules(model: Dlrm, numerics: Numerics, family: Family, batch: int) -> Schedules:
    network = default_network(batch, family.registers, family.precision)
    return by_rule(model, numerics, family, network)


def by_rule(model: Dlrm, numerics: Numerics, family: Family, network: NetworkSchedule) -> Schedules:
    def rule(layer):
        return default_dense(network.mr, layer.outputs, family.registers, layer.unit)

    return Schedules.given(network, rule, layer_shapes(model, numerics, family))


@pytest.mark.parametrize("seed", [1, 2, 4, 5, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 24))])
def test_a_network_of_any_shape_gives_what_the_formulas_give(seed: int, require_fma: None) -> None:
    family = FAMILIES[seed % len(FAMILIES)]
    rng = np.random.default_rng(seed)
    shape, batch = random_shape(rng), int(rng.integers(1, 40))
    model = random_dlrm(**shape, seed=seed)
    if family.precision == "fp32":
        numerics, wanted_of = numerics_of(model, "fp32"), numpy_predictions
    else:
        is_static = family.precision == "int8" and seed % 4
        numerics = static(model, family=family) if is_static else dynamic(model, family.precision, family=family)

        def wanted_of(model, *inputs):
            return quantized_predictions(model, numerics, *inputs)

    run = library_in_memory(model, batch, schedules(model, numerics, family, batch), numerics, portable(family))
    dense, indices = random_batch(model, batch)
    bags, offsets = random_bags(model, batch)
    flat, begins = flat_bags(bags, offsets, batch)
    for got, wanted in (
        (run(dense, indices), wanted_of(model, dense, indices)),
        (run(dense, flat, 2, begins), wanted_of(model, dense, bags, offsets)),
    ):
        error = np.abs(got - wanted)
        most = CLOSE if family.precision == "fp32" else STEP
        assert error.max() <= most and np.median(error) <= CLOSE, (shape, batch, error)


@pytest.mark.parametrize("batch, interaction", [(7, "dot"), (17, "dot"), (10, "cross"), (12, "cross")])
def test_a_last_tile_of_any_height_gives_what_the_formulas_give(
    batch: int, interaction: str, require_fma: None
) -> None:
    model, network = random_dlrm(interaction=interaction), NetworkSchedule(6, 2, Prefetch(every=1, locality=2))
    numerics = numerics_of(model, "fp32")
    run = library_in_memory(model, batch, by_rule(model, numerics, AVX2, network), numerics, AVX2)
    dense, indices = random_batch(model, batch)
    for threads in (1, 2):
        assert_close(run(dense, indices, threads), numpy_predictions(model, dense, indices))
    flat, begins = flat_bags(*random_bags(model, batch), batch)
    assert_close(run(dense, flat, 1, begins), numpy_predictions(model, dense, *random_bags(model, batch)))
