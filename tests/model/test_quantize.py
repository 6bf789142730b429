"""Narrow numbers against ml_dtypes and the formula: ties, limits, what is no number."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from dlrm_tvm.model.precision import from_bf16, scales_of, to_bf16, to_int8


def by_ml_dtypes(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def test_bf16_rounds_as_ml_dtypes_does_at_and_beside_every_tie():
    """All 65,536 upper halves, with the lower half at, below and above the tie: denormals, zeros, infinities too."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | np.uint32(lower)).view(np.float32)
        numbers = values[~np.isnan(values)]
        np.testing.assert_array_equal(to_bf16(numbers), by_ml_dtypes(numbers))


def test_bf16_of_the_largest_float_is_infinite_and_of_a_denormal_a_denormal():
    largest, least = np.finfo(np.float32).max, np.float32(2.0**-149)
    assert to_bf16(np.array([largest, -largest], np.float32)).tolist() == [0x7F80, 0xFF80]
    assert to_bf16(np.array([2.0**-133, least], np.float32)).tolist() == [1, 0]


def test_bf16_keeps_nan_whatever_its_bits_are():
    nans = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(from_bf16(to_bf16(nans))).all()
    mixed = np.concatenate([nans, np.float32([1.0, np.inf])])
    np.testing.assert_array_equal(from_bf16(to_bf16(mixed))[-2:], [1.0, np.inf])


def test_bf16_bits_come_back_as_the_numbers_they_are():
    bits = np.arange(1 << 16, dtype=np.uint16)
    np.testing.assert_array_equal(from_bf16(bits), bits.view(ml_dtypes.bfloat16).astype(np.float32))


def test_bf16_takes_arrays_of_any_shape_and_stride():
    values = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    for part in (values[::2, 1::3], values.T, values[:0], values[3]):
        np.testing.assert_array_equal(to_bf16(part), by_ml_dtypes(np.ascontiguousarray(part)))


def test_scales_bring_a_range_to_127_and_are_1_for_a_range_of_zeros():
    scales = scales_of(np.array([254.0, 1.0, 0.0, 3e38], np.float32))
    assert scales.dtype == np.float32
    np.testing.assert_array_equal(
        scales, np.float32([2.0, np.float32(1) / np.float32(127), 1.0, np.float32(3e38) / 127])
    )


def test_int8_rounds_ties_to_even_and_stays_within_127():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, 128.0, -127.5, -128.0, 1e30, -1e30, np.inf])
    wanted = [0, 2, 2, 0, -2, -2, 126, 127, 127, -127, -127, 127, -127, 127]
    got = to_int8(values, np.float32(1))
    assert (got.dtype, got.tolist()) == (np.int8, wanted)


def test_int8_divides_by_the_scales_that_are_broadcast():
    values = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    scales = scales_of(np.abs(values).max(axis=1))
    numbers = to_int8(values, scales[:, None])
    assert np.abs(numbers).max(axis=1).tolist() == [127] * 5
    assert np.all(np.abs(numbers * scales[:, None] - values) <= scales[:, None] * 0.5000001)


def test_a_range_of_the_least_denormals_has_a_scale_too():
    assert scales_of(np.float32([2.0**-149]))[0] > 0


@pytest.mark.parametrize("steps", [127, 64])
def test_no_value_is_beyond_the_steps_even_of_a_scale_that_denormals_round(steps):
    """95 of the smallest float32 in 64 steps are 1.48 of it a step, which is no float32."""
    for largest in np.float32([95 * 2.0**-149, 190 * 2.0**-149, 1e-38, 0.7, 3.4e38]):
        values = np.array([largest, -largest])
        assert np.abs(to_int8(values, scales_of(largest, steps), steps)).max() <= steps
