"""The whole DLRM as one function: blocks of items, each carried through all layers while its data is in cache.

    dlrm(dense [B, num_dense] f32, indices [B, T] i64, tables [elements] f32, table_info [2, T] i64,
         mlp [elements] f32, pred [B] f32)
    dlrm_bags(dense, indices [any number] i64, offsets [T, B + 1] i64, tables, table_info, mlp, pred)
    dlrm_profile(dense, indices, tables, table_info, mlp, pred, ticks [tiles, parts + 1] i64)

    for task in parallel(threads):
        for block of the task's tiles:                # a few tiles of mr items
            for tile in block:
                locate the tile's rows, touch them    # bags: pool them, for a group of tiles at once
                bottom MLP of the tile, fetching the rest of those rows meanwhile
                interaction of the tile, straight from the tables, into the top MLP's input
            top MLP over the block, layer by layer
            pred = sigmoid(last layer), clamped

Rows outside a table or dense values that are not finite give NaN for their item (see gather.py), malformed offsets
too (embedding_bag.py). They are functions of their own, so that one row per table pays nothing for bags, and nobody
for time stamps: dlrm_profile is dlrm with a stopwatch (stopwatch.py) whose laps end where the comments above do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .activations import Activations, Rooms
from .dense import PackedDense, dense_layer, no_row_scale
from .embedding_bag import BagShape, declare_bags
from .forms import FP32
from .gemv import gemv_layer
from .instructions import imported
from .interaction import dot_interaction
from .lookups import BagLookup, RowLookup
from .narrow_interaction import NarrowInteraction
from .network_plan import NetworkPlan
from .stopwatch import Stopwatch
from .tiles import Tiles
from .vectors import LANES, fma, load, padded, store, zeros


class _Task:
    """Emits what one thread does; holds the buffers that all its parts share.

    lookup(poison, tiles): where the vectors of items come from, a RowLookup or a BagLookup.
    stopwatch: what times the plan's parts, None for nothing.
    """

    def __init__(
        self, plan: NetworkPlan, args: dict, lookup: Callable, first_tile, tiles, stopwatch: Stopwatch | None
    ) -> None:
        self.plan, self.args, self.first_tile, self.tiles = plan, args, first_tile, tiles
        self.stopwatch = stopwatch
        most = min(plan.block_tiles, plan.tiles)
        layers = (*plan.bottom, *plan.top, plan.final)
        passing = [(after.takes, layer.outputs) for layer, after in pairwise(layers)]
        bottom, top = passing[: len(plan.bottom) - 1], passing[len(plan.bottom) :]
        self.bottom_rooms, self.top_rooms = Rooms(1, plan.mr, bottom), Rooms(most, plan.mr, top)
        scales = T.alloc_buffer((most * plan.mr,), "float32", scope="global") if plan.top_form.by_row else None
        words = T.alloc_buffer((most * plan.mr * padded(plan.top_words),), "float32", scope="global")
        self.top_in = Activations(plan.top_form, Tiles(words, 0, plan.top_words, plan.mr), None, scales)
        self.poison = T.alloc_buffer((most * plan.mr,), "float32", scope="global")
        self.lookup = lookup(self.poison, tiles)
        narrow = plan.table_form.is_narrow
        self.interaction = NarrowInteraction(plan, args["mlp"], self.lookup) if narrow else None
        if plan.skip_zeros:
            self.live = T.alloc_buffer(
                (1 + max(layer.inputs for layer in plan.bottom + plan.top),), "int32", scope="global"
            )

    def run(self) -> None:
        plan = self.plan
        if self.stopwatch is not None:
            self.stopwatch.start()
        blocks = T.bind(T.ceildiv(self.tiles, plan.block_tiles))
        with T.serial(blocks) as block:
            begin = T.bind(block * plan.block_tiles)
            tiles = T.bind(T.min(plan.block_tiles, self.tiles - begin))
            with T.serial(tiles) as tile:
                first_item = T.bind((self.first_tile + (begin + tile)) * plan.mr)
                self.lookup.start(begin + tile, first_item, tile * plan.mr)
                self.lap("gather")
                self.bottom(begin + tile, tile, self.lookup.hooks())
                if self.interaction is not None:
                    self.interaction.run(tile, self.top_in)
                elif plan.grouping is None:
                    self.concatenate(tile)
                else:
                    self.interact(tile)
                self.lap("interaction")
            self.top(begin, tiles)
        if self.stopwatch is not None:
            self.stopwatch.stop()

    def lap(self, part: str) -> None:
        """What ran since the last lap was `part`."""
        if self.stopwatch is not None:
            self.stopwatch.lap(part)

    def bottom(self, tile, to, hooks: list) -> None:
        """Bottom MLP of the task's `tile`, into tile `to` of the block."""
        plan, dense = self.plan, self.args["dense"]

        def source(_, row, block, lane):
            item = T.min((self.first_tile + tile) * plan.mr + row, plan.batch - 1)
            return dense[item, block * LANES + lane]

        x = None
        for at, layer in enumerate(plan.bottom):
            if at == len(plan.bottom) - 1:
                write = self.top_in.writer(to) if self.interaction is None else self.interaction.write_x
                self.layer(layer, source, write, 1, hooks[at], x)
            else:
                out = self.bottom_rooms.activations(at, plan.bottom[at + 1].takes, layer.outputs)
                self.layer(layer, source, out.writer(), 1, hooks[at], x)
                out.settle(1, layer.outputs)
                x, source = out, out.source
            self.lap(f"bottom {at + 1}")

    def layer(self, layer: PackedDense, source, write, tiles, hook=None, x: Activations | None = None) -> None:
        """One layer of `tiles` tiles; a plan of one item takes the kernel that skips zero inputs.

        x: what `source` reads, None for the dense inputs as they are given.
        """
        plan, mlp = self.plan, self.args["mlp"]
        row_scale = no_row_scale if x is None else x.row_scale
        if plan.skip_zeros:
            word = lambda k: source(0, 0, 0, k)  # noqa: E731
            gemv_layer(layer, mlp, word, lambda block, values: write(0, 0, block, values), self.live, row_scale(0, 0))
        else:
            dense_layer(layer, mlp, plan.mr, source, write, tiles, hook, row_scale)

    def interact(self, tile) -> None:
        plan, into = self.plan, self.top_in.tiles
        with T.serial(plan.mr) as item:

            def row(i):
                buffer, at = self.lookup.vector(item, i - 1)
                return lambda chunk: load(buffer, at + chunk * LANES)

            def first_row():
                return lambda chunk: load(into.buffer, into.index(tile, item, chunk))

            def write(group, dots, *_) -> None:
                store(into.buffer, into.index(tile, item, plan.dim // LANES + group), dots)
                self.lookup.beside_group(item, group)

            dot_interaction(plan.grouping, plan.dim, row, first_row, write, FP32)

    def concatenate(self, tile) -> None:
        plan, into = self.plan, self.top_in.tiles
        chunks = plan.dim // LANES
        with T.serial(plan.mr) as item, T.serial(plan.num_tables) as table:
            buffer, at = self.lookup.vector(item, table)
            for chunk in range(chunks):
                block = (table + 1) * chunks + chunk
                store(into.buffer, into.index(tile, item, block), load(buffer, at + chunk * LANES))

    def top(self, begin, tiles) -> None:
        """Top MLP of the block of `tiles` tiles from the task's tile `begin` on."""
        plan, x = self.plan, self.top_in
        layers = (*plan.top, plan.final)
        for at, layer in enumerate(plan.top):
            out = self.top_rooms.activations(at, layers[at + 1].takes, layer.outputs)
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
                value = T.max(z, T.float32(0))
            if plan.clamp is not None:
                value = clamped(value, *plan.clamp)
            item = T.bind((self.first_tile + of) * plan.mr + row)
            with T.If(item < plan.batch), T.Then():
                T.buffer_store(self.args["pred"], value + self.poison[tile * plan.mr + row], [item])


def clamped(value, least: float, greatest: float):
    """value within least .. greatest; a NaN, which is neither less nor more, stays one."""
    value = T.bind(value)
    above = T.bind(T.Select(value < T.float32(least), T.float32(least), value))
    return T.Select(above > T.float32(greatest), T.float32(greatest), above)


def network(plan: NetworkPlan):
    """The plan as a TIR function named `dlrm`: one row per table and item."""
    return _row_network(plan, "dlrm")


def profile_network(plan: NetworkPlan):
    """The same as `dlrm_profile`, which also gives the ticks of the plan's parts: row t of `ticks` is task t's, as
    Stopwatch writes it; there is one task per thread, but no more than tiles."""
    return _row_network(plan, "dlrm_profile", profiled=True)


def _row_network(plan: NetworkPlan, name: str, *, profiled: bool = False):
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        args = {
            "dense": T.arg("dense", T.buffer((plan.batch, plan.num_dense), "float32")),
            "indices": T.arg("indices", T.buffer((T.int64(plan.batch), plan.num_tables), "int64")),
            "tables": T.arg("tables", T.buffer((T.int64(plan.table_elements),), "float32")),
            "table_info": T.arg("table_info", T.buffer((2, plan.num_tables), "int64")),
            **_last_arguments(plan),
        }
        watch = None
        if profiled:
            ticks = T.arg("ticks", T.buffer((plan.tiles, len(plan.parts) + 1), "int64"))
            watch = partial(Stopwatch, plan.parts, ticks)
        _emit_tasks(plan, args, lambda poison, _: RowLookup(plan, args, poison), watch)
    return builder.get()


def bag_network(plan: NetworkPlan):
    """The plan as a TIR function named `dlrm_bags`: any number of rows per table and item."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("dlrm_bags")
        T.func_attr({"tirx.noalias": True})
        dense = T.arg("dense", T.buffer((plan.batch, plan.num_dense), "float32"))
        shape = BagShape(plan.batch, plan.row_words, plan.table_elements, plan.means, plan.table_form)
        bags = declare_bags(shape)
        args = {"dense": dense, **_last_arguments(plan)}
        _emit_tasks(plan, args, lambda poison, tiles: BagLookup(plan, args, bags, tiles, poison))
    return builder.get()


def _last_arguments(plan: NetworkPlan) -> dict:
    return {
        "mlp": T.arg("mlp", T.buffer((plan.mlp_elements,), "float32")),
        "pred": T.arg("pred", T.buffer((plan.batch,), "float32")),
    }


def _emit_tasks(plan: NetworkPlan, args: dict, lookup: Callable, watch: Callable | None = None) -> None:
    """watch(task): the stopwatch of that task."""
    threads = T.bind(T.max(1, T.min(T.call_packed("runtime.NumThreads"), plan.tiles)))
    with imported(plan.table_form.precision), T.parallel(threads) as thread:
        first = T.bind(thread * plan.tiles // threads)
        tiles = T.bind((thread + 1) * plan.tiles // threads - first)
        stopwatch = None if watch is None else watch(thread)
        _Task(plan, args, lookup, first, tiles, stopwatch).run()
