"""The work of one thread of a network: blocks of tiles of items, each carried through all layers while it is in cache.

What functions.py shows as its loop over blocks. tile_task.py has the same on AMX's tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from tvm.tirx.script.builder import ir as T

from ..kernels.activations import Activations, PingPongBuffers, Tiles
from ..kernels.dense import PackedDense, dense_layer, no_row_scale
from ..kernels.gemv import gemv_layer
from ..kernels.vectors import LANES, fma, load, padded, relu, store, zeros
from .plan import NetworkPlan
from .stopwatch import Stopwatch


class Task:
    """Emits the work of one thread and holds its shared buffers.

    lookup(poison, tiles): makes a RowLookup or a BagLookup, the source of the items' vectors.
    stopwatch: times the plan's parts; None for no timing.
    """

    def __init__(
        self, plan: NetworkPlan, args: dict, lookup: Callable, first_tile, tiles, stopwatch: Stopwatch | None
    ) -> None:
        self.plan, self.args, self.first_tile, self.tiles = plan, args, first_tile, tiles
        self.stopwatch = stopwatch
        most = plan.most_tiles
        layers = (*plan.bottom, *plan.top, plan.final)
        passing = [(after.takes, layer.outputs) for layer, after in pairwise(layers)]
        bottom, top = passing[: len(plan.bottom) - 1], passing[len(plan.bottom) :]
        self.bottom_buffers = PingPongBuffers(plan.bottom_tiles, plan.mr, bottom)
        self.top_buffers = PingPongBuffers(most, plan.mr, top)
        scales = T.alloc_buffer((most * plan.mr,), "float32", scope="global") if plan.top_form.by_row else None
        words = T.alloc_buffer((most * plan.mr * padded(plan.top_words),), "float32", scope="global")
        self.top_in = Activations(plan.top_form, Tiles(words, 0, plan.top_words, plan.mr), None, scales)
        shared = (*plan.interaction.layers, *plan.top)
        kept = max((padded(each.outputs) for each in shared if each.schedule.k_blocks > 1), default=0)
        self.sums = T.alloc_buffer((most * plan.mr * kept,), "float32", scope="global") if kept else None
        self.poison = T.alloc_buffer((most * plan.mr,), "float32", scope="global")
        self.lookup = lookup(self.poison, tiles)
        self.interaction = plan.interaction.emitter(plan, args["mlp"], self.lookup, self.top_in)
        if plan.skip_zeros:
            self.live = T.alloc_buffer((1 + max(layer.inputs for layer in plan.layers),), "int32", scope="global")

    @staticmethod
    def helpers(plan: NetworkPlan) -> str:
        """LLVM IR beyond the family's."""
        return ""

    def run(self) -> None:
        plan = self.plan
        if self.stopwatch is not None:
            self.stopwatch.start()
        blocks = T.bind(T.ceildiv(self.tiles, plan.block_tiles))
        with T.serial(blocks) as block:
            begin = T.bind(block * plan.block_tiles)
            self.block(begin, T.bind(T.min(plan.block_tiles, self.tiles - begin)))
        if self.stopwatch is not None:
            self.stopwatch.stop()

    def block(self, begin, tiles) -> None:
        """All layers of `tiles` tiles from the task's tile `begin` on."""
        plan = self.plan
        with T.serial(tiles) as tile:
            first_item = T.bind((self.first_tile + (begin + tile)) * plan.mr)
            self.lookup.start(begin + tile, first_item, tile * plan.mr)
            self.lap("gather")
            self.reach(begin + tile + 1)
            self.bottom(begin + tile, tile, self.lookup.hooks(), 1)
            self.interaction.run(tile)
            self.lap("interaction")
        self.reach(begin + tiles)
        self.interaction.finish(tiles, self.layer, self.lap)
        self.top(begin, tiles)

    def reach(self, end) -> None:
        """The layers from here on are of tiles up to the task's tile `end`, without it."""
        if self.plan.last_rows is not None:
            self.with_last = T.bind(T.Select(self.first_tile + end == self.plan.tiles, 1, 0))

    def lap(self, part: str) -> None:
        """The time since the last lap goes to `part`."""
        if self.stopwatch is not None:
            self.stopwatch.lap(part)

    def bottom(self, tile, to, hooks: list, tiles) -> None:
        """Bottom MLP of `tiles` tiles from the task's `tile` on, whose x goes to tile `to` of the block and on."""
        plan = self.plan
        x, source = self.first_layer(tile)
        for at, layer in enumerate(plan.bottom):
            if at == len(plan.bottom) - 1:
                self.layer(layer, source, self.interaction.x_writer(to), tiles, hooks[at], x)
            else:
                out = self.bottom_buffers.activations(at, plan.bottom[at + 1].takes, layer.outputs)
                self.layer(layer, source, out.writer(), tiles, hooks[at], x)
                out.settle(tiles, layer.outputs)
                x, source = out, out.source
            self.lap(f"bottom {at + 1}")

    def first_layer(self, tile) -> tuple[Activations | None, Callable]:
        """What the first bottom layer reads: the dense inputs as they are given, which are no activations."""
        plan, dense = self.plan, self.args["dense"]

        def source(_, row, block, lane):
            item = T.min((self.first_tile + tile) * plan.mr + row, plan.batch - 1)
            return dense[item, block * LANES + lane]

        return None, source

    def layer(self, layer: PackedDense, source, write, tiles, hook=None, x: Activations | None = None) -> None:
        """One layer of `tiles` tiles; a batch of one takes the kernel that skips zero inputs.

        x: the activations that `source` reads, None for the dense inputs.
        """
        plan, mlp = self.plan, self.args["mlp"]
        row_scale = no_row_scale if x is None else x.row_scale
        if plan.skip_zeros:
            word = lambda k: source(0, 0, 0, k)  # noqa: E731
            gemv_layer(layer, mlp, word, lambda block, values: write(0, 0, block, values), self.live, row_scale(0, 0))
        else:
            is_one = isinstance(tiles, int)  # tile, of the bottom MLP: nobody shares its panels
            shared_by, sums = (tiles, None) if is_one else (plan.most_tiles, self.sums)
            last = None if plan.last_rows is None else (self.with_last, plan.last_rows)
            dense_layer(layer, mlp, plan.mr, source, write, tiles, hook, row_scale, shared_by, sums, last)

    def top(self, begin, tiles) -> None:
        """Top MLP of the block: `tiles` tiles from the task's tile `begin` on."""
        plan, x = self.plan, self.top_in
        layers = (*plan.top, plan.final)
        for at, layer in enumerate(plan.top):
            out = self.top_buffers.activations(at, layers[at + 1].takes, layer.outputs)
            self.layer(layer, x.source, out.writer(), tiles, x=x)
            out.settle(tiles, layer.outputs)
            self.lap(f"top {at + 1}")
            x = out
        with T.serial(tiles) as tile:
            self.final(begin + tile, tile, x.tiles)
        self.lap(f"top {len(plan.top) + 1}")

    def final(self, of, tile, source: Tiles) -> None:
        """The layer of one output, for the task's tile `of`: 16 partial sums per item, then a sum over lanes."""
        plan, mlp = self.plan, self.args["mlp"]
        layer = plan.final
        blocks = padded(layer.inputs) // LANES
        acc = T.alloc_buffer((plan.mr * LANES,), "float32", scope="local")
        for row in range(plan.mr):
            store(acc, row * LANES, zeros())
        with T.serial(blocks) as block:
            w = T.bind(load(mlp, layer.weight_at + block * LANES))
            for row in range(plan.mr):
                x = load(source.buffer, source.index(tile, row, block))
                store(acc, row * LANES, fma(x, w, load(acc, row * LANES)))
        for row in range(plan.mr):
            z = T.bind(
                T.call_llvm_pure_intrin(
                    "float32", "llvm.vector.reduce.fadd.v16f32", mlp[layer.bias_at], load(acc, row * LANES)
                )
            )
            value = z
            if layer.activation == "sigmoid":
                value = T.float32(1) / (T.float32(1) + T.exp(T.float32(0) - z))
            elif layer.activation == "relu":
                value = relu(z)
            if plan.clamp is not None:
                value = clamped(value, *plan.clamp)
            item = T.bind((self.first_tile + of) * plan.mr + row)
            with T.If(item < plan.batch), T.Then():
                T.buffer_store(self.args["pred"], value + self.poison[tile * plan.mr + row], [item])


def clamped(value, least: float, greatest: float):
    """value within least .. greatest; NaN stays NaN."""
    value = T.bind(value)
    above = T.bind(T.Select(value < T.float32(least), T.float32(least), value))
    return T.Select(above > T.float32(greatest), T.float32(greatest), above)
