"""Batch 1 is bound by streaming the MLP weights: how many bytes of them an item needs.

    all of them           every layer's weights and bias
    those that matter     rows of Wᵀ whose input is not exactly zero; about half of the inputs are, after a ReLU

Our batch-1 kernel skips the rest, so its rate times all weight bytes may exceed what the core can stream. Of fp32's
weights only: narrower ones are laid out in other ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dlrm_tvm import reference
from dlrm_tvm.model import Dense, Dlrm

if TYPE_CHECKING:
    from results import Row
    from rounds import Inputs


def needed_weight_bytes(model: Dlrm, dense: np.ndarray, indices: np.ndarray) -> float:
    """Bytes of weights that matter for one item, averaged over dense [n, 13] and indices [n, 26]."""
    bottom_bytes, x = _layers(model.bottom, dense.astype(np.float64))
    rows = [table.rows[indices[:, t]].astype(np.float64) for t, table in enumerate(model.tables)]
    top_bytes, _ = _layers(model.top, reference.interact(model, np.stack([x, *rows], axis=1)))
    return bottom_bytes + top_bytes


def batch_1_streaming(results: Sequence[Row], stream_gbps: Sequence[float], model: Dlrm, inputs: Inputs) -> dict | None:
    """Print and return what of the measured streaming rate batch 1 reaches; None where it was not measured."""
    row = next((row for row in results if (row.batch_size, row.engine) == (1, "ours")), None)
    if row is None or row.items_per_s is None:
        return None
    stream = max(stream_gbps)
    needed = needed_weight_bytes(model, inputs.dense[:256], inputs.indices[:256])
    share, needed_share = (row.items_per_s * size / stream / 1e9 for size in (model.mlp_bytes, needed))
    print(
        f"\nbatch 1     this core streams the weights at {stream:.1f} GB/s. Ours, as a share of that:\n"
        f"            {share:.0%} counting all {model.mlp_bytes / 1e6:.1f} MB for every item,\n"
        f"            {needed_share:.0%} counting the {needed / 1e6:.1f} MB whose input is not zero (others it skips)"
    )
    return {"stream_gbps": stream, "share": share, "needed_bytes": needed, "needed_share": needed_share}


def _layers(layers: tuple[Dense, ...], x: np.ndarray) -> tuple[float, np.ndarray]:
    """(bytes per item, the last layer's output)"""
    needed = 0.0
    for layer in layers:
        needed += (np.count_nonzero(x) / len(x) * layer.outputs + layer.outputs) * layer.weight.itemsize
        x = reference.mlp((layer,), x)
    return needed, x
