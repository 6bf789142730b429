"""Dot interaction alone: every pair once, each dot where the stated order has it, with few registers too."""

from __future__ import annotations

import numpy as np
import pytest
from bare_kernels import call, compiled, kernel
from tvm.tirx.script.builder import ir as T

from dlrm_tvm.kernels.isa import AVX2, AVX512
from dlrm_tvm.kernels.vectors import LANES, load, store
from dlrm_tvm.kernels.words import FP32
from dlrm_tvm.model.interactions import Dot
from dlrm_tvm.network.pair_dots import dot_interaction, group_pairs

# Full blocks of 4 x 4 pairs begin at 8 vectors; n % 4 of 0..3; the last group full and not, its second half empty
# (2, 3, 9 and 11 vectors) and not.
INTERACTIONS = [
    (2, 16, False), (2, 32, True), (3, 128, False), (4, 16, True), (5, 32, False), (7, 16, True), (8, 128, False),
    (9, 16, False), (11, 48, False), (12, 32, True), (15, 16, False), (27, 128, False), (27, 16, True), (30, 32, False),
]  # fmt: skip
FAMILIES = (AVX2, AVX512)  # both run wherever AVX2 does: LLVM makes two instructions of one


def pair_groups(count: int, with_self: bool):
    return group_pairs(Dot(with_self).pairs(count), count)


def interaction_name(family, count: int, dim: int, with_self: bool) -> str:
    return f"{family.name}_{count}_{dim}_{with_self}"


def interaction_function(family, count: int, dim: int, with_self: bool):
    def body(b) -> None:
        def row(i):
            at = T.bind(i * dim)
            return lambda chunk: load(b["z"], at + chunk * LANES)

        def write(group, sums, *_) -> None:
            store(b["y"], group * LANES, sums)

        first_row = lambda: lambda chunk: load(b["z"], chunk * LANES)  # noqa: E731
        dot_interaction(pair_groups(count, with_self), dim, row, first_row, write, FP32, family.registers)

    groups = pair_groups(count, with_self).num_groups
    sizes = {"z": (count * dim, "float32"), "y": (groups * LANES, "float32")}
    return kernel(interaction_name(family, count, dim, with_self), sizes, body)


@pytest.fixture(scope="module")
def interactions(require_fma):
    return compiled([interaction_function(family, *case) for family in FAMILIES for case in INTERACTIONS])


@pytest.mark.parametrize("count, dim, with_self", INTERACTIONS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_dot_interaction_gives_each_pairs_dot_in_the_order_it_states(interactions, family, count, dim, with_self):
    z = np.random.default_rng(count).normal(size=(count, dim)).astype(np.float32)
    order = pair_groups(count, with_self).order
    y = np.full(len(order), np.nan, np.float32)
    y = call(interactions[interaction_name(family, count, dim, with_self)], z.reshape(-1), y)[1]
    exact = z.astype("f8") @ z.T.astype("f8")
    wanted = [0 if pair is None else exact[pair] for pair in order]
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_self", [False, True])
def test_interaction_order_holds_every_pair_once_for_any_number_of_vectors(with_self):
    for count in range(2, 60):
        groups = pair_groups(count, with_self)
        i, j = np.tril_indices(count, 0 if with_self else -1)
        pairs = [pair for pair in groups.order if pair is not None]
        assert sorted(pairs) == sorted(zip(i.tolist(), j.tolist()))
        assert len(groups.order) == groups.num_groups * LANES < len(pairs) + LANES


def test_the_mlperf_interaction_fills_22_groups_but_one_lane():
    order = pair_groups(27, False).order
    assert (len(order), order.count(None)) == (352, 1)
