"""Where the network takes an item's vectors e1, .., eT from: rows of the tables as they lie, or pooled bags.

Both offer the same, which network.py emits in this order for every tile:

    start(tile, first_item, poison_at)    before the bottom MLP of the task's `tile`; poison[poison_at + item] = NaN
                                          for wrong input, else 0
    hooks()                               what to do in the k loops of the bottom layers
    vector(item, table)                   (buffer, element offset) of one vector of the tile, words of the tables' form
    factors(item, into)                   int8: what the item's vectors are multiplied by, from into[1] on
    beside_group(item, group)             while the interaction writes its groups of pairs
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from .activations import row_steps
from .dense import Hook, hook_places
from .embedding_bag import Bags, pool_items, tiles_at_once
from .gather import Rows, locate_rows, poison_dense
from .network_plan import NetworkPlan
from .vectors import LANES, load, padded, store


class RowLookup:
    """One row per table and item: nothing is copied, rows are fetched while the bottom MLP is computed (gather.py)."""

    def __init__(self, plan: NetworkPlan, args: dict, poison) -> None:
        offsets = T.alloc_buffer((plan.mr * plan.num_tables,), "int64", scope="global")
        self._plan, self._args, self._poison = plan, args, poison
        self._rows = Rows(offsets, args["tables"], plan.num_tables, plan.mr, plan.row_words)

    def start(self, tile, first_item, poison_at) -> None:
        """Offsets of the rows of the tile; touch the rows."""
        plan, args = self._plan, self._args
        inputs = (args["dense"], plan.num_dense, args["indices"], args["table_info"])
        locate_rows(self._rows, first_item, plan.batch, *inputs, self._poison, poison_at)
        if plan.fetch.every:
            self._rows.touch(plan.fetch)
            if not any(self._places()):
                with T.serial(self._rows.per_tile) as number:
                    self._rows.fetch_rest(number, plan.fetch)

    def _places(self) -> list[int]:
        """How many places for fetching each bottom layer has; the last layer's time is for the rows to arrive."""
        plan = self._plan
        if not plan.fetch.every or plan.skip_zeros:
            return [0] * len(plan.bottom)
        return [
            sum(count for _, count, _ in layer.column_tiles) * hook_places(layer, plan.fetch.every)
            for layer in plan.bottom[:-1]
        ] + [0]

    def hooks(self) -> list:
        """Per bottom layer the hook that fetches its share of the tile's rows, None where it has none."""
        fetch, places = self._plan.fetch, self._places()
        if not any(places):
            return [None] * len(places)
        share = -(-self._rows.per_tile // sum(places))

        def hook(first: int) -> Hook:
            def emit(place) -> None:
                for number in range(share):
                    self._rows.fetch_rest((place + first) * share + number, fetch)

            return Hook(emit, fetch.every)

        return [hook(sum(places[:at])) if count else None for at, count in enumerate(places)]

    def vector(self, item, table) -> tuple[Any, Any]:
        return self._args["tables"], T.bind(self._rows.at(item, table))

    def factors(self, item, into) -> None:
        _copy(self._args["mlp"], self._plan.factors_at, into, self._plan.num_tables)

    def beside_group(self, item, group) -> None:
        """Draw the next item's rows on into L1."""
        plan = self._plan
        if plan.fetch.every and plan.mr > 1:
            self._rows.fetch_next_item(item, group, plan.grouping.num_groups)


def _copy(source, at, into, tables: int) -> None:
    """One number per vector, in whole vectors of 16."""
    for first in range(0, padded(tables + 1), LANES):
        store(into, first, load(source, at + first))


class BagLookup:
    """Any number of rows per table and item, pooled for a group of tiles together (embedding_bag.py).

    Pooled vectors take the form that rows have. In int8 a sum that goes beyond 127 is brought back to that, and has a
    factor of its own. tiles: of the task, an expression.
    """

    def __init__(self, plan: NetworkPlan, args: dict, bags: Bags, tiles, poison) -> None:
        self._plan, self._args, self._bags, self._tiles, self._poison = plan, args, bags, tiles, poison
        tile_words = plan.mr * plan.num_tables * plan.row_words
        self._group = tiles_at_once(plan.tiles, 4 * tile_words)
        self._pooled = T.alloc_buffer((self._group * tile_words,), "float32", scope="global")
        self._wrong = T.alloc_buffer((self._group * plan.mr,), "int64", scope="global")
        if plan.table_form.precision == "int8":
            self._planes = T.alloc_buffer((plan.row_words * plan.table_form.values,), "float32", scope="global")
            numbers = self._group * plan.mr * padded(plan.num_tables + 1)
            self._factors = T.alloc_buffer((numbers,), "float32", scope="global")

    def start(self, tile, first_item, poison_at) -> None:
        """Pool a whole group of tiles when its first one begins; poison those items that pooling found wrong."""
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

        write = self._write_bytes if self._plan.table_form.precision == "int8" else self._write
        pool_items(self._bags, self._plan.bag_fetch, first_item, items, write, count)

    def _write(self, item, table, block, planes: list) -> None:
        words = self._plan.table_form.join(planes)
        store(self._pooled, self._at(item, table) + block * LANES, words)

    def _write_bytes(self, item, table, block: int, planes: list) -> None:
        """Keep a block until the last one is there, then bring the vector into -127 .. 127."""
        plan, values = self._plan, self._plan.table_form.values
        for plane, value in enumerate(planes):
            store(self._planes, (block * values + plane) * LANES, value)
        if (block + 1) * LANES < plan.row_words:
            return
        vectors = plan.row_words * values // LANES
        largest, _ = row_steps([(vectors, lambda v: load(self._planes, v * LANES))], 127)
        # A bag of one row stays as it is, so that it means the same with offsets as without.
        steps = T.bind(T.max(largest * T.float32(1 / 127), T.float32(1)))
        inverse = T.bind(T.broadcast(T.float32(1) / steps, LANES))
        for at in range(plan.row_words // LANES):
            scaled = [load(self._planes, (at * values + plane) * LANES) * inverse for plane in range(values)]
            words = plan.table_form.join([T.nearbyint(value) for value in scaled])
            store(self._pooled, self._at(item, table) + at * LANES, words)
        factor = self._args["mlp"][plan.factors_at + 1 + table] * steps
        T.buffer_store(self._factors, factor, [item * padded(plan.num_tables + 1) + 1 + table])

    def hooks(self) -> list:
        return [None] * len(self._plan.bottom)

    def vector(self, item, table) -> tuple[Any, Any]:
        return self._pooled, T.bind(self._at(self._first + item, table))

    def factors(self, item, into) -> None:
        tables = self._plan.num_tables
        _copy(self._factors, T.bind((self._first + item) * padded(tables + 1)), into, tables)

    def beside_group(self, item, group) -> None:
        """Nothing: the next item's vectors are in L1 or L2 already."""

    def _at(self, item, table):
        return (item * self._plan.num_tables + table) * self._plan.row_words
