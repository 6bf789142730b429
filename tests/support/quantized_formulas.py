"""DLRM in bf16 and int8, item by item, from model/precision.py's description alone: what the NumPy reference of those
numbers, reference_quantized.py, is checked against. Rounds to bfloat16 by ml_dtypes; everything else is float64.

    bf16    weights, activations, rows and pooled bags are bfloat16
    int8    W[n] = scale[n] * whole numbers within 127; rows of a table = its scale * whole numbers;
            an activation's row = scale * whole numbers, its largest 127, or 255 where none is negative
            x = its own scale * whole numbers where it meets rows; a bag beyond 127 is brought back to that, and rounded
    cross   x0 and every x_l are bfloat16, or whole numbers of the scales of the layer that takes them; with dynamic
            scales float32, and only what a layer multiplies is rounded; a bag beyond 127 is cut off at x0's scale
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from quantized import rounded

from dlrm_tvm.model.dlrm import Dense, Dlrm, Table
from dlrm_tvm.model.interactions import Concat, Cross
from dlrm_tvm.model.precision import LayerNumerics, Numerics


def quantized_predictions(
    model: Dlrm, numerics: Numerics, dense: np.ndarray, indices: np.ndarray | Sequence, offsets: Sequence | None = None
) -> np.ndarray:
    """[items] float64; arguments as models.numpy_predictions has them."""
    if offsets is None:
        indices, offsets = list(np.asarray(indices).T), [np.arange(len(dense))] * len(model.tables)
    ends = [[*starts[1:], len(values)] for values, starts in zip(indices, offsets)]
    bags = [
        [values[starts[item] : stops[item]] for values, starts, stops in zip(indices, offsets, ends)]
        for item in range(len(dense))
    ]
    return np.array([_prediction(model, numerics, *each) for each in zip(dense, bags)])


def _prediction(model: Dlrm, numerics: Numerics, dense: np.ndarray, bags: list[np.ndarray]) -> float:
    layers = list(zip(model.layers, numerics.layers))
    x = dense.astype(np.float32)
    for layer in layers[: len(model.bottom)]:
        x = _outputs(*layer, x)
    scales = [None] * len(bags) if numerics.table_scales is None else numerics.table_scales
    joins_bytes = isinstance(model.interaction, Concat) and layers[len(model.bottom)][1].scales is not None
    kinds = [(numerics.precision, joins_bytes)] * len(bags)
    vectors = [_as_row(numerics, x), *map(_pooled, kinds, model.tables, bags, scales)]
    if isinstance(model.interaction, Cross):
        top = _crossed(model.interaction, iter(layers[len(model.bottom) :]), np.concatenate([x, *vectors[1:]]))
    elif model.interaction == Concat():
        top = np.concatenate([x, *vectors[1:]])
    else:
        pairs = model.interaction.pairs(len(vectors))
        top = np.concatenate([x, [vectors[i] @ vectors[j] for i, j in pairs]])
    for layer in layers[len(layers) - len(model.top) :]:
        top = _outputs(*layer, top.astype(np.float32))
    least, most = model.clamp or (-np.inf, np.inf)
    return min(max(float(top[0]), least), most)


def _crossed(interaction: Cross, layers: Iterator, x0: np.ndarray) -> np.ndarray:
    x, first = x0.astype(np.float32), None
    for crossing in interaction.crossings:
        own = [next(layers) for _ in crossing]
        gate = x = _kept(own[0][1], x)
        first = x if first is None else first
        for each in own:
            gate = _outputs(*each, gate)
        x = first * gate + x
    return x


def _kept(numerics: LayerNumerics, x: np.ndarray) -> np.ndarray:
    """As the layer with these numerics takes it."""
    if numerics.precision == "bf16":
        return rounded(x)
    return x if numerics.scales is None else numerics.scales * np.clip(np.rint(x / numerics.scales), -128, 127)


def _outputs(layer: Dense, numerics: LayerNumerics, x: np.ndarray) -> np.ndarray:
    x, weight = x.astype(np.float64), layer.weight.astype(np.float64)
    if numerics.precision == "bf16":
        x, weight = rounded(x).astype(np.float64), rounded(weight).astype(np.float64)
    elif numerics.precision == "int8":
        most = 127 if numerics.signed else 255
        if numerics.scales is None:
            x = in_scale(x, np.abs(x).max() / most, most)
        else:
            scales = numerics.scales.astype(np.float64)
            x, weight = np.clip(np.rint(x / scales), -128 if numerics.signed else 0, most), weight * scales
        steps = numerics.largest_weight
        weight = np.array([in_scale(row, np.abs(row).max() / steps, steps) for row in weight])
    y = weight @ x + layer.bias
    if layer.activation == "relu":
        y = np.maximum(y, 0)
    elif layer.activation == "sigmoid":
        y = 1 / (1 + np.exp(-y))
    return y.astype(np.float32)


def in_scale(values: np.ndarray, scale: float, most: int) -> np.ndarray:
    """The nearest multiples of the scale, at most `most` of them."""
    if scale == 0:
        return np.zeros_like(values)
    return scale * np.clip(np.rint(values / scale), -most, most)


def _as_row(numerics: Numerics, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    if numerics.precision == "bf16":
        return rounded(x).astype(np.float64)
    if numerics.x_scale is not None:
        return numerics.x_scale * np.clip(np.rint(x / numerics.x_scale), -128, 127)
    return in_scale(x, np.abs(x).max() / 127, 127)


def _pooled(kind: tuple[str, bool], table: Table, bag: np.ndarray, scale: float | None) -> np.ndarray:
    """kind: precision, and whether sums stay as they are."""
    (precision, is_whole), total = kind, np.zeros(table.dim)
    for index in bag:
        row = table.rows[index] * (np.float32(1) if table.row_weights is None else table.row_weights[index])
        total += rounded(row) if precision == "bf16" else in_scale(row.astype(np.float64), float(scale), 127)
    if table.pooling == "mean" and len(bag):
        total /= len(bag)
    if precision == "bf16":
        return rounded(total).astype(np.float64)
    if is_whole:
        return total
    return in_scale(total, max(float(scale), np.abs(total).max() / 127), 127)
