"""How numbers lie in the kernels' tiles, element by element, and the formulas of activations: for tests of kernels."""

from __future__ import annotations

import numpy as np


def up(width: int) -> int:
    return -(-width // 16) * 16


def to_tiles(x: np.ndarray, mr: int) -> np.ndarray:
    """[items, columns] -> flat [tile][block][row][lane], what is past the columns NaN: nobody may read it."""
    wide = np.full((len(x), up(x.shape[1])), np.nan, np.float32)
    wide[:, : x.shape[1]] = x
    return wide.reshape(-1, mr, wide.shape[1] // 16, 16).transpose(0, 2, 1, 3).reshape(-1)


def from_tiles(flat: np.ndarray, items: int, columns: int, mr: int) -> np.ndarray:
    return flat.reshape(items // mr, up(columns) // 16, mr, 16).transpose(0, 2, 1, 3).reshape(items, up(columns))


def in_register_tiles(weight: np.ndarray, nr: int) -> np.ndarray:
    """Weight [N, K] as [N/nr][K][nr], the last column of tiles narrower, output by output."""
    outputs, inputs = up(len(weight)), weight.shape[1]
    flat = np.zeros(outputs * inputs, np.float32)
    for n, row in enumerate(weight):
        first = n // nr * nr
        width = min(nr, outputs - first)
        flat[first * inputs + np.arange(inputs) * width + n - first] = row
    return flat


def activated(y: np.ndarray, activation: str) -> np.ndarray:
    return {"none": y, "relu": np.where(y > 0, y, 0), "sigmoid": 1 / (1 + np.exp(-y))}[activation]
