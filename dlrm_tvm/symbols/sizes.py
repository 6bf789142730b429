"""How many elements an operator makes, told before they are made: a few bytes of a file may ask for terabytes."""

from __future__ import annotations

import math

import numpy as np

MOST_COPIED_ELEMENTS = 2**26  # of a table, which is used as it is stored
MOST_MADE_ELEMENTS = 2**25
_ELEMENTWISE = {
    *("Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less"),
    *("LessOrEqual", "Max", "Min", "Mod", "Mul", "Or", "Sub", "Where"),
}


def check_size(operator: str, inputs: list[np.ndarray | None], axis: int = 0) -> None:
    """inputs: values, or numbers of symbols in their place; axis: Gather's. Raises ValueError for more elements than
    a DLRM's graph has in one value, its tables aside."""
    made = _elements(operator, inputs, axis)
    if made > MOST_MADE_ELEMENTS:
        raise ValueError(f"makes {made:,} elements of {max(value.size for value in inputs if value is not None):,}")


def _elements(operator: str, inputs: list[np.ndarray | None], axis: int) -> int:
    """0 of an operator that makes no more than it is given. Python's integers: sizes in a file may be any."""
    given = [value for value in inputs if value is not None]
    if operator == "ConstantOfShape":
        return math.prod(map(int, given[0]))
    if operator == "Range":
        start, limit, delta = (value.item() for value in given)
        return math.ceil((limit - start) / delta)
    if operator == "Tile":
        return given[0].size * math.prod(map(int, given[1]))
    if operator == "Expand":
        return math.prod(np.broadcast_shapes(given[0].shape, tuple(map(int, given[1]))))
    if operator == "Gather" and given[0].ndim:
        return given[0].size // max(given[0].shape[axis], 1) * given[1].size
    if operator == "Concat":
        return sum(value.size for value in given)
    if operator in _ELEMENTWISE:
        return math.prod(np.broadcast_shapes(*(value.shape for value in given)))
    return 0
