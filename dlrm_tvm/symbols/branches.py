"""Branches that a graph takes by the value of an index: padding_idx of EmbeddingBag, as torch.export writes it.

    for each index of a bag:   if index != padding_idx: its row counts

Which branch an index takes is a function of it alone, the same for most indices and another for few. A run shows what
becomes of the usual ones; runs in which some indices are taken to be unusual must show that their rows are left out of
sums. Then the table is the one with zeros in their place.
"""

from __future__ import annotations

import copy

import numpy as np

from .expressions import Symbols
from .functions import Function
from .graph import OnnxGraph
from .lookups import Lookups, OneIndex

Column = tuple[str, int]

_MOST_UNUSUAL = 64
_AT_ONCE = 1 << 20


class Branches:
    """Of all runs of a graph. of_column: for each index column that decides a branch, the unusual indices -> the
    function that tells them, and what it gives for usual ones."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._most_rows = graph.most_rows
        self._known: dict[Function, tuple[bool, tuple[int, ...]]] = {}
        self.of_column: dict[Column, dict[tuple[int, ...], tuple[Function, bool]]] = {}
        self._are_unusual = False

    def in_run(self, are_unusual: bool) -> Branches:
        """The same of one run; are_unusual: some of its indices."""
        one = copy.copy(self)
        one._are_unusual = are_unusual
        return one

    def are_kept(self, column: Column, count: int) -> np.ndarray:
        """Which of a column's indices [count] are usual ones in this run."""
        unusual = self._are_unusual and column in self.of_column
        return ~_is_unusual(np.arange(count)) if unusual else np.ones(count, bool)

    def taken(self, lookups: Lookups, condition: object) -> bool | None:
        """What an If goes by; None for a condition that is no function of one index. Raises ValueError for one that no
        padding_idx decides."""
        if not isinstance(condition, Symbols):
            return None
        found = lookups.of_row(condition.ids.reshape(-1)) if condition.ids.size == 1 else None
        if not isinstance(found, OneIndex) or found.pool is not None or found.function.dtype != np.bool_:
            return None
        usual, unusual = self._usual(found.function)
        if not unusual:
            return usual
        (_, *column), position = lookups.expressions.key(found.indices[0])
        self.of_column.setdefault(tuple(column), {}).setdefault(unusual, (found.function, usual))
        return usual != (self._are_unusual and _is_unusual(position))

    def _usual(self, function: Function) -> tuple[bool, tuple[int, ...]]:
        """(what it gives for most indices of the largest table, the others)."""
        if function not in self._known:
            usual, unusual = None, []
            for begin in range(0, self._most_rows, _AT_ONCE):
                indices = np.arange(begin, min(begin + _AT_ONCE, self._most_rows))
                values = function(indices)[:, 0]
                usual = bool(values.mean() > 0.5) if usual is None else usual
                unusual += indices[values != usual].tolist()
                if len(unusual) > _MOST_UNUSUAL:
                    raise ValueError("chooses by the value of an index, and not only for few; padding_idx is one index")
            self._known[function] = bool(usual), tuple(unusual)
        return self._known[function]


def _is_unusual(position: np.ndarray | int) -> np.ndarray | bool:
    """Which of a column's indices are taken to be unusual, in runs with such ones."""
    return position % 3 == 1
