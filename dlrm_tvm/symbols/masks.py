"""Operators that choose between computed values and constants, or put constants beside them: masks, triangles, padding,
clamps."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from .computations import Computations, Value
from .expressions import Symbols
from .lookup_operators import as_input
from .sizes import MOST_COPIED_ELEMENTS


def where(computations: Computations, condition: Value, *values: Value) -> Value:
    if isinstance(condition, Symbols):
        computations.demand_values(condition)
        raise ValueError("chooses by computed values")
    return computations.join(list(values), lambda both: np.where(condition, *both))


def pad(
    computations: Computations,
    data: Symbols,
    pads: np.ndarray | list[int],
    value: np.ndarray | float | None = None,
    axes: np.ndarray | None = None,
    *,
    mode: bytes = b"constant",
) -> Value:
    """ONNX's Pad, whose inputs are attributes up to opset 10."""
    count = len(pads) // 2
    places = range(data.ids.ndim) if axes is None else [int(axis) % data.ids.ndim for axis in axes]
    widths = [(0, 0)] * data.ids.ndim
    for place, before, after in zip(places, pads[:count], pads[count:], strict=True):
        widths[place] = int(before), int(after)
    if mode != b"constant" or min(min(pair) for pair in widths) < 0:
        raise ValueError("pads with something other than a constant")
    total = math.prod(size + sum(pair) for size, pair in zip(data.ids.shape, widths))
    if total > MOST_COPIED_ELEMENTS:
        raise ValueError(f"pads to {total} values")
    fill = as_input(np.dtype("f4" if data.real else "i8"), 0 if value is None else value).reshape(())
    return computations.join([data, fill], lambda both: np.pad(both[0], widths, constant_values=both[1]))


def triangle(computations: Computations, data: Symbols, k: np.ndarray | None = None, *, upper: int = 1) -> Value:
    kept = (np.triu if upper else np.tril)(np.ones(data.ids.shape, bool), 0 if k is None else int(k))
    zero = np.zeros((), "f4" if data.real else "i8")
    return computations.join([data, zero], lambda both: np.where(kept, *both))


def scatter(
    computations: Computations, data: Value, indices: Value, updates: Value, *, reduction: bytes = b"none"
) -> Value:
    if isinstance(indices, Symbols) or reduction != b"none":
        raise ValueError("scatters by an input's values, or adds up")

    def scattered(both: list[np.ndarray]) -> np.ndarray:
        result = both[0].copy()
        result[tuple(np.moveaxis(indices, -1, 0))] = both[1]
        return result

    return computations.join([data, updates], scattered)


def clip(computations: Computations, data: Value, min: Value | float = None, max: Value | float = None) -> Symbols:
    """ONNX's Clip; the bounds, which have ONNX's names, are attributes up to opset 10."""
    if not isinstance(data, Symbols) or not data.real:
        computations.demand_values(data)
        raise ValueError("clips something other than computed values")
    # The upper bound last, as in PyTorch and ONNX: it wins where the bounds cross.
    for side, bound in (("max", min), ("min", max)):
        data = data if bound is None else limit(side, computations, data, bound)
    return data


def limit(side: str, computations: Computations, *values: Value | float) -> Symbols:
    """Elementwise maximum ("max") or minimum ("min") of computed values and single constants."""
    computed = [value for value in values if isinstance(value, Symbols)]
    for value in computed:
        computations.demand_values(value)
    if len(computed) != 1 or not computed[0].real:
        raise ValueError("compares computed values with each other")
    ids = computed[0].ids
    for bound in (np.asarray(value) for value in values if not isinstance(value, Symbols)):
        if bound.size != 1 or bound.ndim > ids.ndim or bound.dtype.kind != "f" or np.isnan(bound).any():
            raise ValueError("limits values by something other than one float number")
        ids = computations.expressions.apply(side, ids, float(np.float32(bound.item())))
    return Symbols(ids, True)


MASKS = {
    "Clip": clip,
    "Max": partial(limit, "max"),
    "Min": partial(limit, "min"),
    "Pad": pad,
    "ScatterND": scatter,
    "Trilu": triangle,
    "Where": where,
}
