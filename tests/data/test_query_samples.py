"""MLPerf's query samples: how many items each has, and which."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from models import random_dlrm

from dlrm_tvm.data.query_samples import SampleLibrary, SampleSpec, plan_samples, sample_lengths
from dlrm_tvm.errors import UserError
from dlrm_tvm.machine.shared_memory import SharedArrays
from dlrm_tvm.model.card import ModelCard, describe
from dlrm_tvm.model.dlrm import GraphInputs
from dlrm_tvm.runtime.typed_json import read_as

ROWS = (5, 7, 300)


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return describe(replace(random_dlrm(table_rows=ROWS), graph_inputs=GraphInputs("d", ("i",), (), "pred")))


def write_npz(path: Path, items: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(items)
    arrays = {
        "X_int": rng.random((items, 13), dtype=np.float32),
        "X_cat": rng.integers(0, ROWS, (items, 3)),
        "torch_res": rng.random(items, dtype=np.float32),
        "target": rng.integers(0, 2, items).astype(np.float32),
    }
    np.savez(path, **arrays)
    return arrays


def loaded(spec: SampleSpec, card: ModelCard, threads: int = 1) -> SampleLibrary:
    library = SampleLibrary(spec, SharedArrays.create(spec.layout).descriptor)
    library.load(card, threads)
    return library


def sent(spec: SampleSpec) -> SampleSpec:
    """As another process receives it."""
    return read_as(SampleSpec, json.loads(json.dumps(asdict(spec))), "samples")


def test_lengths_follow_mlperfs_quantiles() -> None:
    """dist_quantile.txt: two of twenty have 100 items, twelve 200, two 300, one each 400, 500, 600 and 700."""
    lengths = sample_lengths(204_800)
    shares = {int(value): count / len(lengths) for value, count in zip(*np.unique(lengths, return_counts=True))}
    wanted = {100: 2, 200: 12, 300: 2, 400: 1, 500: 1, 600: 1, 700: 1}
    assert shares == pytest.approx({items: of_twenty / 20 for items, of_twenty in wanted.items()}, abs=0.003)
    assert lengths.mean() == pytest.approx(270, rel=0.005)


def test_lengths_are_mlperfs_own_trace() -> None:
    """dlrm_trace_of_aggregated_samples.txt, by the MD5 that MLPerf's README gives: begin, end, items of each sample."""
    items = 89_137_319
    ends = np.cumsum(sample_lengths(340_000))
    ends = np.minimum(ends[: int(np.searchsorted(ends, items)) + 1], items)
    begins = np.concatenate([[0], ends[:-1]])
    trace = "".join(f"{begin}, {end}, {end - begin}\n" for begin, end in zip(begins.tolist(), ends.tolist()))
    assert len(ends) == 330_067
    assert hashlib.md5(trace.encode(), usedforsecurity=False).hexdigest() == "3db90209564316f2506c99cc994ad0b2"


def test_fewer_samples_are_the_first_of_more() -> None:
    assert (sample_lengths(50) == sample_lengths(1000)[:50]).all()


def test_random_library_is_the_same_however_many_threads_draw_it(card: ModelCard) -> None:
    spec = plan_samples(card, 600, None)
    assert spec.items == sample_lengths(600).sum()
    one, three = loaded(spec, card, threads=1), loaded(spec, card, threads=3)
    assert (one.dense == three.dense).all() and (one.indices == three.indices).all()
    assert one.indices.min() == 0 and (one.indices.max(axis=0) == np.array(ROWS) - 1).all()
    assert one.dense.min() >= 0 and one.dense.max() < 5
    assert one.dense[-1].any(), "the last items were not drawn"


def test_a_files_samples_hold_each_of_its_items_once_and_in_order(card: ModelCard, tmp_path: Path) -> None:
    arrays = write_npz(tmp_path / "data.npz", 1234)
    spec = plan_samples(card, 1000, str(tmp_path / "data.npz"))
    library = loaded(spec, card)
    lengths = np.diff(library.begins)
    assert spec.items == lengths.sum() == 1234
    assert (lengths[:-1] == sample_lengths(len(lengths))[:-1]).all() and 0 < lengths[-1] <= 700
    assert (library.dense == arrays["X_int"]).all() and (library.indices == arrays["X_cat"]).all()
    assert (library.labels == arrays["target"]).all() and spec.has_labels


def test_fewer_samples_of_a_file_are_its_head(card: ModelCard, tmp_path: Path) -> None:
    arrays = write_npz(tmp_path / "data.npz", 1234)
    spec = plan_samples(card, 2, str(tmp_path / "data.npz"))
    assert (spec.samples, spec.items) == (2, sample_lengths(2).sum())
    assert (loaded(spec, card).dense == arrays["X_int"][: spec.items]).all()


@pytest.mark.parametrize("items", [1, 99, 100, 101])
def test_files_of_about_one_sample_are_one_or_two(card: ModelCard, tmp_path: Path, items: int) -> None:
    write_npz(tmp_path / "data.npz", items)
    spec = plan_samples(card, 10, str(tmp_path / "data.npz"))
    assert np.diff(spec.begins).sum() == items and (np.diff(spec.begins) > 0).all()


def bags_card(card: ModelCard) -> ModelCard:
    return replace(card, graph_inputs=GraphInputs("d", ("i",), ("o",), "pred"))


def write_bags(path: Path, lengths: list[int]) -> np.ndarray:
    """Items of `lengths` indices each in every table -> the indices [3, all of them]."""
    items, begins = len(lengths), np.concatenate([[0], np.cumsum(lengths)[:-1]])
    indices = np.random.default_rng(0).integers(0, 5, (3, sum(lengths)))
    arrays = {"d": np.zeros((items, 13), np.float32), "pred": np.zeros(items, np.float32)}
    np.savez(path, **arrays, i=indices, o=np.tile(begins, (3, 1)))
    return indices


def test_recorded_bags_of_one_length_lie_side_by_side(card: ModelCard, tmp_path: Path) -> None:
    indices = write_bags(tmp_path / "bags.npz", [2] * 150)
    spec = plan_samples(bags_card(card), 10, str(tmp_path / "bags.npz"))
    assert (spec.lengths, spec.items) == ((2, 2, 2), 150) and sent(spec) == spec
    found = loaded(spec, bags_card(card)).indices
    assert (found == indices.reshape(3, 150, 2).transpose(1, 0, 2).reshape(150, 6)).all()


def test_recorded_bags_of_several_lengths_are_refused(card: ModelCard, tmp_path: Path) -> None:
    write_bags(tmp_path / "bags.npz", [2] * 8 + [3] + [2] * 8)
    spec = plan_samples(bags_card(card), 10, str(tmp_path / "bags.npz"))
    with pytest.raises(UserError, match=r"item 8 has 3 indices for table 0, the first 2; LoadGen's samples"):
        loaded(spec, bags_card(card))


def test_random_bags_are_rows_of_their_tables(card: ModelCard) -> None:
    fixed = replace(card, graph_inputs=replace(card.graph_inputs, indices_per_bag=(4, 1, 9)))
    spec = plan_samples(fixed, 50, None)
    indices = loaded(spec, fixed).indices
    assert indices.shape == (spec.items, 14)
    for columns, rows in zip(((0, 4), (4, 5), (5, 14)), ROWS):
        assert set(np.unique(indices[:, slice(*columns)])) == set(range(rows))


def test_tables_beyond_int32_are_refused() -> None:
    with pytest.raises(UserError, match=r"tables of up to 2,147,483,647 rows"):
        plan_samples(SimpleNamespace(table_rows=(5, 2**31), num_dense=13), 10, None)


def test_spec_survives_json(card: ModelCard) -> None:
    spec = plan_samples(card, 3, None)
    assert sent(spec) == spec
