"""The model in bf16 or int8 in plain NumPy: what a library of those numbers is checked against.

From the formulas in numerics.py, in the model's own order of columns: no tiles, no packing, nothing of the kernels.
Sums of bf16 products are float64, so a library may differ where a sum lies on the border between two numbers, and what
follows from that; sums of int8 products are whole numbers, exact on both sides.

What is in steps given beforehand is counted in them from the layer on that makes it, as in a library: its weights and
bias are divided by the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .model import Dense, Dlrm, Table
from .numerics import LayerNumerics, Numerics
from .quantize import from_bf16, steps_of, to_bf16, to_int8
from .reference import Indices, activate, bag_sums, per_table


def predict(
    model: Dlrm,
    numerics: Numerics,
    dense: np.ndarray,
    indices: Indices,
    offsets: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """As reference.predict, in the numbers of `numerics`: predictions [n] float64."""
    first_top, last = len(model.bottom), len(model.layers) - 1

    def outputs(at: int, x: np.ndarray) -> np.ndarray:
        step = None if at == last else numerics.output_step(at, first_top)
        return _in_steps(model.layers[at], step, numerics.layers[at], x)

    x = dense.astype(np.float32)
    for at in range(first_top):
        x = outputs(at, x)
    indices, offsets = per_table(indices, offsets)
    steps = numerics.table_steps if numerics.table_steps is not None else [None] * len(model.tables)
    vectors = [_x(numerics, x), *map(_bags, [numerics.precision] * len(steps), model.tables, steps, indices, offsets)]
    x = interact(model, numerics, x, vectors)
    for at in range(first_top, last + 1):
        x = outputs(at, x)
    predictions = x[:, 0].astype(np.float64)
    return predictions if model.clamp is None else np.clip(predictions, *model.clamp)


def _in_steps(layer: Dense, step: float | None, numerics: LayerNumerics, x: np.ndarray) -> np.ndarray:
    """A layer's outputs, in steps where there are any. A sigmoid cannot be had from smaller weights."""
    if step is None:
        return layer_outputs(layer, numerics, x)
    if layer.activation == "sigmoid":
        return layer_outputs(layer, numerics, x) * np.float32(1 / step)
    small = replace(layer, weight=layer.weight / np.float32(step), bias=layer.bias / np.float32(step))
    return layer_outputs(small, numerics, x)


def layer_outputs(layer: Dense, numerics: LayerNumerics, x: np.ndarray) -> np.ndarray:
    """x [n, inputs] float32, values as the model has them, or in numerics.steps where it has any -> [n, outputs]."""
    if numerics.precision == "int8":
        sums, scale = _int8_sums(layer, numerics, x)
        return activate((sums * scale.astype(np.float64) + layer.bias).astype(np.float32), layer.activation)
    weight = layer.weight
    if numerics.precision == "bf16":
        x, weight = round_bf16(x), round_bf16(weight)
    values = x.astype(np.float64) @ weight.astype(np.float64).T + layer.bias
    return activate(values.astype(np.float32), layer.activation)


def _int8_sums(layer: Dense, numerics: LayerNumerics, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sums of whole numbers [n, outputs], what they are in steps of [n or 1, outputs] float32)"""
    steps, weight = np.ones((1, 1), np.float32), layer.weight
    if numerics.steps is None:
        x, steps = row_bytes(x, 127 if numerics.signed else 255)
    else:
        low, high = (-128, 127) if numerics.signed else (0, 255)
        x, weight = np.clip(np.rint(x), low, high), weight * numerics.steps
    scale = steps_of(np.abs(weight).max(axis=1))
    return x.astype(np.float64) @ to_int8(weight, scale[:, None]).astype(np.float64).T, scale[None] * steps


def row_bytes(x: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """[n, k] float32 -> (whole numbers [n, k] whose largest magnitude is `most`, steps [n, 1] float32)"""
    largest = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(most) / largest
    inverse = np.where(np.isinf(inverse), np.float32(0), inverse)  # a row as good as zero
    return np.rint(x * inverse), largest * np.float32(1 / most)


def interact(model: Dlrm, numerics: Numerics, x: np.ndarray, vectors: list) -> np.ndarray:
    """x [n, D] as the bottom MLP gives it, vectors: per vector (whole numbers or values [n, D], factors [n] float32)
    -> the top MLP's input [n, top_inputs] float32, in steps where that layer has any."""
    if model.interaction.kind == "cat":
        return np.concatenate([values for values, _ in vectors], axis=1).astype(np.float32)
    values = np.stack([values for values, _ in vectors], axis=1).astype(np.float64)
    factors = np.stack([factor for _, factor in vectors], axis=1)
    products = (values @ values.transpose(0, 2, 1)).astype(np.float32)
    i, j = np.array(model.pairs, dtype=np.int64).reshape(-1, 2).T
    dots = products[:, i, j] * (factors[:, i] * factors[:, j])
    steps = numerics.layers[len(model.bottom)].steps
    if steps is not None:
        dots = dots * (1 / steps[model.dim :])
    elif numerics.x_step is not None:
        x = x * np.float32(numerics.x_step)
    return np.concatenate([x, dots], axis=1)


def _x(numerics: Numerics, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x as the interaction takes it: (numbers [n, D], factors [n])"""
    if numerics.precision == "bf16":
        return round_bf16(x), np.ones(len(x), np.float32)
    if numerics.x_step is None:
        numbers, steps = row_bytes(x, 127)
        return numbers, steps[:, 0]
    return np.clip(np.rint(x), -128, 127), np.full(len(x), np.float32(numerics.x_step))


def _bags(
    precision: str, table: Table, step: np.float32 | None, indices: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled rows of one table: (numbers [n, D], factors [n])"""
    rows = table.rows[indices].astype(np.float32)
    if table.row_weights is not None:
        rows = rows * table.row_weights[indices].astype(np.float32)[:, None]
    numbers = round_bf16(rows) if precision == "bf16" else to_int8(rows, step).astype(np.float32)
    sums, counts = bag_sums(numbers, offsets)
    if table.pooling == "mean":
        sums = sums * (np.float32(1) / np.maximum(counts, 1).astype(np.float32))[:, None]
    if precision == "bf16":
        return round_bf16(sums), np.ones(len(sums), np.float32)
    beyond = np.maximum(np.abs(sums).max(axis=1) * np.float32(1 / 127), np.float32(1)).astype(np.float32)
    return np.rint(sums * (np.float32(1) / beyond)[:, None]), step * beyond


def round_bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> the nearest bfloat16, as float32."""
    return from_bf16(to_bf16(values))
