"""The precision of each layer, and int8's scales. Pure data: knows no CPU and no instruction.

    fp32    everything float32
    bf16    weights, activations and tables bfloat16, sums float32
    int8    weights signed bytes, one scale per output; tables signed bytes, one scale per table;
            activations bytes, one scale per row ("dynamic"), or scales found on calibration data ("static")

The first and the last layer stay float32 in bf16 and int8. They hold 0.3 % of the multiply-adds of the MLPerf model,
and rounding hurts most there: raw counts and the logit (tests/benchmarks/EXPERIMENTS.md). On AMX, which has no
float32, their first layer is bfloat16.

    bfloat16: the upper half of a float32, rounded to nearest even       (vcvtneps2bf16, with denormals kept)
    int8:     value = scale * q, q = round(value / scale) within -127 .. 127

-128 is left out, so that the range is symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .dlrm import Dlrm

PRECISIONS = ("fp32", "bf16", "int8")
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # of a value
ACTIVATION_SCALES = ("dynamic", "static")

LARGEST = 127


@dataclass(frozen=True, eq=False)
class LayerNumerics:
    """precision: of a layer's weights and inputs. Only for int8: signed: inputs may be negative; scales: [inputs]
    float32, of each input, None if each row has its own (dynamic); largest_weight: in steps of its scale.
    """

    precision: str = "fp32"
    signed: bool = False
    scales: np.ndarray | None = None
    largest_weight: int = LARGEST


@dataclass(frozen=True, eq=False)
class Numerics:
    """layers: of each layer, bottom first. Only for int8: table_scales [T] float32; x_scale: of x in the interaction,
    None if each item's x has its own (dynamic); calibration: the source of static scales, in words.
    """

    precision: str
    layers: tuple[LayerNumerics, ...]
    table_scales: np.ndarray | None = None
    x_scale: float | None = None
    calibration: str | None = None

    def output_scale(self, layer: int, model: Dlrm) -> float | np.ndarray | None:
        """The static scale of a layer's outputs, or of each, by which they are divided; None if dynamic. Not of the
        last layer."""
        num_bottom = len(model.bottom)
        if layer == num_bottom - 1:
            return self.x_scale
        if num_bottom <= layer < model.first_top:
            return model.interaction.output_scale(layer - num_bottom, self.interaction_scales(model))
        scales = self.layers[layer + 1].scales
        return None if scales is None else float(scales[0])

    def interaction_scales(self, model: Dlrm) -> list[np.ndarray | None]:
        """Of the inputs of the interaction's layers and of the first top layer."""
        return [each.scales for each in self.layers[len(model.bottom) : model.first_top + 1]]

    def vector_factors(self, model: Dlrm) -> np.ndarray:
        """[T] float32, only for int8: what bytes of tables are multiplied by in the interaction."""
        return model.interaction.vector_factors(self.table_scales, self.interaction_scales(model))

    @property
    def activation_scales(self) -> str | None:
        """One of ACTIVATION_SCALES for int8, None for others."""
        if self.precision != "int8":
            return None
        return "dynamic" if self.x_scale is None else "static"


def numerics_of(
    model: Dlrm,
    precision: str,
    table_scales: np.ndarray | None = None,
    *,
    first_layer: str = "fp32",
    largest_weight: int = LARGEST,
) -> Numerics:
    """A precision without calibration: int8's activation scales are dynamic.

    table_scales: [T] float32, for int8, as is largest_weight; first_layer: its precision in bf16 and int8.
    """
    if precision == "fp32":
        return Numerics("fp32", (LayerNumerics(),) * len(model.layers))
    inner = [LayerNumerics(precision, each, largest_weight=largest_weight) for each in signed_inputs(model)[1:-1]]
    return Numerics(precision, (LayerNumerics(first_layer), *inner, LayerNumerics()), table_scales)


def weight_bytes(model: Dlrm, numerics: Numerics, parts: int = 1) -> int:
    """Of all layers' weights, biases aside. parts: of bfloat16 that float32 weights are the sum of, the last layer's
    aside; 1: they are stored as they are."""
    of_value = BYTES if parts == 1 else {**BYTES, "fp32": parts * BYTES["bf16"]}
    *layers, (last, of_last) = zip(model.layers, numerics.layers)
    return last.weight.size * BYTES[of_last.precision] + sum(
        layer.weight.size * of_value[each.precision] for layer, each in layers
    )


def signed_inputs(model: Dlrm) -> list[bool]:
    """Per layer whether its inputs may be negative."""
    after = [layer.activation == "none" for layer in model.layers[:-1]]
    after[len(model.bottom) - 1] = True  # x and what it meets
    return [True, *after]


def int8_weights(weight: np.ndarray, steps: int = LARGEST) -> tuple[np.ndarray, np.ndarray]:
    """[outputs, inputs] float32 -> (scales [outputs], whole numbers of them within -steps .. steps as int8)"""
    scales = scales_of(np.abs(weight).max(axis=1), steps)
    return scales, to_int8(weight, scales[:, None], steps)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 of any shape -> the bits of bfloat16 as uint16. Overflow becomes infinite, NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    return np.where(nan, np.uint16(0x7FC0), rounded) if nan.any() else rounded


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """uint16 -> the float32 of the same value."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def scales_of(largest: np.ndarray, steps: int = LARGEST) -> np.ndarray:
    """float32 scales of ranges with these largest magnitudes, so many steps of them; 1 if all values are zeros or the
    smallest denormals."""
    scales = np.asarray(largest, np.float32) / np.float32(steps)
    return np.where(scales > 0, scales, np.float32(1)).astype(np.float32)


def to_int8(values: np.ndarray, scales: np.ndarray, steps: int = LARGEST) -> np.ndarray:
    """values / scales (broadcast) rounded to nearest even, within -steps .. steps: int8 array."""
    scaled = np.asarray(values, np.float32) / np.asarray(scales, np.float32)
    return np.clip(np.rint(scaled, out=scaled), -steps, steps, out=scaled).astype(np.int8)
