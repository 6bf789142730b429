"""One bag's rows, added up or copied: the inner part of embedding_bag.py.

Blocks of 16 words of all rows are added up in registers, as many as hold MOST_VECTORS vectors of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from .vectors import LANES, broadcast, floats, load, prefetch, store, zeros
from .words import Form

MOST_VECTORS = 8  # accumulators
_NONE, _ONE = T.int64(0), T.int64(1)
_ROWS = 256  # whose bytes, within -127 .. 127, add up in 16 bits


@dataclass(frozen=True)
class Run:
    """One table's bags of a group of items: the table's place, the end of its last bag in the indices, and the place
    and first index of the next table.
    """

    place: tuple[Any, Any]
    end: Any
    next_place: tuple[Any, Any]
    next_begin: Any


@dataclass(frozen=True)
class Uses:
    """What becomes of a bag, as pool_items has them: write(block, planes), copy(block, words), count(number)."""

    write: Callable
    copy: Callable | None
    count: Callable


def pool_bag(bags, fetch, table, item, run: Run, use: Uses, is_copied) -> None:
    """bags, fetch: of embedding_bag.py; is_copied: whether a bag of one row may be copied, an expression, True for
    always, None for never."""
    begin, end, misplaced = bags.bounds(table, item)
    if is_copied is None:
        _add_rows(bags, fetch, table, run, use, begin, end, misplaced)
        return
    is_one = end - begin == _ONE
    with T.If(is_one if is_copied is True else T.bitwise_and(is_one, is_copied)):
        with T.Then():
            _copy_row(bags, fetch, run, use, begin, misplaced)
        with T.Else():
            _add_rows(bags, fetch, table, run, use, begin, end, misplaced)


def _copy_row(bags, fetch, run: Run, use: Uses, begin, misplaced) -> None:
    blocks = bags.dim // LANES
    if fetch.distance:
        is_own = T.bind(begin + T.int64(fetch.distance) < run.end)
        wanted = begin + T.int64(fetch.distance) + T.Select(is_own, _NONE, run.next_begin - run.end)
        place = tuple(T.bind(T.Select(is_own, *each)) for each in zip(run.place, run.next_place))
        ahead, _ = bags.row(T.bind(T.min(T.max(wanted, _NONE), bags.total - _ONE)), place)
        for block in range(0, blocks, fetch.stride):
            prefetch(bags.tables, ahead + block * LANES, fetch.locality)
    at, inside = bags.row(begin, run.place)
    for block in range(blocks):
        use.copy(block, load(bags.tables, at + block * LANES))
    use.count(misplaced + T.Select(inside, _NONE, _ONE))


def _add_rows(bags, fetch, table, run: Run, use: Uses, begin, end, misplaced) -> None:
    # TVM puts small "global" buffers on the stack, and LLVM into registers. "local" ones are on the heap, and LLVM, for
    # which a prefetch reads memory, stores them before each prefetch: up to twice the time, measured.
    # From `turn` on, the row to be prefetched belongs to the next table.
    turn = T.bind(T.max(T.min(run.end - T.int64(fetch.distance), end), begin))
    outside = T.alloc_buffer((1,), "int64", scope="global")
    T.buffer_store(outside, misplaced, [0])
    blocks, values = bags.dim // LANES, bags.form.values
    for first in range(0, blocks, MOST_VECTORS // values):
        span = range(first, min(first + MOST_VECTORS // values, blocks))
        sums = _sums_of(bags.tables, bags.form, span)

        def add(number, sums=sums, span=span) -> None:
            at, inside = bags.row(number, run.place)
            if span.start == 0:
                T.buffer_store(outside, outside[0] + T.Select(inside, _NONE, _ONE), [0])
            sums.add(at)

        def ask(number, place, span=span) -> None:
            if fetch.distance:
                at, _ = bags.row(number, place)
                for block in span[:: fetch.stride]:
                    prefetch(bags.tables, at + block * LANES, fetch.locality)

        def add_all(begin, end, ask=ask, add=add) -> None:
            here = T.bind(T.max(T.min(turn, end), begin))
            with T.serial(here - begin) as step:
                ask(T.bind(begin + step + T.int64(fetch.distance)), run.place)
                add(T.bind(begin + step))
            with T.serial(end - here) as step:
                wanted = here + step + T.int64(fetch.distance) - run.end + run.next_begin
                ask(T.bind(T.min(T.max(wanted, _NONE), bags.total - _ONE)), run.next_place)
                add(T.bind(here + step))

        sums.take(begin, end, add_all)
        scale = bags.scale(table, end - begin)
        scale = None if scale is None else T.bind(broadcast(scale))
        for v, block in enumerate(span):
            planes = sums.planes(v)
            use.write(block, [plane if scale is None else plane * scale for plane in planes])
    use.count(outside[0])


def _sums_of(tables, form: Form, span: range) -> FloatSums | ByteSums:
    """span: the blocks; tables: the buffer of all rows, of this form."""
    return (ByteSums if form.precision == "int8" else FloatSums)(tables, form, span)


class FloatSums:
    """Of the blocks of `span` of a bag's rows, as float32: value 0 of each word, then value 1."""

    def __init__(self, tables, form: Form, span: range) -> None:
        self._tables, self._form, self._span, self._values = tables, form, span, form.values
        self._acc = T.alloc_buffer((len(span) * self._values * LANES,), "float32", scope="global")

    def take(self, begin, end, add_all: Callable) -> None:
        """All rows; add_all(begin, end): calls add for each of indices begin .. end - 1."""
        for v in range(len(self._span) * self._values):
            store(self._acc, v * LANES, zeros())
        add_all(begin, end)

    def add(self, at) -> None:
        """A row, from element `at` of the tables on."""
        for v, block in enumerate(self._span):
            for plane, value in enumerate(self._form.planes(load(self._tables, at + block * LANES))):
                place = (v * self._values + plane) * LANES
                store(self._acc, place, load(self._acc, place) + value)

    def planes(self, v: int) -> list:
        return [load(self._acc, (v * self._values + plane) * LANES) for plane in range(self._values)]


class ByteSums:
    """The same of bytes, as whole numbers, 16 bytes after another in each plane. 32 of them are added up in 16 bits in
    one instruction, which hold the sum of 256 rows."""

    def __init__(self, tables, form: Form, span: range) -> None:
        self._tables, self._span, self._size = tables, span, len(span) * LANES * form.values
        self._acc = T.alloc_buffer((self._size,), "int16", scope="global")
        self._totals = T.alloc_buffer((self._size,), "int32", scope="global")

    def take(self, begin, end, add_all: Callable) -> None:
        def totals(value: Callable) -> None:
            for at in range(0, self._size, LANES):
                store(self._totals, at, value(at))

        totals(lambda at: broadcast(T.int32(0)))
        with T.serial(T.ceildiv(end - begin, T.int64(_ROWS))) as part:
            for at in range(0, self._size, 2 * LANES):
                store(self._acc, at, T.broadcast(T.int16(0), 2 * LANES), 2 * LANES)
            first = T.bind(begin + part * T.int64(_ROWS))
            add_all(first, T.bind(T.min(first + T.int64(_ROWS), end)))
            totals(lambda at: load(self._totals, at) + T.cast(load(self._acc, at), "int32x16"))

    def add(self, at) -> None:
        for place in range(0, self._size, 2 * LANES):
            words = load(self._tables, at + self._span.start * LANES + place // 4, LANES // 2)
            row = T.cast(T.reinterpret("int8x32", words), "int16x32")
            store(self._acc, place, load(self._acc, place, 2 * LANES) + row, 2 * LANES)

    def planes(self, v: int) -> list:
        return [floats(load(self._totals, v * 4 * LANES + at)) for at in range(0, 4 * LANES, LANES)]
