"""The embedding bag kernels alone against their plain definition in NumPy, and what they read of bad input."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass

import numpy as np
import pytest
import tvm_ffi
from bare_kernels import compiled
from models import aligned

from dlrm_tvm.kernels import embedding_bag as kernels
from dlrm_tvm.kernels.embedding_bag import BagPrefetch, BagShape, embedding_bag, embedding_bag_plain

INT64 = np.iinfo(np.int64)
PROT_NONE = 0  # sys/mman.h; Python's mmap module has no name for it


@dataclass(frozen=True)
class Case:
    """dim: elements of a stored row; items: pooled together; means: which tables average: none, all or some."""

    batch: int
    tables: int
    dim: int
    items: int
    means: str = "none"
    distance: int = 8
    stride: int = 8
    longest: int = 5

    def __str__(self) -> str:
        return f"b{self.batch}-t{self.tables}-d{self.dim}-i{self.items}-{self.means}-f{self.distance}"

    @property
    def flags(self) -> tuple[bool, ...]:
        every = {"none": 0, "all": 1, "some": 3}[self.means]
        return tuple(bool(every) and t % every == 0 for t in range(self.tables))

    @property
    def rows(self) -> np.ndarray:
        return 1 + np.arange(self.tables) * 7 % 13

    @property
    def shape(self) -> BagShape:
        return BagShape(self.batch, self.dim, int(self.rows.sum()) * self.dim, self.flags)


# Groups of items - 1, items, items + 1; rows of one vector, of one pass and of one vector more; more tables than a
# word of flags has bits; fetching none, less than a bag and more than everything ahead.
CASES = [
    Case(1, 1, 16, 1),
    Case(4, 3, 128, 5, "all", distance=1),
    Case(5, 2, 48, 5, "some", distance=0),
    Case(6, 26, 128, 5, "none", distance=32),
    Case(7, 4, 144, 3, "some", distance=1000, stride=1),
    Case(9, 3, 256, 4, "all", stride=2),
    Case(12, 130, 16, 5, "some"),
    Case(33, 5, 128, 8, "none", longest=100),
]


def inputs(case: Case) -> tuple[np.ndarray, ...]:
    """indices, offsets, tables, table_info as the kernels take them; the first item and the second table are empty."""
    rng = np.random.default_rng(case.batch)
    lengths = rng.integers(0, case.longest + 1, (case.tables, case.batch))
    lengths[:, 0] = 0
    lengths[1:2] = 0
    lengths[-1, -1] = 1
    ends = np.cumsum(lengths).reshape(lengths.shape)
    offsets = np.concatenate([(ends[:, :1] - lengths[:, :1]), ends], axis=1)
    indices = np.concatenate([rng.integers(0, rows, each.sum()) for rows, each in zip(case.rows, lengths)])
    indices[-1] = case.rows[-1] - 1
    first = (np.cumsum(case.rows) - case.rows) * case.dim
    tables = rng.normal(size=case.shape.table_elements).astype(np.float32)
    return indices, offsets.astype(np.int64), tables, np.stack([first, case.rows]).astype(np.int64)


def formula(case: Case, indices: np.ndarray, offsets: np.ndarray, tables: np.ndarray, info: np.ndarray) -> np.ndarray:
    """[batch, tables, dim] float64"""
    pooled = np.zeros((case.batch, case.tables, case.dim))
    for t, (first, rows) in enumerate(info.T):
        table = tables[first : first + rows * case.dim].reshape(rows, case.dim).astype(np.float64)
        for item in range(case.batch):
            bag = indices[offsets[t, item] : offsets[t, item + 1]]
            if len(bag):
                pooled[item, t] = table[bag].sum(axis=0) / (len(bag) if case.flags[t] else 1)
    return pooled


@pytest.fixture(scope="module")
def library(require_fma):
    functions = []
    for number, case in enumerate(CASES):
        fetch = BagPrefetch(case.distance, case.stride, 3)
        functions.append(embedding_bag(case.shape, case.items, fetch).with_attr("global_symbol", f"ours{number}"))
        functions.append(embedding_bag_plain(case.shape, case.dim).with_attr("global_symbol", f"plain{number}"))
    return compiled(functions)


def call(function, case: Case, *arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """pooled [batch, tables, dim], wrong [batch]; the arrays may lie in memory of their own kind."""
    shape = (case.batch, case.tables, case.dim)
    flat = "ours" in function[1]
    pooled = aligned(np.full(np.prod(shape) if flat else shape, np.nan, np.float32))
    wrong = aligned(np.full(case.batch, -1))
    function[0](*map(tvm_ffi.from_dlpack, (*arrays, pooled, wrong)))
    return pooled.reshape(shape), wrong


def functions_of(library, number: int) -> list[tuple]:
    return [(library[name], name) for name in (f"ours{number}", f"plain{number}")]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_bags_match_their_formula_at_the_edges_of_groups_and_passes(library, number):
    case = CASES[number]
    arrays = [aligned(array) for array in inputs(case)]
    for function in functions_of(library, number):
        pooled, wrong = call(function, case, *arrays)
        np.testing.assert_allclose(pooled, formula(case, *arrays), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(wrong, 0)


def guarded(array: np.ndarray, *, at_end: bool) -> np.ndarray:
    """A copy that ends, or begins, where memory ends: one element further and the process dies."""
    page = mmap.PAGESIZE
    inner = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    whole = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for at in (0, page + inner):
        address = ctypes.c_void_p(whole.ctypes.data + at)
        assert libc.mprotect(address, ctypes.c_size_t(page), PROT_NONE) == 0
    begin = page + inner - array.nbytes if at_end else page
    copy = whole[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


WHOLE = Case(8, 4, 64, 8)  # its arrays are whole multiples of 64 bytes, so that both of their ends can be guarded


@pytest.fixture(scope="module")
def whole(require_fma):
    """Functions and inputs of 64 indices: 8 items of 2 per table; 16 rows of 64 in every table."""
    shape = BagShape(8, 64, 4 * 16 * 64, (False,) * 4)
    library = compiled([embedding_bag(shape, 8, BagPrefetch(8, 8, 3)), embedding_bag_plain(shape, 64)])
    functions = [(library["embedding_bag_fp32"], "ours"), (library["embedding_bag_plain"], "plain")]
    rng = np.random.default_rng(0)
    offsets = np.arange(4)[:, None] * 16 + np.arange(9) * 2
    info = np.stack([np.arange(4) * 16 * 64, np.full(4, 16)])
    return functions, rng.integers(0, 16, 64), offsets, rng.normal(size=4 * 16 * 64).astype(np.float32), info


def check_wrong(whole, indices: np.ndarray, offsets: np.ndarray, wrong_items: set[int]) -> None:
    functions, good_indices, good_offsets, tables, info = whole
    for function in functions:
        clean, _ = call(function, WHOLE, *map(aligned, (good_indices, good_offsets, tables, info)))
        for at_end in (False, True):
            arrays = guarded(indices, at_end=at_end), aligned(offsets), guarded(tables, at_end=at_end), aligned(info)
            pooled, wrong = call(function, WHOLE, *arrays)
            assert set(np.flatnonzero(wrong)) == wrong_items
            others = sorted(set(range(8)) - wrong_items)
            np.testing.assert_array_equal(pooled[others], clean[others])


@pytest.mark.parametrize("index", [-1, 16, 1 << 33, -(1 << 33), INT64.max, INT64.min])
@pytest.mark.parametrize("place", [0, 63, 17])
def test_an_index_outside_its_table_is_counted_and_not_followed(whole, index, place):
    indices = whole[1].copy()
    indices[place] = index
    check_wrong(whole, indices, whole[2], {place % 16 // 2})


@pytest.mark.parametrize(
    "table, at, offset, wrong_items",
    [
        (3, 8, 65, {7}), (3, 8, INT64.max, {7}), (3, 8, INT64.min, {7}), (3, 8, -1, {7}),
        (0, 0, -1, {0}), (0, 0, INT64.min, {0}), (0, 0, 3, {0}), (0, 0, 1 << 40, {0}),
        (1, 4, 0, {3}), (1, 4, 1 << 40, {3, 4}), (2, 4, -5, {3, 4}),
    ],
)  # fmt: skip
def test_an_offset_outside_the_indices_or_less_than_the_one_before_is_counted_and_not_followed(
    whole, table, at, offset, wrong_items
):
    """An offset that is merely too small lengthens the next item's bag by good indices: that item is not wrong."""
    offsets = whole[2].copy()
    offsets[table, at] = offset
    lengthened = {4} if (table, at, offset) == (1, 4, 0) else set()
    if not lengthened:
        check_wrong(whole, whole[1], offsets, wrong_items)
        return
    for function in whole[0]:
        _, wrong = call(function, WHOLE, *map(aligned, (whole[1], offsets, *whole[3:])))
        assert set(np.flatnonzero(wrong)) == wrong_items


def test_bags_of_more_indices_than_there_are_are_counted_and_not_followed(whole):
    """8 indices, and offsets that go up to 64."""
    for function in whole[0]:
        for at_end in (False, True):
            few = guarded(np.zeros(8, np.int64), at_end=at_end)
            _, wrong = call(function, WHOLE, few, *map(aligned, whole[2:]))
            assert (wrong > 0).all()


@pytest.mark.parametrize("tiles, tile_bytes", [(1, 1), (20, 66_560), (400, 66_560), (7, 3 << 20), (5, 1 << 20)])
def test_groups_fit_the_memory_and_are_of_nearly_one_size(tiles, tile_bytes):
    size = kernels.tiles_at_once(tiles, tile_bytes)
    groups = -(-tiles // size)
    assert 1 <= size <= max(1, kernels.POOLED_BYTES // tile_bytes)
    assert groups == -(-tiles // max(1, min(tiles, kernels.POOLED_BYTES // tile_bytes)))
    assert groups * size - tiles < groups
