"""Numbers for formulas: every distinct scalar that a graph computes gets one, equal formulas get equal ones.

A tensor of a graph under examination is an array of such numbers (`Symbols`). Moving data about (Reshape, Gather,
Transpose, ...) then is plain NumPy on the numbers, and whether two graphs compute the same is `==`:

    index[t][p]   row(table, index)[c]   sum{..}   linear(weight, row)[j]   add(a, constant)   relu(a)   dot(u, v)

Sums and dots are kept in a canonical order, since a DLRM does not care which factor is named first. Knows neither
ONNX nor what a DLRM is.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Symbols:
    """A tensor whose values depend on the graph's inputs: ids int64 of the tensor's shape; real: floats, not ints."""

    ids: np.ndarray
    real: bool


class Expressions:
    """The formulas met in one run. `maker` is whatever object stands for the step now running (an ONNX node)."""

    def __init__(self) -> None:
        self.maker: object = None
        self._first: dict[tuple, int] = {}
        self._starts: list[int] = []  # ascending, since numbers are given out in order
        self._starts_array = np.empty(0, np.int64)
        self._keys: list[tuple] = []
        self._makers: list[object] = []
        self._next = 0
        self._arrays: dict[int, np.ndarray] = {}  # by id(); holding them keeps their ids unique
        self._names: dict[int, str] = {}

    # --- what there is

    def vector(self, key: tuple, width: int) -> np.ndarray:
        """The numbers [width] of the elements of the vector that `key` describes: kind first, then its operands."""
        first = self._number(key, width)
        return np.arange(first, first + width)

    def scalar(self, *key: object) -> int:
        return self._number(key, 1)

    def key(self, number: int) -> tuple[tuple, int]:
        """(key of the vector, position in it) of a number."""
        place = self._place(number)
        return self._keys[place], int(number) - self._starts[place]

    def maker_of(self, number: int) -> object:
        return self._makers[self._place(number)]

    def maker_of_key(self, key: tuple) -> object:
        return self.maker_of(self._first[key])

    def keys_of_kind(self, kind: str) -> list[tuple]:
        return [key for key in self._keys if key[0] == kind]

    def array(self, identity: int) -> np.ndarray:
        return self._arrays[identity]

    def array_name(self, identity: int) -> str:
        return self._names[identity]

    # --- formulas

    def constants(self, values: np.ndarray) -> np.ndarray:
        return _each(values, lambda value: self.scalar("constant", str(values.dtype), value))

    def apply(self, kind: str, ids: np.ndarray) -> np.ndarray:
        """A function of one scalar ("relu", "sigmoid"), element by element."""
        return _each(ids, lambda number: self.scalar(kind, number))

    def add(self, ids: np.ndarray, constant: np.ndarray) -> np.ndarray:
        ids, constant = np.broadcast_arrays(ids, constant)
        sums = [self.scalar("add", *pair) for pair in zip(ids.ravel().tolist(), constant.ravel().tolist())]
        return np.array(sums, np.int64).reshape(ids.shape)

    def lookup(self, table: np.ndarray, indices: np.ndarray, name: str) -> np.ndarray:
        """Rows of table [R, D] for indices [...] -> [..., D]."""
        identity = self._remember(table, name)
        rows = [self.vector(("row", identity, index), table.shape[1]) for index in indices.ravel().tolist()]
        return np.array(rows, np.int64).reshape(*indices.shape, table.shape[1])

    def linear(self, ids: np.ndarray, weight: np.ndarray, transposed: bool) -> np.ndarray:
        """ids [..., K] times weight ([N, K] if transposed, else [K, N]) -> [..., N]."""
        inputs, outputs = weight.shape[::-1] if transposed else weight.shape
        if ids.shape[-1] != inputs:
            raise ValueError(f"multiplies {ids.shape[-1]} values by a weight for {inputs}")
        identity = self._remember(weight, "")
        keys = [("linear", identity, transposed, row.tobytes()) for row in ids.reshape(-1, inputs)]
        return np.array([self.vector(key, outputs) for key in keys], np.int64).reshape(*ids.shape[:-1], outputs)

    def total(self, ids: np.ndarray) -> np.ndarray:
        """Sums over the last axis; the sum of one value is that value."""
        if ids.shape[-1] == 1:
            return ids[..., 0]
        rows = np.sort(ids, axis=-1).reshape(math.prod(ids.shape[:-1]), ids.shape[-1])  # -1 fails on empty bags
        return np.array([self.scalar("sum", row.tobytes()) for row in rows], np.int64).reshape(ids.shape[:-1])

    def dot(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """left [..., M, K], right [..., N, K] -> [..., M, N]: products of rows with rows, in either order."""
        if left.shape[-1] != right.shape[-1]:
            raise ValueError(f"multiplies rows of {left.shape[-1]} by rows of {right.shape[-1]} values")
        first, second = self.rows(left)[..., :, None], self.rows(right)[..., None, :]
        first, second = np.broadcast_arrays(first, second)
        low, high = np.minimum(first, second), np.maximum(first, second)
        pairs = zip(low.ravel().tolist(), high.ravel().tolist())
        return np.array([self.scalar("dot", *pair) for pair in pairs], np.int64).reshape(low.shape)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """One number for each vector along the last axis."""
        flat = np.ascontiguousarray(ids).reshape(-1, ids.shape[-1])
        return np.array([self.scalar("vector", row.tobytes()) for row in flat], np.int64).reshape(ids.shape[:-1])

    # --- taking formulas apart

    def operands(self, kind: str, ids: np.ndarray) -> list[tuple] | None:
        """The operands of each of `ids`, when all of them are of that kind; None otherwise."""
        places = np.searchsorted(self._sorted_starts(), ids.ravel(), side="right") - 1
        keys = [self._keys[place] for place in places.tolist()]
        return [key[1:] for key in keys] if all(key[0] == kind for key in keys) else None

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Where in its vector each of `ids` stands."""
        starts = self._sorted_starts()
        return ids - starts[np.searchsorted(starts, ids, side="right") - 1]

    def _number(self, key: tuple, width: int) -> int:
        first = self._first.get(key)
        if first is None:
            first = self._first[key] = self._next
            self._starts.append(first)
            self._keys.append(key)
            self._makers.append(self.maker)
            self._next += width
        return first

    def _place(self, number: int) -> int:
        return bisect_right(self._starts, number) - 1

    def _sorted_starts(self) -> np.ndarray:
        if len(self._starts_array) != len(self._starts):
            self._starts_array = np.array(self._starts, np.int64)
        return self._starts_array

    def _remember(self, array: np.ndarray, name: str) -> int:
        self._arrays[id(array)] = array
        self._names.setdefault(id(array), name)
        return id(array)


def _each(values: np.ndarray, number_of: Callable[[object], int]) -> np.ndarray:
    distinct, places = np.unique(values, return_inverse=True)
    numbers = np.array([number_of(value) for value in distinct.tolist()], np.int64)
    return numbers[places].reshape(values.shape)
