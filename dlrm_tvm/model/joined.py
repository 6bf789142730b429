"""All of an item's vectors joined, and cross layers on them: two kinds of interaction, as interactions.py has them.

What holds for the joined vectors alone is what holds for cross layers of which there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import numpy as np

from .layers import Dense, Outputs, Scales, scale_of

_MARGIN = 1.1  # of scales beyond the largest value of calibration


@dataclass(frozen=True)
class Concat:
    """All vectors, one after the other: x0. What its methods say of cross layers is for Cross."""

    name = "cat"
    identity = "Interaction(kind='cat', with_self=False)"
    crossings: ClassVar[tuple[tuple[Dense, ...], ...]] = ()

    @property
    def layers(self) -> tuple[Dense, ...]:
        return tuple(layer for crossing in self.crossings for layer in crossing)

    def check(self, num_vectors: int, dim: int) -> None:
        if self.layers and self.layers[0].inputs != num_vectors * dim:
            found = f"{num_vectors} vectors of dimension {dim}"
            raise ValueError(f"the cross layers take {self.layers[0].inputs} values, not {found}")

    def num_outputs(self, num_vectors: int, dim: int) -> int:
        return num_vectors * dim

    def macs(self, num_vectors: int, dim: int) -> int:
        return 0

    def summary(self, num_vectors: int) -> str:
        return "joined"

    def static_scales(self, largest: Sequence[np.ndarray], dim: int, table_scales: np.ndarray) -> list[np.ndarray]:
        """x0 has a scale for x and one for each table: the table's own where sums of rows stay within its bytes. x_l
        has one per column, with a margin, as products of products have long tails; V x_l has one."""
        x0 = largest[0].reshape(-1, dim).max(axis=1)
        vectors = np.where(x0[1:] > 127 * table_scales * (1 + 1e-6), scale_of(_MARGIN * x0[1:]), table_scales)
        scales = [np.repeat(np.concatenate([[scale_of(x0[0])], vectors]), dim).astype(np.float32)]
        firsts = self._firsts()
        for at, each in enumerate(largest[1:], start=1):
            shared = np.full(len(each), scale_of(each.max()), np.float32)
            scales.append(scale_of(_MARGIN * _alive(each)) if at in firsts else shared)
        return scales

    def _firsts(self) -> list[int]:
        """The layers that take x_l, and the one behind them all."""
        return [0, *accumulate(map(len, self.crossings))]

    def x_scales(self, scales: Scales) -> list[np.ndarray] | None:
        """Static scales of the columns of x_0 .. x_L, 1 where the last one stays float32; None if dynamic."""
        if scales[0] is None:
            return None
        return [np.ones_like(scales[0]) if scales[at] is None else scales[at] for at in self._firsts()]

    def output_scale(self, layer: int, scales: Scales) -> float | np.ndarray | None:
        """By which a layer's outputs are divided, W's so that they fit x0 and x_{l+1}."""
        x_scales, ends = self.x_scales(scales), self._firsts()[1:]
        if x_scales is None:
            return None
        if layer + 1 in ends:
            return x_scales[1 + ends.index(layer + 1)] / x_scales[0]
        return float(scales[layer + 1][0])

    def vector_factors(self, table_scales: np.ndarray, scales: Scales) -> np.ndarray:
        """[T] float32: by which bytes of the tables are multiplied, divided by x0's scales if those are static."""
        if scales[0] is None:
            return table_scales
        return table_scales / scales[0].reshape(1 + len(table_scales), -1)[1:, 0]

    def takes_sums(self, scales: Scales) -> bool:
        return scales[0] is not None

    def join(self, vectors: np.ndarray, outputs: Outputs | None = None) -> np.ndarray:
        outputs = outputs or self._outputs
        first = x = vectors.reshape(len(vectors), -1)
        for crossing, at in zip(self.crossings, self._firsts()):
            x = first * self._crossed(crossing, at, x, outputs) + x
        return x

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
        """With static scales x_{l+1} = x0 * y + ratio * x_l, ratio: of the scales of x_l and x_{l+1}; fused."""
        vectors, outputs = (numbers * factors[:, :, None]).astype(np.float32), outputs or self._outputs
        x_scales = self.x_scales(scales)
        vectors[:, 0] = x if x_scales is not None or x_scale is None else x * np.float32(x_scale)
        first = x = vectors.reshape(len(vectors), -1)
        ratios = [np.float32(1)] * len(self.crossings)
        if x_scales is not None:
            ratios = [old / new for old, new in pairwise(x_scales)]
        for at, crossing, ratio in zip(self._firsts(), self.crossings, ratios):
            first, x = rounded(first), rounded(x)
            y = self._crossed(crossing, at, x, outputs)
            x = (first.astype(np.float64) * y + x * ratio).astype(np.float32)
        return x

    def _crossed(self, crossing: tuple[Dense, ...], at: int, x: np.ndarray, outputs: Outputs) -> np.ndarray:
        """W V x; at: the number of V among all layers."""
        for number in range(len(crossing)):
            x = outputs(at + number, x)
        return x

    def _outputs(self, at: int, x: np.ndarray) -> np.ndarray:
        layer = self.layers[at]
        return x @ layer.weight.astype(x.dtype).T + layer.bias.astype(x.dtype)


@dataclass(frozen=True, eq=False)
class Cross(Concat):
    """Cross layers on all vectors joined (DCN v2: Wang et al., arXiv 2008.13535, section 3.2).

        x_{l+1} = x0 * (W_l (V_l x_l) + b_l) + x_l        of low rank:  crossings[l] = (V_l, W_l)
        x_{l+1} = x0 * (W_l x_l + b_l) + x_l              of full rank: crossings[l] = (W_l,)

    * is elementwise. V may have a bias too; none has an activation. Raises ValueError where they do not fit together.
    """

    crossings: tuple[tuple[Dense, ...], ...]
    name = "cross"

    def __post_init__(self) -> None:
        if not self.crossings:
            raise ValueError("a cross interaction has at least one layer")
        for at, crossing in enumerate(self.crossings):
            widths = [crossing[0].inputs, *(layer.outputs for layer in crossing)] if crossing else []
            if len(crossing) not in (1, 2) or crossing[-1].inputs != widths[-2] or widths[-1] != widths[0]:
                raise ValueError(f"cross layer {at} has the widths {widths}, not N, rank, N or N, N")
            if widths[0] != self.crossings[0][0].inputs:
                raise ValueError(f"cross layer {at} takes {widths[0]} values, the first {self.crossings[0][0].inputs}")
            if any(layer.activation != "none" for layer in crossing):
                raise ValueError(f"cross layer {at} has an activation")

    @property
    def identity(self) -> str:
        return f"Interaction(kind='cross', crossings={[len(crossing) for crossing in self.crossings]})"


def _alive(largest: np.ndarray) -> np.ndarray:
    """For columns that were always zero the median of the others: their weights must not be the largest of their row,
    of which its int8 scale is made."""
    used = largest > 0
    return np.where(used, largest, np.median(largest[used])) if used.any() else largest
