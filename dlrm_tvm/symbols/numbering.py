"""Numbers for the elements of vectors: a key gets as many consecutive numbers as its vector has elements.

    first key, 128 elements: 0 .. 127      second key, 16 elements: 128 .. 143      ...

Equal keys get equal numbers, and a number leads back to its vector. What a key means is for expressions.py to know.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np


class Vector(NamedTuple):
    """maker: the object (an ONNX node) that ran when the key was first met."""

    first: int
    width: int
    key: tuple
    maker: object


class Numbering:
    """end: the next number to be given."""

    def __init__(self) -> None:
        self.end = 0
        self._by_key: dict[tuple, Vector] = {}
        self._vectors: list[Vector] = []
        self._firsts: list[int] = []  # of each of them, ascending
        self._table = np.zeros((2, 1024), np.int64)  # first number and width of each, with room to grow
        self._filled = 0

    def first(self, key: tuple, width: int, maker: object) -> int:
        """The number of the vector's first element; a key that is new gets its numbers now."""
        vector = self._by_key.get(key)
        if vector is None:
            vector = self._by_key[key] = Vector(self.end, width, key, maker)
            self._vectors.append(vector)
            self._firsts.append(self.end)
            self.end += width
        return vector.first

    def firsts(self, keys: list[tuple], width: int, maker: object) -> np.ndarray:
        """`first` for vectors of one width, [len(keys)] int64."""
        return np.array([self.first(key, width, maker) for key in keys], np.int64)

    def vector(self, number: int) -> Vector:
        """The vector that holds the element of this number."""
        return self._vectors[bisect_right(self._firsts, number) - 1]

    def whereabouts(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each number: the first number of its vector, its position in it, and the vector's width."""
        self._fill()
        firsts, widths = self._table[:, : self._filled]
        places = np.searchsorted(firsts, numbers, side="right") - 1
        return firsts[places], numbers - firsts[places], widths[places]

    def whole_rows(self, rows: np.ndarray) -> np.ndarray:
        """Which of rows [n, N] are whole vectors, [n] bool."""
        width = rows.shape[1]
        _, positions, widths = self.whereabouts(rows[:, 0])
        return (positions == 0) & (widths == width) & (rows == rows[:, :1] + np.arange(width)).all(axis=1)

    def _fill(self) -> None:
        """Copy the vectors that are new since the last call into the table."""
        count = len(self._vectors)
        if count > self._table.shape[1]:
            room = max(count - self._table.shape[1], self._table.shape[1])
            self._table = np.pad(self._table, ((0, 0), (0, room)))
        self._table[0, self._filled : count] = self._firsts[self._filled :]
        self._table[1, self._filled : count] = [vector.width for vector in self._vectors[self._filled :]]
        self._filled = count
