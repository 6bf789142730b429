"""Operators on what embeddings computed: which of them make another function of the index, and which are a DLRM's own.

Means of bags stay what they are (expressions.py). All else that is elementwise or goes along a row becomes part of a
table's function.
"""

from __future__ import annotations

import numpy as np
import onnx

from .expressions import Symbols
from .lookups import Lookups, OneIndex, Value
from .operators import MOVES, ON_CONSTANTS, is_float
from .row_operators import ELEMENTWISE, ROW_BY_ROW, of_last_axis

_NOT_OF_ELEMENTS = {
    *MOVES,
    "ConstantOfShape",
    "NonZero",
    "Range",
    "ReduceProd",
    "ScatterElements",
    "Shape",
    "Size",
    "Trilu",
}
_ELEMENTWISE = {"Clip", *ON_CONSTANTS, *ELEMENTWISE} - _NOT_OF_ELEMENTS


def on_lookups(lookups: Lookups, operator: str, inputs: list[Value], attributes: dict) -> Symbols | None:
    """An elementwise operator on what embeddings computed; None where it is another computation. Raises
    BagsDifferError."""
    if not lookups.are_all(*inputs):
        return None
    if operator == "OneHot":
        return _one_hot(lookups, *inputs, **attributes)
    if operator in ROW_BY_ROW:
        return _row_by_row(lookups, operator, inputs, attributes)
    if operator not in _ELEMENTWISE:
        return None
    if operator == "Clip":
        data, bounds = inputs[0], inputs[1:] or [attributes.get("min"), attributes.get("max")]
        for side, bound in zip(("Max", "Min"), bounds):
            if bound is not None and data is not None:
                data = on_lookups(lookups, side, [data, as_input(lookups.dtype(data), bound)], {})
        return data
    if operator == "CastLike":
        data, like = inputs
        if not isinstance(data, Symbols) or isinstance(like, Symbols):
            return None
        to = onnx.helper.np_dtype_to_tensor_dtype(like.dtype)
        return on_lookups(lookups, "Cast", [data], {"to": to})
    plain = {"Div": _is_mean, "Cast": _is_same}.get(operator)
    if plain is not None and plain(lookups, *inputs, **attributes):
        return None
    return lookups.apply(operator, inputs, **attributes)


def _row_by_row(lookups: Lookups, operator: str, inputs: list[Value], attributes: dict) -> Symbols | None:
    data, *others = inputs
    if not isinstance(data, Symbols):
        return None
    form = of_last_axis(operator, lookups.functions.opset, data.ids.ndim, inputs, attributes)
    if form is None or any(isinstance(each, Symbols) for each in others) or not data.real or not data.ids.size:
        return None
    constants, attributes, keeps = form
    width, made = data.ids.shape[-1], []
    for row in data.ids.reshape(-1, width):
        found = lookups.of_row(row)
        result = None if found is None else lookups.operation(operator, [found, *constants], attributes)
        if not isinstance(result, OneIndex):
            return None
        made.append(lookups.numbers(result))
    shape = (*data.ids.shape[:-1], len(made[0]))
    return Symbols(np.stack(made).reshape(shape if keeps else shape[:-1]), True)


def _one_hot(lookups: Lookups, indices: Value, depth: Value, values: Value, *, axis: int = -1) -> Symbols | None:
    """Multiplied by a weight it is a lookup (functions.py)."""
    if isinstance(depth, Symbols) or isinstance(values, Symbols) or axis not in (-1, indices.ids.ndim):
        return None
    if values.tolist() != [0, 1] or depth.size != 1:
        raise ValueError(f"writes {values.tolist()}, not 0 and 1")
    ids = lookups.one_hot(indices.ids, int(depth.item()), values.dtype)
    return None if ids is None else Symbols(ids, is_float(values.dtype))


def _is_mean(lookups: Lookups, data: Value, counts: Value) -> bool:
    if not isinstance(data, Symbols) or isinstance(counts, Symbols) or not data.real:
        return False
    kinds = lookups.expressions.kinds(data.ids)
    return "sum" in kinds or kinds == {"constant"} or not (counts != 1).any()


def _is_same(lookups: Lookups, data: Value, *, to: int) -> bool:
    found = lookups.dtype(data) or np.dtype(np.float32)
    return found == onnx.helper.tensor_dtype_to_np_dtype(to)


def as_input(dtype: np.dtype | None, value: np.ndarray | float) -> np.ndarray:
    """An attribute of older operator sets as the input that it is today."""
    return value if isinstance(value, np.ndarray) else np.array(value, dtype or np.float32)
