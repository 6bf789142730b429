"""Numbers for formulas: every distinct scalar that a graph computes gets one, equal formulas get equal ones.

A tensor of a graph under examination is an array of such numbers (`Symbols`). Moving data about (Reshape, Gather,
Transpose, ...) then is plain NumPy on the numbers, and whether two graphs compute the same is `==`:

    index[t][p]   row(table, index)[c]   scaled(row, factor)[c]   sum{rows}[c]   mean{rows}[c]
    linear(weight, values)[j]   add(linear, bias)[j]   relu(add)[j]   dot(u, v)

Numbers come in vectors, one key for all elements of one: a function of an element is the element in the same place of
the function's own vector, so a layer of a thousand outputs costs one key an item. Sums and dots are kept in a
canonical order, since a DLRM does not care which factor is named first. Knows neither ONNX nor what a DLRM is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Two numbers below it fit into one int64.
_MOST_NUMBERS = 2**31


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
        self._starts_array = np.zeros(1024, np.int64)  # the same, with room to grow
        self._widths_array = np.zeros(1024, np.int64)
        self._copied = 0  # how many of the two are filled
        self._keys: list[tuple] = []
        self._widths: list[int] = []
        self._makers: list[object] = []
        self._next = 0
        self._known_dots = (np.empty(0, np.int64), np.empty(0, np.int64))  # codes, ascending, and numbers
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
        key, position = self._keys[place], int(number) - self._starts[place]
        if key[0] == "dots":
            code = int(np.frombuffer(key[1], np.int64)[position])
            return ("dot", *divmod(code, _MOST_NUMBERS)), 0
        return key, position

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
        distinct, places = np.unique(values, return_inverse=True)
        numbers = [self.scalar("constant", str(values.dtype), value) for value in distinct.tolist()]
        return np.array(numbers, np.int64)[places].reshape(values.shape)

    def apply(self, kind: str, ids: np.ndarray, *parameters: object) -> np.ndarray:
        """A function of one scalar ("relu", "sigmoid"), element by element."""
        unchanged = np.zeros(ids.shape, np.int8)
        return self._map_pairs(ids, unchanged, lambda first, _: (kind, first, *parameters))

    def add(self, ids: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """ids [..., N], a whole vector in each row, plus a constant that broadcasts with them."""
        ids, constant = np.broadcast_arrays(ids, constant)
        if self.whole(ids) is None and (self._whereabouts(ids)[2] == 1).all():
            return self.add(ids[..., None], constant[..., None])[..., 0]
        firsts = self.whole(ids)
        if firsts is None:
            raise ValueError("adds a constant to a part of a vector, or to several joined")
        width = ids.shape[-1]
        biases = np.ascontiguousarray(constant).reshape(-1, width)
        keys = [("add", first, bias.tobytes()) for first, bias in zip(firsts.ravel().tolist(), biases)]
        return self._vectors(keys, width).reshape(ids.shape)

    def lookup(self, table: np.ndarray, indices: np.ndarray, name: str) -> np.ndarray:
        """Rows of table [R, D] for indices [...] -> [..., D]; numbers of a table [R] for indices [...] -> [...]."""
        identity = self._remember(table, name)
        if table.ndim == 1:
            factors = [self.scalar("factor", identity, index) for index in indices.ravel().tolist()]
            return np.array(factors, np.int64).reshape(indices.shape)
        keys = [("row", identity, index) for index in indices.ravel().tolist()]
        return self._vectors(keys, table.shape[1]).reshape(*indices.shape, table.shape[1])

    def scale(self, ids: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """Elements of rows times numbers that `lookup` in a table [R] or `constants` gave; both broadcast."""
        ids, factors = np.broadcast_arrays(ids, factors)
        scaled, changed = ids.copy(), factors != self.constants(np.ones(1, np.float32))[0]
        scaled[changed] = self._map_pairs(ids[changed], factors[changed], lambda *pair: ("scaled", *pair))
        return scaled

    def divide(self, ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Sums of rows over their own numbers of rows, which are means; anything else divided is a ValueError."""
        ids, counts = np.broadcast_arrays(ids, counts)
        return self._map_pairs(ids, counts, self._mean_key)

    def linear(self, ids: np.ndarray, weight: np.ndarray, transposed: bool) -> np.ndarray:
        """ids [..., K] times weight ([N, K] if transposed, else [K, N]) -> [..., N]."""
        inputs, outputs = weight.shape[::-1] if transposed else weight.shape
        if ids.shape[-1] != inputs:
            raise ValueError(f"multiplies {ids.shape[-1]} values by a weight for {inputs}")
        identity = self._remember(weight, "")
        keys = [("linear", identity, transposed, row) for row in self.rows(ids).ravel().tolist()]
        return self._vectors(keys, outputs).reshape(*ids.shape[:-1], outputs)

    def pool(self, kind: str, ids: np.ndarray) -> np.ndarray:
        """The "sum" or "mean" over the last axis.

        The sum of one value is that value, its mean stays a mean; of none both are 0, PyTorch's mean too.
        """
        if ids.shape[-1] == 0:
            return np.full(ids.shape[:-1], self.scalar("constant", "float32", 0.0))
        if kind == "sum" and ids.shape[-1] == 1:
            return ids[..., 0]
        flat = ids.reshape(-1, ids.shape[-1])
        if self._whole_rows(flat.T).all():
            return self.vector((kind, np.sort(flat[0]).tobytes()), len(flat)).reshape(ids.shape[:-1])
        return self._pool_elements(kind, flat).reshape(ids.shape[:-1])

    def bags(self, kind: str, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Pooled bags [number of bags, D] of rows [n, D]; bag i is rows[starts[i]:ends[i]]."""
        pooled = [self.pool(kind, rows[start:end].T) for start, end in zip(starts.tolist(), ends.tolist())]
        return np.stack(pooled)

    def dot(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """left [..., M, K], right [..., N, K] -> [..., M, N]: products of rows with rows, in either order."""
        if left.shape[-1] != right.shape[-1]:
            raise ValueError(f"multiplies rows of {left.shape[-1]} by rows of {right.shape[-1]} values")
        first, second = self.rows(left)[..., :, None], self.rows(right)[..., None, :]
        first, second = np.broadcast_arrays(first, second)
        if self._next >= _MOST_NUMBERS:
            raise OverflowError("has too many values to follow")
        codes = np.minimum(first, second) * _MOST_NUMBERS + np.maximum(first, second)
        return self._dots(codes.ravel()).reshape(codes.shape)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """One number for each vector along the last axis: its first element's where it is a whole vector of its own,
        else that of a ("vector", ids) that `elements` takes apart."""
        whole = self.whole(ids)
        if whole is not None:
            return whole
        flat = np.ascontiguousarray(ids).reshape(-1, ids.shape[-1])
        numbers = np.where(self._whole_rows(flat), flat[:, 0], -1)
        for row in np.flatnonzero(numbers < 0).tolist():
            numbers[row] = self.scalar("vector", flat[row].tobytes())
        return numbers.reshape(ids.shape[:-1])

    # --- taking formulas apart

    def elements(self, row: int) -> np.ndarray:
        """The numbers in the vector that `rows` gave this number."""
        place = self._place(row)
        key = self._keys[place]
        return np.frombuffer(key[1], np.int64) if key[0] == "vector" else np.arange(row, row + self._widths[place])

    def whole(self, ids: np.ndarray) -> np.ndarray | None:
        """The first number of each row of ids [..., N], where all of them are whole vectors; None otherwise."""
        if ids.size == 0 or ids.ndim == 0:
            return None
        return ids[..., 0] if self._whole_rows(ids.reshape(-1, ids.shape[-1])).all() else None

    def operands(self, kind: str, rows: np.ndarray) -> list[tuple] | None:
        """The operands of each of the vectors `rows` [n, N], when all are whole ones of that kind; None otherwise."""
        firsts = self.whole(rows)
        if firsts is None:
            return None
        keys = [self._keys[self._place(first)] for first in firsts.ravel().tolist()]
        return [key[1:] for key in keys] if all(key[0] == kind for key in keys) else None

    def kinds(self, ids: np.ndarray) -> set[str]:
        return {self._keys[self._place(first)][0] for first in np.unique(self._whereabouts(ids)[0]).tolist()}

    def _mean_key(self, first: int, count: float) -> tuple:
        key, _ = self.key(first)
        if key[0] == "sum":
            summands = key[1]
        elif key[0] in ("row", "scaled"):
            summands = np.int64(first).tobytes()
        elif key == ("constant", "float32", 0.0) and count > 0:
            return key
        else:
            raise ValueError("divides what is no sum of looked-up rows")
        if len(summands) != 8 * count:
            raise ValueError(f"divides a sum of {len(summands) // 8} rows by {count:g}")
        return ("mean", summands)

    def _pool_elements(self, kind: str, ids: np.ndarray) -> np.ndarray:
        """Each row of ids [n, m] pooled, where each stands in one place of vectors of one width."""
        firsts, positions, widths = self._whereabouts(ids)
        if (positions != positions[:, :1]).any() or (widths != widths[:, :1]).any():
            raise ValueError("adds up what stands in different places of its vectors")
        keys = [(kind, bag.tobytes()) for bag in np.sort(firsts, axis=1)]
        made = [self._number(key, int(width)) for key, width in zip(keys, widths[:, 0])]
        return np.array(made, np.int64) + positions[:, 0]

    def _map_pairs(self, ids: np.ndarray, others: np.ndarray, key_of: Callable[[int, float], tuple]) -> np.ndarray:
        """Each element's counterpart in the vector of key_of(first of its vector, the other at its place)."""
        if ids.size == 0:
            return ids
        firsts, positions, widths = self._whereabouts(ids)
        different, codes = np.unique(others, return_inverse=True)
        pairs = firsts.ravel() * len(different) + codes.ravel()
        _, at, which = np.unique(pairs, return_index=True, return_inverse=True)
        chosen = zip(firsts.ravel()[at].tolist(), others.ravel()[at].tolist(), widths.ravel()[at].tolist())
        made = [self._number(key_of(first, other), width) for first, other, width in chosen]
        return np.array(made, np.int64)[which.ravel()].reshape(ids.shape) + positions

    def _whereabouts(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first number of its vector, position in it, the vector's width) of each of `ids`."""
        starts, widths = self._tables()
        places = np.searchsorted(starts, ids, side="right") - 1
        return starts[places], ids - starts[places], widths[places]

    def _whole_rows(self, rows: np.ndarray) -> np.ndarray:
        """Which of rows [n, N] are whole vectors."""
        width = rows.shape[1]
        _, positions, widths = self._whereabouts(rows[:, 0])
        return (positions == 0) & (widths == width) & (rows == rows[:, :1] + np.arange(width)).all(axis=1)

    def _dots(self, codes: np.ndarray) -> np.ndarray:
        """Numbers of products; a code is both factors' numbers in one. Those not met before get a vector together."""
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
        """[len(keys), width] numbers of vectors of one width."""
        firsts = np.array([self._number(key, width) for key in keys], np.int64)
        return firsts[:, None] + np.arange(width)

    def _number(self, key: tuple, width: int) -> int:
        first = self._first.get(key)
        if first is None:
            first = self._first[key] = self._next
            self._starts.append(first)
            self._widths.append(width)
            self._keys.append(key)
            self._makers.append(self.maker)
            self._next += width
        return first

    def _place(self, number: int) -> int:
        return bisect_right(self._starts, number) - 1

    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """(starts, widths) of all vectors; only what came since the last call is copied."""
        count = len(self._starts)
        if count > len(self._starts_array):
            room = np.zeros(max(count, len(self._starts_array)), np.int64)
            self._starts_array = np.concatenate([self._starts_array, room])
            self._widths_array = np.concatenate([self._widths_array, room])
        self._starts_array[self._copied : count] = self._starts[self._copied :]
        self._widths_array[self._copied : count] = self._widths[self._copied :]
        self._copied = count
        return self._starts_array[:count], self._widths_array[:count]

    def _remember(self, array: np.ndarray, name: str) -> int:
        self._arrays[id(array)] = array
        self._names.setdefault(id(array), name)
        return id(array)
