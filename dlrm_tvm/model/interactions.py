"""How x, the bottom MLP's output, and the embedding vectors e1, .., eT meet: one class per kind of interaction.

    Dot       [x, dots]          dots: z_i . z_j of z = [x, e1, .., eT] for j < i, row by row: (1,0), (2,0), (2,1), ..
    Concat    [x, e1, .., eT]                                                                            joined.py
    Cross     x_L of x0 = [x, e1, .., eT], x_{l+1} = x0 * (W_l V_l x_l + b_l) + x_l, * elementwise       joined.py

A kind answers here for its name, dimensions, layers, multiply-adds, static scales, and its definition in NumPy, at full
precision and quantized. A kind with weights keeps them in its fields, and its `layers` are among the model's. Three
wings need more than that, and each has one table from these classes to its own objects: frontend/assembly.py,
network/interaction.py and compiler/lower_default.py. Nothing else tells kinds apart.

n: items; V = 1 + T: vectors of an item; D: dimension of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .joined import Concat, Cross
from .layers import Dense, Outputs, Scales, scale_of


@dataclass(frozen=True)
class Dot:
    """Dot products of all pairs of vectors behind x; with_self: z_i . z_i as well."""

    with_self: bool = False
    layers: ClassVar[tuple[Dense, ...]] = ()

    @property
    def name(self) -> str:
        return "dot_self" if self.with_self else "dot"

    @property
    def identity(self) -> str:
        """What a model's fingerprint is taken of. Recorded data holds fingerprints, so it never changes."""
        return f"Interaction(kind='dot', with_self={self.with_self})"

    def pairs(self, num_vectors: int) -> list[tuple[int, int]]:
        """The (i, j) whose dots are taken, in the model's order."""
        reach = 1 if self.with_self else 0
        return [(i, j) for i in range(num_vectors) for j in range(i + reach)]

    def check(self, num_vectors: int, dim: int) -> None:
        """Raises ValueError where so many vectors of this dimension do not fit its layers."""

    def num_outputs(self, num_vectors: int, dim: int) -> int:
        return dim + len(self.pairs(num_vectors))

    def macs(self, num_vectors: int, dim: int) -> int:
        """Multiply-adds beside those of its layers."""
        return len(self.pairs(num_vectors)) * dim

    def summary(self, num_vectors: int) -> str:
        return f"{len(self.pairs(num_vectors))} dots"

    def static_scales(self, largest: Sequence[np.ndarray], dim: int, table_scales: np.ndarray) -> list[np.ndarray]:
        """Scales, of inputs with these largest magnitudes in calibration: x has one, each dot its own."""
        scales = scale_of(largest[-1])
        scales[:dim] = scale_of(largest[-1][:dim].max())
        return [scales]

    def output_scale(self, layer: int, scales: Scales) -> None:
        """There are no layers."""

    def vector_factors(self, table_scales: np.ndarray, scales: Scales) -> np.ndarray:
        """[T] float32: by which bytes of the tables are multiplied."""
        return table_scales

    def takes_sums(self, scales: Scales) -> bool:
        """Whether int8's sums of rows are taken as they are; else they are brought within a byte first."""
        return False

    def join(self, vectors: np.ndarray, outputs: Outputs | None = None) -> np.ndarray:
        """vectors [n, V, D] -> [n, num_outputs] of the same dtype; outputs: by default of its layers in that dtype."""
        i, j = np.array(self.pairs(vectors.shape[1])).T
        products = vectors @ vectors.transpose(0, 2, 1)
        return np.concatenate([vectors[:, 0], products[:, i, j]], axis=1)

    def join_quantized(
        self,
        x: np.ndarray,
        numbers: np.ndarray,
        factors: np.ndarray,
        outputs: Outputs | None = None,
        *,
        x_scale: float | None,
        scales: Scales,
        rounded: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    ) -> np.ndarray:
        """The first top layer's input [n, num_outputs] float32, divided by its scales if it has any.

        x: [n, D] float32, as the bottom MLP gives it, divided by x_scale if that is given.
        numbers: [n, V, D] float64, factors: [n, V] float32: the vectors as they meet are numbers * factors.
        outputs: of float32, with the roundings of each layer's precision, divided by its output scale; rounded: to the
        form in which values are kept between layers.
        """
        i, j = np.array(self.pairs(numbers.shape[1])).T
        products = (numbers @ numbers.transpose(0, 2, 1)).astype(np.float32)
        dots = products[:, i, j] * (factors[:, i] * factors[:, j])
        if scales[-1] is not None:
            dots = dots * (1 / scales[-1][x.shape[1] :])
        elif x_scale is not None:
            x = x * np.float32(x_scale)
        return np.concatenate([x, dots], axis=1)


Interaction = Dot | Concat | Cross
