"""One dense layer alone, on a block of tiles: which tiles, blocks and prefetching suit this machine.

No formula of cache sizes and rates that was tried foretold it: a Zen 3 that streams 51 GB/s, ten times what blocks of
37 items ask for, computes them at 0.55 of its peak and blocks of 340 at 0.8 (2026-11-30). So a layer is run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter, thread_time

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from ..kernels.activations import Tiles
from ..kernels.dense import DenseSchedule, PackedDense, dense_layer
from ..kernels.gemv import gemv_layer
from ..kernels.isa import AVX2_INT8, REGISTERS, REGISTERS_AVX2, Family, imported
from ..kernels.vectors import padded, store
from ..kernels.words import Form
from .machine_model import own_pages
from .passes import compile_kernels
from .rules import (
    LayerShape,
    NetworkSchedule,
    Probed,
    computed_items,
    default_block,
    default_dense,
    in_k_blocks,
    tile_heights,
)
from .target import CpuTarget

BLOCK_ITEMS = (100, 200, 50, 400, 25, 512, 12)  # of equally fast ones the first is taken
# Items of a tile and k steps of a loop body, by registers. A Granite Rapids runs 14 x 32 outputs, four steps a body, at
# 0.92 of its peak, and 5 x 64, one step, which a Zen 4 likes best, at 0.80.
_HEIGHTS = {REGISTERS: (4, 5, 6, 8, 9, 10, 12, 13, 14), REGISTERS_AVX2: (4, 5, 6)}
_UNROLLS = {REGISTERS: (1, 4), REGISTERS_AVX2: (1, 2, 4)}
# Of layers of int8 without VNNI on a Zen 3, what lost in each of three shapes is not tried: fewer candidates leave less
# to noise. Tiles of 5, 4, 6 items 196, 195, 192 GOP/s, four steps a body 3 to 5 % less, no prefetching 2 to 3 % less.
_BYTES_HEIGHTS, _BYTES_UNROLLS = (5, 4, 6), (2, 1)
_SECONDS = 0.7  # of finding the fastest of some candidates
_LEAST_TURNS = 3
_ITEMS_PER_TURN = 256
_GAIN = 0.02  # by which a candidate must beat the best one before it


def rotating_weights(layer: LayerShape, network_bytes: int) -> Iterator:
    """The layer's weights, then scales, compensation and biases, one each per output: copies in turn, network_bytes in
    all, so that they come from the same cache level as in the network."""
    elements = padded(layer.outputs) * (layer.inputs + 3)
    return itertools.cycle([_random(elements) for _ in range(-(-network_bytes // (4 * elements)))])


class LayerProbe:
    """A layer on blocks of up to most_tiles tiles of mr items, its weights the next ones at each call."""

    def __init__(
        self, layer: LayerShape, mr: int, cpu: CpuTarget, family: Family, weights: Iterator, most_tiles: int = 1
    ) -> None:
        self._layer, self._mr, self._cpu, self._tiles = layer, mr, cpu, most_tiles
        self._form, self._weights = Form(layer.precision, family=family), weights

    def compiled(self, schedule: DenseSchedule) -> Callable[[int], None]:
        """The layer on so many tiles."""
        elements = padded(self._layer.outputs) * (self._layer.inputs + 3)
        schedule = in_k_blocks(schedule, self._layer, self._cpu.caches.l2, self._tiles)
        function = _dense_function(self._packed(schedule), self._mr, self._tiles, elements)
        run = compile_kernels({"dense": function}, self._cpu)["dense"]
        x, y = (width * self._mr * self._tiles for width in map(padded, (self._layer.inputs, self._layer.outputs)))
        x, y = _random(x), _random(y)
        return lambda tiles: run(x, next(self._weights), y, tiles)

    def _packed(self, schedule: DenseSchedule) -> PackedDense:
        layer = self._layer
        bias, scale, compensation = (padded(layer.outputs) * (layer.inputs + at) for at in range(3))
        return PackedDense(
            layer.inputs, layer.outputs, layer.activation, 0, bias, schedule,
            takes=self._form, scale_at=scale, compensation_at=compensation,
        )  # fmt: skip


def flops_of(layer: LayerShape, family: Family) -> int:
    """Per item."""
    return 2 * layer.inputs * Form(layer.precision, family=family).values * layer.outputs


def probe_blocks(
    layers: Iterable[LayerShape],
    start: NetworkSchedule,
    batch: int,
    cpu: CpuTarget,
    precision: str,
    network_bytes: int,
) -> Probed:
    """How many items a tile and how many steps a loop body take with which the largest of the layers runs fastest, in
    blocks of 100 items; then the blocks and the prefetching that suit such tiles.

    start: what the rules say. precision: of the network; that layer may be one that stays float32. network_bytes: of
    all weights. All on the calling thread.
    """
    layer = max(layers, key=lambda each: each.inputs * each.outputs)
    family, registers = cpu.layer_family(layer.precision, precision), cpu.family(precision).registers
    runs: dict[tuple[int, bool, int | None], Callable[[int], None]] = {}
    weights = rotating_weights(layer, network_bytes)

    def run_of(candidate: Probed) -> Callable[[int], None]:
        mr, ahead, unroll = key = candidate.network.mr, candidate.ahead, candidate.unroll
        if key not in runs:
            most = max(default_block(mr, batch, items) for items in (start.items, *BLOCK_ITEMS))
            rule = default_dense(mr, layer.outputs, registers, layer.unit, ahead, unroll)
            runs[key] = LayerProbe(layer, mr, cpu, family, weights, most).compiled(rule)
        return runs[key]

    def best(candidates: list[Probed]) -> Probed:
        return fastest(
            timed(candidates, [run_of(each) for each in candidates], batch, flops_of(layer, family), registers)
        )

    def blocks_of(mr: int, *items: int) -> list[NetworkSchedule]:
        counts = dict.fromkeys(default_block(mr, batch, each) for each in items)
        return [replace(start, mr=mr, block_tiles=count) for count in counts]

    found = Probed(*blocks_of(start.mr, BLOCK_ITEMS[0]))
    if len(tile_heights(batch, registers, precision)) > 1:  # a small batch is one tile
        heights = dict.fromkeys((start.mr, *_HEIGHTS[registers]))
        of_rule = default_dense(start.mr, layer.outputs, registers, layer.unit).unroll
        unrolls = sorted(_UNROLLS[registers], key=lambda each: each != of_rule)
        if family is AVX2_INT8:
            heights, unrolls = _BYTES_HEIGHTS, _BYTES_UNROLLS
        tiles = [blocks_of(mr, BLOCK_ITEMS[0])[0] for mr in heights]
        found = best([Probed(each, unroll=unroll) for each in tiles for unroll in unrolls])
    mr = found.network.mr
    aheads = (True, False) if mr > 1 else (False,)  # the kernel for one item prefetches nothing
    if family is AVX2_INT8:
        aheads = aheads[:1]
    blocks = blocks_of(mr, start.items, *BLOCK_ITEMS)
    return best([replace(found, network=block, ahead=ahead) for ahead in aheads for block in blocks])


def timed(
    candidates: Sequence[Probed],
    runs: Sequence[Callable[[int], None]],
    batch: int,
    flops_per_item: int,
    registers: int = REGISTERS,
) -> list[Probed]:
    """The candidates with their GFLOP/s, of the batch's own items; runs[i](tiles) computes a block. registers: as
    tile_heights takes them.

    Turns are interleaved, so that slow drift of the machine hits all alike. The faster quarter of a candidate's turns
    counts, in time on this thread: what other programs take of the core and of the caches is not its fault.
    """
    seconds: list[list[float]] = [[] for _ in candidates]
    began = perf_counter()
    while perf_counter() - began < _SECONDS or len(seconds[-1]) < _LEAST_TURNS:
        for candidate, run, mine in zip(candidates, runs, seconds):
            network = candidate.network
            blocks = blocks_of_turn(network, batch)
            start = thread_time()
            for tiles in blocks:
                run(tiles)
            useful = batch / computed_items(batch, network.mr, registers)
            mine.append((thread_time() - start) / (sum(blocks) * network.mr * useful))
    return [
        replace(each, gflops=flops_per_item / sorted(mine)[len(mine) // 4] / 1e9)
        for each, mine in zip(candidates, seconds)
    ]


def blocks_of_turn(network: NetworkSchedule, batch: int) -> list[int]:
    """Tiles of each block. Of a small batch the last one too: 4 items alone stream all weights like 12."""
    whole, rest = divmod(-(-batch // network.mr), network.block_tiles)
    own = [network.block_tiles] * whole + [rest] * (rest > 0)
    own = own if batch <= _ITEMS_PER_TURN else own[:1]
    return own * max(1, _ITEMS_PER_TURN // (sum(own) * network.mr))


def fastest(candidates: Sequence[Probed]) -> Probed:
    """The first one, unless a later one beats the best before it by more than noise."""
    best = candidates[0]
    for each in candidates[1:]:
        best = each if each.gflops > best.gflops * (1 + _GAIN) else best
    return best


def _dense_function(layer: PackedDense, mr: int, most_tiles: int, elements: int):
    """Its outputs stay float32: the network packs them for the next layer."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("dense")
        T.func_attr({"tirx.noalias": True})
        x = T.arg("x", T.buffer((most_tiles * mr * padded(layer.inputs),), "float32"))
        weights = T.arg("weights", T.buffer((elements,), "float32"))
        y = T.arg("y", T.buffer((most_tiles * mr * padded(layer.outputs),), "float32"))
        tiles = T.arg("tiles", T.int32())
        source, target = Tiles(x, 0, layer.inputs, mr), Tiles(y, 0, layer.outputs, mr)

        def write(tile, row, block, values: list) -> None:
            for v, value in enumerate(values):
                store(y, target.index(tile, row, block + v), value)

        with imported(layer.takes.family):
            if mr == 1:
                live = T.alloc_buffer((layer.inputs + 1,), "int32", scope="global")
                gemv_layer(layer, weights, lambda k: x[k], lambda block, values: write(0, 0, block, values), live)
            else:
                word = lambda tile, row, block, lane: x[source.index(tile, row, block, lane)]  # noqa: E731
                kept = most_tiles * mr * padded(layer.outputs) if layer.schedule.k_blocks > 1 else 0
                sums = T.alloc_buffer((kept,), "float32", scope="global") if kept else None
                dense_layer(layer, weights, mr, word, write, tiles, shared_by=tiles, sums=sums)
    return builder.get()


def _random(elements: int):
    """Numbers around zero, as after a ReLU: no negative ones."""
    tensor = tvm.runtime.from_dlpack(own_pages((elements,), np.float32))
    np.from_dlpack(tensor)[:] = np.maximum(np.random.default_rng(0).random(elements, dtype=np.float32) - 0.5, 0)
    return tensor
