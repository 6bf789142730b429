"""Libraries timed in turns: by a made-up clock, which rates are reported; by a real one, that libraries run."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from models import build_plain, random_dlrm

from dlrm_tvm.compiler import ranking
from dlrm_tvm.compiler.ranking import items_per_second
from dlrm_tvm.model.card import describe

BATCH = 100
CARD = describe(random_dlrm(table_rows=(100_000, 3), dim=128))
L3 = 32 << 20
RATES = {"a": 200_000, "b": 50_000, "c": 220_000}  # items/s


@pytest.fixture
def made_up(monkeypatch) -> SimpleNamespace:
    """now: seconds; runs: (library, its batch) of each call. Libraries take what RATES says; slow_until: or ten times
    as long."""
    made = SimpleNamespace(now=0.0, runs=[], slow_until=0.0)

    class FakeExecutor:
        batch_size = BATCH

        def __init__(self, library: Path) -> None:
            self.name, self.artifact = library.name, SimpleNamespace(manifest=SimpleNamespace(model=CARD))

        def prepare(self, dense: np.ndarray, indices: np.ndarray) -> np.ndarray:
            assert (dense.shape, indices.shape) == ((BATCH, 13), (BATCH, 2))
            return indices

        def run(self, batch: np.ndarray) -> None:
            made.runs.append((self.name, batch))
            made.now += BATCH / RATES[self.name] * (10 if made.now < made.slow_until else 1)

    monkeypatch.setattr(ranking, "Executor", FakeExecutor)
    monkeypatch.setattr(ranking, "open_artifact", lambda path: path)
    return made


def measured(made: SimpleNamespace) -> dict[str, float]:
    return dict(zip(RATES, items_per_second([Path(name) for name in RATES], L3, lambda: made.now)))


def test_rates_are_those_of_the_libraries_in_about_a_second(made_up):
    assert measured(made_up) == pytest.approx(RATES)
    assert made_up.now < 1.2


def test_a_disturbance_of_two_rounds_changes_nothing(made_up):
    made_up.slow_until = 0.6 + 2 * 3 * 0.03  # after 3 x 0.2 s of warming up
    assert measured(made_up) == pytest.approx(RATES)


def test_libraries_take_turns_over_rows_that_they_have_read_before(made_up):
    measured(made_up)
    turns = [(name, [id(batch) for _, batch in runs]) for name, runs in groupby(made_up.runs, lambda run: run[0])]
    assert [name for name, _ in turns] == list("abc") * 6, "a warm-up each, then five rounds"
    warm = dict(turns[:3])
    for name, batches in turns[3:]:
        assert set(batches) <= set(warm[name])
    assert len(set(warm["b"])) == len(warm["b"]) >= 100, "every batch of the warm-up has rows of its own"


def test_rows_are_random_over_whole_tables(made_up):
    measured(made_up)
    rows = np.concatenate([batch[:, 0] for name, batch in made_up.runs if name == "a"])
    assert rows.min() < 1_000 and rows.max() >= 99_000
    assert abs(rows.mean() - 50_000) < 1_000


def test_real_libraries_are_timed(tmp_path):
    libraries = [build_plain(random_dlrm(), batch, tmp_path / str(batch)) for batch in (1, 8)]
    rates = items_per_second(libraries, 1 << 20)
    assert len(rates) == 2 and all(0 < rate < 1e9 for rate in rates)
