"""Narrow numbers in plain NumPy: bfloat16 rounding, int8 steps. Knows neither models nor TVM.

    bfloat16: the upper half of a float32, rounded to nearest even       (vcvtneps2bf16, with denormals kept)
    int8:     value = step * q, q = round(value / step) within -127 .. 127

-128 is left out, so that a range is as long on both sides of zero.
"""

from __future__ import annotations

import numpy as np

LARGEST = 127


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 of any shape -> uint16, bit for bit bfloat16; finite values stay finite or become infinite as IEEE has
    it, NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    return np.where(nan, np.uint16(0x7FC0), rounded) if nan.any() else rounded


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """uint16 -> the float32 of the same value."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def steps_of(largest: np.ndarray) -> np.ndarray:
    """float32 steps for ranges of these magnitudes; 1 for a range that has none, of zeros or the least denormals, whose
    q are 0 whatever the step."""
    steps = np.asarray(largest, np.float32) / np.float32(LARGEST)
    return np.where(steps > 0, steps, np.float32(1)).astype(np.float32)


def to_int8(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """values / steps (broadcast) rounded to nearest even, within -127 .. 127: int8."""
    scaled = np.asarray(values, np.float32) / np.asarray(steps, np.float32)
    return np.clip(np.rint(scaled), -LARGEST, LARGEST).astype(np.int8)
