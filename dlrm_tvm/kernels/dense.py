"""Fully connected layers on tiles: y = activation(x Wᵀ + b).

Plain definition, for item i and output n:   y[i, n] = act(b[n] + sum_k x[i, k] * W[n, k])

Blocked form: `mr` items x `nr` outputs are accumulated in registers over all of K, so every sum is written once.
Registers: mr * nr/16 accumulators + nr/16 weights + 1 broadcast, of AVX-512's 32. 5 x 64 takes 20 + 4 + 1 and loads 9
times per 20 multiply-adds; 10 x 32 takes 20 + 2 + 1 and loads 12 times. Weights are stored as [N/nr][K][nr] words, one
stream from front to back per tile, or per block of tiles that share it while it is in cache. A panel is one of [K][nr].
The first tile that reads it waits for the last-level cache, unless the tiles before have prefetched it, a share each.

    for n in N/nr:  for tile in tiles:  for k in K:  acc[mr][nr] += x[tile, :, k] * W[n, k, :]

Where a block's inputs leave L2 between two panels, K is cut into k blocks, the outermost loop. Sums wait in memory from
one to the next: one more load and store of each per k block, for inputs that are read from L2.

k counts words of 1, 2 or 4 columns (words.py). int8 sums are integers. They begin with the compensation of the zero
point, -128 * sum_k W[n, k], and end as   y = act(sum * scale[n] * row's scale, if dynamic + b[n]).

Kernel names: dense_<precision>_<activation>.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm.tirx.script.builder import ir as T

from .vectors import LANES, bits_of, broadcast, floats, fma, load, padded, prefetch, relu, store, words_of, zeros
from .words import FP32, Form


@dataclass(frozen=True)
class DenseSchedule:
    """nr: outputs per register tile, a multiple of 16; unroll: k steps per loop body, a divisor of 16;
    ahead: whether the next panel of weights is prefetched; k_blocks: parts of K, of nearly equal size. On tiles alone:
    k_outermost: whether each k block goes through all panels before the next one begins (tile_dense.py).
    """

    nr: int
    unroll: int
    ahead: bool = False
    k_outermost: bool = False
    k_blocks: int = 1

    def registers(self, mr: int) -> int:
        """Vector registers that a tile of mr items takes; more than the CPU has would spill."""
        return (mr + 1) * (self.nr // LANES) + 1


@dataclass(frozen=True)
class PackedDense:
    """A layer as its kernel sees it: `inputs` words of tiles in, `outputs` columns out, its arrays in one buffer.

    weight_at: first element of [N/nr][inputs][nr] (the last column of tiles may be narrower);
    bias_at: first of padded(outputs) biases; scale_at, compensation_at: for int8, likewise, the scales of sums
    (float32) and their first values (int32). takes: the form of its inputs; gain: factor of its outputs.
    """

    inputs: int
    outputs: int
    activation: str
    weight_at: int
    bias_at: int
    schedule: DenseSchedule
    takes: Form = FP32
    scale_at: int = 0
    compensation_at: int = 0
    gain: float = 1.0

    @property
    def column_tiles(self) -> list[tuple[int, int, int]]:
        """(first output, number of register tiles, outputs per tile): the full tiles, then the rest."""
        nr, width = self.schedule.nr, padded(self.outputs)
        full = [(0, width // nr, nr)] if width >= nr else []
        return full + ([(width // nr * nr, 1, width % nr)] if width % nr else [])

    def first_sum(self, weights, output):
        """The first values of 16 sums: the biases, for int8 the compensation."""
        if self.takes.is_whole:
            return bits_of(load(weights, self.compensation_at + output))
        return load(weights, self.bias_at + output)

    def finish(self, weights, output, count: int) -> Callable:
        """A function (v, sums, row's scale or None) -> 16 outputs, for `count` vectors from `output` on."""
        if not self.takes.is_whole:
            return lambda v, sums, _: self._activated(sums)
        scales = [T.bind(load(weights, self.scale_at + output + v * LANES)) for v in range(count)]
        biases = [T.bind(load(weights, self.bias_at + output + v * LANES)) for v in range(count)]

        def value(v: int, sums, row_scale):
            scale = scales[v] if row_scale is None else scales[v] * row_scale
            return self._activated(fma(floats(sums), scale, biases[v]))

        return value

    def finish_sums(self, weights, output, sums, row_scale):
        """16 outputs from `output` on out of sums that began with zero, of signed bytes as they are."""
        bias = load(weights, self.bias_at + output)
        if not self.takes.is_whole:
            return self._activated(sums + bias)
        scale = load(weights, self.scale_at + output)
        return self._activated(fma(floats(sums), scale if row_scale is None else scale * row_scale, bias))

    def _activated(self, value):
        value = activate(value, self.activation)
        return value if self.gain == 1 else value * broadcast(T.float32(self.gain))


@dataclass(frozen=True)
class Hook:
    """Statements for the k loop, one place every `every` blocks of 16 k; emit(place) counts the places of one tile."""

    emit: Callable
    every: int


def no_row_scale(tile, row) -> None:
    """For layers without dynamic scales."""
    return


def dense_layer(
    layer: PackedDense,
    weights,
    mr: int,
    source: Callable,
    write: Callable,
    tiles,
    hook=None,
    row_scale=no_row_scale,
    shared_by=1,
    sums=None,
    last: tuple[Any, int] | None = None,
) -> None:
    """All outputs of `tiles` tiles of `mr` items, `shared_by` as a rule.

    source(tile, row, block, lane): a word of x as a scalar expression; row_scale(tile, row): its row's scale;
    write(tile, row, block, values): takes the vectors of 16 outputs from column 16 * block on;
    sums: float32 buffer for the sums between k blocks, padded(outputs) of each item; None: K in one. Not with a hook.
    last: (1 where the last tile has only so many rows that count, else 0; so many): the others are not computed.
    """
    assert hook is None or sums is None
    emitter, places = _RegisterTiles(layer, weights, mr, source, write, row_scale, shared_by, sums), 0
    for part in _k_blocks(layer, 1 if sums is None else layer.schedule.k_blocks):
        for first, count, nr in layer.column_tiles:
            with T.serial(count) as n:
                # n * nr is within this run of column tiles
                shifted, at = _shifted(hook, layer, places, n), _Place(0, first, n * nr, nr, mr)
                with T.serial(tiles if last is None else tiles - last[0]) as tile:
                    emitter.emit(part, replace(at, tile=tile), shifted)
                if last is not None:
                    with T.If(last[0] == 1), T.Then():
                        emitter.emit(part, replace(at, tile=tiles - 1, rows=last[1]), shifted)
            if hook is not None:
                places += count * hook_places(layer, hook.every)


def _k_blocks(layer: PackedDense, parts: int) -> list[tuple[int, int]]:
    """(first, end) of each k block; all but the last end at a whole block of 16."""
    whole, parts = layer.inputs // LANES, max(1, min(parts, layer.inputs // LANES))
    ends = [whole * (part + 1) // parts * LANES for part in range(parts)]
    return list(zip([0, *ends[:-1]], [*ends[:-1], layer.inputs]))


def _shifted(hook: Hook | None, layer: PackedDense, places: int, n) -> Hook | None:
    """The hook, its places counted on from the register columns before n."""
    if hook is None:
        return None
    return Hook(lambda place: hook.emit(places + n * hook_places(layer, hook.every) + place), hook.every)


def hook_places(layer: PackedDense, hook_every: int) -> int:
    """How often the hook runs in the k loop of one register tile."""
    return layer.inputs // LANES // hook_every


@dataclass(frozen=True)
class _Place:
    """A register tile: `nr` outputs from `first` + `column` on, of the first `rows` items of a tile."""

    tile: Any
    first: int
    column: Any
    nr: int
    rows: int

    @property
    def output(self):
        return self.first + self.column

    @property
    def vectors(self) -> int:
        return self.nr // LANES


@dataclass(frozen=True)
class _RegisterTiles:
    """Emits the register tiles of a layer; fields: as `dense_layer` has them."""

    layer: PackedDense
    weights: Any
    mr: int
    source: Callable
    write: Callable
    row_scale: Callable
    shared_by: Any
    sums: Any

    def emit(self, part: tuple[int, int], at: _Place, hook: Hook | None) -> None:
        """part: its k block."""
        layer, (begin, end) = self.layer, part
        # One buffer per row, of scope "global": TVM puts small ones on the stack, and LLVM into registers.
        acc = [T.alloc_buffer((at.nr,), layer.takes.sum_dtype, scope="global") for _ in range(at.rows)]
        weight_at = layer.weight_at + at.output * layer.inputs
        kept = (at.tile * padded(layer.outputs) + at.output) * self.mr
        self._begin(acc, at, kept if begin else None)
        self._multiply(acc, at, weight_at, part, hook)
        if end < layer.inputs:
            self._keep(acc, at, kept)
        else:
            self._finish(acc, at)

    def _begin(self, acc: list, at: _Place, kept) -> None:
        """kept: where the sums of the k block before are, None for the first one."""
        for row in range(at.rows):
            for v in range(at.vectors):
                if kept is None:
                    value = self.layer.first_sum(self.weights, at.output + v * LANES)
                else:
                    value = load(self.sums, kept + (row * at.vectors + v) * LANES)
                    value = bits_of(value) if self.layer.takes.is_whole else value
                store(acc[row], v * LANES, value)

    def _multiply(self, acc: list, at: _Place, weight_at, part: tuple[int, int], hook: Hook | None) -> None:
        layer, (begin, end), nr = self.layer, part, at.nr
        unroll = layer.schedule.unroll

        def step(block, lane) -> None:
            k = block * LANES + lane
            w = [T.bind(load(self.weights, weight_at + k * nr + v * LANES)) for v in range(at.vectors)]
            for row in range(at.rows):
                x = T.bind(broadcast(self.source(at.tile, row, block, lane)))
                for v in range(at.vectors):
                    store(acc[row], v * LANES, layer.takes.dot(load(acc[row], v * LANES), x, w[v]))

        def blocks(first_block) -> None:
            if layer.schedule.ahead:
                following = weight_at + (layer.inputs + first_block * LANES) * nr
                prefetch_share(self.weights, following, nr, at.tile, self.shared_by)
            with T.serial(LANES // unroll) as lane:
                for u in range(unroll):
                    step(first_block, lane * unroll + u)

        done, whole = begin // LANES, end // LANES
        if hook is not None and hook_places(layer, hook.every):
            done = whole // hook.every * hook.every
            with T.serial(whole // hook.every) as group:
                hook.emit(group)
                with T.serial(hook.every) as block:
                    blocks(group * hook.every + block)
        if whole > done:
            with T.serial(whole - done) as block:
                blocks(block + done)
        if end % LANES:
            with T.serial(end % LANES) as lane:
                step(whole, lane)

    def _keep(self, acc: list, at: _Place, kept) -> None:
        for row in range(at.rows):
            for v in range(at.vectors):
                store(self.sums, kept + (row * at.vectors + v) * LANES, words_of(load(acc[row], v * LANES)))

    def _finish(self, acc: list, at: _Place) -> None:
        finish = self.layer.finish(self.weights, at.output, at.vectors)
        for row in range(at.rows):
            scale = self.row_scale(at.tile, row)
            values = [finish(v, load(acc[row], v * LANES), scale) for v in range(at.vectors)]
            self.write(at.tile, row, at.output // LANES, values)


def prefetch_share(weights, begin, lines: int, tile, shared_by) -> None:
    """One tile's share of `lines` cache lines from element `begin` on, of the next panel; behind a layer's last panel
    lies the next layer, as a rule. Into L2: with what the tile itself reads, L1 has no room for it."""

    def line(share, number) -> None:
        prefetch(weights, begin + T.min(tile * share + number, lines - 1) * LANES, 2)

    if isinstance(shared_by, int):
        share = -(-lines // shared_by)
        for number in range(share):
            line(share, number)
    else:
        share = T.bind(T.ceildiv(lines, shared_by))
        with T.serial(share) as number:
            line(share, number)


def activate(value, activation: str):
    """activation of a vector of 16; sigmoid calls the C library's expf lane by lane."""
    if activation == "relu":
        return relu(value)
    if activation == "sigmoid":
        one = broadcast(T.float32(1))
        return one / (one + T.exp(zeros() - value))
    return value
