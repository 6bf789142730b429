"""ONNX operators that move data or do arithmetic on constants, as NumPy functions with the operators' signatures.

Inputs are positional, attributes keywords: `axes` came as an attribute up to opset 12 and as an input after it, and
both reach the same parameter. An attribute that is not listed raises TypeError, so that no meaning is dropped in
silence. (ONNX operator schemas, opset 9 to 18.) The functions of `MOVES` are given symbol numbers as well as values:
they may move elements, never compute with them. What does not fit raises ValueError, IndexError or TypeError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import numpy as np
import onnx

# An end of a Slice that means "to the end": exporters write INT64_MAX or INT32_MAX.
_OPEN_END = 2**31 - 1


def concat(*arrays: np.ndarray, axis: int) -> np.ndarray:
    ranks = {array.ndim for array in arrays}
    if len(ranks) != 1 or not -min(ranks) <= axis < min(ranks):
        raise ValueError(f"joins arrays of rank {sorted(ranks)} on axis {axis}")
    if len({tuple(np.delete(array.shape, axis)) for array in arrays}) != 1:
        shapes = ", ".join(str(shape) for shape in dict.fromkeys(array.shape for array in arrays))
        raise ValueError(f"joins shapes {shapes} on axis {axis}")
    return np.concatenate(arrays, axis)


def expand(data: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape)))


def flatten(data: np.ndarray, *, axis: int = 1) -> np.ndarray:
    if not -data.ndim <= axis <= data.ndim:
        raise ValueError(f"flattens rank {data.ndim} at axis {axis}")
    axis += data.ndim if axis < 0 else 0
    return data.reshape(math.prod(data.shape[:axis]), math.prod(data.shape[axis:]))


def gather(data: np.ndarray, indices: np.ndarray, *, axis: int = 0) -> np.ndarray:
    return np.take(data, indices, axis=axis)


def gather_nd(data: np.ndarray, indices: np.ndarray, *, batch_dims: int = 0) -> np.ndarray:
    if batch_dims:
        raise ValueError(f"gathers with batch_dims = {batch_dims}, only 0 is read")
    return data[tuple(np.moveaxis(indices, -1, 0))]


def gather_elements(data: np.ndarray, indices: np.ndarray, *, axis: int = 0) -> np.ndarray:
    return np.take_along_axis(data, indices, axis)


def identity(data: np.ndarray) -> np.ndarray:
    return data


def reshape(data: np.ndarray, shape: np.ndarray, *, allowzero: int = 0) -> np.ndarray:
    sizes = [int(size) for size in shape]
    if min(sizes, default=0) < -1:  # NumPy takes any negative size for -1
        raise ValueError(f"reshapes to {sizes}")
    kept = [data.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes)]
    return data.reshape(kept)


def slice_(
    data: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> np.ndarray:
    """An end or start that the probe's sizes clip, though a larger batch would not, is refused: it is no "all"."""
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        if step <= 0:
            raise ValueError(f"slices with step {step}, only positive ones are read")
        if not -size <= start <= size or (not -size <= end <= size and end < _OPEN_END):
            raise ValueError(f"slices {start}:{end} out of {size} elements")
        everything = [slice(None)] * data.ndim
        everything[axis] = slice(int(start), int(end), int(step))
        data = data[tuple(everything)]
    return data


def split(
    data: np.ndarray, split: np.ndarray | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[np.ndarray, ...]:
    """outputs: how many names the node gives its results."""
    size = data.shape[axis]
    if split is None:
        if size % outputs or num_outputs not in (None, outputs):
            raise ValueError(f"splits {size} elements into {outputs} unequal parts")
        split = [size // outputs] * outputs
    if len(split) != outputs or sum(split) != size:
        raise ValueError(f"splits {size} elements into parts of {list(split)} for {outputs} outputs")
    return tuple(np.split(data, np.cumsum(split)[:-1], axis))


def squeeze(data: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    # Without axes the result's rank hangs on which sizes happen to be 1: on the batch, for one.
    if axes is None and data.shape != (1,):
        raise ValueError("squeezes without saying which axes")
    axes = range(data.ndim) if axes is None else axes
    return np.squeeze(data, tuple(int(axis) for axis in axes))


def transpose(data: np.ndarray, *, perm: list[int] | None = None) -> np.ndarray:
    return np.transpose(data, perm)


def unsqueeze(data: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.expand_dims(data, tuple(int(axis) for axis in axes))


def shape(data: np.ndarray, *, start: int = 0, end: int | None = None) -> np.ndarray:
    return np.array(data.shape[start:end], np.int64)


def size(data: np.ndarray) -> np.ndarray:
    return np.array(data.size, np.int64)


def cast(data: np.ndarray, *, to: int) -> np.ndarray:
    return data.astype(onnx.helper.tensor_dtype_to_np_dtype(to))


def cast_like(data: np.ndarray, like: np.ndarray) -> np.ndarray:
    return data.astype(like.dtype)


def constant_of_shape(shape: np.ndarray, *, value: np.ndarray | None = None) -> np.ndarray:
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(tuple(shape), fill[0], fill.dtype)


def range_(start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    return np.arange(start, limit, delta, dtype=start.dtype)


def divide(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.dtype.kind == "f":
        return np.divide(left, right)
    if not np.all(right):
        raise ValueError("divides whole numbers by 0")
    return (np.sign(left) * np.sign(right) * (np.abs(left) // np.abs(right))).astype(left.dtype)  # towards 0, as in C


def where(condition: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return _alike(lambda a, b: np.where(condition, a, b))(left, right)


def _alike(compute: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """`compute` for two arrays of one type, as ONNX's arithmetic asks for."""

    def checked(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if left.dtype != right.dtype:
            raise TypeError(f"mixes {left.dtype} and {right.dtype}")
        return compute(left, right)

    return checked


def _all_together(compute: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """`compute` over any number of arrays, pair by pair."""
    return lambda *arrays: reduce(_alike(compute), arrays)


MOVES: dict[str, Callable] = {
    "Concat": concat,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherND": gather_nd,
    "Identity": identity,
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
ON_CONSTANTS: dict[str, Callable] = MOVES | {
    "Add": _alike(np.add),
    "And": _alike(np.logical_and),
    "Cast": cast,
    "CastLike": cast_like,
    "ConstantOfShape": constant_of_shape,
    "Div": _alike(divide),
    "Equal": _alike(np.equal),
    "GatherElements": gather_elements,
    "Greater": _alike(np.greater),
    "GreaterOrEqual": _alike(np.greater_equal),
    "Less": _alike(np.less),
    "LessOrEqual": _alike(np.less_equal),
    "Max": _all_together(np.maximum),
    "Min": _all_together(np.minimum),
    "Mul": _alike(np.multiply),
    "Not": np.logical_not,
    "Or": _alike(np.logical_or),
    "Range": range_,
    "Shape": shape,
    "Size": size,
    "Sub": _alike(np.subtract),
    "Where": where,
}
# These return a view of a constant, so a table of any size may pass; the others would load it.
VIEWS = ("Flatten", "Identity", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
