"""Activations between two layers: written by one in vectors of 16 float32, read by the next as words of its form.

    at once     fp32, bf16, int8 in given steps: write = pack and store
    by row      int8 in steps of each row's own: write = stage as float32;
                settle = for each row: steps = largest magnitude / 127 or 255, pack and store

A row's steps are known only when all of its outputs are, so a row of its own steps is written twice. Outliers then
coarsen the steps of their own row alone, and nothing need be known of the inputs beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.tirx.script.builder import ir as T

from .forms import Form
from .tiles import Tiles
from .vectors import LANES, broadcast, load, padded, store, zeros

_CHAINS = 4  # of row_steps
Segment = tuple[int, Callable]  # (number of vectors, v -> vector of 16 float32)


class Activations:
    """What one layer gives and the next one takes.

    tiles: where the words lie; staging: where a row of its own steps lies before, None for other forms;
    scales: [items] float32, the steps of each row, None for other forms.
    """

    def __init__(self, form: Form, tiles: Tiles, staging: Tiles | None, scales) -> None:
        self.form, self.tiles, self._staging, self._scales = form, tiles, staging, scales

    def source(self, tile, row, block, lane):
        """A word as a dense layer takes it."""
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

    def settle(self, tiles, columns: int) -> None:
        """What is left to do when all outputs of `tiles` tiles are written, `columns` of them per row."""
        if self._staging is None:
            return
        staging = self._staging
        with T.serial(tiles) as tile, T.serial(self.tiles.mr) as row:
            vectors = padded(columns) // LANES
            self.write_row(tile, row, [(vectors, lambda v: load(staging.buffer, staging.index(tile, row, v)))])

    def write_row(self, tile, row, segments: Sequence[Segment]) -> None:
        """A whole row at once: segments one after the other, each from a unit of its own."""
        steps = None
        if self.form.by_row:
            largest, inverse = row_steps(segments, self.form.largest)
            steps = T.bind(broadcast(inverse))
            scale = largest * T.float32(1 / self.form.largest)
            T.buffer_store(self._scales, scale, [tile * self.tiles.mr + row])
        first = 0
        for count, value in segments:

            def write(unit, vectors: list, first=first) -> None:
                self._store_unit(tile, row, first + unit, vectors)

            pack_units(self.form.unit, count, value, steps, write)
            first += -(-count // self.form.unit)

    def _store_unit(self, tile, row, unit, vectors: list) -> None:
        at = self.tiles.unit_index(tile, row, unit, self.form.unit_words)
        store(self.tiles.buffer, at, self.form.pack(vectors), self.form.unit_words)


class Rooms:
    """Memory for what passes between the layers of one part of the network: two buffers that take turns."""

    def __init__(self, tiles: int, mr: int, passing: Sequence[tuple[Form, int]]) -> None:
        """passing: (form, columns) of each of them, in order."""
        self._mr, self._staging, self._scales = mr, None, [None, None]
        words = max((padded(form.words(columns)) for form, columns in passing), default=0)
        staged = max((padded(columns) for form, columns in passing if form.by_row), default=0)
        self._words = [_floats(tiles * mr * words) for _ in range(2)] if words else []
        if staged:
            self._staging = _floats(tiles * mr * staged)
            self._scales = [_floats(tiles * mr) for _ in range(2)]

    def activations(self, number: int, form: Form, columns: int) -> Activations:
        tiles = Tiles(self._words[number % 2], 0, form.words(columns), self._mr)
        if not form.by_row:
            return Activations(form, tiles, None, None)
        return Activations(form, tiles, Tiles(self._staging, 0, columns, self._mr), self._scales[number % 2])


def _floats(count: int):
    return T.alloc_buffer((count,), "float32", scope="global")


def row_steps(segments: Sequence[Segment], most: int) -> tuple:
    """(largest magnitude of a row, most / it or 0 for a row of zeros) as scalars."""
    # Several accumulators, so that one maximum need not wait for the last.
    acc = [T.alloc_buffer((LANES,), "float32", scope="global") for _ in range(_CHAINS)]
    for each in acc:
        store(each, 0, zeros())

    def take(each, vector) -> None:
        store(each, 0, T.max(load(each, 0), T.abs(vector)))

    for count, value in segments:
        if count // _CHAINS:
            with T.serial(count // _CHAINS) as group:
                for number, each in enumerate(acc):
                    take(each, value(group * _CHAINS + number))
        for v in range(count // _CHAINS * _CHAINS, count):
            take(acc[0], value(v))
    for each in acc[1:]:
        take(acc[0], load(each, 0))
    acc = acc[0]
    largest = T.bind(T.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fmax.v16f32", load(acc, 0)))
    return largest, T.bind(T.Select(largest > T.float32(0), T.float32(most) / largest, T.float32(0)))


def pack_units(unit: int, count: int, value: Callable, steps, write: Callable) -> None:
    """write(number, vectors) for each unit of `count` vectors times `steps`; a last one is filled with zeros."""

    def scaled(v):
        return value(v) if steps is None else value(v) * steps

    if count // unit:
        with T.serial(count // unit) as number:
            write(number, [T.bind(scaled(number * unit + v)) for v in range(unit)])
    if count % unit:
        whole = count // unit * unit
        write(count // unit, [*(T.bind(scaled(v)) for v in range(whole, count)), *[zeros()] * (unit - count % unit)])
