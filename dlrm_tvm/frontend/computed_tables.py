"""Functions of one index as tables: parts of a stored one where they are no more than that, else computed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np

from ..model.computed_rows import ComputedRows
from ..model.dlrm import Table
from ..symbols.functions import INDEX_TYPES, Function, Functions
from .domains import NoTableError, domain


def computed_table(name: str, pooling: str, function: Function) -> Table:
    """Raises NoTableError where no table holds the function."""
    found = domain(function)
    if function.dtype != np.float32:
        raise NoTableError(f"gives values of type {function.dtype}, float32 is wanted")
    rows, weights = _weighted(function)
    shift = _shift(rows)
    if shift is not None and (weights is None or not shift):
        stored = rows.operands[0]
        whole = (shift, found.rows) == (0, len(stored))
        name = rows.name if weights is not None else name
        return Table(name, stored if whole else stored[shift : shift + found.rows], pooling, weights)
    wraps = found.last if found.last >= found.rows else 0
    about = {"origin": function.form, "sources": function.sources}
    return Table(name, ComputedRows(function, found.rows, function.width, **about), pooling, wraps=wraps)


def filled_up(functions: Functions, function: Function, dim: int) -> Function:
    """Its values with zeros behind them, `dim` in all: as a table of a joined model, whose vectors have one width."""
    if function.width == dim:
        return function
    return functions.pick([function, np.zeros(dim - function.width, function.dtype)], range(dim))


def without_rows(functions: Functions, function: Function, kept: Function, value: bool) -> Function:
    """Its values, with zeros where `kept` does not give this value."""
    zeros = np.zeros(function.width, function.dtype)
    return functions.apply("Where", [kept, function, zeros] if value else [kept, zeros, function], {})


def _weighted(function: Function) -> tuple[Function, np.ndarray | None]:
    """(rows, a finite float32 for each) where the function is their product; else (the function, None)."""
    for rows, factor in permutations(function.operands) if function.operator == "Mul" else ():
        if not isinstance(rows, Function) or rows.operator != "gather" or rows.operands[0].ndim != 2:
            continue
        count, weights = len(rows.operands[0]), None
        if isinstance(factor, np.ndarray) and factor.size == 1:
            weights = np.broadcast_to(factor.reshape(()), (count,))
        elif isinstance(factor, Function) and factor.operator == "gather" and factor.operands[1] is rows.operands[1]:
            weights = factor.operands[0]
        if weights is not None and weights.shape == (count,) and np.isfinite(weights).all():
            return rows, weights
    return function, None


def _shift(function: Function) -> int | None:
    """s of a function that is row index + s of a float32 table; None for any other."""
    if function.operator != "gather" or function.dtype != np.float32 or function.operands[0].ndim != 2:
        return None
    shift, at = 0, function.operands[1]
    while at.operator in ("Add", "Cast"):
        constants = [each for each in at.operands if isinstance(each, np.ndarray)]
        if at.dtype not in INDEX_TYPES or len(constants) != (at.operator == "Add"):
            return None
        shift += sum(int(each.item()) for each in constants)
        at = at.functions[0]
    return shift if at.operator == "index" and shift >= 0 else None


def without_overlap(tables: list[Table]) -> list[Table]:
    """Tables that are parts of one joint table, from their offsets on, end where the next one begins."""
    return [_before(table, [one.rows for one in tables]) for table in tables]


def _before(table: Table, others: Sequence[np.ndarray | ComputedRows]) -> Table:
    """The table up to the next of the others that goes on to its own end."""
    starts = [start for other in others if (start := _start_in(table.rows, other))]
    if not starts:
        return table
    end, weights = min(starts), table.row_weights
    return replace(table, rows=table.rows[:end], row_weights=None if weights is None else weights[:end])


def _start_in(rows: np.ndarray | ComputedRows, other: np.ndarray | ComputedRows) -> int | None:
    """The row that the other table begins with, if it is the rest of this one; None if it is not."""
    if isinstance(rows, ComputedRows) or isinstance(other, ComputedRows) or rows.strides != other.strides:
        return None
    start = len(rows) - len(other)
    same = other.ctypes.data - rows.ctypes.data == start * rows.strides[0] and rows.shape[1] == other.shape[1]
    return start if same and start > 0 else None
