"""Batch 1 is bound by streaming the MLP weights: how many bytes of them an item needs.

    all of them           every layer's weights and bias
    those that matter     rows of Wᵀ whose input is not exactly zero; about half of the inputs are, after a ReLU

Our batch-1 kernel skips the rest, so its rate times all weight bytes may exceed what the core can stream.
"""

from __future__ import annotations

import numpy as np

from dlrm_tvm import reference
from dlrm_tvm.model import Dense, Dlrm


def needed_weight_bytes(model: Dlrm, dense: np.ndarray, indices: np.ndarray) -> float:
    """Bytes of weights that matter for one item, averaged over dense [n, 13] and indices [n, 26]."""
    bottom_bytes, x = _layers(model.bottom, dense.astype(np.float64))
    rows = [table.rows[indices[:, t]].astype(np.float64) for t, table in enumerate(model.tables)]
    top_bytes, _ = _layers(model.top, reference.interact(model, np.stack([x, *rows], axis=1)))
    return bottom_bytes + top_bytes


def _layers(layers: tuple[Dense, ...], x: np.ndarray) -> tuple[float, np.ndarray]:
    """(bytes per item, the last layer's output)"""
    needed = 0.0
    for layer in layers:
        needed += (np.count_nonzero(x) / len(x) * layer.outputs + layer.outputs) * layer.weight.itemsize
        x = reference.mlp((layer,), x)
    return needed, x
