"""The model in plain NumPy, from the paper's formulas. Every compiled library is checked against it.

Computes in float64, so that its own rounding does not count as the library's error, or in float32, to show how much
rounding a model brings. Simple and slow on purpose. Tables are indexed, never copied: memory maps of any size will do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .dlrm import Dense, Dlrm, Table

Indices = np.ndarray | Sequence[np.ndarray]


def predict(
    model: Dlrm,
    dense: np.ndarray,
    indices: Indices,
    offsets: Sequence[np.ndarray] | None = None,
    *,
    dtype: type = np.float64,
) -> np.ndarray:
    """dense [n, num_dense] -> predictions [n], computed in `dtype`.

    Without offsets, indices are [n, T] integers: one per table and item. With offsets, both are given per table as
    torch.nn.EmbeddingBag takes them: indices[t] [any number] integers, and offsets[t] [n], where each item's bag
    begins; a bag ends where the next begins, the last one at the end of the indices.
    """
    x = mlp(model.bottom, dense.astype(dtype))  # [n, D]
    joined = model.interaction.join(vectors(model, x, indices, offsets, dtype=dtype))  # [n, top_inputs]
    predictions = mlp(model.top, joined)[:, 0]
    return predictions if model.clamp is None else np.clip(predictions, *model.clamp)


def vectors(
    model: Dlrm,
    x: np.ndarray,
    indices: Indices,
    offsets: Sequence[np.ndarray] | None = None,
    *,
    dtype: type = np.float64,
) -> np.ndarray:
    """x [n, D] and each table's pooled bags -> [n, 1 + T, D]"""
    indices, offsets = per_table(indices, offsets)
    bags = [bag(*inputs, dtype) for inputs in zip(model.tables, indices, offsets, strict=True)]
    return np.stack([x, *bags], axis=1)


def per_table(indices: Indices, offsets: Sequence[np.ndarray] | None = None) -> tuple[Sequence, Sequence]:
    """indices and offsets per table; without offsets, [n, T] indices are bags of one."""
    if offsets is not None:
        return indices, offsets
    columns = np.asarray(indices).T
    return columns, [np.arange(columns.shape[1])] * len(columns)


def bag(table: Table, indices: np.ndarray, offsets: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    """indices [any number], offsets [n] -> [n, D]: each bag's rows pooled; an empty bag gives zeros."""
    indices = indices % table.num_rows if table.wraps else indices
    rows = table.rows[indices].astype(dtype)
    if table.row_weights is not None:
        rows *= table.row_weights[indices].astype(dtype)[:, None]
    sums, counts = bag_sums(rows, offsets)
    return sums if table.pooling == "sum" else sums / np.maximum(counts, 1)[:, None].astype(dtype)


def bag_sums(rows: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rows [any number, D] of all bags, offsets [n] -> (their sums [n, D] of the same dtype, rows in each [n])"""
    ends = np.append(offsets[1:], len(rows))
    sums = np.array([rows[start:end].sum(axis=0) for start, end in zip(offsets, ends)], rows.dtype)
    return sums.reshape(-1, rows.shape[1]), ends - offsets


def mlp(layers: tuple[Dense, ...], x: np.ndarray) -> np.ndarray:
    """x [n, inputs] -> [n, outputs] of the same dtype through all layers."""
    for layer in layers:
        x = activate(x @ layer.weight.astype(x.dtype).T + layer.bias.astype(x.dtype), layer.activation)
    return x


def activate(x: np.ndarray, activation: str) -> np.ndarray:
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "sigmoid":
        # Two branches, so that neither exp overflows.
        small = np.exp(-np.abs(x))
        return np.where(x >= 0, 1 / (1 + small), small / (1 + small))
    return x
