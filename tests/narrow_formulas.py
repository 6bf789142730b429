"""DLRM in bf16 and int8, item by item, from dlrm_tvm/numerics.py's description alone: what the NumPy reference of those
numbers, reference_narrow.py, is checked against. Rounds to bfloat16 by ml_dtypes; everything else is float64.

    bf16    weights, activations, rows and pooled bags are bfloat16
    int8    W[n] = scale[n] * whole numbers within 127; rows of a table = its step * whole numbers;
            an activation's row = step * whole numbers, its largest 127, or 255 where none is negative
            x = its own step * whole numbers where it meets rows; a bag beyond 127 is brought back to that, and rounded
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from narrow import rounded

from dlrm_tvm.model import Dense, Dlrm, Table
from dlrm_tvm.numerics import LayerNumerics, Numerics


def narrow_predictions(
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
    steps = [None] * len(bags) if numerics.table_steps is None else numerics.table_steps
    vectors = [_as_row(numerics, x), *map(_pooled, [numerics.precision] * len(bags), model.tables, bags, steps)]
    if model.interaction.kind == "cat":
        top = np.concatenate(vectors)
    else:
        top = np.concatenate([x, [vectors[i] @ vectors[j] for i, j in model.pairs]])
    for layer in layers[len(model.bottom) :]:
        top = _outputs(*layer, top.astype(np.float32))
    least, most = model.clamp or (-np.inf, np.inf)
    return min(max(float(top[0]), least), most)


def _outputs(layer: Dense, numerics: LayerNumerics, x: np.ndarray) -> np.ndarray:
    x, weight = x.astype(np.float64), layer.weight.astype(np.float64)
    if numerics.precision == "bf16":
        x, weight = rounded(x).astype(np.float64), rounded(weight).astype(np.float64)
    elif numerics.precision == "int8":
        most = 127 if numerics.signed else 255
        if numerics.steps is None:
            x = in_steps(x, np.abs(x).max() / most, most)
        else:
            steps = numerics.steps.astype(np.float64)
            x, weight = np.clip(np.rint(x / steps), -128 if numerics.signed else 0, most), weight * steps
        weight = np.array([in_steps(row, np.abs(row).max() / 127, 127) for row in weight])
    y = weight @ x + layer.bias
    if layer.activation == "relu":
        y = np.maximum(y, 0)
    elif layer.activation == "sigmoid":
        y = 1 / (1 + np.exp(-y))
    return y.astype(np.float32)


def in_steps(values: np.ndarray, step: float, most: int) -> np.ndarray:
    """The nearest multiples of the step, at most `most` of them."""
    if step == 0:
        return np.zeros_like(values)
    return step * np.clip(np.rint(values / step), -most, most)


def _as_row(numerics: Numerics, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    if numerics.precision == "bf16":
        return rounded(x).astype(np.float64)
    if numerics.x_step is not None:
        return numerics.x_step * np.clip(np.rint(x / numerics.x_step), -128, 127)
    return in_steps(x, np.abs(x).max() / 127, 127)


def _pooled(precision: str, table: Table, bag: np.ndarray, step: float | None) -> np.ndarray:
    total = np.zeros(table.dim)
    for index in bag:
        row = table.rows[index] * (np.float32(1) if table.row_weights is None else table.row_weights[index])
        total += rounded(row) if precision == "bf16" else in_steps(row.astype(np.float64), float(step), 127)
    if table.pooling == "mean" and len(bag):
        total /= len(bag)
    if precision == "bf16":
        return rounded(total).astype(np.float64)
    return in_steps(total, max(float(step), np.abs(total).max() / 127), 127)
