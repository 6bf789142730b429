"""Formulas as numbers: every distinct scalar that a graph computes has one, and equal formulas have equal ones.

A tensor of the graph is an array of such numbers (`Symbols`). Moving data (Reshape, Gather, Transpose, ...) is then
plain NumPy on the numbers, and two graphs that compute the same are found by `==`:

    index[t][p]   function(f, index)[c]   sum{rows}[c]   mean{rows}[c]
    linear(weight, values)[j]   add(values, constants)[j]   times(values, constants)[j]   relu(values)[j]
    dot(u, v)   product{u, v}[j]   plus{u, v}[j]

One key stands for a whole vector (numbering.py). A function of an element is the element in the same place of the
function's own vector, so a layer of a thousand outputs costs one key per item. Sums and dots have a canonical order,
as their operands may come in any. Knows neither ONNX nor what a DLRM is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .functions import Function, Functions
from .numbering import Numbering

# Two numbers below it fit into one int64.
_MOST_NUMBERS = 2**31


@dataclass(frozen=True, eq=False)
class Symbols:
    """A tensor that depends on the graph's inputs. ids: int64, of the tensor's shape; real: floats, not ints."""

    ids: np.ndarray
    real: bool


class Expressions:
    """The formulas met in one run. `maker` is the object (an ONNX node) that stands for the step now running."""

    def __init__(self, functions: Functions | None = None) -> None:
        self.maker: object = None
        self.functions = functions or Functions()
        self.index_dtypes: dict[str, np.dtype] = {}  # of the inputs that are given as symbols
        self.bags_are_full = False  # none is ever empty
        self._numbering = Numbering()
        self._known_dots = (np.empty(0, np.int64), np.empty(0, np.int64))  # codes, ascending, and numbers
        self._arrays: dict[int, np.ndarray] = {}  # by id(); holding them keeps their ids unique

    # --- vectors and their keys

    def vector(self, key: tuple, width: int) -> np.ndarray:
        """The numbers [width] of the vector's elements; key: kind first, then its operands."""
        first = self._number(key, width)
        return np.arange(first, first + width)

    def scalar(self, *key: object) -> int:
        return self._number(key, 1)

    def key(self, number: int) -> tuple[tuple, int]:
        """(key of the vector, position in it) of a number."""
        vector = self._numbering.vector(number)
        position = int(number) - vector.first
        if vector.key[0] == "dots":
            code = int(np.frombuffer(vector.key[1], np.int64)[position])
            return ("dot", *divmod(code, _MOST_NUMBERS)), 0
        return vector.key, position

    def maker_of(self, number: int) -> object:
        return self._numbering.vector(number).maker

    def kind_of(self, number: int) -> str:
        return self._numbering.vector(number).key[0]

    def whereabouts(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each number: the first number of its vector, its position in it, and the vector's width."""
        return self._numbering.whereabouts(ids)

    def factors(self, dots: np.ndarray) -> np.ndarray:
        """The two vectors, as `rows` numbers them, of each of the numbers [n] of dots: [n, 2]."""
        firsts, positions, _ = self._numbering.whereabouts(dots)
        codes = np.empty(len(dots), np.int64)
        for first in np.unique(firsts).tolist():
            own = firsts == first
            codes[own] = np.frombuffer(self._numbering.vector(first).key[1], np.int64)[positions[own]]
        return np.stack(np.divmod(codes, _MOST_NUMBERS), axis=1)

    def array(self, identity: int) -> np.ndarray:
        return self._arrays[identity]

    # --- formulas

    def constants(self, values: np.ndarray) -> np.ndarray:
        distinct, places = np.unique(values, return_inverse=True)
        keys = [("constant", str(values.dtype), value) for value in distinct.tolist()]
        return self._scalars(keys)[places].reshape(values.shape)

    def apply(self, kind: str, ids: np.ndarray, *parameters: object) -> np.ndarray:
        """A function of one scalar ("relu", "sigmoid"), element by element."""
        unchanged = np.zeros(ids.shape, np.int8)
        return self._map_pairs(ids, unchanged, lambda first, _: (kind, first, *parameters))

    def add(self, ids: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """ids [..., N] plus a constant that broadcasts with them, float32."""
        return self._with_constants("add", *np.broadcast_arrays(ids, constant))

    def times(self, ids: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """ids [..., N] times a constant that broadcasts with them, float64. A mask leaves elements or makes them 0."""
        ids, factors = np.broadcast_arrays(ids, factors)
        if np.isin(factors, (0, 1)).all():
            return np.where(factors == 1, ids, self.scalar("constant", "float32", 0.0))
        return self._with_constants("times", ids, factors)

    def _with_constants(self, kind: str, ids: np.ndarray, constants: np.ndarray) -> np.ndarray:
        if self.whole(ids) is None and (self._numbering.whereabouts(ids)[2] == 1).all():
            return self._with_constants(kind, ids[..., None], constants[..., None])[..., 0]
        if self._are_columns(ids):
            return self._with_constants(kind, ids[..., 0], constants[..., 0])[..., None]
        width = ids.shape[-1]
        each = np.ascontiguousarray(constants).reshape(-1, width)
        keys = [(kind, row, own.tobytes()) for row, own in zip(self.rows(ids).ravel().tolist(), each)]
        return self._vectors(keys, width).reshape(ids.shape)

    def looked_up(self, function: Function, indices: np.ndarray) -> np.ndarray:
        """A function's values for numbers of indices [...] -> [..., width]."""
        keys = [("function", function, index) for index in indices.ravel().tolist()]
        return self._vectors(keys, function.width).reshape(*indices.shape, function.width)

    def divide(self, ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Sums of rows divided by the number of rows in them: means. ValueError for any other division."""
        ids, counts = np.broadcast_arrays(ids, counts)
        return self._map_pairs(ids, counts, self._mean_key)

    def linear(self, ids: np.ndarray, weight: np.ndarray, transposed: bool) -> np.ndarray:
        """ids [..., K] times weight ([N, K] if transposed, else [K, N]) -> [..., N]."""
        inputs, outputs = weight.shape[::-1] if transposed else weight.shape
        if ids.shape[-1] != inputs:
            raise ValueError(f"multiplies {ids.shape[-1]} values by a weight for {inputs}")
        identity = self._remember(weight)
        keys = [("linear", identity, transposed, row) for row in self.rows(ids).ravel().tolist()]
        return self._vectors(keys, outputs).reshape(*ids.shape[:-1], outputs)

    def pool(self, kind: str, ids: np.ndarray) -> np.ndarray:
        """The "sum" or "mean" over the last axis.

        The sum of one value is that value, its mean stays a mean. Of none both are 0, as in PyTorch.
        """
        if ids.shape[-1] == 0:
            return np.full(ids.shape[:-1], self.scalar("constant", "float32", 0.0))
        if kind == "sum" and ids.shape[-1] == 1:
            return ids[..., 0]
        flat = ids.reshape(-1, ids.shape[-1])
        if (products := self.operands("product", flat)) is not None:
            dots = self._dots(np.array([self._code(*pair) for pair in products])).reshape(ids.shape[:-1])
            return dots if kind == "sum" else self.times(dots, np.array(1 / ids.shape[-1]))
        if self._numbering.whole_rows(flat.T).all():
            return self.vector((kind, np.sort(flat[0]).tobytes()), len(flat)).reshape(ids.shape[:-1])
        return self._pool_elements(kind, flat).reshape(ids.shape[:-1])

    def bags(self, kind: str, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Pooled bags [number of bags, D] of rows [n, D]; bag i is rows[starts[i]:ends[i]]."""
        pooled = [self.pool(kind, rows[start:end].T) for start, end in zip(starts.tolist(), ends.tolist())]
        return np.stack(pooled)

    def dot(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """left [..., M, K], right [..., N, K] -> [..., M, N]: products of rows with rows, in either order.

        A factor that all values of a row have is one of the product.
        """
        if left.shape[-1] != right.shape[-1]:
            raise ValueError(f"multiplies rows of {left.shape[-1]} by rows of {right.shape[-1]} values")
        (left, of_left), (right, of_right) = self._without_factors(left), self._without_factors(right)
        factors = of_left[..., :, None] * of_right[..., None, :]
        if (factors != 1).any():
            return self.times(self.dot(left, right), factors)
        first, second = self.rows(left)[..., :, None], self.rows(right)[..., None, :]
        first, second = np.broadcast_arrays(first, second)
        if self._numbering.end >= _MOST_NUMBERS:
            raise OverflowError("has too many values to follow")
        codes = np.minimum(first, second) * _MOST_NUMBERS + np.maximum(first, second)
        return self._dots(codes.ravel()).reshape(codes.shape)

    def _without_factors(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows [..., K] without the one factor that all values of a row have, those factors [...] float64)"""
        firsts, positions, _ = self._numbering.whereabouts(ids)
        inside, factors = ids.copy(), np.ones(ids.shape)
        for first in np.unique(firsts).tolist():
            kind, *operands = self._numbering.vector(first).key
            if kind == "times":
                own = firsts == first
                inside[own] = self.elements(operands[0])[positions[own]]
                factors[own] = np.frombuffer(operands[1], np.float64)[positions[own]]
        one = (factors == factors[..., :1]).all(axis=-1)
        return np.where(one[..., None], inside, ids), np.where(one, factors[..., 0], 1)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """One number per vector along the last axis: its first element's if it is a whole vector of one key, else
        that of a key ("vector", ids), which `elements` takes apart."""
        whole = self.whole(ids)
        if whole is not None:
            return whole
        flat = np.ascontiguousarray(ids).reshape(-1, ids.shape[-1])
        numbers = np.where(self._numbering.whole_rows(flat), flat[:, 0], -1)
        for row in np.flatnonzero(numbers < 0).tolist():
            numbers[row] = self.scalar("vector", flat[row].tobytes())
        return numbers.reshape(ids.shape[:-1])

    def elementwise(self, kind: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The "product" or the sum ("plus") of vectors [..., N] element by element, in either order."""
        left, right = np.broadcast_arrays(left, right)
        if left.shape != right.shape or left.ndim < 2:
            raise ValueError(f"combines values of shapes {left.shape} and {right.shape} element by element")
        if self._are_columns(left):
            return self.elementwise(kind, left[..., 0], right[..., 0])[..., None]
        pairs = np.sort(np.stack([self.rows(left).ravel(), self.rows(right).ravel()], axis=1), axis=1)
        return self._vectors([(kind, *pair) for pair in pairs.tolist()], left.shape[-1]).reshape(left.shape)

    def _are_columns(self, ids: np.ndarray) -> bool:
        """Whether they are [.., N, 1], elements of vectors of N, as in W x + b of columns x."""
        return ids.ndim > 2 and ids.shape[-1] == 1 and (self._numbering.whereabouts(ids)[2] > 1).all()

    # --- taking formulas apart

    def elements(self, row: int) -> np.ndarray:
        """The elements of the vector that `rows` gave this number to."""
        _, width, key, _ = self._numbering.vector(row)
        return np.frombuffer(key[1], np.int64) if key[0] == "vector" else np.arange(row, row + width)

    def whole(self, ids: np.ndarray) -> np.ndarray | None:
        """The first number of each row of ids [..., N] if all rows are whole vectors, else None."""
        if ids.size == 0 or ids.ndim == 0:
            return None
        return ids[..., 0] if self._numbering.whole_rows(ids.reshape(-1, ids.shape[-1])).all() else None

    def operands(self, kind: str, rows: np.ndarray) -> list[tuple] | None:
        """The operands of each row of `rows` [n, N] if all rows are whole vectors of that kind, else None."""
        firsts = self.whole(rows)
        if firsts is None:
            return None
        keys = [self._numbering.vector(first).key for first in firsts.ravel().tolist()]
        return [key[1:] for key in keys] if all(key[0] == kind for key in keys) else None

    def kinds(self, ids: np.ndarray) -> set[str]:
        firsts = np.unique(self._numbering.whereabouts(ids)[0])
        return {self._numbering.vector(first).key[0] for first in firsts.tolist()}

    def _mean_key(self, first: int, count: float) -> tuple:
        key, _ = self.key(first)
        if key[0] == "sum":
            summands = key[1]
        elif key[0] == "function":
            summands = np.int64(first).tobytes()
        elif key == ("constant", "float32", 0.0) and count > 0:
            return key
        else:
            raise ValueError("divides something other than a sum of looked-up rows")
        if len(summands) != 8 * count:
            raise ValueError(f"divides a sum of {len(summands) // 8} rows by {count:g}")
        return ("mean", summands)

    def _pool_elements(self, kind: str, ids: np.ndarray) -> np.ndarray:
        """Each row of ids [n, m] pooled: elements of one position, in vectors of one width."""
        firsts, positions, widths = self._numbering.whereabouts(ids)
        if (positions != positions[:, :1]).any() or (widths != widths[:, :1]).any():
            raise ValueError("adds up elements from different places of their vectors")
        keys = [(kind, bag.tobytes()) for bag in np.sort(firsts, axis=1)]
        made = [self._number(key, int(width)) for key, width in zip(keys, widths[:, 0])]
        return np.array(made, np.int64) + positions[:, 0]

    def _map_pairs(self, ids: np.ndarray, others: np.ndarray, key_of: Callable[[int, float], tuple]) -> np.ndarray:
        """For each element the one at its position in the vector of key_of(first number of its vector, its other)."""
        if ids.size == 0:
            return ids
        firsts, positions, widths = self._numbering.whereabouts(ids)
        different, codes = np.unique(others, return_inverse=True)
        pairs = firsts.ravel() * len(different) + codes.ravel()
        _, at, which = np.unique(pairs, return_index=True, return_inverse=True)
        chosen = zip(firsts.ravel()[at].tolist(), others.ravel()[at].tolist(), widths.ravel()[at].tolist())
        made = [self._number(key_of(first, other), width) for first, other, width in chosen]
        return np.array(made, np.int64)[which.ravel()].reshape(ids.shape) + positions

    def _code(self, left: int, right: int) -> int:
        return min(left, right) * _MOST_NUMBERS + max(left, right)

    def _dots(self, codes: np.ndarray) -> np.ndarray:
        """Numbers of products; a code holds both factors' numbers. All new products of a call share one vector."""
        known, numbers = self._known_dots
        ordered = np.sort(codes)  # np.unique's hashing takes ten times as long
        distinct = ordered[np.diff(ordered, prepend=-1) > 0]
        new = distinct[~np.isin(distinct, known, assume_unique=True)]
        if len(new):
            made = self.vector(("dots", new.tobytes()), len(new))
            known, numbers = np.concatenate([known, new]), np.concatenate([numbers, made])
            order = np.argsort(known)
            self._known_dots = known[order], numbers[order]
        known, numbers = self._known_dots
        return numbers[np.searchsorted(known, codes)]

    def _vectors(self, keys: list[tuple], width: int) -> np.ndarray:
        """The numbers of vectors of one width, [len(keys), width]."""
        return self._numbering.firsts(keys, width, self.maker)[:, None] + np.arange(width)

    def _scalars(self, keys: list[tuple]) -> np.ndarray:
        return self._numbering.firsts(keys, 1, self.maker)

    def _number(self, key: tuple, width: int) -> int:
        return self._numbering.first(key, width, self.maker)

    def _remember(self, array: np.ndarray) -> int:
        self._arrays[id(array)] = array
        return id(array)
