"""The interaction that joins x and an item's vectors, one after the other: a kind of interaction.py's.

input of the first top layer = the words of x, then the words of the item's vectors
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from tvm.tirx.script.builder import ir as T

from ..model.dlrm import Dlrm
from ..model.precision import Numerics
from .activations import Activations
from .dense import PackedDense
from .isa import Family
from .packing import Packer
from .vectors import LANES, load, store
from .words import Form, row_words, table_form


@dataclass(frozen=True)
class ConcatPlan:
    layers: ClassVar[tuple[PackedDense, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()
    takes_sums: ClassVar[bool] = False

    @staticmethod
    def columns(model: Dlrm, numerics: Numerics, forms: list[Form], tiles: bool = False) -> list[np.ndarray]:
        """A stored row's columns for each vector: rows are copied as they are, or split to parts."""
        dim, precision = model.dim, forms[-1].precision
        row_columns = row_words(dim, precision) * table_form(precision).values
        columns = np.full((model.num_vectors, row_columns), -1, np.int64)
        columns[:, :dim] = np.arange(model.top_inputs).reshape(-1, dim)
        return [columns.reshape(-1)]

    @staticmethod
    def rows(model: Dlrm, numerics: Numerics) -> list[np.ndarray | None]:
        return []

    @classmethod
    def pack(
        cls, model: Dlrm, numerics: Numerics, packer: Packer, layers: tuple[PackedDense, ...], tiles: bool = False
    ) -> ConcatPlan:
        return cls()

    @staticmethod
    def copies(family: Family) -> bool:
        return True

    def emitter(self, plan, mlp, lookup, top: Activations) -> ConcatEmitter:
        return ConcatEmitter(plan, lookup, top)


class ConcatEmitter:
    """The last bottom layer writes x where it belongs; `run` copies the other vectors behind it."""

    def __init__(self, plan, lookup, top: Activations) -> None:
        self._plan, self._lookup, self._top = plan, lookup, top

    def x_writer(self, tile) -> Callable:
        return self._top.writer(tile)

    def configure(self) -> None:
        """Nothing: no tile registers are used."""

    def run(self, tile) -> None:
        plan, top, into = self._plan, self._top, self._top.tiles
        blocks = plan.row_words // LANES
        with T.serial(plan.mr) as item, T.serial(plan.num_tables) as table:
            buffer, at = self._lookup.vector(item, table)
            self._lookup.beside_copy(item, table)
            words = lambda block: load(buffer, at + block * LANES)  # noqa: E731
            if top.form.parts > 1:
                top.write_vector(tile, item, table + 1, blocks, words)
            else:
                for block in range(blocks):
                    store(into.buffer, into.index(tile, item, (table + 1) * blocks + block), words(block))

    def finish(self, tiles, layer: Callable, lap: Callable) -> None:
        """Nothing: there are no layers."""
