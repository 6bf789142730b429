"""Networks with cross layers give the formulas' numbers: any ranks, schedules, threads, one index per bag and bags."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from models import (
    assert_close,
    flat_bags,
    library_in_memory,
    numpy_predictions,
    random_bags,
    random_batch,
    random_dlrm,
    schedules_of,
)

from dlrm_tvm.kernels.gather import Prefetch
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.schedules.rules import NetworkSchedule


@dataclass(frozen=True)
class Case:
    """mr None: TVM's default code generation."""

    batch: int
    dim: int
    ranks: tuple[int | None, ...]
    mr: int | None
    block_tiles: int = 1
    top: tuple[int, ...] = (24,)

    def __str__(self) -> str:
        return f"b{self.batch}-d{self.dim}-{'-'.join(map(str, self.ranks))}-mr{self.mr}-blk{self.block_tiles}"

    def model(self) -> Dlrm:
        model = random_dlrm(
            dim=self.dim, interaction="cross", ranks=self.ranks, top=self.top, sigmoid_layer=0 if self.top else -1
        )
        return replace(model, tables=tuple(replace(table, pooling=how) for table, how in zip(model.tables, POOLINGS)))


POOLINGS = ("sum", "mean", "sum")
CASES = [
    Case(1, 20, (5, None), 1),
    Case(1, 16, (None, None, 33), 1, top=()),
    Case(7, 16, (16, 6, 40), 3, 2),
    Case(11, 4, (None, 7, None, None), 5, 2),
    Case(11, 48, (1,), 4, 3, top=()),
    Case(12, 1, (None,), 6, 1),
    Case(7, 20, (5, None, 3), None),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def compiled(request, require_fma):
    case = request.param
    model, schedules = case.model(), None
    if case.mr is not None:
        schedules = schedules_of(model, case.batch, NetworkSchedule(case.mr, case.block_tiles, Prefetch(1, 2)))
    return model, case.batch, library_in_memory(model, case.batch, schedules)


def test_predictions_are_those_of_the_formulas(compiled) -> None:
    model, batch, run = compiled
    for seed in (1, 2):
        dense, indices = random_batch(model, batch, seed)
        wanted = numpy_predictions(model, dense, indices)
        assert_close(run(dense, indices, threads=seed), wanted)
        assert batch == 1 or wanted.std() > 1e-3, "predictions are spread, so that a wrong one shows"


def test_bags_are_joined_as_their_sums_or_means(compiled) -> None:
    model, batch, run = compiled
    dense, _ = random_batch(model, batch)
    indices, offsets = random_bags(model, batch)
    flat, begins = flat_bags(indices, offsets, batch)
    assert_close(run(dense, flat, offsets=begins), numpy_predictions(model, dense, indices, offsets))


def test_wrong_input_poisons_its_own_item_alone(compiled) -> None:
    model, batch, run = compiled
    dense, indices = random_batch(model, batch)
    wanted = numpy_predictions(model, dense, indices)
    indices[batch // 2, 1], wanted[batch // 2] = -1, np.nan
    dense[-1, 2], wanted[-1] = np.inf, np.nan
    found = run(dense, indices)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    assert_close(found[~np.isnan(wanted)], wanted[~np.isnan(wanted)])
