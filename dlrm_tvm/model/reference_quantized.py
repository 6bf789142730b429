"""The model in bf16 or int8 in plain NumPy. Libraries of these precisions are checked against it.

From the formulas in precision.py, in the model's order of columns: no tiles, no packing, nothing of the kernels.
Sums of bf16 products are float64, so a library may round a sum that lies halfway between two numbers the other way.
Sums of int8 products are integers, exact on both sides.

Where an activation has a static scale, the layer that computes it divides its weights and bias by that scale, as in a
library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .dlrm import Dense, Dlrm, Table
from .layers import Outputs
from .precision import LayerNumerics, Numerics, from_bf16, int8_weights, to_bf16, to_int8
from .reference import Indices, activate, bag_sums, per_table


def predict(
    model: Dlrm,
    numerics: Numerics,
    dense: np.ndarray,
    indices: Indices,
    offsets: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """As reference.predict, with the roundings of `numerics`: predictions [n] float64."""
    num_bottom, last = len(model.bottom), len(model.layers) - 1

    def outputs(at: int, x: np.ndarray) -> np.ndarray:
        scale = None if at == last else numerics.output_scale(at, model)
        return _scaled_outputs(model.layers[at], scale, numerics.layers[at], x)

    x = dense.astype(np.float32)
    for at in range(num_bottom):
        x = outputs(at, x)
    indices, offsets = per_table(indices, offsets)
    factors = [None] * len(model.tables) if numerics.table_scales is None else numerics.vector_factors(model)
    whole = model.interaction.takes_sums(numerics.interaction_scales(model))
    bags = zip(model.tables, indices, offsets)
    pooled = [_bags(numerics, at, *each, factors[at], whole) for at, each in enumerate(bags)]
    vectors = [_x(numerics, x), *pooled]
    x = _join(model, numerics, x, vectors, lambda at, x: outputs(num_bottom + at, x))
    for at in range(model.first_top, last + 1):
        x = outputs(at, x)
    predictions = x[:, 0].astype(np.float64)
    return predictions if model.clamp is None else np.clip(predictions, *model.clamp)


def _scaled_outputs(
    layer: Dense, scale: float | np.ndarray | None, numerics: LayerNumerics, x: np.ndarray
) -> np.ndarray:
    """A layer's outputs divided by the scale, if there is one, or one for each. A sigmoid's are divided at the end."""
    if scale is None:
        return layer_outputs(layer, numerics, x)
    if layer.activation == "sigmoid":
        return layer_outputs(layer, numerics, x) * np.float32(1 / scale)
    each = np.broadcast_to(np.float32(scale), layer.bias.shape)
    small = replace(layer, weight=layer.weight / each[:, None], bias=layer.bias / each)
    return layer_outputs(small, numerics, x)


def layer_outputs(layer: Dense, numerics: LayerNumerics, x: np.ndarray) -> np.ndarray:
    """x [n, inputs] float32, divided by numerics.scales if there are any -> [n, outputs]"""
    if numerics.precision == "int8":
        sums, scale = _int8_sums(layer, numerics, x)
        return activate((sums * scale.astype(np.float64) + layer.bias).astype(np.float32), layer.activation)
    weight = layer.weight
    if numerics.precision == "bf16":
        x, weight = round_bf16(x), round_bf16(weight)
    values = x.astype(np.float64) @ weight.astype(np.float64).T + layer.bias
    return activate(values.astype(np.float32), layer.activation)


def _int8_sums(layer: Dense, numerics: LayerNumerics, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sums of integer products [n, outputs], their scales [n or 1, outputs] float32)"""
    scales, weight = np.ones((1, 1), np.float32), layer.weight
    if numerics.scales is None:
        x, scales = row_bytes(x, 127 if numerics.signed else 255)
    else:
        low, high = (-128, 127) if numerics.signed else (0, 255)
        x, weight = np.clip(np.rint(x), low, high), weight * numerics.scales
    scale, weight = int8_weights(weight, numerics.largest_weight)
    return x.astype(np.float64) @ weight.astype(np.float64).T, scale[None] * scales


def row_bytes(x: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """[n, k] float32 -> (integers [n, k], the largest magnitude of each row `most`; scales [n, 1] float32)"""
    largest = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(most) / largest
    inverse = np.where(np.isinf(inverse), np.float32(0), inverse)  # a row of zeros, or of denormals
    return np.rint(x * inverse), largest * np.float32(1 / most)


def _join(model: Dlrm, numerics: Numerics, x: np.ndarray, vectors: list, outputs: Outputs) -> np.ndarray:
    """The top MLP's input [n, top_inputs] float32, divided by that layer's scales if it has any.

    x: [n, D] as the bottom MLP gives it; vectors: (numbers [n, D], factors [n] float32) of each, x among them;
    outputs: of the interaction's layers.
    """
    numbers = np.stack([numbers for numbers, _ in vectors], axis=1).astype(np.float64)
    factors = np.stack([factor for _, factor in vectors], axis=1)
    scales = numerics.interaction_scales(model)
    return model.interaction.join_quantized(
        x, numbers, factors, outputs, x_scale=numerics.x_scale, scales=scales, rounded=_rounding(numerics)
    )


def _rounding(numerics: Numerics) -> Callable[[np.ndarray], np.ndarray]:
    """Of values that are kept from layer to layer: with dynamic scales float32."""
    if numerics.precision == "bf16":
        return round_bf16
    if numerics.x_scale is None:
        return lambda values: values
    return lambda values: np.clip(np.rint(values), -128, 127).astype(np.float32)


def _x(numerics: Numerics, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x as the interaction takes it: (numbers [n, D], factors [n])"""
    if numerics.precision == "bf16":
        return round_bf16(x), np.ones(len(x), np.float32)
    if numerics.x_scale is None:
        numbers, scales = row_bytes(x, 127)
        return numbers, scales[:, 0]
    return np.clip(np.rint(x), -128, 127), np.full(len(x), np.float32(numerics.x_scale))


def _bags(
    numerics: Numerics,
    at: int,
    table: Table,
    indices: np.ndarray,
    offsets: np.ndarray,
    factor: np.float32 | None,
    whole: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled rows of table `at`: (numbers [n, D], factors [n]); whole: int8's sums as they are, even beyond a byte."""
    indices = indices % table.num_rows if table.wraps else indices
    rows, is_bf16 = table.rows[indices].astype(np.float32), numerics.precision == "bf16"
    if table.row_weights is not None:
        rows = rows * table.row_weights[indices].astype(np.float32)[:, None]
    numbers = round_bf16(rows) if is_bf16 else to_int8(rows, numerics.table_scales[at]).astype(np.float32)
    sums, counts = bag_sums(numbers, offsets)
    if table.pooling == "mean":
        sums = sums * (np.float32(1) / np.maximum(counts, 1).astype(np.float32))[:, None]
    if is_bf16:
        return round_bf16(sums), np.ones(len(sums), np.float32)
    if whole:
        return sums, np.full(len(sums), factor)
    beyond = np.maximum(np.abs(sums).max(axis=1) * np.float32(1 / 127), np.float32(1)).astype(np.float32)
    return np.rint(sums * (np.float32(1) / beyond)[:, None]), factor * beyond


def round_bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> the nearest bfloat16, as float32."""
    return from_bf16(to_bf16(values))
