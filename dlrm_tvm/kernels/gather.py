"""Embedding bags of one row each: row numbers to addresses, and prefetching of rows.

Plain definition:   e_t[i, :] = tables[starts[t] + indices[i, t] * words : + words]

Rows are never copied: the interaction reads them in the tables. This kernel (a) checks each index against its table
and turns it into a 64-bit element offset, once; (b) prefetches the rows of a tile of items while its bottom MLP is
computed. 26 random rows per item miss every cache and the TLB, and out-of-order execution alone covers a small part of
a 150 ns miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from .vectors import LANES, prefetch

TO_L1 = 3  # of llvm.prefetch
LARGEST_FLOAT = 3.4028234663852886e38


@dataclass(frozen=True)
class Prefetch:
    """How a tile's rows are prefetched before its interaction: one line of each row in a burst before the bottom MLP,
    so that page walks overlap, then the other lines bit by bit in the bottom MLP's k loops. An isolated first touch
    stalls the multiply-adds around it for a page walk. During the interaction of one item, the rows of the next are
    prefetched into L1.

    every: k blocks of 16 between two prefetches, 0 for no prefetching; locality: of llvm.prefetch, 3 is L1, 2 is L2.
    """

    every: int
    locality: int


@dataclass(frozen=True)
class Rows:
    """The element offsets of the rows of one tile's items, [mr][num_tables] int64 from element `first` on.

    row_words: elements of a row.
    """

    offsets: Any
    tables: Any
    num_tables: int
    mr: int
    row_words: int
    first: Any = 0

    @property
    def per_tile(self) -> int:
        return self.mr * self.num_tables

    def at(self, row, table):
        return self.offsets[self.first + row * self.num_tables + table]

    def touch(self, fetch: Prefetch) -> None:
        """The first line of all rows of the tile."""
        with T.serial(self.per_tile) as number:
            prefetch(self.tables, self.offsets[self.first + number], fetch.locality)

    def prefetch_rest(self, number, fetch: Prefetch) -> None:
        """All other lines of the row with this number (0 .. per_tile - 1; beyond that the last row's again)."""
        at = T.bind(self.offsets[self.first + T.min(number, self.per_tile - 1)])
        for line in range(1, self.row_words // LANES):
            prefetch(self.tables, at + line * LANES, fetch.locality)

    def prefetch_next_item(self, item, group, groups: int) -> None:
        """The share of one group of pairs in fetching the next item's rows (the last item's again) into L1.

        Whole rows per group, so a few of the last ones may be left out; they are in L2 already.
        """
        share = max(1, self.num_tables // groups)
        for number in range(share):
            table = T.min(group * share + number, self.num_tables - 1)
            at = T.bind(self.at(T.min(item + 1, self.mr - 1), table))
            self._prefetch_lines(at, TO_L1)

    def prefetch_whole(self, number, table, locality: int) -> None:
        """All of one row; number: of its line of offsets, counted from the first one of all."""
        self._prefetch_lines(T.bind(self.offsets[number * self.num_tables + table]), locality)

    def _prefetch_lines(self, at, locality: int) -> None:
        for line in range(self.row_words // LANES):
            prefetch(self.tables, at + line * LANES, locality)


def locate_rows(rows: Rows, first_item, batch: int, dense, num_dense: int, indices, table_info, poison, poison_at):
    """Offsets of one tile's rows, and poison[poison_at + item of the tile] = NaN where an input is wrong, else 0.

    An index outside its table is replaced by 0, so that nothing outside the tables is ever read; the item's
    prediction becomes NaN. So does that of an item with a dense value that is not finite, which ReLU may hide (-inf).
    table_info: [2][num_tables] int64, first element and number of rows of each table.
    """
    with T.serial(rows.mr) as row:
        item = T.bind(T.cast(T.min(first_item + row, batch - 1), "int64"))
        wrong = T.alloc_buffer((1,), "int64", scope="local")
        T.buffer_store(wrong, T.int64(0), [0])
        with T.serial(rows.num_tables) as table:
            index = T.bind(indices[item, table])
            inside = T.bind(T.bitwise_and(index >= T.int64(0), index < table_info[1, table]))
            T.buffer_store(wrong, wrong[0] + T.Select(inside, T.int64(0), T.int64(1)), [0])
            offset = table_info[0, table] + T.Select(inside, index, T.int64(0)) * T.int64(rows.row_words)
            T.buffer_store(rows.offsets, offset, [rows.first + row * rows.num_tables + table])
        poison_dense(item, dense, num_dense, wrong, poison, poison_at + row)


def poison_dense(item, dense, num_dense: int, wrong, poison, poison_at) -> None:
    """Add the item's dense values that are not finite to wrong[0]; poison[poison_at] = NaN if there is any, else 0."""
    with T.serial(num_dense) as k:
        finite = T.abs(dense[item, k]) <= T.float32(LARGEST_FLOAT)
        T.buffer_store(wrong, wrong[0] + T.Select(finite, T.int64(0), T.int64(1)), [0])
    nan = T.float32(float("nan"))
    T.buffer_store(poison, T.Select(wrong[0] == T.int64(0), T.float32(0), nan), [poison_at])
