"""Embedding bags of any number of rows: each bag's rows added up, or averaged, into one vector.

Plain definition, for item i of table t, over the indices r with offsets[t, i] <= r < offsets[t, i + 1]:

    e_t[i, :] = sum_r tables[starts[t] + indices[r] * dim : + dim]   and for mean divided by how many r there are;
                zeros for none

Blocked form: up to 8 vectors of values are accumulated in registers over the whole bag, so that nothing but rows is
read; wider rows take one more pass over the bag per 8 vectors. Registers: 8 accumulators of AVX-512's 32; AVX2's 16,
in pairs, hold them too, rows being added straight from memory.

    for table:  for item:  for r in bag:  acc[8] += tables[row(r)];   pooled[item, table] = acc

Random rows are what costs: a row of 512 bytes comes from memory through a page walk of its own. So rows are asked for
some indices ahead, on over the ends of bags and, at the end of the bags of one table, over to the next table; and many
items are pooled together, table by table, so that the pages of one table stay known to the TLB for long.

Rows of bf16 and int8 are added up as float32, value 0 of each word in one vector, value 1 in the next (forms.py).

Kernel names: embedding_bag_fp32, and embedding_bag_plain for the plain definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .forms import FP32, Form
from .vectors import LANES, broadcast, load, prefetch, store, zeros

MOST_VECTORS = 8  # accumulators
POOLED_BYTES = 2 << 20  # at most of one group of items: what the next layers read comes from L2 or L3, once
_NONE, _ONE = T.int64(0), T.int64(1)


@dataclass(frozen=True)
class BagFetch:
    """How rows are fetched ahead. distance: indices between asking for a row and adding it, 0 for no fetching;
    stride: every stride-th cache line of a row is asked for, the hardware brings the others;
    locality: as llvm.prefetch has it, 3 is L1, 2 is L2.
    """

    distance: int
    stride: int
    locality: int


# tests/benchmarks/EXPERIMENTS.md, "Bags".
BAG_FETCH = BagFetch(distance=32, stride=8, locality=2)


def tiles_at_once(tiles: int, tile_bytes: int) -> int:
    """How many tiles are pooled together; groups of nearly one size."""
    most = max(1, POOLED_BYTES // tile_bytes)
    return -(-tiles // -(-tiles // most))


@dataclass(frozen=True)
class Bags:
    """What the kernels read. indices: [total] int64; offsets: [num_tables, batch + 1] int64, where each bag begins in
    indices and, last, where the table's last one ends; tables, table_info: as in gather.py; dim: elements of a row,
    which are words of `form`; means: per table whether a bag is averaged.
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
        """(begin, end, 1 where the offsets were not such that 0 <= begin <= end <= total, else 0)"""
        begin = self.begin(table, item)
        end = T.bind(T.max(self.begin(table, item + 1), begin))
        right = T.bitwise_and(self.offsets[table, item] == begin, self.offsets[table, item + 1] == end)
        return begin, end, T.bind(T.Select(right, _NONE, _ONE))

    def place(self, table) -> tuple[Any, Any]:
        """(first element, number of rows) of a table."""
        return T.bind(self.table_info[0, table]), T.bind(self.table_info[1, table])

    def row(self, number, place: tuple[Any, Any]):
        """(element offset of the row that indices[number] names, whether its table has it); row 0 where not."""
        first, num_rows = place
        index = T.bind(self.indices[number])
        # As unsigned numbers negative ones are larger than any table: one comparison does for both ends.
        inside = T.bind(T.cast(index, "uint64") < T.cast(num_rows, "uint64"))
        return T.bind(first + T.Select(inside, index, _NONE) * T.int64(self.dim)), inside

    def scale(self, table, count):
        """What the sum of `count` rows is multiplied by; None where no table averages."""
        if not any(self.means):
            return None
        mean = T.float32(1) / T.cast(T.max(count, _ONE), "float32")
        return mean if all(self.means) else T.Select(_bit(self.means, table), mean, T.float32(1))


@dataclass(frozen=True)
class BagShape:
    """What a function of bags is made for; dim: elements of a row as it is stored; means: as in Bags."""

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


def embedding_bag(shape: BagShape, items: int, fetch: BagFetch):
    """The kernel of the network alone, as a TIR function named embedding_bag_fp32: what lookups cost by themselves.

    Arguments as embedding_bag_plain has them, but pooled [batch * T * shape.dim]. items: so many are pooled together.
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
    """(first item, items per group, how many groups): the whole ones, then what is left."""
    whole = batch // items
    return [part for part in ((0, items, whole), (whole * items, batch - whole * items, 1)) if part[1] and part[2]]


def pool_items(bags: Bags, fetch: BagFetch, first_item, items, write, count) -> None:
    """All tables' bags of the items first_item .. + items - 1; those past the batch are the last item's again.

    write(item, table, block, planes): takes 16 words of a pooled vector as planes of float32; item counts from
    first_item; a vector's blocks come in order.
    count(item, number): adds how many of a bag's indices are outside their table, and 1 where its offsets decrease or
    lie outside the indices; no such index or offset is followed.
    """
    with T.serial(bags.num_tables) as table:
        next_table = T.bind(T.min(table + 1, bags.num_tables - 1))
        run = _Run(
            place=bags.place(table),
            end=bags.begin(table, T.min(first_item + items, bags.batch)),
            next_place=bags.place(next_table),
            next_begin=bags.begin(next_table, first_item),
        )
        with T.serial(items) as row:
            item = T.bind(T.min(first_item + row, bags.batch - 1))
            _pool_bag(
                bags, fetch, table, item, run,
                lambda block, planes: write(row, table, block, planes), lambda number: count(row, number),
            )  # fmt: skip


@dataclass(frozen=True)
class _Run:
    """One table's bags of a group of items: where the table lies, where in the indices its last bag ends, and where
    reading goes on then.
    """

    place: tuple[Any, Any]
    end: Any
    next_place: tuple[Any, Any]
    next_begin: Any


def _pool_bag(bags: Bags, fetch: BagFetch, table, item, run: _Run, write, count) -> None:
    begin, end, misplaced = bags.bounds(table, item)
    # Of scope "global" TVM puts small buffers on the stack and LLVM into registers. "local" ones come from the heap,
    # where LLVM, for which a prefetch reads memory, stores them before each: measured, up to twice the time.
    # From here on the row to be asked for belongs to the next table.
    turn = T.bind(T.max(T.min(run.end - T.int64(fetch.distance), end), begin))
    outside = T.alloc_buffer((1,), "int64", scope="global")
    T.buffer_store(outside, misplaced, [0])
    blocks, values = bags.dim // LANES, bags.form.values
    for first in range(0, blocks, MOST_VECTORS // values):
        span = range(first, min(first + MOST_VECTORS // values, blocks))
        acc = T.alloc_buffer((len(span) * values * LANES,), "float32", scope="global")
        for v in range(len(span) * values):
            store(acc, v * LANES, zeros())

        def add(number, acc=acc, span=span) -> None:
            at, inside = bags.row(number, run.place)
            if span.start == 0:
                T.buffer_store(outside, outside[0] + T.Select(inside, _NONE, _ONE), [0])
            for v, block in enumerate(span):
                for plane, value in enumerate(bags.form.planes(load(bags.tables, at + block * LANES))):
                    place = (v * values + plane) * LANES
                    store(acc, place, load(acc, place) + value)

        def ask(number, place, span=span) -> None:
            if fetch.distance:
                at, _ = bags.row(number, place)
                for block in span[:: fetch.stride]:
                    prefetch(bags.tables, at + block * LANES, fetch.locality)

        with T.serial(turn - begin) as step:
            ask(T.bind(begin + step + T.int64(fetch.distance)), run.place)
            add(T.bind(begin + step))
        with T.serial(end - turn) as step:
            wanted = turn + step + T.int64(fetch.distance) - run.end + run.next_begin
            ask(T.bind(T.min(T.max(wanted, _NONE), bags.total - _ONE)), run.next_place)
            add(T.bind(turn + step))
        scale = bags.scale(table, end - begin)
        scale = None if scale is None else T.bind(broadcast(scale))
        for v, block in enumerate(span):
            planes = [load(acc, (v * values + plane) * LANES) for plane in range(values)]
            write(block, [plane if scale is None else plane * scale for plane in planes])
    count(outside[0])


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
