"""Embedding bags over rows of bf16 and int8 words against NumPy: planes of values, added up as float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import tvm_ffi
from bare_kernels import compiled
from models import aligned
from quantized import FAMILY, VALUES, needs, rounded, words_of
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from dlrm_tvm.kernels.embedding_bag import BagPrefetch, BagShape, declare_bags, pool_items
from dlrm_tvm.kernels.isa import imported
from dlrm_tvm.kernels.vectors import LANES, store
from dlrm_tvm.kernels.words import Form

ROWS = 13  # of every table


@dataclass(frozen=True)
class Case:
    """words: of a row; means: which tables average: none, all or some."""

    precision: str
    batch: int
    tables: int
    words: int
    means: str
    distance: int
    longest: int = 6

    @property
    def flags(self) -> tuple[bool, ...]:
        every = {"none": 0, "all": 1, "some": 2}[self.means]
        return tuple(bool(every) and t % every == 0 for t in range(self.tables))

    @property
    def shape(self) -> BagShape:
        form = Form(self.precision, signed=self.precision == "int8", family=FAMILY[self.precision])
        return BagShape(self.batch, self.words, self.tables * ROWS * self.words, self.flags, form)

    @property
    def columns(self) -> int:
        return self.words * VALUES[self.precision]

    def __str__(self) -> str:
        return f"{self.precision}-b{self.batch}-t{self.tables}-w{self.words}-{self.means}-f{self.distance}"


# Eight accumulators hold 4 vectors of bf16 words, 2 of int8's: rows of one pass, of exactly two, of two and a rest.
CASES = [
    Case("bf16", 2, 1, 16, "none", 1),
    Case("bf16", 7, 3, 64, "some", 8),
    Case("bf16", 5, 2, 80, "all", 0),
    Case("bf16", 6, 4, 144, "none", 1000, longest=40),
    Case("int8", 2, 2, 16, "all", 8),
    Case("int8", 9, 3, 32, "none", 32, longest=100),
    Case("int8", 5, 2, 48, "some", 1),
    Case("int8", 6, 5, 80, "some", 0),
    Case("int8", 4, 2, 32, "none", 8, longest=900),  # several parts of 256 rows
]
MARKED = [pytest.param(case, marks=needs(case.precision), id=str(case)) for case in CASES]


def bag_function(case: Case):
    """-> pooled [batch, tables, blocks, values, 16] f32: plane p of a block holds value p of each of its words, of int8
    its 16 bytes from 16 * p on."""
    values, blocks = VALUES[case.precision], case.words // LANES
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("bags")
        T.func_attr({"tirx.noalias": True})
        bags = declare_bags(case.shape)
        pooled = T.arg("pooled", T.buffer((case.batch * case.tables * case.columns,), "float32"))
        wrong = T.arg("wrong", T.buffer((case.batch,), "int64"))

        def write(item, table, block, planes: list) -> None:
            first = ((item * case.tables + table) * blocks + block) * values
            for plane, value in enumerate(planes):
                store(pooled, (first + plane) * LANES, value)

        def count(item, number) -> None:
            T.buffer_store(wrong, wrong[item] + number, [item])

        with imported(FAMILY[case.precision]):
            pool_items(bags, BagPrefetch(case.distance, 1, 3), 0, case.batch, write, count)
    return builder.get()


def inputs(case: Case) -> dict[str, np.ndarray]:
    """The first item's bags are empty, the last one's hold one row. numbers: [tables, ROWS, columns] in words."""
    rng = np.random.default_rng(case.words)
    lengths = rng.integers(0, case.longest + 1, (case.tables, case.batch))
    lengths[:, 0] = 0
    lengths[:, -1] = 1
    ends = np.cumsum(lengths).reshape(lengths.shape)
    shape = (case.tables, ROWS, case.columns)
    numbers = rounded(rng.normal(size=shape)) if case.precision == "bf16" else rng.integers(-127, 128, shape)
    return {
        "indices": rng.integers(0, ROWS, ends[-1, -1]),
        "offsets": np.concatenate([ends[:, :1] - lengths[:, :1], ends], axis=1).astype(np.int64),
        "tables": words_of(numbers, case.precision).reshape(-1),
        "info": np.stack([np.arange(case.tables) * ROWS * case.words, np.full(case.tables, ROWS)]).astype(np.int64),
        "numbers": numbers.astype(np.float64),
    }


def formula(case: Case, given: dict[str, np.ndarray]) -> np.ndarray:
    """[batch, tables, columns] float64"""
    pooled = np.zeros((case.batch, case.tables, case.columns))
    for t, offsets in enumerate(given["offsets"]):
        for item in range(case.batch):
            bag = given["indices"][offsets[item] : offsets[item + 1]]
            total = given["numbers"][t, bag].sum(axis=0)
            pooled[item, t] = total / max(1, len(bag)) if case.flags[t] else total
    return pooled


@pytest.fixture(scope="module")
def functions(require_fma):
    return {case: compiled([bag_function(case)])["bags"] for case in CASES if not needs(case.precision).args[0]}


def run(functions, case: Case, given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """pooled [batch, tables, columns] with columns as they lie in the words; wrong [batch]"""
    pooled = aligned(np.full(case.batch * case.tables * case.columns, np.nan, np.float32))
    wrong = aligned(np.zeros(case.batch, np.int64))
    arrays = [aligned(given[name]) for name in ("indices", "offsets", "tables", "info")]
    functions[case](*map(tvm_ffi.from_dlpack, (*arrays, pooled, wrong)))
    planes = pooled.reshape(case.batch, case.tables, -1, VALUES[case.precision], LANES)
    in_words = planes if case.precision == "int8" else planes.swapaxes(-1, -2)
    return in_words.reshape(case.batch, case.tables, -1), wrong


@pytest.mark.parametrize("case", MARKED)
def test_quantized_bags_match_their_formula_at_the_edges_of_passes(functions, case):
    given = inputs(case)
    pooled, wrong = run(functions, case, given)
    wanted = formula(case, given)
    np.testing.assert_allclose(pooled, wanted, rtol=3e-7, atol=2e-5 if case.precision == "bf16" else 0)
    np.testing.assert_array_equal(pooled[0], 0, "empty bags")
    np.testing.assert_array_equal(pooled[-1], wanted[-1], "bags of one row keep it to the bit")
    np.testing.assert_array_equal(wrong, 0)


@pytest.mark.parametrize("case", MARKED)
@pytest.mark.parametrize("index", [-1, ROWS, 1 << 40, np.iinfo(np.int64).min])
def test_an_index_outside_a_quantized_table_is_counted_and_not_followed(functions, case, index):
    given = inputs(case)
    clean, _ = run(functions, case, given)
    given["indices"][-1] = index  # of the last item
    pooled, wrong = run(functions, case, given)
    assert wrong.tolist() == [0] * (case.batch - 1) + [1]
    np.testing.assert_array_equal(pooled[:-1], clean[:-1])
