"""ONNX operators that move data or do arithmetic on constants, as NumPy functions with the operators' signatures.

Inputs are positional, attributes keywords. `axes` is an attribute up to opset 12 and an input since: both reach the
same parameter. An attribute that is not listed raises TypeError, so no meaning is dropped silently. (ONNX operator
schemas, opset 9 to 18.) The functions of `MOVES` are given symbol numbers as well as values: they may move elements,
never compute with them. Misfits raise ValueError, IndexError or TypeError.

Written by hand, as onnx.reference refuses too little: its Slice, Split, Reshape, GatherElements and Div accept what a
larger batch would break or no runtime runs, and its Identity copies tables (tests/benchmarks/EXPERIMENTS.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import numpy as np
import onnx

from .sizes import check_constants

# An end of a Slice that means "to the end": exporters write INT64_MAX or INT32_MAX.
_OPEN_END = 2**31 - 1
OF_SMALL_FLOATS = ("saturate", "round_mode")  # attributes of Cast that matter for float8 alone


def evaluate(operator: str, inputs: list[np.ndarray | None], attributes: dict) -> np.ndarray | tuple:
    """One of `ON_CONSTANTS`; CastLike reads its first alone. Raises ValueError where a large table would be loaded."""
    if operator not in _VIEWS:
        check_constants(operator, inputs[: 1 if operator == "CastLike" else None], attributes)
    return ON_CONSTANTS[operator](*inputs, **attributes)


def constant(**attributes: object) -> np.ndarray:
    """The value of a Constant node, in any of its forms."""
    ((form, value),) = attributes.items()
    dtypes = {"value": None, "value_int": np.int64, "value_ints": np.int64, "value_float": "f4", "value_floats": "f4"}
    if form not in dtypes:
        raise ValueError(f"holds its value as {form}")
    return np.asarray(value, dtypes[form])


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
    kept = [place for place in range(data.ndim) if place != axis % data.ndim]
    if data.ndim != indices.ndim or any(data.shape[place] != indices.shape[place] for place in kept):
        raise ValueError(f"gathers elements of {data.shape} by indices {indices.shape}")
    return np.take_along_axis(data, indices, axis)


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
    """A start or end that clips at the probe's sizes is refused: at a larger batch it would not clip."""
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        if step == 0:
            raise ValueError("slices with step 0")
        to_the_end = end >= _OPEN_END if step > 0 else end <= -_OPEN_END
        if not -size <= start <= (size if step > 0 else size - 1) or not (to_the_end or -size <= end <= size):
            raise ValueError(f"slices {start}:{end} out of {size} elements")
        everything = [slice(None)] * data.ndim
        everything[axis] = slice(int(start), None if to_the_end else int(end), int(step))
        data = data[tuple(everything)]
    return data


def split(
    data: np.ndarray, split: np.ndarray | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[np.ndarray, ...]:
    """outputs: the number of the node's outputs."""
    size = data.shape[axis]
    if split is None:
        if size % outputs or num_outputs not in (None, outputs):
            raise ValueError(f"splits {size} elements into {outputs} unequal parts")
        split = [size // outputs] * outputs
    if len(split) != outputs or sum(split) != size:
        raise ValueError(f"splits {size} elements into parts of {list(split)} for {outputs} outputs")
    return tuple(np.split(data, np.cumsum(split)[:-1], axis))


def squeeze(data: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """Without axes the rank of the result depends on which sizes are 1; runs of one item and of several show that."""
    return np.squeeze(data, None if axes is None else tuple(int(axis) for axis in axes))


def transpose(data: np.ndarray, *, perm: list[int] | None = None) -> np.ndarray:
    return np.transpose(data, perm)


def unsqueeze(data: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.expand_dims(data, tuple(int(axis) for axis in axes))


def shape(data: np.ndarray, *, start: int = 0, end: int | None = None) -> np.ndarray:
    return np.array(data.shape[start:end], np.int64)


def size(data: np.ndarray) -> np.ndarray:
    return np.array(data.size, np.int64)


def cast(data: np.ndarray, *, to: int) -> np.ndarray:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(to)
    if "float8" in dtype.name:
        raise ValueError("casts to float8")
    return data.astype(dtype)


def cast_like(data: np.ndarray, like: np.ndarray) -> np.ndarray:
    return data.astype(like.dtype)


def constant_of_shape(shape: np.ndarray, *, value: np.ndarray | None = None) -> np.ndarray:
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(tuple(shape), fill[0], fill.dtype)


def divide(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.dtype.kind == "f":
        return np.divide(left, right)
    if not np.all(right):
        raise ValueError("divides whole numbers by 0")
    return left // right + ((left % right != 0) & ((left < 0) != (right < 0)))  # towards 0, as in C


def where(condition: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return _alike(lambda a, b: np.where(condition, a, b))(left, right)


def _alike(compute: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """`compute` for two arrays of one type, as ONNX's arithmetic requires."""

    def checked(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if left.dtype != right.dtype:
            raise TypeError(f"mixes {left.dtype} and {right.dtype}")
        return compute(left, right)

    return checked


def _all_together(compute: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """`compute` over any number of arrays, pair by pair."""
    return lambda *arrays: reduce(_alike(compute), arrays)


def is_float(dtype: np.dtype) -> bool:
    """bfloat16 and others that NumPy lacks too."""
    return dtype.kind == "f" or "float" in dtype.name


def compress(data: np.ndarray, condition: np.ndarray, *, axis: int | None = None) -> np.ndarray:
    return np.compress(condition, data, axis=axis)


def dropout(
    data: np.ndarray, ratio: np.ndarray | None = None, training: np.ndarray | None = None, *, seed: int = 0
) -> np.ndarray:
    if training is not None and training.any():
        raise ValueError("drops values at random, as in training")
    return data


def dequantize(
    data: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, *, axis: int = 1, block_size: int = 0
) -> np.ndarray:
    if scale.size != 1 or block_size:
        raise ValueError("has several scales")
    return (data.astype(np.int32) - (0 if zero is None else zero.astype(np.int32))).astype(scale.dtype) * scale


def modulo(left: np.ndarray, right: np.ndarray, *, fmod: int = 0) -> np.ndarray:
    if left.dtype.kind in "iu" and not np.all(right):
        raise ValueError("divides whole numbers by 0")
    return (np.fmod if fmod else np.mod)(left, right)


def product(data: np.ndarray, axes: np.ndarray | None = None, *, keepdims: int = 1) -> np.ndarray:
    """The number of elements of a shape, as exporters compute it."""
    axes = None if axes is None else tuple(int(axis) for axis in axes)
    return np.prod(data, axes, data.dtype, keepdims=bool(keepdims))


def scatter_elements(
    data: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, axis: int = 0, reduction: bytes = b"none"
) -> np.ndarray:
    if reduction != b"none":
        raise ValueError("adds up what it scatters")
    changed = data.copy()
    np.put_along_axis(changed, indices, updates.astype(data.dtype), axis)
    return changed


def sigmoid(data: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-data.astype(np.float64)))).astype(data.dtype)


def trilu(data: np.ndarray, k: np.ndarray | None = None, *, upper: int = 1) -> np.ndarray:
    return (np.triu if upper else np.tril)(data, 0 if k is None else int(k))


MOVES: dict[str, Callable] = {
    "Compress": compress,
    "Concat": concat,
    "Dropout": dropout,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Identity": lambda data: data,
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": lambda data, repeats: np.tile(data, repeats),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
ON_CONSTANTS: dict[str, Callable] = MOVES | {
    "Abs": np.abs,
    "Add": _alike(np.add),
    "And": _alike(np.logical_and),
    "BitwiseAnd": _alike(np.bitwise_and),
    "BitwiseNot": np.bitwise_not,
    "BitwiseOr": _alike(np.bitwise_or),
    "BitwiseXor": _alike(np.bitwise_xor),
    "Cast": cast,
    "CastLike": cast_like,
    "ConstantOfShape": constant_of_shape,
    "DequantizeLinear": dequantize,
    "Div": _alike(divide),
    "Equal": _alike(np.equal),
    "Exp": np.exp,
    "Floor": np.floor,
    "Greater": _alike(np.greater),
    "GreaterOrEqual": _alike(np.greater_equal),
    "Less": _alike(np.less),
    "LessOrEqual": _alike(np.less_equal),
    "Max": _all_together(np.maximum),
    "Min": _all_together(np.minimum),
    "Mod": modulo,
    "Mul": _alike(np.multiply),
    "Neg": np.negative,
    "NonZero": lambda data: np.array(np.nonzero(data), np.int64),
    "Not": np.logical_not,
    "Or": _alike(np.logical_or),
    "Range": lambda start, limit, delta: np.arange(start, limit, delta, dtype=start.dtype),
    "Reciprocal": np.reciprocal,
    "ReduceProd": product,
    "Relu": lambda data: np.maximum(data, data.dtype.type(0)),
    "ScatterElements": scatter_elements,
    "Shape": shape,
    "Sigmoid": sigmoid,
    "Size": size,
    "Sqrt": np.sqrt,
    "Sub": _alike(np.subtract),
    "Tanh": np.tanh,
    "Trilu": trilu,
    "Where": where,
}
# These give a view of a constant, so a table of any size may pass; the others would load it.
_VIEWS = ("Flatten", "Identity", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
