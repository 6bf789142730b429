"""A task on AMX's tiles: task.py's loop over blocks, but with the bottom MLP over whole blocks too.

    for block of the task's tiles:                  # hundreds of items, for which weights stream through once
        dense inputs of the block -> tiles
        bottom MLP over the block, layer by layer
        for tile in block:
            prefetch the next tile's rows in one burst, interaction of this tile
        top MLP over the block, last layer

A burst's page walks overlap; prefetches that are spread over tile products stall them instead.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from ..kernels.activations import Activations, Tiles
from ..kernels.dense import PackedDense
from ..kernels.tile_dense import TileScratch, tile_dense_layer
from ..kernels.tile_unit import TILE_ROWS, TileUnit, tile_ir, touch
from ..kernels.vectors import LANES, load, padded, store, zeros
from .plan import NetworkPlan
from .task import Task


class TileTask(Task):
    def __init__(self, plan: NetworkPlan, *rest) -> None:
        super().__init__(plan, *rest)
        self.unit = TileUnit(plan.mr, emulated=plan.family.emulated)
        self.scratch = TileScratch(plan.most_tiles // 2, plan.layers)
        first = plan.bottom[0]
        size = plan.most_tiles * plan.mr * first.inputs
        words = T.alloc_buffer((size,), "float32", scope="global")
        self.dense_in = Activations(first.takes, Tiles(words, 0, first.inputs, plan.mr), None, None)
        touch(words, size)
        touch(self.top_in.tiles.buffer, plan.most_tiles * self.top_in.tiles.tile_size)
        for buffers in (self.bottom_buffers, self.top_buffers):
            buffers.each_whole(touch)
        self.row = T.alloc_buffer((padded(plan.num_dense),), "float32", scope="global")
        for at in range(0, padded(plan.num_dense), LANES):
            store(self.row, at, zeros())

    @staticmethod
    def helpers(plan: NetworkPlan) -> str:
        return "" if plan.family.emulated else tile_ir(plan.mr, TILE_ROWS)

    def run(self) -> None:
        super().run()
        self.unit.release()

    def block(self, begin, tiles) -> None:
        self.unit.configure()
        self.take_dense(begin, tiles)
        self.bottom(begin, 0, [None] * len(self.plan.bottom), tiles)
        self.interact(begin, tiles)
        self.unit.configure()
        self.interaction.finish(tiles, self.layer, self.lap)
        self.top(begin, tiles)

    def take_dense(self, begin, tiles) -> None:
        """The dense inputs of the block in the first layer's form; items past the batch are the last one again."""
        plan, dense = self.plan, self.args["dense"]
        vectors = padded(plan.num_dense) // LANES
        with T.serial(tiles) as tile, T.serial(plan.mr) as row:
            item = T.bind(T.min((self.first_tile + begin + tile) * plan.mr + row, plan.batch - 1))
            with T.serial(plan.num_dense) as k:
                T.buffer_store(self.row, dense[item, k], [k])
            self.dense_in.write_row(tile, row, [(vectors, lambda v: load(self.row, v * LANES))])

    def interact(self, begin, tiles) -> None:
        plan = self.plan
        first = lambda tile: T.bind((self.first_tile + (begin + tile)) * plan.mr)  # noqa: E731
        ahead = self.lookup.ahead
        self.interaction.configure()
        if ahead:
            self.lookup.start(begin, first(0), 0)
        with T.serial(tiles) as tile:
            at = T.bind(T.min(tile + ahead, tiles - 1))
            self.lookup.start(T.bind(begin + at), first(at), at * plan.mr)
            self.lap("gather")
            self.lookup.use(tile)
            self.interaction.run(tile)
            self.lap("interaction")

    def first_layer(self, tile) -> tuple[Activations, Callable]:
        return self.dense_in, self.dense_in.source

    def layer(self, layer: PackedDense, source, write, tiles, hook=None, x: Activations | None = None) -> None:
        weights = self.args["mlp"]
        tile_dense_layer(layer, weights, self.unit, self.scratch, x.tiles, write, tiles, x.row_scale)
