"""The source of an item's vectors e1, .., eT: rows in the tables, or pooled bags.

Both classes offer the same methods, which task.py and interaction.py call in this order for every tile:

    start(tile, first_item, poison_at)    before the bottom MLP of the task's `tile`; poison[poison_at + item] = NaN
                                          for wrong input, else 0
    use(tile)                             before the block's `tile` is read, which was started `ahead` tiles before
    hooks()                               statements for the k loops of the bottom layers
    vector(item, table)                   (buffer, element offset) of one vector of the tile, words of the tables' form
    factors(item, into, into_at)          for int8: the scales of the item's vectors, from into[into_at + 1] on; where
                                          the interaction takes static scales, relative to those
    scales_vectors                        whether vectors have those static scales already
    pools_into(place)                     whether vectors will be written to place(tile, row, table, block), 16 words
                                          each, of all of a block's tiles when its first one is started
    beside_copy(item, table)              statements beside the copy of one of the item's vectors
    beside_group(item, group, groups)     statements beside one of the item's groups of pairs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tvm.tirx.script.builder import ir as T

from ..kernels.activations import row_scales
from ..kernels.dense import Hook, hook_places
from ..kernels.embedding_bag import Bags, pool_items, tiles_at_once
from ..kernels.gather import Rows, locate_rows, poison_dense
from ..kernels.vectors import LANES, load, padded, store
from .plan import NetworkPlan


class RowLookup:
    """One row per table and item: nothing is copied, rows are prefetched during the bottom MLP (gather.py); on AMX,
    where vectors are copied, beside the copies of the item before: that hides more than a burst does."""

    scales_vectors = False

    def __init__(self, plan: NetworkPlan, args: dict, poison) -> None:
        self.ahead = 1 if plan.is_tiled else 0
        self._items = (1 + self.ahead) * plan.mr  # whose offsets are kept
        offsets = T.alloc_buffer((self._items * plan.num_tables,), "int64", scope="global")
        self._plan, self._args, self._poison = plan, args, poison
        self._rows = Rows(offsets, args["tables"], plan.num_tables, plan.mr, plan.row_words)

    def start(self, tile, first_item, poison_at) -> None:
        """Offsets of the tile's rows, and their first lines touched."""
        plan, args = self._plan, self._args
        self.use(T.bind(poison_at // plan.mr) if self.ahead else 0)
        inputs = (args["dense"], plan.num_dense, args["indices"], args["table_info"])
        locate_rows(self._rows, first_item, plan.batch, *inputs, self._poison, poison_at)
        if plan.prefetch.every and not plan.fetches_beside:
            self._rows.touch(plan.prefetch)
            if not any(self._places()):
                with T.serial(self._rows.per_tile) as number:
                    self._rows.prefetch_rest(number, plan.prefetch)

    def pools_into(self, place: Callable) -> bool:
        """Rows are read where they are."""
        return False

    def use(self, tile) -> None:
        """From here on the rows of the block's `tile` are meant: those of two tiles are kept in turns."""
        if self.ahead:
            self._rows = replace(self._rows, first=T.bind(tile % 2 * self._rows.per_tile))

    def _places(self) -> list[int]:
        """Places for prefetches in each bottom layer. The last layer has none: its time is for the rows to arrive."""
        plan = self._plan
        if not plan.prefetch.every or plan.skip_zeros or plan.is_tiled:
            return [0] * len(plan.bottom)
        return [
            sum(count for _, count, _ in layer.column_tiles) * hook_places(layer, plan.prefetch.every)
            for layer in plan.bottom[:-1]
        ] + [0]

    def hooks(self) -> list:
        """Per bottom layer the hook that prefetches its share of the tile's rows, None if it has no share."""
        prefetch, places = self._plan.prefetch, self._places()
        if not any(places):
            return [None] * len(places)
        share = -(-self._rows.per_tile // sum(places))

        def hook(first: int) -> Hook:
            def emit(place) -> None:
                for number in range(share):
                    self._rows.prefetch_rest((place + first) * share + number, prefetch)

            return Hook(emit, prefetch.every)

        return [hook(sum(places[:at])) if count else None for at, count in enumerate(places)]

    def vector(self, item, table) -> tuple[Any, Any]:
        return self._args["tables"], T.bind(self._rows.at(item, table))

    def factors(self, item, into, into_at=0) -> None:
        _copy(self._args["mlp"], self._plan.factors_at, into, into_at, self._plan.num_tables)

    def beside_copy(self, item, table) -> None:
        """Prefetch the row of this table that will be copied next, unless a burst has."""
        plan, rows = self._plan, self._rows
        if plan.prefetch.every and plan.fetches_beside:
            following = T.bind(T.truncmod(T.truncdiv(rows.first, plan.num_tables) + item + 1, self._items))
            rows.prefetch_whole(following, table, plan.prefetch.locality)

    def beside_group(self, item, group, groups: int) -> None:
        """Prefetch the next item's rows from L2 into L1."""
        plan = self._plan
        if plan.prefetch.every and plan.mr > 1:
            self._rows.prefetch_next_item(item, group, groups)


def _within_byte(values):
    return T.max(T.min(values, T.broadcast(T.float32(127), LANES)), T.broadcast(T.float32(-128), LANES))


def _copy(source, at, into, into_at, tables: int) -> None:
    """One number per vector, in whole vectors of 16."""
    for first in range(0, padded(tables + 1), LANES):
        store(into, into_at + first, load(source, at + first))


class BagLookup:
    """Any number of rows per table and item, pooled for a group of tiles together (embedding_bag.py).

    Pooled vectors have the form of rows. In int8 they are brought to the interaction's static scales, or a sum beyond
    127 is scaled back to 127, and its scale goes into the factor. tiles: of the task, an expression.
    """

    ahead = 0  # a group is pooled as a whole

    def use(self, tile) -> None:
        """The tile that was started last is meant."""

    def __init__(self, plan: NetworkPlan, args: dict, bags: Bags, tiles, poison) -> None:
        self._plan, self._args, self._bags, self._tiles, self._poison = plan, args, bags, tiles, poison
        self._is_int8, self.scales_vectors = plan.table_form.precision == "int8", plan.interaction.takes_sums
        tile_words = plan.mr * plan.num_tables * plan.row_words
        self._group, self._place = tiles_at_once(plan.tiles, 4 * tile_words), self._pooled_at
        self._most = max(self._group, plan.most_tiles)
        self._pooled = T.alloc_buffer((self._group * tile_words,), "float32", scope="global")
        self._wrong = T.alloc_buffer((self._most * plan.mr,), "int64", scope="global")
        if self._is_int8 and not self.scales_vectors:
            self._planes = T.alloc_buffer((plan.row_words * plan.table_form.values,), "float32", scope="global")
            numbers = self._group * plan.mr * padded(plan.num_tables + 1)
            self._factors = T.alloc_buffer((numbers,), "float32", scope="global")

    def pools_into(self, place: Callable) -> bool:
        self._group, self._place = self._plan.block_tiles, place
        return True

    def start(self, tile, first_item, poison_at) -> None:
        """Pool a whole group of tiles when its first tile begins; poison the items with wrong indices or offsets."""
        plan = self._plan
        within = T.bind(tile % self._group)
        self._first = T.bind(within * plan.mr)  # the tile's first item in the group
        with T.If(within == 0), T.Then():
            self._pool(first_item, T.bind(T.min(self._group, self._tiles - tile) * plan.mr))
        with T.serial(plan.mr) as row:
            item = T.bind(T.min(first_item + row, plan.batch - 1))
            wrong = T.alloc_buffer((1,), "int64", scope="local")
            T.buffer_store(wrong, self._wrong[self._first + row], [0])
            poison_dense(item, self._args["dense"], plan.num_dense, wrong, self._poison, poison_at + row)

    def _pool(self, first_item, items) -> None:
        with T.serial(items) as item:
            T.buffer_store(self._wrong, T.int64(0), [item])

        def count(item, wrong) -> None:
            T.buffer_store(self._wrong, self._wrong[item] + wrong, [item])

        write = self._write
        if self._is_int8:
            write = self._write_scaled if self.scales_vectors else self._write_bytes
        fetch = self._plan.bag_prefetch
        pool_items(self._bags, fetch, first_item, items, write, count, self._copy_row, self._copies)

    def _copies(self, table):
        """Whether a bag of one row is that row."""
        if not self.scales_vectors:
            return True
        return T.bind(self._args["mlp"][self._plan.factors_at + 1 + table] == T.float32(1))

    def _copy_row(self, item, table, block: int, words) -> None:
        plan = self._plan
        buffer, at = self._place(T.truncdiv(item, plan.mr), T.truncmod(item, plan.mr), table, block)
        store(buffer, at, words)
        if self._is_int8 and not self.scales_vectors and (block + 1) * LANES == plan.row_words:
            self._keep_factor(item, table, T.float32(1))

    def _keep_factor(self, item, table, scale) -> None:
        factor = self._args["mlp"][self._plan.factors_at + 1 + table] * scale
        T.buffer_store(self._factors, factor, [item * padded(self._plan.num_tables + 1) + 1 + table])

    def _write(self, item, table, block, planes: list) -> None:
        self._store(item, table, block, planes)

    def _write_scaled(self, item, table, block, planes: list) -> None:
        """Within -128 .. 127 of the interaction's static scale."""
        factor = T.bind(T.broadcast(self._args["mlp"][self._plan.factors_at + 1 + table], LANES))
        self._store(item, table, block, [T.nearbyint(_within_byte(plane * factor)) for plane in planes])

    def _store(self, item, table, block, planes: list) -> None:
        """16 words of a vector; planes: as pool_items gives them, of int8 whole numbers."""
        mr = self._plan.mr
        buffer, at = self._place(T.truncdiv(item, mr), T.truncmod(item, mr), table, block)
        if not self._is_int8:
            store(buffer, at, self._plan.table_form.join(planes))
            return
        for plane, values in enumerate(planes):
            part = T.cast(T.cast(values, "int32x16"), "int8x16")
            store(buffer, at + plane * LANES // 4, T.reinterpret("float32x4", part), LANES // 4)

    def _pooled_at(self, tile, row, table, block) -> tuple[Any, Any]:
        return self._pooled, self._at(tile * self._plan.mr + row, table) + block * LANES

    def _write_bytes(self, item, table, block: int, planes: list) -> None:
        """Keep blocks until the last one, then scale the vector to -127 .. 127."""
        plan, values = self._plan, self._plan.table_form.values
        for plane, value in enumerate(planes):
            store(self._planes, (block * values + plane) * LANES, value)
        if (block + 1) * LANES < plan.row_words:
            return
        vectors = plan.row_words * values // LANES
        largest, _ = row_scales([(vectors, lambda v: load(self._planes, v * LANES))], 127)
        # At least 1: a bag of one row stays as it is, so that it gives the same with offsets as without.
        scales = T.bind(T.max(largest * T.float32(1 / 127), T.float32(1)))
        inverse = T.bind(T.broadcast(T.float32(1) / scales, LANES))
        for at in range(plan.row_words // LANES):
            scaled = [load(self._planes, (at * values + plane) * LANES) * inverse for plane in range(values)]
            self._store(item, table, at, [T.nearbyint(value) for value in scaled])
        self._keep_factor(item, table, scales)

    def hooks(self) -> list:
        return [None] * len(self._plan.bottom)

    def vector(self, item, table) -> tuple[Any, Any]:
        return self._pooled, T.bind(self._at(self._first + item, table))

    def factors(self, item, into, into_at=0) -> None:
        if self.scales_vectors:
            return
        tables = self._plan.num_tables
        _copy(self._factors, T.bind((self._first + item) * padded(tables + 1)), into, into_at, tables)

    def beside_copy(self, item, table) -> None:
        """Nothing, as below."""

    def beside_group(self, item, group, groups: int) -> None:
        """Nothing: the next item's vectors are in L1 or L2 already."""

    def _at(self, item, table):
        return (item * self._plan.num_tables + table) * self._plan.row_words
