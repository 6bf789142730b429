"""Embedding bags of any number of rows: each bag's rows added up, or averaged, into one vector.

Plain definition, for item i of table t, over the indices r with offsets[t, i] <= r < offsets[t, i + 1]:

    e_t[i, :] = sum_r tables[starts[t] + indices[r] * dim : + dim]   for mean divided by the number of r;
                zeros for none

Blocked form: up to 8 vectors of values are accumulated in registers over the whole bag, so that only rows are read;
wider rows take one more pass over the bag per 8 vectors. Registers: 8 accumulators of AVX-512's 32; AVX2's 16, in
pairs, hold them too, as rows are added straight from memory.

    for table:  for item:  for r in bag:  acc[8] += tables[row(r)];   pooled[item, table] = acc

Random rows are the cost: a row of 512 bytes comes from memory after a page walk of its own. So rows are prefetched some
indices ahead, past the ends of bags and, at the end of one table's bags, from the next table. And many items are pooled
together, table by table, so that the pages of one table stay in the TLB for long.

bf16 rows are added up as float32, value 0 of each word in one vector, value 1 in the next (words.py); int8 rows as
whole numbers of 16 bits, 32 at a time.

Kernel names: embedding_bag_fp32, and embedding_bag_plain for the plain definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .bag_sums import Run, Uses, pool_bag
from .vectors import LANES, store
from .words import FP32, Form

POOLED_BYTES = 2 << 20  # of one group of items, at most: the next layers read them once, from L2 or L3
_NONE, _ONE = T.int64(0), T.int64(1)


@dataclass(frozen=True)
class BagPrefetch:
    """distance: indices between a row's prefetch and its addition, 0 for no prefetching; stride: every stride-th cache
    line of a row is prefetched, the hardware brings the others; locality: of llvm.prefetch, 3 is L1, 2 is L2.
    """

    distance: int
    stride: int
    locality: int


_BYTES_AHEAD = 16 << 10  # tests/benchmarks/EXPERIMENTS.md, "Bags"
_MOST_AHEAD = 128
_STREAM_LINES = 8  # of rows that the hardware reads on by itself: one line asked for is enough, and costs least


def bag_prefetch(row_words: int, is_tiled: bool = False) -> BagPrefetch:
    """Some rows ahead, their first line or, where they are short, all. CPUs with AMX, is_tiled, bring no neighbouring
    lines, and have room for more rows on their way."""
    if is_tiled:
        return BagPrefetch(distance=_MOST_AHEAD, stride=1, locality=2)
    distance = min(_MOST_AHEAD, max(1, _BYTES_AHEAD // (4 * row_words)))
    is_long = row_words >= _STREAM_LINES * LANES
    return BagPrefetch(distance, stride=_STREAM_LINES if is_long else 1, locality=2)


def tiles_at_once(tiles: int, tile_bytes: int) -> int:
    """Tiles that are pooled together, in groups of nearly equal size."""
    most = max(1, POOLED_BYTES // tile_bytes)
    return -(-tiles // -(-tiles // most))


@dataclass(frozen=True)
class Bags:
    """The kernels' inputs. indices: [total] int64; offsets: [num_tables, batch + 1] int64, the beginning of each bag in
    indices, and the end of the table's last bag; tables, table_info: as in gather.py; dim: words of `form` per row;
    means: per table whether bags are averaged.
    """

    indices: Any
    total: Any
    offsets: Any
    tables: Any
    table_info: Any
    dim: int
    batch: int
    means: tuple[bool, ...]
    form: Form = FP32

    @property
    def num_tables(self) -> int:
        return len(self.means)

    def begin(self, table, item):
        """The offset of a bag, kept inside the indices."""
        return T.bind(T.min(T.max(self.offsets[table, item], _NONE), self.total))

    def bounds(self, table, item):
        """(begin, end, 0 if the offsets were such that 0 <= begin <= end <= total, else 1)"""
        begin = self.begin(table, item)
        end = T.bind(T.max(self.begin(table, item + 1), begin))
        right = T.bitwise_and(self.offsets[table, item] == begin, self.offsets[table, item + 1] == end)
        return begin, end, T.bind(T.Select(right, _NONE, _ONE))

    def place(self, table) -> tuple[Any, Any]:
        """(first element, number of rows) of a table."""
        return T.bind(self.table_info[0, table]), T.bind(self.table_info[1, table])

    def row(self, number, place: tuple[Any, Any]):
        """(element offset of row indices[number], whether its table has it); of row 0 if not."""
        first, num_rows = place
        index = T.bind(self.indices[number])
        # As unsigned numbers, negative ones are larger than any table: one comparison checks both ends.
        inside = T.bind(T.cast(index, "uint64") < T.cast(num_rows, "uint64"))
        return T.bind(first + T.Select(inside, index, _NONE) * T.int64(self.dim)), inside

    def scale(self, table, count):
        """The factor of the sum of `count` rows; None if no table averages."""
        if not any(self.means):
            return None
        mean = T.float32(1) / T.cast(T.max(count, _ONE), "float32")
        return mean if all(self.means) else T.Select(_bit(self.means, table), mean, T.float32(1))


@dataclass(frozen=True)
class BagShape:
    """The shapes of a function of bags; dim: words of a stored row; means: as in Bags."""

    batch: int
    dim: int
    table_elements: int
    means: tuple[bool, ...]
    form: Form = FP32


def declare_bags(shape: BagShape) -> Bags:
    """The next four arguments of the function that is being emitted: indices, offsets, tables, table_info."""
    total = T.int64()
    tables = len(shape.means)
    return Bags(
        T.match_buffer(T.arg("indices", T.handle()), (total,), "int64"),
        total,
        T.arg("offsets", T.buffer((T.int64(tables), shape.batch + 1), "int64")),
        T.arg("tables", T.buffer((T.int64(shape.table_elements),), "float32")),
        T.arg("table_info", T.buffer((2, tables), "int64")),
        shape.dim,
        shape.batch,
        shape.means,
        shape.form,
    )


def embedding_bag_plain(shape: BagShape, dim: int):
    """The plain definition as a TIR function, left to TVM's default code generation.

    indices [total] i64, offsets [T, batch + 1] i64, tables, table_info -> pooled [batch, T, dim] f32, the first `dim`
    elements of the rows, and wrong [batch] i64, as pool_items counts it.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("embedding_bag_plain")
        T.func_attr({"tirx.noalias": True})
        bags = declare_bags(shape)
        pooled = T.arg("pooled", T.buffer((T.int64(shape.batch), bags.num_tables, dim), "float32"))
        wrong = T.arg("wrong", T.buffer((shape.batch,), "int64"))
        with T.serial(shape.batch) as item:
            T.buffer_store(wrong, _NONE, [item])
            with T.serial(bags.num_tables) as table:
                place = bags.place(table)
                begin, end, misplaced = bags.bounds(table, item)
                T.buffer_store(wrong, wrong[item] + misplaced, [item])
                with T.serial(dim) as d:
                    T.buffer_store(pooled, T.float32(0), [item, table, d])
                with T.serial(end - begin) as step:
                    at, inside = bags.row(begin + step, place)
                    T.buffer_store(wrong, wrong[item] + T.Select(inside, _NONE, _ONE), [item])
                    with T.serial(dim) as d:
                        value = pooled[item, table, d] + bags.tables[at + T.cast(d, "int64")]
                        T.buffer_store(pooled, value, [item, table, d])
                scale = bags.scale(table, end - begin)
                if scale is not None:
                    scale = T.bind(scale)
                    with T.serial(dim) as d:
                        T.buffer_store(pooled, pooled[item, table, d] * scale, [item, table, d])
    return builder.get()


def embedding_bag(shape: BagShape, items: int, fetch: BagPrefetch):
    """The network's pooling alone, as a TIR function named embedding_bag_fp32: the cost of lookups by themselves.

    Arguments as in embedding_bag_plain, but pooled [batch * T * shape.dim]. items: pooled together.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("embedding_bag_fp32")
        T.func_attr({"tirx.noalias": True})
        bags = declare_bags(shape)
        pooled = T.arg("pooled", T.buffer((T.int64(shape.batch * bags.num_tables * shape.dim),), "float32"))
        wrong = T.arg("wrong", T.buffer((shape.batch,), "int64"))
        with T.serial(shape.batch) as item:
            T.buffer_store(wrong, _NONE, [item])
        for first, size, groups in _groups(shape.batch, items):
            with T.serial(groups) as group:
                begin = T.bind(first + group * size)

                def write(row, table, block, planes, begin=begin) -> None:
                    at = T.cast((begin + row) * bags.num_tables + table, "int64") * T.int64(shape.dim)
                    store(pooled, at + block * LANES, planes[0])

                def count(row, value, begin=begin) -> None:
                    T.buffer_store(wrong, wrong[begin + row] + value, [begin + row])

                pool_items(bags, fetch, begin, size, write, count)
    return builder.get()


def _groups(batch: int, items: int) -> list[tuple[int, int, int]]:
    """(first item, items per group, number of groups): the whole groups, then the rest."""
    whole = batch // items
    return [part for part in ((0, items, whole), (whole * items, batch - whole * items, 1)) if part[1] and part[2]]


def pool_items(bags: Bags, fetch: BagPrefetch, first_item, items, write, count, copy=None, copies=None) -> None:
    """All tables' bags of items first_item .. first_item + items - 1; past the batch the last item's again.

    write(item, table, block, planes): takes 16 words of a pooled vector as planes of float32, of int8 16 bytes one
    after another in each; item counts from first_item; a vector's blocks come in order.
    count(item, number): adds the number of a bag's indices outside their table, and 1 if its offsets decrease or are
    outside the indices; no such index or offset is followed.
    copy(item, table, block, words), where copies(table): instead of write, for a bag of one row.
    """
    with T.serial(bags.num_tables) as table:
        next_table = T.bind(T.min(table + 1, bags.num_tables - 1))
        run = Run(
            place=bags.place(table),
            end=bags.begin(table, T.min(first_item + items, bags.batch)),
            next_place=bags.place(next_table),
            next_begin=bags.begin(next_table, first_item),
        )
        with T.serial(items) as row:
            item = T.bind(T.min(first_item + row, bags.batch - 1))
            use = Uses(
                *(None if use is None else partial(use, row, table) for use in (write, copy)), partial(count, row)
            )
            is_copied = None if copies is None else copies(table)
            pool_bag(bags, fetch, table, item, run, use, is_copied)


def _bit(flags: tuple[bool, ...], at):
    """flags[at] as an expression: a bit of a constant, 63 flags at a time."""
    words = [
        sum(1 << bit for bit, flag in enumerate(flags[first : first + 63]) if flag)
        for first in range(0, len(flags), 63)
    ]
    word = T.int64(words[0])
    for number, value in enumerate(words[1:], start=1):
        word = T.Select(at >= number * 63, T.int64(value), word)
    return T.bitwise_and(T.shift_right(word, T.cast(at % 63, "int64")), _ONE) == _ONE
