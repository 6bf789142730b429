"""Activations between two layers: one writes vectors of 16 float32, the next reads words of its form.

    at once     fp32, bf16, int8 with static scales: write = pack and store
    by row      int8 with dynamic scales: write = stage as float32;
                settle = for each row: scale = largest magnitude / 127 or 255, pack and store

A row's dynamic scale is known only when all of its outputs are, so such a row is written twice. In return no data is
needed beforehand, and outliers coarsen only their own row.

Activations are stored as tiles, so that one layer's output is the next one's input without packing in between:

    [tile][block][row][lane]     tile: `mr` items, block: 16 words, row: item of the tile, lane: word in the block

A word holds 1 fp32, 2 bf16 or 4 int8 columns; fp32 in parts takes three blocks for 32 columns (words.py). A dense
kernel that walks k reads `mr` words 64 bytes apart, all of a cache line before the next, and writes whole vectors. Rows
are never 4 KB apart: they would compete for the same cache sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from .vectors import LANES, bits_of, broadcast, load, padded, store, zeros
from .words import Form

_CHAINS = 4  # of row_scales
Segment = tuple[int, Callable]  # (number of vectors, v -> vector of 16 float32)


class Activations:
    """The outputs of one layer, as the next one takes them.

    tiles: of the words; staging: of float32 values, mostly because they have no dynamic scale yet; None without one;
    scales: [items] float32, those dynamic scales, None without.
    """

    def __init__(self, form: Form, tiles: Tiles, staging: Tiles | None, scales) -> None:
        self.form, self.tiles, self._staging, self._scales = form, tiles, staging, scales

    def staged(self, staging: Tiles) -> Activations:
        """The same words, but of values in `staging`, of which `settle` makes them."""
        return Activations(self.form, self.tiles, staging, self._scales)

    @property
    def unit(self) -> int:
        """Vectors of 16 values that are written together."""
        return self.form.unit if self._staging is None else 1

    def source(self, tile, row, block, lane):
        """A word for a dense layer."""
        return self.tiles.buffer[self.tiles.index(tile, row, block, lane)]

    def row_scale(self, tile, row):
        return None if self._scales is None else self._scales[tile * self.tiles.mr + row]

    def writer(self, first_tile=0) -> Callable:
        """A write for dense_layer whose tile 0 is `first_tile` here."""

        def write(tile, row, block, values: list) -> None:
            if self._staging is not None:
                for v, value in enumerate(values):
                    store(self._staging.buffer, self._staging.index(tile + first_tile, row, block + v), value)
                return
            unit = self.form.unit
            for v in range(0, len(values), unit):
                vectors = values[v : v + unit] + [zeros()] * (unit - len(values[v : v + unit]))
                self._store_unit(tile + first_tile, row, (block + v) // unit, vectors)

        return write

    def read(self, tile, row, block, count: int) -> list:
        """What was written: `count` vectors of 16 float32 from column 16 * block on, where a unit begins; of a form
        that is direct where nothing is staged."""
        if self._staging is not None:
            staging = self._staging
            return [load(staging.buffer, staging.index(tile, row, block + v)) for v in range(count)]
        form, vectors = self.form, []
        for v in range(0, count, form.unit):
            at = T.bind(self.tiles.unit_index(tile, row, (block + v) // form.unit, form.unit_words))
            vectors += form.unpack(load(self.tiles.buffer, at, form.unit_words))
        return vectors[:count]

    def settle(self, tiles, columns: int) -> None:
        """Pack staged rows, once all outputs of `tiles` tiles are written; `columns`: per row."""
        if self._staging is None:
            return
        staging = self._staging
        with T.serial(tiles) as tile, T.serial(self.tiles.mr) as row:
            vectors = padded(columns) // LANES
            self.write_row(tile, row, [(vectors, lambda v: load(staging.buffer, staging.index(tile, row, v)))])

    def write_row(self, tile, row, segments: Sequence[Segment]) -> None:
        """A whole row at once: segments one after the other, each beginning a new unit."""
        scales = None
        if self.form.by_row:
            largest, inverse = row_scales(segments, self.form.largest)
            scales = T.bind(broadcast(inverse))
            scale = largest * T.float32(1 / self.form.largest)
            T.buffer_store(self._scales, scale, [tile * self.tiles.mr + row])
        first = 0
        for count, value in segments:

            def write(unit, vectors: list, first=first) -> None:
                self._store_unit(tile, row, first + unit, vectors)

            pack_units(self.form.unit, count, value, scales, write)
            first += -(-count // self.form.unit)

    def _store_unit(self, tile, row, unit, vectors: list) -> None:
        form = self.form
        at = T.bind(self.tiles.unit_index(tile, row, unit * form.parts, form.unit_words))
        for part, words in enumerate(form.pack_parts(vectors)):
            store(self.tiles.buffer, at + part * self.tiles.mr * LANES, words, form.unit_words)


class PingPongBuffers:
    """Two buffers in turn for the activations between the layers of one MLP."""

    def __init__(self, tiles: int, mr: int, passing: Sequence[tuple[Form, int]]) -> None:
        """passing: (form, columns) of each, in order."""
        self._mr, self._staging, self._scales = mr, None, [None, None]
        words = max((padded(form.words(columns)) for form, columns in passing), default=0)
        staged = max((padded(columns) for form, columns in passing if form.by_row), default=0)
        self._size = tiles * mr * words
        self._words = [_floats(self._size) for _ in range(2)] if words else []
        if staged:
            self._staging = _floats(tiles * mr * staged)
            self._scales = [_floats(tiles * mr) for _ in range(2)]

    def each_whole(self, do: Callable) -> None:
        """do(buffer, size) for both buffers."""
        for buffer in self._words:
            do(buffer, self._size)

    def activations(self, number: int, form: Form, columns: int) -> Activations:
        tiles = Tiles(self._words[number % 2], 0, form.words(columns), self._mr)
        if not form.by_row:
            return Activations(form, tiles, None, None)
        return Activations(form, tiles, Tiles(self._staging, 0, columns, self._mr), self._scales[number % 2])


def _floats(count: int):
    return T.alloc_buffer((count,), "float32", scope="global")


def row_scales(segments: Sequence[Segment], most: int) -> tuple:
    """(largest magnitude of a row, most / largest or 0 for a row of zeros) as scalars; NaN is the largest of all."""
    # Several accumulators, so that one maximum need not wait for the last. Of bits: floats without a sign are in the
    # order of their bits, and x86's max of floats loses a NaN in one operand.
    acc = [T.alloc_buffer((LANES,), "int32", scope="global") for _ in range(_CHAINS)]
    for each in acc:
        store(each, 0, bits_of(zeros()))

    def take(each, bits) -> None:
        store(each, 0, T.max(load(each, 0), bits))

    for count, value in segments:
        if count // _CHAINS:
            with T.serial(count // _CHAINS) as group:
                for number, each in enumerate(acc):
                    take(each, bits_of(T.abs(value(group * _CHAINS + number))))
        for v in range(count // _CHAINS * _CHAINS, count):
            take(acc[0], bits_of(T.abs(value(v))))
    for each in acc[1:]:
        take(acc[0], load(each, 0))
    acc = acc[0]
    largest = T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smax.v16i32", load(acc, 0))
    largest = T.bind(T.reinterpret("float32", largest))
    return largest, T.bind(T.Select(largest > T.float32(0), T.float32(most) / largest, T.float32(0)))


def pack_units(unit: int, count: int, value: Callable, scales, write: Callable) -> None:
    """write(number, vectors) for each unit of `count` vectors times `scales`; the last is filled up with zeros."""

    def scaled(v):
        return value(v) if scales is None else value(v) * scales

    if count // unit:
        with T.serial(count // unit) as number:
            write(number, [T.bind(scaled(number * unit + v)) for v in range(unit)])
    if count % unit:
        whole = count // unit * unit
        write(count // unit, [*(T.bind(scaled(v)) for v in range(whole, count)), *[zeros()] * (unit - count % unit)])


@dataclass(frozen=True)
class Tiles:
    """Places of one layer's activations: from word `base` of `buffer`, `words` per item, `mr` items per tile."""

    buffer: Any
    base: int
    words: int
    mr: int

    @property
    def tile_size(self) -> int:
        """Words of one tile."""
        return self.mr * padded(self.words)

    def index(self, tile, row, block, lane=0):
        """Index of word 16*block + lane of item `row` of `tile`; each may be an expression."""
        return self.base + tile * self.tile_size + (block * self.mr + row) * LANES + lane

    def unit_index(self, tile, row, unit, unit_words: int):
        """Index of a unit's first word; a block holds a whole number of units."""
        if unit_words == LANES:
            return self.index(tile, row, unit)
        per_block = LANES // unit_words
        return self.index(tile, row, unit // per_block, unit % per_block * unit_words)
