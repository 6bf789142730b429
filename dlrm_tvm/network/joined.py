"""The joined vectors of a block of items, and cross layers on them, of which there may be none: two kinds of
interaction.py's.

    x0 = [x, e1, .., eT]        x_{l+1} = x0 * (W_l (V_l x_l) + b_l) + x_l        * elementwise; V_l only for low rank

V and W are dense layers over the whole block, so that as many items as possible share their weights: 64 MB of MLPerf's
model in float32, more than caches hold. The update is the end of W's sums:

    for l:  u    = V_l x_l                                               over the block
            x[n] = fma(x0[n], W_l[n, :] . u + b_l[n], x[n])              over the block, in W's registers

With low rank x_{l+1} takes the place of x_l, which nothing reads any more. With full rank W reads all of x_l until its
last output, so two buffers take turns.

x0 and x_l are words as the layers take them, since each layer reads and writes them all: fp32, bf16, or int8 with a
static scale s_l per column. Those fold into the layers' weights, and what is left of them is

            x[n] = fma(x0[n], W_l[n, :] . u + b_l[n], x[n] * ratio_l[n])        ratio_l = s_l / s_{l+1}

Where a word is not made of its own values alone (int8's dynamic scales, fp32 in parts) x0 and x_l are float32, and
their words are made of them when a layer is complete (`settle` of activations.py). Without cross layers x0 is the
first top layer's input, in its form; float32 behind rows of bf16 or int8, if that layer is the last.

Columns: x in its own order, then each vector as its words have it, or for float32 in the order in which `planes` takes
its words apart. So nothing is permuted at run time: V's inputs, W's outputs and the first top layer's inputs are packed
in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tvm.tirx.script.builder import ir as T

from ..kernels.activations import Activations, PingPongBuffers, Tiles
from ..kernels.dense import PackedDense
from ..kernels.isa import Family
from ..kernels.packing import Packer, plain_columns
from ..kernels.tile_unit import touch
from ..kernels.vectors import LANES, fma, load, padded, store, zeros
from ..kernels.words import UNPACKED, Form, column_order, row_words, table_form
from ..model.dlrm import Dlrm
from ..model.precision import Numerics


@dataclass(frozen=True)
class JoinedPlan:
    """crossings: of each cross layer its packed layers, as in model/joined.py; vector_columns: of x0, for each
    of the joined vectors; whole units of its form. Only for int8 with static scales: ratios_at: in mlp, for each cross
    layer the ratio of each column; takes_sums: see interaction.py; copies_rows: whether tables have x0's scales;
    x_gain: what x is multiplied by where x0 has no scales.
    """

    crossings: tuple[tuple[PackedDense, ...], ...]
    vector_columns: int
    ratios_at: tuple[int, ...] = ()
    takes_sums: bool = False
    copies_rows: bool = True
    x_gain: float | None = None

    @staticmethod
    def columns(model: Dlrm, numerics: Numerics, forms: list[Form], tiles: bool = False) -> list[np.ndarray]:
        joined = _joined_columns(model, numerics, forms[0])
        return [
            joined if at == 0 else plain_columns(layer.inputs, form.precision)
            for form, (at, layer) in zip(forms, _placed(model))
        ] + [joined]

    @staticmethod
    def rows(model: Dlrm, numerics: Numerics, forms: list[Form]) -> list[np.ndarray | None]:
        joined = _joined_columns(model, numerics, forms[0])
        last = [len(crossing) - 1 for crossing in model.interaction.crossings for _ in crossing]
        return [joined if at == end else None for (at, _), end in zip(_placed(model), last)]

    @classmethod
    def pack(
        cls,
        model: Dlrm,
        numerics: Numerics,
        packer: Packer,
        layers: tuple[PackedDense, ...],
        forms: list[Form],
        tiles: bool = False,
    ) -> JoinedPlan:
        left, joined = iter(layers), _joined_columns(model, numerics, forms[0])
        crossings = tuple(tuple(next(left) for _ in crossing) for crossing in model.interaction.crossings)
        width = len(joined) // model.num_vectors
        scales = model.interaction.x_scales(numerics.interaction_scales(model))
        if scales is None:
            return cls(crossings, width, x_gain=numerics.x_scale)
        ratios = [np.where(joined >= 0, (old / new)[joined] / UNPACKED, 0) for old, new in pairwise(scales)]
        return cls(
            crossings,
            width,
            tuple(packer.add(ratio.astype(np.float32)) for ratio in ratios),
            takes_sums=True,
            copies_rows=bool((numerics.vector_factors(model) == 1).all()),
        )

    @property
    def layers(self) -> tuple[PackedDense, ...]:
        return tuple(layer for crossing in self.crossings for layer in crossing)

    @property
    def parts(self) -> tuple[str, ...]:
        names = {1: ("W",), 2: ("V", "W")}
        return tuple(f"cross {at} {name}" for at, each in enumerate(self.crossings, 1) for name in names[len(each)])

    @staticmethod
    def copies(family: Family) -> bool:
        return True

    def emitter(self, plan, mlp, lookup, top: Activations) -> JoinedEmitter:
        return JoinedEmitter(self, plan, mlp, lookup, top)


def _placed(model: Dlrm) -> list[tuple[int, object]]:
    """(number within its crossing, layer) of each layer."""
    return [pair for crossing in model.interaction.crossings for pair in enumerate(crossing)]


def _joined_columns(model: Dlrm, numerics: Numerics, form: Form) -> np.ndarray:
    """Per column of x0, in this form, the model's (-1: none): of x in order, of each table's vector in that of its
    words, or plane by plane of them where it is taken apart."""
    words, rows = row_words(model.dim, numerics.precision), table_form(numerics.precision)
    stored = np.full(words * rows.values, -1, np.int64)
    stored[: model.dim] = np.arange(model.dim)
    vector = stored
    if not _takes_words(form, rows):
        # [block of 16 words][word][value] -> [block][value][word]
        in_words = stored[column_order(numerics.precision, len(stored))].reshape(-1, LANES, rows.values)
        vector = in_words.transpose(0, 2, 1).reshape(-1)
    filled = (0, -len(stored) % (LANES * form.unit))
    vectors = [np.pad(each, filled, constant_values=-1) for each in (stored, *[vector] * len(model.tables))]
    return np.concatenate([np.where(own >= 0, own + at * model.dim, -1) for at, own in enumerate(vectors)])


def _takes_words(form: Form, rows: Form) -> bool:
    """Whether x0 of this form is made of the words of rows."""
    return form.is_direct and form.precision == rows.precision


class JoinedEmitter:
    def __init__(self, cross: JoinedPlan, plan, mlp, lookup, top: Activations) -> None:
        self._cross, self._plan, self._mlp, self._lookup = cross, plan, mlp, lookup
        self._columns = cross.vector_columns * (plan.num_tables + 1)
        if plan.table_form.precision == "int8":
            self._factors = _floats(padded(plan.num_tables + 1))
        projected = [(last.takes, first.outputs) for first, *rest in cross.crossings for last in rest]
        self._projections = PingPongBuffers(plan.most_tiles, plan.mr, projected)
        form = (*cross.layers, *plan.top, plan.final)[0].takes
        self._is_copied = _takes_words(form, plan.table_form)
        if cross.crossings:
            self._states = self._direct(form, top) if form.is_direct else self._settled(form, top)
        else:
            self._states = [top.staged(self._tiles(self._columns)) if form.by_row else top]
        if plan.is_tiled:
            self._projections.each_whole(touch)
            for state in self._states:
                touch(state.tiles.buffer, plan.most_tiles * state.tiles.tile_size)
        self._is_pooled = self._is_copied and plan.is_tiled and lookup.pools_into(self._place)

    def _direct(self, form: Form, top: Activations) -> list[Activations]:
        """x_0 .. x_L, the last one in the first top layer's input; before a layer of full rank x_l lies in the other
        buffer."""
        crossings = self._cross.crossings
        here = top if top.form == form or len(crossings) == 1 else self._activations(form)
        other = self._activations(form) if any(len(each) == 1 for each in crossings[1:]) else None
        states = [top]
        for crossing in reversed(crossings[1:]):
            here, other = (other, here) if len(crossing) == 1 else (here, other)
            states.insert(0, here)
        return [self._activations(form), *states]

    def _settled(self, form: Form, top: Activations) -> list[Activations]:
        """One buffer for the words of all x_l, which change when a layer ends, and one for the values from x_1 on."""
        words, last, values = top, None, top.tiles
        if top.form == form:
            values = self._tiles(self._columns)
        else:  # the only top layer takes float32
            scales = _floats(self._plan.most_tiles * self._plan.mr) if form.by_row else None
            words, last = Activations(form, self._tiles(form.words(self._columns)), None, scales), top
        later = [words.staged(values)] * len(self._cross.crossings)
        return [words.staged(self._tiles(self._columns)), *(later if last is None else [*later[:-1], last])]

    def _activations(self, form: Form) -> Activations:
        return Activations(form, self._tiles(form.words(self._columns)), None, None)

    def _tiles(self, words: int) -> Tiles:
        return Tiles(_floats(self._plan.most_tiles * self._plan.mr * words), 0, words, self._plan.mr)

    def configure(self) -> None:
        """Nothing: no tile registers are used before `finish`."""

    def x_writer(self, tile) -> Callable:
        write, gain = self._states[0].writer(tile), self._cross.x_gain
        if gain is None:
            return write
        return lambda tile, row, block, values: write(
            tile, row, block, [value * T.broadcast(T.float32(gain), LANES) for value in values]
        )

    def run(self, tile) -> None:
        """The tile's vectors behind x."""
        plan, x0, per_vector = self._plan, self._states[0], self._cross.vector_columns // LANES
        unit, write = x0.unit, x0.writer()
        with T.serial(plan.mr) as item:
            for at in range(-(-plan.dim // (LANES * unit)), per_vector // unit):  # behind x
                write(tile, item, at * unit, [zeros()] * unit)
            if self._is_pooled:
                return
            if plan.table_form.precision == "int8":
                self._lookup.factors(item, self._factors)
            with T.serial(plan.num_tables) as table:
                buffer, at = self._lookup.vector(item, table)
                self._lookup.beside_copy(item, table)
                blocks = [load(buffer, at + block * LANES) for block in range(plan.row_words // LANES)]
                if self._is_copied:
                    for block, words in enumerate(blocks):
                        self._copy(tile, item, table, block, words)
                else:
                    values = [value for words in blocks for value in self._values(table, words)]
                    values += [zeros()] * (per_vector - len(values))
                    write(tile, item, (table + 1) * per_vector, values)

    def _values(self, table, words) -> list:
        """16 words of a vector as float32, in the units of x0's form."""
        form = self._plan.table_form
        values = form.planes(words)
        if form.precision == "int8" and not self._lookup.scales_vectors:
            factor = T.bind(T.broadcast(self._factors[table + 1], LANES))
            values = [value * factor for value in values]
        return values

    def _copy(self, tile, item, table, block: int, words) -> None:
        """16 words of a vector as they are, but for the scale."""
        form = self._states[0].form
        buffer, at = self._place(tile, item, table, block)
        words = T.bind(form.left(words) if form.is_raised else words)
        if self._cross.copies_rows or self._lookup.scales_vectors:
            store(buffer, at, words)
            return
        factor = T.bind(T.broadcast(self._factors[table + 1] * T.float32(1 / UNPACKED), LANES))
        for part in range(0, LANES, form.unit_words):
            unit = form.unpack(T.Shuffle([words], list(range(part, part + form.unit_words))))
            store(buffer, at + part, form.pack([value * factor for value in unit]), form.unit_words)

    def _place(self, tile, item, table, block) -> tuple:
        """(buffer, index) of 16 words of a vector in x0."""
        tiles = self._states[0].tiles
        blocks = self._plan.row_words // LANES
        return tiles.buffer, T.bind(tiles.index(tile, item, (table + 1) * blocks + block))

    def finish(self, tiles, layer: Callable, lap: Callable) -> None:
        names, ratios = iter(self._cross.parts), self._cross.ratios_at or (None,) * len(self._cross.crossings)
        self._states[0].settle(tiles, self._columns)
        for crossing, ratio_at, old, new in zip(self._cross.crossings, ratios, self._states, self._states[1:]):
            factor, last = old, crossing[-1]
            for first in crossing[:-1]:
                factor = self._projections.activations(0, last.takes, first.outputs)
                layer(first, old.source, factor.writer(), tiles, x=old)
                factor.settle(tiles, first.outputs)
                lap(next(names))
            layer(last, factor.source, self._update(old, new, ratio_at), tiles, x=factor)
            new.settle(tiles, self._columns)
            lap(next(names))

    def _update(self, old: Activations, new: Activations, ratio_at: int | None) -> Callable:
        """How W's outputs y are written: x0 * y + old * ratio."""
        x0, put = self._states[0], new.writer()

        def write(tile, row, block, values: list) -> None:
            first, x = (each.read(tile, row, block, len(values)) for each in (x0, old))
            if ratio_at is not None:
                x = [value * load(self._mlp, ratio_at + (block + v) * LANES) for v, value in enumerate(x)]
            put(tile, row, block, [fma(*each) for each in zip(first, values, x)])

        return write


def _floats(count: int):
    return T.alloc_buffer((count,), "float32", scope="global")
