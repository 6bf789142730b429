"""The model in plain NumPy, from the paper's formulas: what every compiled library is checked against.

Computes in float64 so that its own rounding does not count as the library's error. Deliberately simple and slow;
tables are only indexed, never copied, so a memory map of any size serves.
"""

from __future__ import annotations

import numpy as np

from .model import Dense, Dlrm


def predict(model: Dlrm, dense: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """dense [n, num_dense], indices [n, T] integers -> predictions [n] float64."""
    x = mlp(model.bottom, dense)  # [n, D]
    rows = [table.rows[indices[:, t]] for t, table in enumerate(model.tables)]
    vectors = np.stack([x, *(row.astype(np.float64) for row in rows)], axis=1)  # [n, 1 + T, D]
    return mlp(model.top, interact(model, vectors))[:, 0]


def interact(model: Dlrm, vectors: np.ndarray) -> np.ndarray:
    """vectors [n, 1 + T, D] -> the top MLP's input [n, top_inputs]."""
    if model.interaction.kind == "cat":
        return vectors.reshape(len(vectors), -1)
    products = vectors @ vectors.transpose(0, 2, 1)
    i, j = np.array(model.pairs, dtype=np.int64).reshape(-1, 2).T
    return np.concatenate([vectors[:, 0], products[:, i, j]], axis=1)


def mlp(layers: tuple[Dense, ...], x: np.ndarray) -> np.ndarray:
    """x [n, inputs] -> [n, outputs] float64 through all layers."""
    x = x.astype(np.float64)
    for layer in layers:
        x = activate(x @ layer.weight.astype(np.float64).T + layer.bias, layer.activation)
    return x


def activate(x: np.ndarray, activation: str) -> np.ndarray:
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "sigmoid":
        # Two branches, so that neither exp overflows.
        small = np.exp(-np.abs(x))
        return np.where(x >= 0, 1 / (1 + small), small / (1 + small))
    return x
