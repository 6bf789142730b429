"""Symbols that depend on one index alone, or on one bag of them: kept as functions of an index (functions.py).

    function(f, index)[k]                    element k of f(index), a row of a table as it is stored or anything else
    sum or mean of such over a bag           of an operation that pooling commutes with, the pooled operation:
                                             W (r_1 + r_2) = W r_1 + W r_2

An operation on anything else is none of this module's: it answers None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from .expressions import Expressions, Symbols
from .functions import Function
from .operators import ON_CONSTANTS, is_float
from .sizes import check_size

Value = np.ndarray | Symbols

KINDS = {"index", "function", "sum", "mean", "constant"}
# Of an operation on pooled values: f(a + b) = f(a) + f(b), for all operands that are no constants together.
_ADDITIVE = ("Add", "Sub", "Neg", "Cast")


class BagsDifferError(ValueError):
    """An operation on pooled rows that is no pooling of an operation on each row."""


class OneIndex(NamedTuple):
    """A row of symbols: function of each of `indices`, numbers of symbols, pooled; pool: None for one index."""

    pool: str | None
    function: Function
    indices: tuple[int, ...]


class Lookups:
    def __init__(self, expressions: Expressions) -> None:
        self.expressions = expressions
        self.functions = expressions.functions
        self._known: dict[int, OneIndex | np.ndarray | None] = {}  # by a vector's first number

    def are_all(self, *values: Value | None) -> bool:
        """Whether all symbols among the values depend on indices alone."""
        kinds = [self.expressions.kinds(value.ids) for value in values if isinstance(value, Symbols)]
        return bool(kinds) and all(each <= KINDS for each in kinds)

    def are_of(self, value: Value, kinds: set[str]) -> bool:
        """Whether all elements are computed values of these kinds of formulas."""
        if not isinstance(value, Symbols) or not value.real or not value.ids.size:
            return False
        return self.expressions.kinds(value.ids) <= kinds

    def apply(self, operator: str, operands: Sequence[Value], **attributes: object) -> Symbols | None:
        """An elementwise operator, as functions.Functions.apply has it; None where it is not on one index alone.

        Raises BagsDifferError.
        """
        arrays = [value.ids if isinstance(value, Symbols) else np.asarray(value) for value in operands]
        symbolic = [isinstance(value, Symbols) for value in operands]
        check_size(operator, arrays, {})
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        arrays = [np.broadcast_to(array, shape) for array in arrays]
        if 0 in shape:  # of no index
            to = attributes.get("to")
            real = any(value.real for value in operands if isinstance(value, Symbols))
            real = real if to is None else is_float(onnx.helper.tensor_dtype_to_np_dtype(to))
            return Symbols(np.empty(shape, np.int64), real)
        for width in dict.fromkeys((shape[-1] if shape else 1, 1)):
            rows = [array.reshape(-1, width) for array in arrays]
            made = self._rows_of(operator, rows, symbolic, attributes)
            if made is not None:
                ids, real = made
                return Symbols(ids.reshape(shape), real)
        return None

    def linear(self, ids: np.ndarray, weight: np.ndarray, transposed: bool, name: str) -> np.ndarray | None:
        """ids [.., K] times weight ([N, K] if transposed, else [K, N]) -> [.., N]"""
        inputs, outputs = weight.shape[::-1] if transposed else weight.shape
        if ids.shape[-1] != inputs:
            raise ValueError(f"multiplies {ids.shape[-1]} values by a weight for {inputs}")
        made = []
        for row in ids.reshape(-1, ids.shape[-1]):
            found = self.of_row(row)
            if found is None:
                return None
            if isinstance(found, np.ndarray):
                made.append(self.expressions.constants((found @ (weight.T if transposed else weight)).astype("f4")))
            else:
                function = self.functions.linear(found.function, weight, transposed, name)
                made.append(self.numbers(found._replace(function=function)))
        return np.array(made, np.int64).reshape(*ids.shape[:-1], outputs)

    def gather(self, table: np.ndarray, indices: np.ndarray, name: str) -> np.ndarray | None:
        """Rows of a table [R, D] -> [.., D], or elements of one [R] -> [..]"""
        made = self._of_each(indices, lambda index: self.functions.gather(table, index, name))
        return None if made is None else made.reshape(*indices.shape, *table.shape[1:])

    def one_hot(self, indices: np.ndarray, depth: int, dtype: np.dtype) -> np.ndarray | None:
        """-> [.., depth]"""
        check_size("OneHot", [indices, np.array(depth)], {})
        made = self._of_each(indices, lambda index: self.functions.one_hot(index, depth, dtype))
        return None if made is None else made.reshape(*indices.shape, depth)

    def _of_each(self, indices: np.ndarray, make: Callable[[Function], Function]) -> np.ndarray | None:
        made = []
        for number in indices.ravel().tolist():
            is_index = self.expressions.kind_of(number) == "index"
            found = self._index(number) if is_index else self.of_row(np.array([number]))
            if not isinstance(found, OneIndex) or found.pool is not None:
                return None
            made.append(self.numbers(found._replace(function=make(found.function))))
        return np.array(made, np.int64)

    def matmul(self, left: np.ndarray, right: np.ndarray) -> np.ndarray | None:
        """Matrices [.., M, K] times [.., K, N], each pair of one index, as in a tensor train -> [.., M, N]"""
        sizes, made = (*left.shape[-2:], right.shape[-1]), []
        if left.shape[:-2] != right.shape[:-2] or left.shape[-1] != right.shape[-2]:
            return None
        for pair in zip(left.reshape(-1, sizes[0] * sizes[1]), right.reshape(-1, sizes[1] * sizes[2])):
            found = [self.of_row(each) for each in pair]
            if not all(isinstance(each, OneIndex) and each.pool is None for each in found) or _shared(found) is None:
                return None
            made.append(
                self.numbers(found[0]._replace(function=self.functions.matmul(*(e.function for e in found), sizes)))
            )
        return np.array(made, np.int64).reshape(*left.shape[:-1], sizes[2])

    def _index(self, number: int) -> OneIndex:
        (_, name, *_), _ = self.expressions.key(number)
        dtype = self.expressions.index_dtypes.get(name, np.dtype(np.int64))
        return OneIndex(None, self.functions.index(dtype), (number,))

    def dtype(self, value: Symbols) -> np.dtype | None:
        """Of functions' values; None for others."""
        firsts = np.unique(self.expressions.whereabouts(value.ids)[0])
        found = {self._dtype(first) for first in firsts.tolist()} - {None}
        return found.pop() if len(found) == 1 else None

    def _dtype(self, number: int) -> np.dtype | None:
        found = self._vector(number)
        return found.function.dtype if isinstance(found, OneIndex) else None

    def of_row(self, ids: np.ndarray) -> OneIndex | np.ndarray | None:
        """What a row of symbols [w] is: values where all are constants; None where it is of several indices or none."""
        firsts, positions, widths = self.expressions.whereabouts(ids)
        if len(ids) == widths[0] and (ids == firsts[0] + np.arange(len(ids))).all():
            return (
                self._vector(int(firsts[0])) if len(ids) == 1 or self.expressions.kind_of(ids[0]) != "index" else None
            )
        parts: dict[int, OneIndex | np.ndarray | None] = {}
        begins, places, at = {}, [], 0
        for number, first, position, width in zip(ids.tolist(), firsts.tolist(), positions.tolist(), widths.tolist()):
            is_index = self.expressions.kind_of(first) == "index"  # each element of such a vector is another index
            key = number if is_index else first
            if key not in parts:
                parts[key] = self._vector(key)
                begins[key] = at
                at += 1 if is_index or isinstance(parts[key], np.ndarray) else width
            places.append(begins[key] + (0 if is_index else position))
        found = list(parts.values())
        if any(part is None for part in found):
            return None
        looked_up = [part for part in found if isinstance(part, OneIndex)]
        if not looked_up:
            return np.concatenate(found)[places]
        shared = _shared(looked_up)
        if shared is None:
            return None
        functions = [part.function if isinstance(part, OneIndex) else part for part in found]
        constants = [part for part in found if isinstance(part, np.ndarray)]
        if shared.pool is not None and any(part.any() for part in constants):
            return None
        return shared._replace(function=self.functions.pick(functions, places))

    def _vector(self, first: int) -> OneIndex | np.ndarray | None:
        if first not in self._known:
            self._known[first] = self._taken_apart(first)
        return self._known[first]

    def _taken_apart(self, first: int) -> OneIndex | np.ndarray | None:
        (kind, *operands), _ = self.expressions.key(first)
        if kind == "index":
            return self._index(first)
        if kind == "constant":
            return np.array([operands[1]], operands[0])
        if kind == "function":
            return OneIndex(None, operands[0], (operands[1],))
        if kind in ("sum", "mean"):
            return self._pooled(kind, np.frombuffer(operands[0], np.int64).tolist())
        return None

    def _pooled(self, kind: str, summands: list[int]) -> OneIndex | None:
        found = [self._vector(first) for first in summands]
        if any(not isinstance(each, OneIndex) or each.pool is not None for each in found):
            return None
        if len({each.function for each in found}) > 1:
            return None
        indices = tuple(sorted(each.indices[0] for each in found))
        return OneIndex(kind, found[0].function, indices)

    # --- operations

    def _rows_of(
        self, operator: str, rows: list[np.ndarray], symbolic: list[bool], attributes: dict
    ) -> tuple[np.ndarray, bool] | None:
        made, real = [], None
        for operands in zip(*rows):
            found = [self._operand(*each) for each in zip(operands, symbolic)]
            if any(each is None for each in found):
                return None
            result = self.operation(operator, found, attributes)
            if result is None:
                return None
            if isinstance(result, OneIndex):
                made.append(np.broadcast_to(self.numbers(result), rows[0].shape[1:]))
                real = is_float(result.function.dtype)
            else:
                made.append(self.expressions.constants(np.broadcast_to(result, rows[0].shape[1:])))
                real = is_float(result.dtype) if real is None else real
        return np.stack(made), bool(real)

    def _operand(self, row: np.ndarray, is_symbolic: bool) -> OneIndex | np.ndarray | None:
        """One value for all elements where they are the same."""
        row = row[:1] if len(row) > 1 and (row == row[0]).all() else row
        return self.of_row(row) if is_symbolic else np.array(row)

    def operation(
        self, operator: str, operands: list[OneIndex | np.ndarray], attributes: dict
    ) -> OneIndex | np.ndarray | None:
        looked_up = [each for each in operands if isinstance(each, OneIndex)]
        functions = [each.function if isinstance(each, OneIndex) else each for each in operands]
        if not looked_up:
            return ON_CONSTANTS[operator](*functions, **attributes)
        shared = _shared(looked_up)
        if shared is None:
            return None
        result = shared._replace(function=self.functions.apply(operator, functions, attributes))
        shifts = result.pool == "mean" and self.expressions.bags_are_full and operator in ("Add", "Sub")
        if result.pool is not None and not shifts and not _commutes(operator, operands, result.function.dtype):
            if len(result.indices) == 1:  # the mean of one row
                return result._replace(pool=None)
            raise BagsDifferError(f"makes of pooled rows ({result.function.form})")
        return result

    def numbers(self, found: OneIndex) -> np.ndarray:
        """The symbols [width] of a function's values."""
        width = found.function.width
        vectors = [self.expressions.vector(("function", found.function, index), width) for index in found.indices]
        if found.pool is None:
            return vectors[0]
        return self.expressions.pool(found.pool, np.stack(vectors, axis=1))


def _shared(parts: list[OneIndex]) -> OneIndex | None:
    """One of them if all are of the same indices, pooled alike; None if not. The mean of one row is that row."""
    first, alike = parts[0], len({each.pool for each in parts}) == 1
    if len({each.indices for each in parts}) > 1 or not (alike or len(first.indices) == 1):
        return None
    return first if alike else first._replace(pool=None)


def _commutes(operator: str, operands: list[OneIndex | np.ndarray], result: np.dtype) -> bool:
    """Of a bag of none both sides must be zeros: no constant may be added. result: its type (sums of whole numbers
    would be cut off)."""
    pooled = [place for place, each in enumerate(operands) if isinstance(each, OneIndex)]
    if len(pooled) == len(operands):
        return operator in _ADDITIVE and is_float(result)
    return len(operands) == 2 and (operator == "Mul" or (operator == "Div" and pooled == [0]))
