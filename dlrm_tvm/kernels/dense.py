"""Fully connected layers on tiles: y = activation(x Wᵀ + b).

Plain definition, for item i and output n:   y[i, n] = act(b[n] + sum_k x[i, k] * W[n, k])

Blocked form: `mr` items x `nr` outputs are accumulated in registers over the whole of K, so every partial sum is
written once. Registers: mr * nr/16 accumulators + nr/16 weights + 1 broadcast of the 32 that AVX-512 has; 5 x 64
takes 20 + 4 + 1 and loads 9 times for 20 multiply-adds, 10 x 32 takes 20 + 2 + 1 and loads 12 times. Weights lie as
[N/nr][K][nr]: one stream from front to back per tile, or per block of tiles where those share it while it is in L2.

    for n in N/nr:  for tile in tiles:  for k in K:  acc[mr][nr] += x[tile, :, k] * W[n, k, :]

Kernel names: dense_<precision>_<activation>.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from .vectors import LANES, broadcast, fma, load, maximum, padded, store, zeros

REGISTERS = 32  # of 16 float32 in AVX-512
REGISTERS_AVX2 = 8  # its 16 of 8 float32, taken in pairs


@dataclass(frozen=True)
class DenseSchedule:
    """nr: outputs a register tile holds, a multiple of 16; unroll: k steps a loop body holds, a divisor of 16."""

    nr: int
    unroll: int

    def registers(self, mr: int) -> int:
        """How many vector registers a tile of mr items takes; more than the CPU has would spill."""
        return (mr + 1) * (self.nr // LANES) + 1


@dataclass(frozen=True)
class PackedDense:
    """A layer as its kernel sees it: `inputs` columns of tiles in, `outputs` out, weights and bias in one buffer.

    weight_at: first element of [N/nr][inputs][nr] (the last column of tiles may be narrower);
    bias_at: first of padded(outputs) biases.
    """

    inputs: int
    outputs: int
    activation: str
    weight_at: int
    bias_at: int
    schedule: DenseSchedule

    @property
    def column_tiles(self) -> list[tuple[int, int, int]]:
        """(first output, how many register tiles, outputs per tile): the full ones, then what is left."""
        nr, width = self.schedule.nr, padded(self.outputs)
        full = [(0, width // nr, nr)] if width >= nr else []
        return full + ([(width // nr * nr, 1, width % nr)] if width % nr else [])


@dataclass(frozen=True)
class Hook:
    """Statements put into the k loop every `every` blocks of 16 k; emit(place) counts those places over one tile."""

    emit: Callable
    every: int


def dense_layer(layer: PackedDense, weights, mr: int, source: Callable, write: Callable, tiles, hook=None) -> None:
    """All outputs of `tiles` tiles of `mr` items.

    source(tile, row, block, lane): x as a scalar expression; write(tile, row, block, value): stores 16 outputs.
    """
    places = 0
    for first, count, nr in layer.column_tiles:
        with T.serial(count) as n, T.serial(tiles) as tile:
            _register_tile(layer, weights, mr, source, write, tile, first, n, nr, _shifted(hook, layer, places, n))
        if hook is not None:
            places += count * hook_places(layer, hook.every)


def _shifted(hook: Hook | None, layer: PackedDense, places: int, n) -> Hook | None:
    """The hook, its places counted on from those before register column n."""
    if hook is None:
        return None
    return Hook(lambda place: hook.emit(places + n * hook_places(layer, hook.every) + place), hook.every)


def hook_places(layer: PackedDense, hook_every: int) -> int:
    """How many times the hook stands in the k loop of one register tile."""
    return layer.inputs // LANES // hook_every


def _register_tile(layer, weights, mr, source, write, tile, first, n, nr, hook) -> None:
    vectors, unroll = nr // LANES, layer.schedule.unroll
    acc = T.alloc_buffer((mr * nr,), "float32", scope="local")
    column = n * nr  # within this run of column tiles
    weight_at = layer.weight_at + (first + column) * layer.inputs

    def step(block, lane) -> None:
        k = block * LANES + lane
        w = [T.bind(load(weights, weight_at + k * nr + v * LANES)) for v in range(vectors)]
        for row in range(mr):
            x = T.bind(broadcast(source(tile, row, block, lane)))
            for v in range(vectors):
                at = row * nr + v * LANES
                store(acc, at, fma(x, w[v], load(acc, at)))

    def blocks(first_block) -> None:
        with T.serial(LANES // unroll) as lane:
            for u in range(unroll):
                step(first_block, lane * unroll + u)

    for row in range(mr):
        for v in range(vectors):
            store(acc, row * nr + v * LANES, load(weights, layer.bias_at + first + column + v * LANES))
    whole = layer.inputs // LANES
    done = 0
    if hook is not None and hook_places(layer, hook.every):
        done = whole // hook.every * hook.every
        with T.serial(whole // hook.every) as group:
            hook.emit(group)
            with T.serial(hook.every) as block:
                blocks(group * hook.every + block)
    if whole > done:
        with T.serial(whole - done) as block:
            blocks(block + done)
    for k in range(layer.inputs % LANES):
        step(whole, k)
    for row in range(mr):
        for v in range(vectors):
            value = activate(load(acc, row * nr + v * LANES), layer.activation)
            write(tile, row, (first + column) // LANES + v, value)


def activate(value, activation: str):
    """activation of a vector of 16; sigmoid calls the C library's expf lane by lane."""
    if activation == "relu":
        return maximum(value, zeros())
    if activation == "sigmoid":
        one = broadcast(T.float32(1))
        return one / (one + T.exp(zeros() - value))
    return value
