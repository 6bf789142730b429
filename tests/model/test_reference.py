"""The NumPy reference's bags against sums written out, and against torch.nn.EmbeddingBag where torch is there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dlrm_tvm.model.dlrm import Dense, Dlrm, GraphInputs, Table
from dlrm_tvm.model.interactions import Dot
from dlrm_tvm.model.reference import bag, predict

RNG = np.random.default_rng(5)
ROWS = RNG.standard_normal((6, 3)).astype(np.float32)
FACTORS = RNG.standard_normal(6).astype(np.float32)
INDICES = np.array([5, 0, 0, 2, 4, 1])
OFFSETS = np.array([0, 2, 2, 3, 6])  # 2 rows, none, 1 row, 3 rows, none


def test_bags_are_sums_of_rows_and_empty_bags_are_zeros() -> None:
    zeros = np.zeros(3)
    wanted = np.stack([ROWS[5] + ROWS[0], zeros, ROWS[0], ROWS[2] + ROWS[4] + ROWS[1], zeros])
    np.testing.assert_allclose(bag(Table("t", ROWS), INDICES, OFFSETS), wanted, rtol=1e-6)


def test_mean_divides_by_the_number_of_rows_and_leaves_empty_bags_zero() -> None:
    sums = bag(Table("t", ROWS), INDICES, OFFSETS)
    means = bag(Table("t", ROWS, "mean"), INDICES, OFFSETS)
    np.testing.assert_allclose(means * np.array([2, 1, 1, 3, 1])[:, None], sums, rtol=1e-12)


@pytest.mark.parametrize(("pooling", "factors"), [("sum", None), ("mean", None), ("sum", FACTORS)])
def test_bags_equal_torchs_embedding_bag(pooling: str, factors: np.ndarray | None) -> None:
    torch = pytest.importorskip("torch")
    weights = None if factors is None else torch.from_numpy(factors[INDICES])
    wanted = torch.nn.functional.embedding_bag(
        torch.from_numpy(INDICES),
        torch.from_numpy(ROWS),
        torch.from_numpy(OFFSETS),
        mode=pooling,
        per_sample_weights=weights,
    )
    np.testing.assert_allclose(bag(Table("t", ROWS, pooling, factors), INDICES, OFFSETS), wanted.numpy(), atol=1e-6)


def small_model() -> Dlrm:
    def layer(fan_in: int, fan_out: int) -> Dense:
        return Dense(RNG.standard_normal((fan_out, fan_in)).astype(np.float32), np.zeros(fan_out, np.float32), "none")

    tables = (Table("a", ROWS), Table("b", ROWS[::-1].copy()))
    names = GraphInputs("dense", ("i",), ("o",), "pred")
    return Dlrm("small", (layer(2, 3),), tables, Dot(), (layer(6, 1),), names)


def test_bags_of_one_index_give_what_no_offsets_give() -> None:
    model, dense = small_model(), RNG.standard_normal((4, 2))
    indices = np.array([[0, 5], [3, 3], [1, 0], [2, 4]])
    ones = predict(model, dense, list(indices.T), [np.arange(4)] * 2)
    np.testing.assert_array_equal(predict(model, dense, indices), ones)


def test_clamp_cuts_predictions_off() -> None:
    model, dense = small_model(), RNG.standard_normal((50, 2))
    indices = RNG.integers(0, 6, (50, 2))
    free = predict(model, dense, indices)
    clamped = predict(dataclasses.replace(model, clamp=(-0.5, 0.25)), dense, indices)
    assert free.min() < -0.5 < 0.25 < free.max()
    np.testing.assert_array_equal(clamped, np.minimum(np.maximum(free, -0.5), 0.25))
