"""The whole DLRM as one function: blocks of items, each carried through all layers while its data is in cache.

    dlrm(dense [B, num_dense] f32, indices [B, T] i64, tables [elements] f32, table_info [2, T] i64,
         mlp [elements] f32, pred [B] f32)
    dlrm_bags(dense, indices [any number] i64, offsets [T, B + 1] i64, tables, table_info, mlp, pred)
    dlrm_profile(dense, indices, tables, table_info, mlp, pred, ticks [tasks or more, parts + 1] i64)
    dlrm_profile_bags(dense, indices, offsets, tables, table_info, mlp, pred, ticks)

    for task in parallel(threads):
        for block of the task's tiles:                # a few tiles of mr items
            for tile in block:
                locate the tile's rows, touch them    # bags: pool them, for a group of tiles at once
                bottom MLP of the tile, fetching the rest of those rows meanwhile
                interaction of the tile, straight from the tables, into the top MLP's input (interaction.py)
            the interaction's own layers over the block, if it has any (joined.py)
            top MLP over the block, layer by layer
            pred = sigmoid(last layer), clamped

Rows outside a table and dense values that are not finite give NaN for their item (gather.py), malformed offsets too
(embedding_bag.py). Bags and time stamps have functions of their own, so that dlrm does not pay for them. The profiled
ones have a stopwatch (stopwatch.py), which stops the time of each step above.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from ..kernels.embedding_bag import BagShape, declare_bags
from ..kernels.isa import imported
from .lookups import BagLookup, RowLookup
from .plan import NetworkPlan
from .stopwatch import Stopwatch
from .task import Task
from .tile_task import TileTask


def network(plan: NetworkPlan):
    """The plan as a TIR function named `dlrm`: one row per table and item."""
    return _row_network(plan, "dlrm")


def profile_network(plan: NetworkPlan):
    """The same as `dlrm_profile`, which also returns the ticks of the plan's parts: Stopwatch writes row t of `ticks`
    for task t. There is one task per thread, but at most one per tile."""
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
        _emit_tasks(plan, args, lambda poison, _: RowLookup(plan, args, poison), _watch(plan, profiled))
    return builder.get()


def _watch(plan: NetworkPlan, profiled: bool) -> Callable | None:
    """A task's stopwatch, whose ticks are the function's next argument."""
    if not profiled:
        return None
    ticks = T.match_buffer(T.arg("ticks", T.handle()), (T.int64(), len(plan.parts) + 1), "int64")
    return partial(Stopwatch, plan.parts, ticks)


def bag_network(plan: NetworkPlan, *, profiled: bool = False):
    """The plan as a TIR function named `dlrm_bags`, or `dlrm_profile_bags`: any number of rows per table and item."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("dlrm_profile_bags" if profiled else "dlrm_bags")
        T.func_attr({"tirx.noalias": True})
        dense = T.arg("dense", T.buffer((plan.batch, plan.num_dense), "float32"))
        shape = BagShape(plan.batch, plan.row_words, plan.table_elements, plan.means, plan.table_form)
        bags = declare_bags(shape)
        args = {"dense": dense, **_last_arguments(plan)}
        watch = _watch(plan, profiled)
        _emit_tasks(plan, args, lambda poison, tiles: BagLookup(plan, args, bags, tiles, poison), watch)
    return builder.get()


def _last_arguments(plan: NetworkPlan) -> dict:
    return {
        "mlp": T.arg("mlp", T.buffer((plan.mlp_elements,), "float32")),
        "pred": T.arg("pred", T.buffer((plan.batch,), "float32")),
    }


def _emit_tasks(plan: NetworkPlan, args: dict, lookup: Callable, watch: Callable | None = None) -> None:
    """watch(task): the task's stopwatch."""
    threads = T.bind(T.max(1, T.min(T.call_packed("runtime.NumThreads"), plan.tiles)))
    task = TileTask if plan.is_tiled else Task
    with imported(plan.family, task.helpers(plan)), T.parallel(threads) as thread:
        first = T.bind(thread * plan.tiles // threads)
        tiles = T.bind((thread + 1) * plan.tiles // threads - first)
        stopwatch = None if watch is None else watch(thread)
        task(plan, args, lookup, first, tiles, stopwatch).run()
