"""Where the network takes an item's vectors e1, .., eT from: rows of the tables as they lie, or pooled bags.

Both offer the same, which network.py emits in this order for every tile:

    start(tile, first_item, poison_at)    before the bottom MLP of the task's `tile`; poison[poison_at + item] = NaN
                                          for wrong input, else 0
    hooks()                               what to do in the k loops of the bottom layers
    vector(item, table)                   (buffer, element offset) of one vector of the tile
    beside_group(item, group)             while the interaction writes its groups of pairs
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from .dense import Hook, hook_places
from .embedding_bag import Bags, pool_items, tiles_at_once
from .gather import Rows, locate_rows, poison_dense
from .network_plan import NetworkPlan
from .vectors import LANES, store


class RowLookup:
    """One row per table and item: nothing is copied, rows are fetched while the bottom MLP is computed (gather.py)."""

    def __init__(self, plan: NetworkPlan, args: dict, poison) -> None:
        offsets = T.alloc_buffer((plan.mr * plan.num_tables,), "int64", scope="global")
        self._plan, self._args, self._poison = plan, args, poison
        self._rows = Rows(offsets, args["tables"], plan.num_tables, plan.mr, plan.dim)

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

    def beside_group(self, item, group) -> None:
        """Draw the next item's rows on into L1."""
        plan = self._plan
        if plan.fetch.every and plan.mr > 1:
            self._rows.fetch_next_item(item, group, plan.grouping.num_groups)


class BagLookup:
    """Any number of rows per table and item, pooled for a group of tiles together (embedding_bag.py).

    tiles: of the task, an expression.
    """

    def __init__(self, plan: NetworkPlan, dense, bags: Bags, tiles, poison) -> None:
        self._plan, self._dense, self._bags, self._tiles, self._poison = plan, dense, bags, tiles, poison
        tile_elements = plan.mr * plan.num_tables * plan.dim
        self._group = tiles_at_once(plan.tiles, 4 * tile_elements)
        self._pooled = T.alloc_buffer((self._group * tile_elements,), "float32", scope="global")
        self._wrong = T.alloc_buffer((self._group * plan.mr,), "int64", scope="global")

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
            poison_dense(item, self._dense, plan.num_dense, wrong, self._poison, poison_at + row)

    def _pool(self, first_item, items) -> None:
        with T.serial(items) as item:
            T.buffer_store(self._wrong, T.int64(0), [item])

        def write(item, table, block, value) -> None:
            store(self._pooled, self._at(item, table) + block * LANES, value)

        def count(item, wrong) -> None:
            T.buffer_store(self._wrong, self._wrong[item] + wrong, [item])

        pool_items(self._bags, self._plan.bag_fetch, first_item, items, write, count)

    def hooks(self) -> list:
        return [None] * len(self._plan.bottom)

    def vector(self, item, table) -> tuple[Any, Any]:
        return self._pooled, T.bind(self._at(self._first + item, table))

    def beside_group(self, item, group) -> None:
        """Nothing: the next item's vectors are in L1 or L2 already."""

    def _at(self, item, table):
        return (item * self._plan.num_tables + table) * self._plan.dim
