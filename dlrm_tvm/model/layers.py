"""One fully connected layer as data: what MLPs and cross layers are made of; and scales of what it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ACTIVATIONS = ("none", "relu", "sigmoid")

Outputs = Callable[[int, np.ndarray], np.ndarray]
"""outputs(k, x): what layer k of an interaction makes of x [n, inputs]."""
Scales = Sequence[np.ndarray | None]
"""Of the inputs of each of an interaction's layers, and of the first top layer; None where they are dynamic."""


@dataclass(frozen=True, eq=False)
class Dense:
    """One fully connected layer: y = activation(x Wᵀ + b).

    weight: [outputs, inputs] float32; bias: [outputs] float32; activation: one of `ACTIVATIONS`. Raises ValueError for
    any other, and for a bias of another shape.
    """

    weight: np.ndarray
    bias: np.ndarray
    activation: str

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.bias.shape != (self.outputs,):
            raise ValueError(f"a bias of shape {self.bias.shape} for {self.outputs} outputs")

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]


def scale_of(largest: np.ndarray, most: int = 127) -> np.ndarray:
    """float32 scale of values whose largest magnitude becomes `most`; 1 for one that was always zero: any fits."""
    return np.where(largest > 0, largest / most, 1).astype(np.float32)
