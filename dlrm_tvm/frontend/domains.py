"""How much of a function of one index is a table: from index 0 on, as far as its lookups lie inside their tables.

    row(index + 5), row(index // 4)    rises: ends where the table does       row(index % 7)     begins again at 7
    row(min(index, 9))                 stays as it is from 9 on               row(map[index])    ends where the map does

Told by a function's form where that tells it, else tried index by index.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np

from ..symbols.functions import INDEX_TYPES, Function

_FURTHEST = 1 << 40  # no table has so many rows
_FURTHEST_INT32 = 1 << 30
_MOST_ROWS = 1 << 33
_MOST_PARTS = 256  # Python calls go that deep
_MOST_TRIED = 1 << 28
_AT_ONCE = 1 << 20
_LEAST_TAIL = 1 << 16
_HASHES = {"Mod", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"}
_LIMITS = ("Max", "Min", "Clip", "Floor", "Cast")


class NoTableError(ValueError):
    """A function of an index that no table can hold."""


@dataclass(frozen=True)
class Domain:
    """Indices 0 .. rows - 1; those up to `last` are taken modulo rows."""

    rows: int
    last: int


@dataclass(frozen=True)
class _Steps:
    """f(index + period) = f(index) + rise for all indices from 0 to last - period, behind which a type overflows.

    low, high: f's values lie between them for the first `period` indices. rise is 0 or more.
    """

    period: int
    rise: int
    low: int
    high: int
    last: int

    def over(self, period: int) -> _Steps:
        """The same in periods of a multiple."""
        turns = period // self.period
        return _Steps(period, self.rise * turns, self.low, self.high + self.rise * (turns - 1), self.last)


def domain(function: Function) -> Domain:
    """Where all its lookups lie inside their tables. Raises NoTableError where that is no range from 0 on, or too long
    a one."""
    count = len(function.parts())
    if count > _MOST_PARTS:
        raise NoTableError(f"is made by {count} operations, {_MOST_PARTS} at most are read")
    gathers, repeats = _gathers(function), _steps(function)
    if not gathers and repeats is None:
        raise NoTableError("looks up no table, whose rows would tell which indices there are")
    bounding = [gather for gather in gathers if not gather.attributes] or gathers  # others give zeros outside
    ends = [end for end in map(_end, bounding) if end is not None]
    if not ends and repeats is not None and repeats.rise == 0:
        if repeats.last < repeats.period:
            raise NoTableError(f"overflows from the index {repeats.last + 1:,} on, before it repeats itself")
        return _checked(Domain(repeats.period, repeats.last), function)
    if not ends:
        ends = [_end_of_change(part.operands[1]) for part in gathers]
    return _checked(Domain(min(ends), min(ends) - 1), function)


def _gathers(function: Function) -> list[Function]:
    return [part for part in function.parts() if part.operator == "gather"]


def _checked(found: Domain, function: Function) -> Domain:
    if found.rows < 1:
        raise NoTableError("looks up no row of its table for the index 0")
    if found.rows > _MOST_ROWS:
        size = found.rows * function.width * 4 / 1e12
        raise NoTableError(f"tells {found.rows:,} indices apart: as a table that is {size:,.1f} TB")
    return found


def _end(gather: Function) -> int | None:
    """The first index that leads outside the table; None where none does."""
    table, at = gather.operands
    repeats = _steps(at)
    if repeats is not None and repeats.rise == 0:
        if -len(table) <= repeats.low and repeats.high < len(table):
            return None
        return _first_outside(at, len(table), repeats.period)
    if _rises(at):
        inside = _inside(at, len(table))
        return _first(lambda index: not inside(np.array([index]))[0], _furthest(at))
    inside = [end for end in map(_end, _gathers(at)) if end is not None]
    limit = min(inside) if inside else _limit_tried(at, len(table))
    outside = _first_outside(at, len(table), limit)
    return limit if outside is None else outside


def _limit_tried(at: Function, rows: int) -> int:
    """Of a function whose form tells nothing: one more than the last index to try, as far as distant ones tell. It may
    lead outside the table, or stay as it is from some index on; else as many as the table has rows are tried."""
    powers = 1 << np.arange(_furthest(at).bit_length() - 1, dtype=np.int64)
    distant = np.unique(np.concatenate([powers, powers + powers // 3, powers - 1]))
    outside = np.flatnonzero(~_inside(at, rows)(distant))
    if outside.size:
        return int(distant[outside[0]])
    values = at(distant)[:, 0]
    changes = np.flatnonzero(values != values[-1])
    last = int(distant[changes[-1] + 1]) if changes.size else 0
    if last <= 2 * rows + _LEAST_TAIL:
        changes = np.flatnonzero(at(np.arange(last + 1))[:, 0] != values[-1])
        return int(changes[-1]) + 2 if changes.size else 1
    if at.operators & _HASHES:
        raise NoTableError("hashes indices in a way that was not found to repeat itself: no table holds all of them")
    return rows


def _inside(at: Function, rows: int) -> Callable[[np.ndarray], np.ndarray]:
    """ONNX counts negative row numbers from the end."""

    def inside(indices: np.ndarray) -> np.ndarray:
        found = at(indices)[:, 0]
        return (found >= -rows) & (found < rows)

    return inside


def _first_outside(at: Function, rows: int, count: int) -> int | None:
    """Of the indices 0 .. count - 1."""
    if count > _MOST_TRIED:
        raise NoTableError(f"tells {count:,} indices apart")
    inside = _inside(at, rows)
    for begin in range(0, count, _AT_ONCE):
        outside = np.flatnonzero(~inside(np.arange(begin, min(begin + _AT_ONCE, count))))
        if outside.size:
            return begin + int(outside[0])
    return None


def _end_of_change(at: Function) -> int:
    """One more than the first index from which on a function that never falls stays as it is."""
    if not _rises(at):
        raise NoTableError("tells infinitely many indices apart")
    most = _furthest(at)
    last = at(np.array([most]))
    return 1 + _first(lambda index: bool((at(np.array([index])) == last).all()), 2 * most)


def _furthest(function: Function) -> int:
    """An index that the types of all parts can hold."""
    return _FURTHEST_INT32 if any(part.dtype == np.int32 for part in function.parts()) else _FURTHEST


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """The least index below `most` for which it holds, of a condition that holds for all greater ones."""
    if holds(0):
        return 0
    low, high = 0, 1
    while not holds(high):
        low, high = high, high * 2
        if high > most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _constant(function: Function) -> np.ndarray | None:
    """The only constant operand, beside one function."""
    constants = [each for each in function.operands if isinstance(each, np.ndarray)]
    return constants[0] if len(constants) == len(function.functions) == 1 and constants[0].size == 1 else None


def _remembered(tell: Callable[[Function], object]) -> Callable:
    """A function may be used many times in another one. It holds tables, and must not outlive its model."""
    known: WeakKeyDictionary[Function, object] = WeakKeyDictionary()

    def told(function: Function) -> object:
        if function not in known:
            known[function] = tell(function)
        return known[function]

    return told


@_remembered
def _rises(function: Function) -> bool:
    """Whether it never falls, as far as its form tells."""
    if function.operator == "index":
        return True
    operands = function.functions
    is_number = function.dtype.kind == "f" or function.dtype in INDEX_TYPES  # smaller ones overflow
    if function.width != 1 or not is_number or not operands or not all(map(_rises, operands)):
        return False
    if function.operator == "Add" or function.operator in _LIMITS:
        return True
    constant = _constant(function)
    if constant is None or (isinstance(function.operands[0], np.ndarray) and function.operator != "Mul"):
        return False
    return function.operator == "Sub" or (function.operator in ("Mul", "Div") and bool(constant.item() > 0))


@_remembered
def _steps(function: Function) -> _Steps | None:
    """None where its form tells none."""
    if function.operator == "index":
        return _Steps(1, 1, 0, 0, int(np.iinfo(function.dtype).max))
    steps = [_steps(each) for each in function.functions]
    if not steps or None in steps:
        return None
    period = math.lcm(*(each.period for each in steps))
    steps = [each.over(period) for each in steps]
    last = min(each.last for each in steps)
    if not any(each.rise for each in steps):
        return _Steps(period, 0, *_range(function, period), last)  # of what repeats itself, whatever is made of it
    if function.operator in ("Less", "GreaterOrEqual") and _constant(function) is function.operands[1]:
        # of numbers that are never negative, as exporters ask before they divide
        return _Steps(1, 0, 0, 1, last) if steps[0].low >= function.operands[1].item() else None
    if function.width != 1 or function.dtype not in INDEX_TYPES:
        return None
    if function.operator in ("Add", "Sub"):
        found = _sum(function, steps, last)
    else:
        found = steps[0] if function.operator == "Cast" else _multiple(function, steps[0])
    return None if found is None else _without_overflow(found, np.iinfo(function.dtype))


def _range(function: Function, period: int) -> tuple[int, int]:
    if period <= _AT_ONCE and function.width == 1 and function.dtype.kind in "iu" and not _gathers(function):
        values = function(np.arange(period))
        return int(values.min()), int(values.max())
    if function.operator == "Mod" and (constant := _constant(function)) is not None and constant.item() > 0:
        return (1 - int(constant.item()) if dict(function.attributes).get("fmod") else 0), int(constant.item()) - 1
    whole = function.dtype.kind in "iu"
    return (int(np.iinfo(function.dtype).min), int(np.iinfo(function.dtype).max)) if whole else (0, 0)


def _sum(function: Function, steps: list[_Steps], last: int) -> _Steps | None:
    """Of steps of one period, or of one and a constant; None where it falls."""
    operands, sign, total = iter(steps), 1, _Steps(steps[0].period, 0, 0, 0, last)
    for operand in function.operands:
        low = high = rise = 0
        if isinstance(operand, np.ndarray):
            low = high = int(operand.item())
        else:
            own = next(operands)
            low, high, rise = own.low, own.high, own.rise
        low, high = sorted((sign * low, sign * high))
        total = replace(total, rise=total.rise + sign * rise, low=total.low + low, high=total.high + high)
        sign = -1 if function.operator == "Sub" else 1
    return total if total.rise >= 0 else None


def _multiple(function: Function, steps: _Steps) -> _Steps | None:
    """Of steps times, or divided by, a constant above 0; a negative number's quotient goes another way."""
    found = _constant(function)
    constant = 0 if found is None else int(found.item())
    if constant <= 0:
        return None
    if function.operator.startswith("Bitwise"):
        return _bitwise(function.operator, steps, constant)
    if function.operator == "Mul":
        return replace(steps, rise=steps.rise * constant, low=steps.low * constant, high=steps.high * constant)
    if function.operator not in ("Div", "Mod") or steps.low < 0 or isinstance(function.operands[0], np.ndarray):
        return None
    steps = steps.over(steps.period * (constant // math.gcd(steps.rise, constant)))
    if function.operator == "Mod":
        return replace(steps, rise=0, low=0, high=constant - 1)
    return replace(steps, rise=steps.rise // constant, low=steps.low // constant, high=steps.high // constant)


def _bitwise(operator: str, steps: _Steps, constant: int) -> _Steps | None:
    """Of numbers from 0 on, whose lowest bits alone meet the constant's."""
    if steps.low < 0:
        return None
    size = 1 << constant.bit_length()
    steps = steps.over(steps.period * (size // math.gcd(steps.rise, size)))
    if operator == "BitwiseAnd":
        return replace(steps, rise=0, low=0, high=constant)
    return replace(steps, low=0, high=steps.high | (size - 1))


def _without_overflow(steps: _Steps, limits: np.iinfo) -> _Steps | None:
    """As far as values of this type go."""
    if steps.low < limits.min or steps.high > limits.max:
        return None
    if steps.rise == 0:
        return steps
    turns = (int(limits.max) - steps.high) // steps.rise
    return replace(steps, last=min(steps.last, steps.period * (turns + 1) - 1))
