"""Rows of a table that are computed from stored ones when they are asked for: a table of any size, in no memory.

What an embedding makes of one index (a row of float16, a quotient's row times a remainder's, a row projected) is a
table. `ComputedRows` stands where a table's array does: it has a shape, and gives rows by slice, by number or by array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


class ComputedRows:
    """compute: row numbers [n] int64 -> rows [n, dim] float32; origin: what they are computed from, for people;
    sources: the arrays of that, often memory maps."""

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        num_rows: int,
        dim: int,
        *,
        origin: str,
        sources: Sequence[np.ndarray] = (),
    ) -> None:
        self.compute = compute
        self.shape = (num_rows, dim)
        self.origin = origin
        self.sources = tuple(sources)

    @property
    def nbytes(self) -> int:
        """Of all rows, once they are written down."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            return self.compute(np.arange(*rows.indices(len(self)), dtype=np.int64))
        numbers = np.asarray(rows, np.int64)
        flat = numbers.reshape(-1)
        outside = np.flatnonzero((flat < 0) | (flat >= len(self)))
        if outside.size:
            raise IndexError(f"row {flat[outside[0]]} of {len(self)}")
        return self.compute(flat).reshape(*numbers.shape, self.shape[1])
