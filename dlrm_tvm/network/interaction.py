"""The interaction: x and an item's vectors -> the first top layer's input. One plan for each kind of interaction.

    Dot       row   = x in the form of the tables                  int8: divided by its own scale, or a static one
              dots  = of row and the item's vectors, float32       pair_dots.py, Int8Dots
              input = [x, dots] in the form of the first top layer
    Concat    input = x, then the item's vectors                                                    joined.py
    Cross     input = x_L of cross layers on all vectors joined                                     joined.py

Int8Dots, for a pair (i, j) of one item, z = factor * q with q in -127 .. 127, gives

    dot(z_i, z_j) = factor_i * factor_j * (sum_d (q[i, d] + 128) * q[j, d]  -  128 * sum_d q[j, d])

The 128s come from multiplying unsigned by signed bytes (words.py). The second sum is one number per vector of an item,
computed with the same instruction before its dots: 128 * q is a dot with bytes of 128. Where bytes are made 16 bits
there is none.

A plan, whose class `plan_of` looks up once, answers:

    columns(model, numerics, forms, tiles)  for each layer of the interaction and the first top layer, whose inputs have
                                       these forms: per column, the model's input in it (-1: none)
    rows(model, numerics, forms)       for each layer of the interaction: likewise of its outputs; None for their order
    pack(model, numerics, packer, layers, forms, tiles)  the plan; its arrays, with its packed `layers`, lie between
                                       those of the MLPs
    copies(family)                     whether its emitter copies an item's vectors before it computes with them
    takes_sums                         whether vectors are bytes with static scales, made of whole sums
    layers, parts                      its packed layers, and their names among the parts of a call
    emitter(plan, mlp, lookup, top)    emits one task's interaction and holds its buffers; plan: the network's
        x_writer(tile)                 how the last bottom layer writes its outputs, for tile `tile` of the block
        run(tile)                      the interaction of that tile's items
        finish(tiles, layer, lap)      its layers, for the block's `tiles` tiles together; layer, lap: of the task

tiles: whether dots are made on AMX's tiles, in an order of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from tvm.tirx.script.builder import ir as T

from ..kernels.activations import Activations, Tiles, pack_units, row_scales
from ..kernels.dense import PackedDense
from ..kernels.isa import Family
from ..kernels.packing import Packer, unit_padded
from ..kernels.tile_unit import TILE_ROWS, TileUnit
from ..kernels.vectors import LANES, broadcast, floats, load, padded, store, zeros
from ..kernels.words import Form
from ..model.dlrm import Dlrm
from ..model.interactions import Concat, Cross, Dot
from ..model.precision import Numerics
from .joined import JoinedPlan
from .pair_dots import Grouping, Lanes, dot_interaction, group_pairs, sum_lanes
from .tile_dots import PairOrder, TileDots


@dataclass(frozen=True)
class DotPlan:
    """grouping: the pairs, 16 at a time. Only for int8 with static scales: x_scale: of x; units_at: in mlp, per lane
    of the groups 1 / the scale of its dot.
    """

    grouping: Grouping | PairOrder
    x_scale: float | None = None
    units_at: int | None = None
    layers: ClassVar[tuple[PackedDense, ...]] = ()
    takes_sums: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def columns(cls, model: Dlrm, numerics: Numerics, forms: list[Form], tiles: bool = False) -> list[np.ndarray]:
        """x, then the dots in the order of the grouping."""
        x = np.full(unit_padded(padded(model.dim), forms[-1].precision), -1, np.int64)
        x[: model.dim] = np.arange(model.dim)
        return [np.concatenate([x, cls._dot_columns(model, forms[-1].precision, tiles)])]

    @staticmethod
    def _dot_columns(model: Dlrm, precision: str, tiles: bool) -> np.ndarray:
        number = {pair: model.dim + at for at, pair in enumerate(model.interaction.pairs(model.num_vectors))}
        order = _grouping(model, tiles).order
        dots = np.full(unit_padded(len(order), precision), -1, np.int64)
        dots[: len(order)] = [-1 if pair is None else number[pair] for pair in order]
        return dots

    @staticmethod
    def rows(model: Dlrm, numerics: Numerics, forms: list[Form]) -> list[np.ndarray | None]:
        return []

    @classmethod
    def pack(
        cls,
        model: Dlrm,
        numerics: Numerics,
        packer: Packer,
        layers: tuple[PackedDense, ...],
        forms: list[Form],
        tiles: bool = False,
    ) -> DotPlan:
        grouping = _grouping(model, tiles)
        scales = numerics.layers[model.first_top].scales
        if scales is None:
            return cls(grouping, numerics.x_scale)
        dots = cls._dot_columns(model, forms[-1].precision, tiles)
        units = np.where(dots >= 0, 1 / scales[dots], 0).astype(np.float32)
        return cls(grouping, numerics.x_scale, packer.add(units))

    @staticmethod
    def copies(family: Family) -> bool:
        return family.tile_dots

    def emitter(self, plan, mlp, lookup, top: Activations) -> DotEmitter:
        return (TileDotEmitter if plan.family.tile_dots else DotEmitter)(self, plan, mlp, lookup, top)


def _grouping(model: Dlrm, tiles: bool) -> Grouping | PairOrder:
    if tiles:
        return PairOrder(model.num_vectors, model.interaction.with_self)
    return group_pairs(model.interaction.pairs(model.num_vectors), model.num_vectors)


class DotEmitter:
    """x is kept as float32, because the dots and the first top layer take different forms of it.

    fp32 takes this path too, though it could write x and dots in place: that was measured and is no faster.
    """

    def __init__(self, dots: DotPlan, plan, mlp, lookup, top: Activations) -> None:
        self._dot_plan, self._plan, self._mlp, self._lookup, self._top = dots, plan, mlp, lookup, top
        size = plan.bottom_tiles * plan.mr * plan.dim
        self._x = Tiles(T.alloc_buffer((size,), "float32", scope="global"), 0, plan.dim, plan.mr)
        self._allocate()

    def _allocate(self) -> None:
        dots, plan = self._dot_plan, self._plan
        self._row = T.alloc_buffer((plan.row_words,), "float32", scope="global")
        for at in range(0, plan.row_words, LANES):  # words beyond x stay zero
            store(self._row, at, zeros())
        self._dots = T.alloc_buffer((dots.grouping.num_groups * LANES,), "float32", scope="global")
        self._int8 = Int8Dots(plan.num_tables + 1, plan.table_form) if plan.table_form.precision == "int8" else None

    def configure(self) -> None:
        """Nothing: no tile registers are used."""

    def x_writer(self, tile) -> Callable:
        def write(tile, row, block, values: list) -> None:
            for v, value in enumerate(values):
                store(self._x.buffer, self._x.index(self._x_of(tile), row, block + v), value)

        return write

    def _x_of(self, tile):
        """Where the x of a tile lie: those of the whole block are kept where it goes through the bottom MLP as one."""
        return tile if self._plan.is_tiled else 0

    def run(self, tile) -> None:
        self._x_tile = self._x_of(tile)
        with T.serial(self._plan.mr) as item:
            self._take_dots(item)
            self._top.write_row(tile, item, [self._x_for_top(item), self._dot_segment()])

    def finish(self, tiles, layer: Callable, lap: Callable) -> None:
        """Nothing: dots have no layers."""

    def _x_for_top(self, item) -> tuple[int, Callable]:
        """x divided by its static scale if the first top layer is int8, else its values."""
        count, value = self._x_segment(item)
        scale = self._dot_plan.x_scale
        if scale is None or self._top.form.is_whole:
            return count, value
        return count, lambda v: value(v) * broadcast(T.float32(scale))

    def _x_segment(self, item) -> tuple[int, Callable]:
        return self._plan.dim // LANES, lambda v: load(self._x.buffer, self._x.index(self._x_tile, item, v))

    def _dot_segment(self) -> tuple[int, Callable]:
        units_at = self._dot_plan.units_at

        def value(v):
            dots = load(self._dots, v * LANES)
            return dots if units_at is None else dots * load(self._mlp, units_at + v * LANES)

        return self._dot_plan.grouping.num_groups, value

    def _x_scales(self, item, factors, at=0):
        """What x is multiplied by before rounding to bytes, None for nothing; the factors of the item's vectors are
        stored from factors[at] on, None for forms that have none."""
        if factors is None:
            return None
        self._lookup.factors(item, factors, at)
        if self._dot_plan.x_scale is not None:
            T.buffer_store(factors, T.float32(self._dot_plan.x_scale), [at])
            return None
        largest, inverse = row_scales([self._x_segment(item)], 127)
        T.buffer_store(factors, largest * T.float32(1 / 127), [at])
        return T.bind(broadcast(inverse))

    def _pack_x(self, item, scales, place: Callable) -> None:
        """x in the form of the tables; place(unit): (buffer, index) of a unit's words."""
        form = self._plan.table_form
        count, value = self._x_segment(item)

        def write_unit(unit, vectors: list) -> None:
            buffer, at = place(unit)
            store(buffer, at, form.pack(vectors, as_row=True), form.unit_words)

        pack_units(form.unit, count, value, scales, write_unit)

    def _take_dots(self, item) -> None:
        plan, form, grouping = self._plan, self._plan.table_form, self._dot_plan.grouping
        scales = self._x_scales(item, None if self._int8 is None else self._int8.factors)
        self._pack_x(item, scales, lambda unit: (self._row, unit * form.unit_words))

        def row(i):
            buffer, at = self._lookup.vector(item, i - 1)
            return lambda chunk, lanes=LANES: load(buffer, at + chunk * lanes, lanes)

        def first_row():
            return lambda chunk, lanes=LANES: load(self._row, chunk * lanes, lanes)

        def write(group, sums, i, j) -> None:
            store(self._dots, group * LANES, sums if self._int8 is None else self._int8.dots(sums, i, j))
            self._lookup.beside_group(item, group, grouping.num_groups)

        if self._int8 is not None:
            self._int8.start(plan.row_words, row, first_row)
        dot_interaction(grouping, plan.row_words, row, first_row, write, form, plan.family.registers)


class TileDotEmitter(DotEmitter):
    """The dots on tiles: an item's are collected and written beside the next one's products."""

    def _allocate(self) -> None:
        plan = self._plan
        kind = "signed" if plan.table_form.precision == "int8" else "bf16"
        self._unit = TileUnit(TILE_ROWS, emulated=plan.family.emulated)
        self._tiles = TileDots(self._dot_plan.grouping, plan.row_words, kind, self._unit)
        self._dots = T.alloc_buffer((self._dot_plan.grouping.num_groups * LANES,), "float32", scope="global")

    def configure(self) -> None:
        self._unit.configure()

    def run(self, tile) -> None:
        tiles, form, last = self._tiles, self._plan.table_form, self._plan.mr - 1
        self._x_tile = self._x_of(tile)
        with T.serial(self._plan.mr) as item:
            which = T.bind(item % 2)
            scales = self._x_scales(item, tiles.factors, T.bind(tiles.factors_at(which)))
            self._pack_x(item, scales, lambda unit: tiles.row_at(form.unit_words, unit))
            tiles.take(lambda vector: self._words(item, vector - 1))
            tiles.transpose()
            # Before the first item's products there are none to collect: what is written is written again, rightly.
            self._write(tile, T.bind(T.max(item - 1, 0)), 1 - which)
            tiles.multiply(which)
        self._write(tile, last, last % 2)

    def _words(self, item, table) -> Callable:
        buffer, at = self._lookup.vector(item, table)
        self._lookup.beside_copy(item, table)
        return lambda chunk: load(buffer, at + chunk * LANES)

    def _write(self, tile, item, which) -> None:
        self._tiles.collect(which, lambda group, dots: store(self._dots, group * LANES, dots))
        self._top.write_row(tile, item, [self._x_for_top(item), self._dot_segment()])


class Int8Dots:
    """Emits the compensation and the factors of one item's vectors, then turns its sums into dots.

    vectors: their number, x included; form: of them.
    """

    def __init__(self, vectors: int, form: Form) -> None:
        self._vectors, self._form = vectors, form
        self._compensation = None if form.widens else T.alloc_buffer((padded(vectors),), "int32", scope="global")
        self.factors = T.alloc_buffer((padded(vectors),), "float32", scope="global")

    def start(self, words: int, row: Callable, first_row: Callable) -> None:
        """The compensation of an item's vectors; arguments as in dot_interaction."""
        if self._compensation is None:
            return
        form = self._form
        bytes_of_128 = T.bind(form.left(zeros()))
        for first in range(0, self._vectors, LANES):
            sums = []
            for i in range(first, min(first + LANES, self._vectors)):
                vector, total = first_row() if i == 0 else row(i), form.no_sum()
                for chunk in range(words // LANES):
                    total = T.bind(form.dot(total, bytes_of_128, vector(chunk)))
                sums.append(total)
            store(self._compensation, first, sum_lanes(sums, form))

    def dots(self, sums, i: Lanes, j: Lanes):
        """16 dots, float32."""
        factors = T.bind(i.of(self.factors) * j.of(self.factors))
        return floats(sums if self._compensation is None else sums - j.of(self._compensation)) * factors


_PLANS = {Dot: DotPlan, Concat: JoinedPlan, Cross: JoinedPlan}


def plan_of(model: Dlrm) -> type[DotPlan] | type[JoinedPlan]:
    return _PLANS[type(model.interaction)]
