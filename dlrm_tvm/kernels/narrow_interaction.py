"""The interaction of a model in bf16 or int8: x and rows in the tables' form -> the first top layer's input.

    for item of the tile:
        row   = x in the tables' form                       int8: in steps of x's own largest value, or in given ones
        dots  = of row and the item's vectors, float32      interaction.py, dots.py
        input = [x, dots] in the form that the first top layer takes                          activations.py

In "cat" the rows' words follow x's as they lie. x comes from the bottom MLP as float32, because two forms of it are
needed.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from .activations import Activations, pack_units, row_steps
from .dots import Int8Dots
from .interaction import dot_interaction
from .network_plan import NetworkPlan
from .tiles import Tiles
from .vectors import LANES, broadcast, load, store, zeros


class NarrowInteraction:
    """Emits the interaction of one task and holds its buffers; lookup: see lookups.py."""

    def __init__(self, plan: NetworkPlan, mlp, lookup) -> None:
        self._plan, self._mlp, self._lookup = plan, mlp, lookup
        self._x = Tiles(T.alloc_buffer((plan.mr * plan.dim,), "float32", scope="global"), 0, plan.dim, plan.mr)
        self._row = T.alloc_buffer((plan.row_words,), "float32", scope="global")
        for at in range(0, plan.row_words, LANES):  # what x does not fill stays zero
            store(self._row, at, zeros())
        if plan.grouping is not None:
            self._dots = T.alloc_buffer((plan.grouping.num_groups * LANES,), "float32", scope="global")
        self._int8 = Int8Dots(plan.num_tables + 1) if plan.table_form.precision == "int8" else None

    def write_x(self, tile, row, block, values: list) -> None:
        """As a dense layer writes: x of the tile that comes next."""
        for v, value in enumerate(values):
            store(self._x.buffer, self._x.index(0, row, block + v), value)

    def run(self, tile, top: Activations) -> None:
        """All items of the tile, into tile `tile` of the first top layer's input."""
        with T.serial(self._plan.mr) as item:
            if self._plan.grouping is None:
                self._concatenate(tile, item, top.tiles)
            else:
                self._take_dots(item)
                top.write_row(tile, item, [self._x_for(top, item), self._dot_segment()])

    def _x_for(self, top: Activations, item) -> tuple[int, Callable]:
        """x as the first top layer takes it: in the given steps, if there are any, or as values."""
        count, value = self._x_segment(item)
        factor = self._plan.x_factor
        if factor is None or top.form.precision == "int8":
            return count, value
        return count, lambda v: value(v) * broadcast(T.float32(factor))

    def _x_segment(self, item) -> tuple[int, Callable]:
        return self._plan.dim // LANES, lambda v: load(self._x.buffer, self._x.index(0, item, v))

    def _dot_segment(self) -> tuple[int, Callable]:
        def value(v):
            dots = load(self._dots, v * LANES)
            return dots if self._plan.units_at is None else dots * load(self._mlp, self._plan.units_at + v * LANES)

        return self._plan.grouping.num_groups, value

    def _x_steps(self, item):
        """What x is multiplied by before it is rounded to bytes; its factor goes to the others' side."""
        plan = self._plan
        if self._int8 is None:
            return None
        self._lookup.factors(item, self._int8.factors)
        if plan.x_factor is not None:
            T.buffer_store(self._int8.factors, T.float32(plan.x_factor), [0])
            return None
        largest, inverse = row_steps([self._x_segment(item)], 127)
        T.buffer_store(self._int8.factors, largest * T.float32(1 / 127), [0])
        return T.bind(broadcast(inverse))

    def _take_dots(self, item) -> None:
        plan, form = self._plan, self._plan.table_form
        steps = self._x_steps(item)
        count, value = self._x_segment(item)

        def write_unit(unit, vectors: list) -> None:
            store(self._row, unit * form.unit_words, form.pack(vectors, as_row=True), form.unit_words)

        pack_units(form.unit, count, value, steps, write_unit)

        def row(i):
            buffer, at = self._lookup.vector(item, i - 1)
            return lambda chunk: load(buffer, at + chunk * LANES)

        def first_row():
            return lambda chunk: load(self._row, chunk * LANES)

        def write(group, sums, i, j) -> None:
            store(self._dots, group * LANES, sums if self._int8 is None else self._int8.dots(sums, i, j))
            self._lookup.beside_group(item, group)

        if self._int8 is not None:
            self._int8.start(plan.row_words, row, first_row, form)
        dot_interaction(plan.grouping, plan.row_words, row, first_row, write, form)

    def _concatenate(self, tile, item, into: Tiles) -> None:
        """The words of x and of all rows, one after the other."""
        plan, form = self._plan, self._plan.table_form
        blocks = plan.row_words // LANES
        count, value = self._x_segment(item)

        def write_unit(unit, vectors: list) -> None:
            store(into.buffer, into.unit_index(tile, item, unit, form.unit_words), form.pack(vectors), form.unit_words)

        pack_units(form.unit, count, value, None, write_unit)
        with T.serial(plan.num_tables) as table:
            buffer, at = self._lookup.vector(item, table)
            for block in range(blocks):
                words = load(buffer, at + block * LANES)
                store(into.buffer, into.index(tile, item, (table + 1) * blocks + block), words)
