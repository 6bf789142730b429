"""Whole networks: every shape and schedule gives the paper's numbers, on any number of threads, on bad input too."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from graphs import onnxruntime_predictions, random_items, write_dlrm
from models import (
    assert_close,
    flat_bags,
    job_of,
    library_in_memory,
    numpy_predictions,
    random_bags,
    random_batch,
    random_dlrm,
    schedules_of,
)
from onnx import numpy_helper

from dlrm_tvm.compiler import pipeline
from dlrm_tvm.compiler.plan import plan_network
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.kernels import embedding_bag
from dlrm_tvm.kernels.dense import DenseSchedule
from dlrm_tvm.kernels.gather import Prefetch
from dlrm_tvm.model import reference
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.network.functions import network
from dlrm_tvm.schedules import target
from dlrm_tvm.schedules.rules import LayerShape, NetworkSchedule, default_dense


@dataclass(frozen=True)
class Case:
    """A model's shape and the schedule it is compiled with; nr None: the rule's schedules."""

    batch: int
    tables: int
    dim: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    interaction: str
    mr: int
    block_tiles: int
    every: int
    nr: int | None
    unroll: int = 1
    sigmoid_layer: int = -1
    bottom_activation: str = "relu"
    last_activation: str = "none"
    num_dense: int = 13
    clamp: tuple[float, float] | None = None
    k_blocks: int = 1

    def model(self) -> Dlrm:
        """Every third table averages its bags, which for bags of one row is their sum too."""
        model = random_dlrm(
            num_dense=self.num_dense,
            table_rows=[1 + (7 * t) % 11 for t in range(self.tables)],
            dim=self.dim,
            bottom=self.bottom,
            top=self.top,
            interaction=self.interaction,
            sigmoid_layer=self.sigmoid_layer,
            bottom_activation=self.bottom_activation,
            last_activation=self.last_activation,
            seed=self.batch,
        )
        tables = [replace(table, pooling="mean" if t % 3 == 1 else "sum") for t, table in enumerate(model.tables)]
        return replace(model, tables=tuple(tables), clamp=self.clamp)

    def __str__(self) -> str:
        schedule = f"mr{self.mr}-blk{self.block_tiles}-f{self.every}-nr{self.nr}-u{self.unroll}"
        schedule += "" if self.k_blocks == 1 else f"-k{self.k_blocks}"
        return f"b{self.batch}-t{self.tables}-d{self.dim}-{self.interaction}-{schedule}"


# Chosen so that every value of every column meets most values of every other, at batch = mr - 1, mr, mr + 1 and around
# whole blocks; the full product would take hours.
TUNED = [
    #    batch T  dim  bottom        top          interaction mr bt every nr unroll
    Case(1, 26, 16, (20,), (40, 17), "dot", 1, 1, 1, 64),
    Case(1, 3, 128, (), (), "cat", 1, 1, 0, None),
    Case(1, 1, 1, (33,), (16,), "dot_self", 1, 1, 2, 16, sigmoid_layer=0, clamp=(-np.inf, 0.1)),
    Case(1, 2, 20, (16, 5), (1, 50), "dot", 1, 4, 0, 256, bottom_activation="sigmoid"),
    Case(2, 3, 4, (), (100,), "dot", 2, 1, 1, None),
    Case(3, 2, 20, (47, 16), (31, 33), "dot_self", 2, 1, 8, 32, 2),
    Case(7, 40, 16, (64,), (20,), "dot", 7, 2, 2, 32, 4),
    Case(10, 26, 128, (48, 40), (64, 15), "dot", 10, 1, 1, 32),
    Case(10, 3, 1, (), (), "dot", 3, 2, 0, 16, 2),
    Case(11, 26, 20, (33,), (16, 16), "cat", 10, 2, 8, 32, sigmoid_layer=1, clamp=(-0.05, 0.25)),
    Case(11, 1, 128, (17,), (49,), "dot_self", 5, 3, 1, 48),
    Case(15, 3, 16, (128, 64), (48, 1), "cat", 16, 1, 2, 16, 4),
    Case(16, 40, 4, (100,), (31,), "cat", 8, 4, 0, 48, 2, bottom_activation="sigmoid"),
    Case(16, 2, 128, (256,), (32, 32, 32), "dot", 16, 2, 8, 64, 1, sigmoid_layer=1),
    Case(17, 26, 4, (15, 1), (100, 40), "dot_self", 16, 1, 1, 16),
    Case(17, 3, 20, (480,), (47,), "dot", 8, 2, 2, 64, 4, sigmoid_layer=0, last_activation="relu"),
    Case(20, 1, 16, (31,), (17,), "dot", 10, 2, 0, None, sigmoid_layer=0, bottom_activation="none"),
    Case(21, 26, 16, (40, 24), (50, 30), "dot", 10, 2, 1, 32, 2),
    Case(21, 2, 1, (), (33,), "cat", 7, 3, 8, 32, bottom_activation="sigmoid"),
    Case(33, 3, 128, (64,), (), "dot_self", 8, 2, 2, None, num_dense=1),
    Case(33, 26, 20, (13,), (96, 47), "dot", 11, 100, 1, 16, 4, num_dense=40),
    Case(33, 40, 128, (20,), (20,), "dot_self", 4, 3, 0, 64),
    Case(23, 3, 16, (80,), (100, 47), "cat", 5, 3, 2, 48, 2, k_blocks=3),
]

PLAIN = [
    Case(1, 26, 16, (20,), (17,), "dot", 0, 0, 0, None),
    Case(7, 3, 20, (47, 16), (31,), "dot_self", 0, 0, 0, None, sigmoid_layer=0, last_activation="relu"),
    Case(21, 2, 128, (), (), "cat", 0, 0, 0, None, bottom_activation="sigmoid", clamp=(0.3, 0.6)),
    Case(33, 1, 1, (33,), (16, 16), "dot", 0, 0, 0, None, num_dense=1),
]


def compiled_tuned(model: Dlrm, case: Case):
    def dense_schedule(layer: LayerShape) -> DenseSchedule:
        if not case.nr:
            return default_dense(case.mr, layer.outputs)
        return DenseSchedule(case.nr, case.unroll, k_blocks=case.k_blocks)

    schedule = NetworkSchedule(case.mr, case.block_tiles, Prefetch(every=case.every, locality=2))
    return library_in_memory(model, case.batch, schedules_of(model, case.batch, schedule, dense_schedule))


SLOW = (6, 7, 13, 14, 17, 18, 20, 21)  # of TUNED: those that take longest to compile
CASES = [pytest.param(case, marks=[pytest.mark.slow] if at in SLOW else []) for at, case in enumerate(TUNED)]


@pytest.fixture(scope="module", params=CASES, ids=str)
def tuned(request, require_fma):
    """One network of our kernels: its model, batch size, and the function f(dense, indices, threads)."""
    model = request.param.model()
    return model, request.param.batch, compiled_tuned(model, request.param)


@pytest.fixture(scope="module", params=PLAIN, ids=str)
def plain(request):
    """The same from TVM's default code generation."""
    model, batch = request.param.model(), request.param.batch
    return model, batch, library_in_memory(model, batch)


def check_formulas(model: Dlrm, batch: int, run) -> None:
    for seed in (1, 2):
        dense, indices = random_batch(model, batch, seed)
        assert_close(run(dense, indices), numpy_predictions(model, dense, indices))


def check_zero_inputs(model: Dlrm, batch: int, run) -> None:
    """Zeros of either sign are skipped by one kernel and multiplied by the others."""
    dense, indices = random_batch(model, batch)
    for value in (0.0, -0.0):
        dense[:, ::2] = value
        assert_close(run(dense, indices), numpy_predictions(model, dense, indices))


def check_bad_items(model: Dlrm, batch: int, run) -> None:
    """An item with bad input becomes NaN; every other one keeps its bits."""
    dense, indices = random_batch(model, batch)
    clean = run(dense, indices)
    last_table = len(model.tables) - 1
    bad_indices = [
        (0, 0, -1),
        (batch - 1, last_table, model.tables[-1].num_rows),
        (batch // 2, 0, 1 << 40),
        (0, last_table, -(1 << 40)),
        (batch - 1, 0, np.iinfo(np.int64).min),
        (batch // 2, last_table, np.iinfo(np.int64).max),
    ]
    for item, table, index in bad_indices:
        changed = indices.copy()
        changed[item, table] = index
        assert_only_nan(run(dense, changed), clean, item)
    for item, column, value in ((0, 0, np.nan), (batch - 1, model.num_dense - 1, np.inf), (batch // 2, 0, -np.inf)):
        changed = dense.copy()
        changed[item, column] = value
        assert_only_nan(run(changed, indices), clean, item)


def check_bags(model: Dlrm, batch: int, run) -> None:
    """Of all lengths, whole batches and parts of one."""
    dense, _ = random_batch(model, batch)
    for items in {batch, max(1, batch // 2)}:
        indices, offsets = random_bags(model, items, seed=items)
        flat, begins = flat_bags(indices, offsets, batch)
        wanted = numpy_predictions(model, dense[:items], indices, offsets)
        assert_close(run(dense, flat, offsets=begins)[:items], wanted)


def check_bags_of_one(model: Dlrm, batch: int, run) -> None:
    dense, indices = random_batch(model, batch)
    flat, begins = flat_bags(list(indices.T), [np.arange(batch)] * len(model.tables), batch)
    np.testing.assert_array_equal(run(dense, flat, offsets=begins), run(dense, indices))


def check_bad_bags(model: Dlrm, batch: int, run) -> None:
    """An index outside its table, an offset outside the indices: NaN for the items whose bags these are."""
    dense, _ = random_batch(model, batch)
    flat, begins = flat_bags(*random_bags(model, batch), batch)
    flat = flat[: begins[-1, -1]]  # the library is told of no index that no bag holds
    clean = run(dense, flat, offsets=begins)
    last = len(model.tables) - 1
    for table, index in ((last, -1), (last, model.tables[last].num_rows), (last, 1 << 40), (0, np.iinfo("i8").min)):
        changed = flat.copy()
        changed[begins[table, batch] - 1] = index  # of the last item
        assert_only_nan(run(dense, changed, offsets=begins), clean, batch - 1)
    for value in (begins[-1, -1] + 1, 1 << 40, -1, np.iinfo("i8").min, np.iinfo("i8").max):
        changed = begins.copy()
        changed[last, batch] = value
        assert_only_nan(run(dense, flat, offsets=changed), clean, batch - 1)
    changed_dense = dense.copy()
    changed_dense[batch // 2, 0] = np.nan
    assert_only_nan(run(changed_dense, flat, offsets=begins), clean, batch // 2)


def assert_only_nan(got: np.ndarray, clean: np.ndarray, item: int) -> None:
    wanted = clean.copy()
    wanted[item] = np.nan
    np.testing.assert_array_equal(got, wanted)


def test_tuned_network_gives_the_papers_numbers(tuned):
    check_formulas(*tuned)


def test_tuned_network_pools_bags_of_any_lengths(tuned):
    check_bags(*tuned)


def test_tuned_network_gives_the_same_bits_for_bags_of_one_row_as_without_bags(tuned):
    check_bags_of_one(*tuned)


def test_tuned_network_gives_nan_for_a_bad_bag_and_leaves_the_others_alone(tuned):
    check_bad_bags(*tuned)


def test_tuned_network_takes_dense_inputs_that_are_zero(tuned):
    check_zero_inputs(*tuned)


def test_tuned_network_gives_the_same_bits_on_two_and_three_threads(tuned):
    model, batch, run = tuned
    dense, indices = random_batch(model, batch)
    one = run(dense, indices, threads=1)
    flat, begins = flat_bags(*random_bags(model, batch), batch)
    one_bags = run(dense, flat, offsets=begins, threads=1)
    for threads in (2, 3):
        np.testing.assert_array_equal(run(dense, indices, threads=threads), one)
        np.testing.assert_array_equal(run(dense, flat, offsets=begins, threads=threads), one_bags)


def test_tuned_network_gives_nan_for_a_bad_item_and_leaves_the_others_alone(tuned):
    check_bad_items(*tuned)


def test_plain_network_gives_the_papers_numbers(plain):
    check_formulas(*plain)
    check_zero_inputs(*plain)


def test_plain_network_gives_nan_for_a_bad_item_and_leaves_the_others_alone(plain):
    check_bad_items(*plain)
    check_bad_bags(*plain)


def test_plain_network_pools_bags_of_any_lengths(plain):
    check_bags(*plain)
    check_bags_of_one(*plain)


@pytest.mark.parametrize("case", [TUNED[3], TUNED[5], TUNED[9]], ids=str)
def test_numpy_reference_that_libraries_are_verified_against_gives_the_papers_numbers(case):
    model = case.model()
    dense, indices = random_batch(model, case.batch)
    wanted = numpy_predictions(model, dense, indices)
    np.testing.assert_allclose(reference.predict(model, dense, indices), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("interaction", ["dot", "dot_self", "cat"])
def test_networks_read_from_onnx_agree_with_onnx_runtime(tmp_path, require_fma, interaction):
    pytest.importorskip("onnxruntime")
    rows, batch = (9, 4, 30, 1, 6), 12
    path = write_dlrm(
        tmp_path / "m.onnx", table_rows=rows, dim=24, bottom=(50,), top=(70, 30), interaction=interaction, seed=3
    )
    dense, indices = random_items(batch, table_rows=rows)
    wanted = onnxruntime_predictions(path, dense, indices)
    assert np.ptp(wanted) > 0.1
    model = read_dlrm(path)
    for schedules in (schedules_of(model, batch), *([None] if interaction == "dot" else [])):
        assert_close(library_in_memory(model, batch, schedules)(dense, indices), wanted)


@pytest.mark.parametrize(
    ("batch", "shape", "is_tuned"),
    [(12, {"dim": 20}, True), (1, {"sigmoid_layer": 0}, True), (12, {"interaction": "cat"}, False)],
)
def test_rows_that_are_not_finite_give_nan_where_onnx_runtime_does(tmp_path, require_fma, batch, shape, is_tuned):
    """ReLU and sums of bags keep NaN; items without such a row are as right as ever."""
    pytest.importorskip("onnxruntime")
    rows, bad = (9, 40, 6), {3: np.nan, 4: np.inf, 5: -np.inf, 6: -np.nan}
    path = write_dlrm(tmp_path / "m.onnx", table_rows=rows, bottom=(20,), top=(24, 17), seed=3, **shape)
    graph = onnx.load(path)
    table = next(each for each in graph.graph.initializer if each.name == "table.1")
    values = numpy_helper.to_array(table).copy()
    for row, value in bad.items():
        values[row, row] = value
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    onnx.save(graph, path)
    dense, indices = random_items(12, table_rows=rows)
    indices[:, 1] = [0, 3, 4, 5, 6, *range(7, 14)]
    wanted, model = onnxruntime_predictions(path, dense, indices), read_dlrm(path)
    assert np.isnan(wanted[[1, 4]]).all()
    is_bad = np.isin(indices[:, 1], list(bad))
    run = library_in_memory(model, batch, schedules_of(model, batch) if is_tuned else None)
    for first in range(0, 12, batch):
        here = slice(first, first + batch)
        flat, begins = flat_bags(list(indices[here].T), [np.arange(batch)] * 3, batch)
        for got in (run(dense[here], indices[here]), run(dense[here], flat, offsets=begins)):
            assert np.isnan(got[np.isnan(wanted[here])]).all()
            assert_close(got[~is_bad[here]], wanted[here][~is_bad[here]])


def test_tuned_kernels_are_refused_for_a_cpu_without_fma():
    job = replace(job_of(TUNED[4].model(), 2), cpu=target.cpu_target("sandybridge"))
    with pytest.raises(ValueError, match=r"sandybridge has neither AVX-512 nor AVX2.*--tuning-log-file none"):
        pipeline.choose(job)


def test_bags_are_pooled_in_as_many_groups_as_their_memory_takes(require_fma, monkeypatch):
    """33 items in 5 tiles of 8: groups of 2, 2 and 1 tiles on one thread, of others on three."""
    case = TUNED[19]
    assert (case.batch, case.mr) == (33, 8)
    model = case.model()
    tile_bytes = case.mr * len(model.tables) * model.dim * 4
    monkeypatch.setattr(embedding_bag, "POOLED_BYTES", 2 * tile_bytes)
    run = compiled_tuned(model, case)
    check_bags(model, case.batch, run)
    check_bad_bags(model, case.batch, run)
    dense, _ = random_batch(model, case.batch)
    flat, begins = flat_bags(*random_bags(model, case.batch), case.batch)
    one, three = (run(dense, flat, offsets=begins, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(three, one)


@pytest.mark.parametrize("case", [TUNED[3], TUNED[9]], ids=str)
def test_what_runs_one_row_per_table_is_the_same_code_whatever_bags_are(case):
    """Averaging is of bags only; not a statement of `main` may depend on it."""
    model = case.model()
    schedule = NetworkSchedule(case.mr, case.block_tiles, Prefetch(every=case.every, locality=2))
    planned = plan_network(model, case.batch, schedule, lambda _: DenseSchedule(case.nr, case.unroll), 4096)
    texts = {network(replace(planned.plan, means=(mean,) * len(model.tables))).script() for mean in (False, True)}
    assert len(texts) == 1
