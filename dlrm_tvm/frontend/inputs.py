"""The inputs that a graph declares: names, types, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Input:
    """One input of a graph; dims: sizes, None for one that the graph leaves open."""

    name: str
    dtype: np.dtype
    dims: tuple[int | None, ...]

    def batch_place(self, batch: int) -> int:
        """Of the dim that goes with the batch, which the file fixes: the first of floats and of indices
        [batch, number], else the last."""
        if self.dtype.kind == "f":
            return 0
        if len(self.dims) == 2 and self.dims[0] == batch:
            number = self.dims[1]
            return 0 if number is not None and (number < batch or number % batch > 1) else 1
        return len(self.dims) - 1

    def resized(self, sizes: Mapping[int, int]) -> Input:
        """With other sizes: {size in the file: size in its place}."""
        place = min(self.batch_place(batch) for batch in sizes)
        dims = [sizes.get(size, size) if at == place else size for at, size in enumerate(self.dims)]
        return replace(self, dims=tuple(dims))
