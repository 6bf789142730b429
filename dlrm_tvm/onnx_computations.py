"""The computations that a DLRM is made of, on symbols: layers, lookups, sums and means of bags, dots, a clamp.

Each function has its ONNX operator's signature: inputs positional, attributes keywords (both forms where a parameter
was an attribute in older operator sets). ValueError and TypeError for what no DLRM does; NeedsValues where symbols
stand in for an input whose very values are worked with.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from .expressions import Expressions, Symbols
from .onnx_operators import MOVES

# What a name in a graph may stand for; a list is a sequence.
Value = np.ndarray | Symbols | list | None


class NeedsValues(Exception):  # noqa: N818 - a request, not an error
    """A node works with the very values of an input that was given as symbols (as a Loop over bags needs offsets)."""

    def __init__(self, input_name: str, node: onnx.NodeProto) -> None:
        super().__init__(input_name)
        self.input_name = input_name
        self.node = node


class Computations:
    """Index symbols are made as ("index", input name, ...): see `NeedsValues`."""

    def __init__(self, expressions: Expressions) -> None:
        self.expressions = expressions
        self.by_operator: dict[str, Callable[..., Symbols]] = {
            "Add": self._add,
            "Cast": self._cast,
            "CastLike": self._cast_like,
            "Clip": self._clip,
            "Div": self._divide,
            "Gather": self.lookup,
            "GatherElements": self._lookup_elements,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "Max": lambda *values: self._limit("Max", values),
            "Min": lambda *values: self._limit("Min", values),
            "Mul": self.scale,
            "ReduceMax": self._no_maximum,
            "ReduceMean": self._reduce_mean,
            "ReduceSum": self._reduce_sum,
            "Relu": lambda data: self._function("relu", data),
            "Sigmoid": lambda data: self._function("sigmoid", data),
        }

    def demand_values(self, value: Value) -> None:
        """Raises NeedsValues for the symbols of an input; what was computed from them has no values to give."""
        if isinstance(value, Symbols) and not value.real and value.ids.size:
            key, _ = self.expressions.key(int(value.ids.flat[0]))
            if key[0] == "index":
                raise NeedsValues(key[1], self.expressions.maker)

    def join(self, values: list[Value], join: Callable[[list[np.ndarray]], np.ndarray]) -> Value:
        """One array out of several, constants among them turned into symbols where the others are symbols."""
        kinds = {value.real for value in values if isinstance(value, Symbols)}
        if not kinds:
            return join(values)
        if len(kinds) > 1 or any(_is_real(value) not in kinds for value in values):
            raise TypeError("joins whole numbers and floats")
        ids = [value.ids if isinstance(value, Symbols) else self.expressions.constants(value) for value in values]
        return Symbols(join(ids), kinds.pop())

    def move(self, operator: str, inputs: list[Value], attributes: dict) -> Value | tuple:
        real = inputs[0].real
        moved = MOVES[operator](inputs[0].ids, *inputs[1:], **attributes)
        if isinstance(moved, tuple):
            return tuple(Symbols(part, real) for part in moved)
        return Symbols(moved, real)

    # --- tables

    def lookup(self, data: Value, indices: Symbols, *, axis: int = 0, name: str) -> Symbols:
        """name: what the table is called."""
        if isinstance(data, Symbols) or indices.real:
            raise ValueError("picks computed values by an input's values")
        if data.ndim not in (1, 2) or axis != 0 or data.dtype != np.float32 or not data.size:
            raise ValueError(
                f"looks up in {name!r} of shape {data.shape}, {data.dtype}, axis {axis}; "
                "an embedding table is [rows, dim] float32, axis 0"
            )
        return Symbols(self.expressions.lookup(data, indices.ids, name), True)

    def _lookup_elements(self, data: Value, indices: Symbols, *, axis: int = 0, name: str) -> Symbols:
        if isinstance(data, Symbols) or not isinstance(indices, Symbols) or data.ndim != 1 or indices.ids.ndim != 1:
            raise ValueError("picks elements of what is not one constant number for each row of a table")
        return self.lookup(data, indices, axis=axis, name=name)

    def scale(self, a: Value, b: Value) -> Symbols:
        """Looked-up rows times their weights: constants, or looked up themselves."""
        data, factors = (a, b) if isinstance(a, Symbols) and not self._are_factors(a) else (b, a)
        if not isinstance(data, Symbols) or not data.real:
            raise ValueError("multiplies what are not looked-up rows")
        if isinstance(factors, Symbols):
            if factors.ids.size and not self._are_factors(factors):
                raise ValueError("multiplies two computed values")
            numbers = factors.ids
        else:
            if factors.dtype != np.float32 or not np.isfinite(factors).all():
                raise ValueError("multiplies by what are not finite float32 numbers")
            numbers = self.expressions.constants(factors)
        if not np.array_equal(numbers, self.expressions.constants(np.ones(numbers.shape, np.float32))):
            self._check_rows(data, "multiplies")
        return Symbols(self.expressions.scale(data.ids, numbers), True)

    def _are_factors(self, value: Symbols) -> bool:
        return bool(value.real and value.ids.size and self.expressions.kinds(value.ids) == {"factor"})

    def _check_rows(self, data: Symbols, verb: str) -> None:
        found = sorted(self.expressions.kinds(data.ids) - {"row"})
        if found:
            raise ValueError(f"{verb} values that are no rows of a table, but made by {', '.join(found)}")

    def _divide(self, data: Value, counts: Value) -> Symbols:
        if isinstance(counts, Symbols) or not data.real or counts.dtype != np.float32:
            raise ValueError("divides by what is not a constant float32 number")
        return Symbols(self.expressions.divide(data.ids, counts), True)

    def _reduce_sum(
        self, data: Symbols, axes: np.ndarray | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Symbols:
        return self._reduce("sum", data, axes, keepdims)

    def _reduce_mean(
        self, data: Symbols, axes: np.ndarray | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Symbols:
        return self._reduce("mean", data, axes, keepdims)

    def _reduce(self, kind: str, data: Symbols, axes: np.ndarray | None, keepdims: int) -> Symbols:
        if axes is None or len(axes) != 1 or not isinstance(data, Symbols) or not data.real:
            raise ValueError("sums over what is not one axis of looked-up rows")
        axis = int(axes[0])
        sums = self.expressions.pool(kind, np.moveaxis(data.ids, axis, -1))
        return Symbols(np.expand_dims(sums, axis) if keepdims else sums, True)

    def _no_maximum(self, *inputs: Value, **attributes: object) -> Symbols:
        raise ValueError("takes the maximum of a bag; sum and mean are read")

    # --- layers

    def _gemm(
        self,
        a: Value,
        b: Value,
        c: Value = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        transA: int = 0,  # noqa: N803 - ONNX's name
        transB: int = 0,  # noqa: N803
    ) -> Symbols:
        if alpha != 1 or (beta != 1 and c is not None):
            raise ValueError(f"has alpha = {alpha} and beta = {beta}; a layer of a DLRM has 1 and 1")
        if transA or not isinstance(a, Symbols) or a.ids.ndim != 2:
            raise ValueError("is no layer: its first input is not [batch, values]")
        product = self._linear(a, b, transposed=bool(transB))
        return product if c is None else self._add(product, c, shape=product.ids.shape)

    def _matmul(self, a: Value, b: Value) -> Symbols:
        if isinstance(a, Symbols) and isinstance(b, Symbols):
            if not (a.real and b.real) or min(a.ids.ndim, b.ids.ndim) < 2:
                raise ValueError("multiplies what are not matrices of computed values")
            return Symbols(self.expressions.dot(a.ids, np.swapaxes(b.ids, -1, -2)), True)
        if not isinstance(a, Symbols) or a.ids.ndim < 2:
            raise ValueError("is no layer: its first input is not [batch, values]")
        return self._linear(a, b, transposed=False)

    def _linear(self, data: Symbols, weight: Value, *, transposed: bool) -> Symbols:
        if isinstance(weight, Symbols):
            raise ValueError("has a weight that depends on the graph's inputs")
        if not data.real or weight.ndim != 2 or weight.dtype != np.float32:
            raise ValueError(f"has a weight of shape {weight.shape}, {weight.dtype}; a matrix of float32 is wanted")
        return Symbols(self.expressions.linear(data.ids, weight, transposed), True)

    def _add(self, a: Value, b: Value, *, shape: tuple[int, ...] | None = None) -> Symbols:
        """A constant bias added to computed values; the result must have `shape`, where one is given."""
        data, bias = (a, b) if isinstance(a, Symbols) else (b, a)
        if isinstance(bias, Symbols) or not data.real or bias.dtype != np.float32:
            raise ValueError("adds what is not a float32 constant")
        sums = self.expressions.add(data.ids, bias)
        if shape is not None and sums.shape != shape:
            raise ValueError(f"adds a bias of shape {bias.shape} to {shape}")
        return Symbols(sums, True)

    def _function(self, kind: str, data: Symbols) -> Symbols:
        if not data.real:
            raise ValueError("is applied to whole numbers")
        return Symbols(self.expressions.apply(kind, data.ids), True)

    # --- a clamp

    def _clip(self, data: Value, min: Value | float = None, max: Value | float = None) -> Symbols:
        """ONNX's Clip; its bounds, named so by ONNX, were attributes up to opset 10."""
        if not isinstance(data, Symbols) or not data.real:
            raise ValueError("clips what are no computed values")
        # Greatest last, as PyTorch and ONNX do where the bounds cross.
        for side, bound in (("Max", min), ("Min", max)):
            data = data if bound is None else self._limit(side, (data, bound))
        return data

    def _limit(self, side: str, values: tuple[Value | float, ...]) -> Symbols:
        """Elementwise maximum ("Max") or minimum ("Min") of computed values and single constants."""
        computed = [value for value in values if isinstance(value, Symbols)]
        if len(computed) != 1 or not computed[0].real:
            raise ValueError("compares computed values with each other")
        ids = computed[0].ids
        for bound in (np.asarray(value) for value in values if not isinstance(value, Symbols)):
            if bound.size != 1 or bound.ndim > ids.ndim or bound.dtype.kind != "f" or np.isnan(bound).any():
                raise ValueError("limits values by what is not one float number")
            ids = self.expressions.apply(side.lower(), ids, float(np.float32(bound.item())))
        return Symbols(ids, True)

    # --- types

    def _cast(self, data: Symbols, *, to: int) -> Symbols:
        same = (onnx.TensorProto.FLOAT,) if data.real else (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        if to not in same:
            raise ValueError(f"casts to {onnx.TensorProto.DataType.Name(to)}")
        return data

    def _cast_like(self, data: Value, like: Value) -> Value:
        if isinstance(data, Symbols) and isinstance(like, np.ndarray):
            return self._cast(data, to=onnx.helper.np_dtype_to_tensor_dtype(like.dtype))
        if isinstance(like, Symbols) and like.real and not isinstance(data, Symbols):
            return data.astype(np.float32)
        if isinstance(data, Symbols) and isinstance(like, Symbols) and data.real and like.real:
            return data
        raise ValueError("casts to the type of what may be 32 or 64 bits wide")


def _is_real(value: Value) -> bool:
    return value.real if isinstance(value, Symbols) else value.dtype.kind == "f"
