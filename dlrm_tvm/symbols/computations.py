"""The computations of a DLRM, on symbols: layers, lookups, sums and means of bags, dots.

Each function has its ONNX operator's signature: inputs positional, attributes keywords (both forms where a parameter
was an attribute in older operator sets). ValueError or TypeError: no DLRM computes that. NeedsValues: an input that
was given as symbols must be given as values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from .expressions import Expressions, Symbols
from .lookup_operators import on_lookups
from .lookups import KINDS, Lookups
from .operators import MOVES, is_float
from .sizes import check_size


@dataclass(frozen=True, eq=False)
class LateCast:
    """A constant table too large to be cast as a whole: its rows are, when they are looked up."""

    table: np.ndarray
    to: int


# The value of a name in a graph; a list is a sequence.
Value = np.ndarray | Symbols | LateCast | list | None


class NeedsValues(Exception):  # noqa: N818 - a request, not an error
    """A node needs the values of an input that was given as symbols: a Loop over bags needs those of the offsets."""

    def __init__(self, input_name: str, node: onnx.NodeProto) -> None:
        super().__init__(input_name)
        self.input_name = input_name
        self.node = node


class Computations:
    """The keys of index symbols are ("index", input name, ...): see `NeedsValues`."""

    def __init__(self, expressions: Expressions) -> None:
        self.expressions = expressions
        self.lookups = Lookups(expressions)
        self.table_name = ""  # of the first constant that the step now running reads
        self.by_operator: dict[str, Callable[..., Symbols]] = {
            "Add": self.add,
            "Cast": self._cast,
            "CastLike": self._cast_like,
            "Div": self._divide,
            "Gather": self.lookup,
            "GatherElements": self._lookup_elements,
            "GatherND": self._lookup_places,
            "Gemm": self.gemm,
            "MatMul": self.matmul,
            "Mul": self.multiply,
            "Neg": lambda data: self.times(data, np.float32(-1)),
            "ReduceMax": self._no_maximum,
            "ReduceMean": self._reduce_mean,
            "ReduceSum": self._reduce_sum,
            "Relu": lambda data: self.function("relu", data),
            "Sigmoid": lambda data: self.function("sigmoid", data),
            "Sub": self._subtract,
        }

    def demand_values(self, value: Value) -> None:
        """Raise NeedsValues for symbols of an input; symbols computed from them have no values."""
        if not isinstance(value, Symbols) or value.real:
            return
        for number in value.ids.ravel().tolist():
            key, _ = self.expressions.key(number)
            if key[0] == "function":
                key, _ = self.expressions.key(key[2])
            if key[0] == "index":
                raise NeedsValues(key[1], self.expressions.maker)

    def join(self, values: list[Value], join: Callable[[list[np.ndarray]], np.ndarray]) -> Value:
        """One array made of several; where some are symbols, the constants among them become symbols."""
        kinds = {value.real for value in values if isinstance(value, Symbols)}
        if not kinds:
            return join(values)
        if len(kinds) > 1 or any(_is_real(value) not in kinds for value in values):
            raise TypeError("joins whole numbers and floats")
        ids = [value.ids if isinstance(value, Symbols) else self.expressions.constants(value) for value in values]
        check_size("Concat", ids, {})
        return Symbols(join(ids), kinds.pop())

    def move(self, operator: str, inputs: list[Value], attributes: dict) -> Value | tuple:
        real = inputs[0].real
        check_size(operator, [inputs[0].ids, *inputs[1:]], attributes)
        moved = MOVES[operator](inputs[0].ids, *inputs[1:], **attributes)
        if isinstance(moved, tuple):
            return tuple(Symbols(part, real) for part in moved)
        return Symbols(moved, real)

    # --- tables

    def lookup(self, data: Value, indices: Symbols, *, axis: int = 0) -> Symbols:
        if isinstance(data, Symbols) or indices.real:
            raise ValueError("gathers computed values by an input's values")
        if data.ndim not in (1, 2) or axis != 0 or not data.size:
            where = f"{self.table_name!r} of shape {data.shape}, axis {axis}"
            raise ValueError(f"looks up in {where}; an embedding table is [rows, dim], axis 0")
        ids = self.lookups.gather(data, indices.ids, self.table_name)
        if ids is None:
            raise ValueError(f"looks up in {self.table_name!r} by what depends on several indices")
        return Symbols(ids, is_float(data.dtype))

    def lookup_cast(self, operator: str, inputs: list[Value], **attributes: object) -> Symbols:
        if operator != "Gather" or not isinstance(inputs[1], Symbols):
            raise ValueError("computes with a table as a whole; rows of it may be looked up")
        return self.lookups.apply("Cast", [self.lookup(inputs[0].table, inputs[1], **attributes)], to=inputs[0].to)

    def _lookup_elements(self, data: Value, indices: Symbols, *, axis: int = 0) -> Symbols:
        if isinstance(data, np.ndarray) and isinstance(indices, Symbols) and data.ndim == indices.ids.ndim == 2:
            ids = indices.ids  # a row's number for each of its elements
            if axis == 0 and ids.shape[1] == data.shape[1] and (ids == ids[:, :1]).all():
                return self.lookup(data, Symbols(ids[:, 0], False))
        if isinstance(data, Symbols) or not isinstance(indices, Symbols) or data.ndim != 1 or indices.ids.ndim != 1:
            raise ValueError("gathers elements of something other than one constant number per row of a table")
        return self.lookup(data, indices, axis=axis)

    def _lookup_places(self, data: Value, indices: Value, *, batch_dims: int = 0) -> Symbols:
        """table[index], or table[constant, .., index] of several tables in one array."""
        if isinstance(data, Symbols) or not isinstance(indices, Symbols) or indices.real or batch_dims:
            raise ValueError("gathers places of something other than constants")
        *parts, rows = np.moveaxis(indices.ids, -1, 0)
        keys = [[self.expressions.key(number)[0] for number in part.ravel().tolist()] for part in parts]
        if any(key[0] != "constant" for part in keys for key in part):
            raise ValueError(f"looks up in {self.table_name!r} by what depends on several indices")
        chosen = list(zip(*([key[2] for key in part] for part in keys))) if parts else [()] * rows.size
        made = [self.lookup(data[at], Symbols(row, False)).ids for at, row in zip(chosen, rows.reshape(-1, 1))]
        return Symbols(np.stack(made).reshape(*rows.shape, *data.shape[len(parts) + 1 :]), is_float(data.dtype))

    def multiply(self, a: Value, b: Value) -> Symbols:
        """Computed values times constants; products of vectors, as of x0 and a cross layer's outputs."""
        if isinstance(a, Symbols) and isinstance(b, Symbols):
            if not (a.real and b.real):
                raise ValueError("multiplies whole numbers")
            return Symbols(self.expressions.elementwise("product", a.ids, b.ids), True)
        return self.times(a, b) if isinstance(a, Symbols) else self.times(b, a)

    def times(self, data: Symbols, factors: np.ndarray) -> Symbols:
        if not data.real or factors.dtype.kind != "f" or not np.isfinite(factors).all():
            raise ValueError("multiplies by numbers that are not finite float32")
        return Symbols(self.expressions.times(data.ids, factors.astype(np.float64)), True)

    def _is_combined(self, a: Value, b: Value, kinds: set[str]) -> bool:
        """Whether both are computed, and one of them is of these kinds alone."""
        both = all(isinstance(value, Symbols) and value.real for value in (a, b))
        return both and (self.lookups.are_of(a, kinds) or self.lookups.are_of(b, kinds))

    def _divide(self, data: Value, counts: Value) -> Symbols:
        if isinstance(counts, Symbols) or not data.real or counts.dtype != np.float32:
            raise ValueError("divides by something other than a constant float32 number")
        if not self.lookups.are_of(data, KINDS):
            with np.errstate(divide="ignore"):
                return self.times(data, 1 / counts.astype(np.float64))
        try:
            return Symbols(self.expressions.divide(data.ids, counts), True)
        except ValueError:
            found = self.lookups.apply("Div", [data, counts])
            if found is None:
                raise
            return found

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
            raise ValueError("sums over something other than one axis of looked-up rows")
        axis = int(axes[0])
        try:
            sums = self.expressions.pool(kind, np.moveaxis(data.ids, axis, -1))
        except ValueError as error:
            if axis not in (-1, data.ids.ndim - 1) or kind != "mean":
                raise
            found = "takes the mean of each item's values, as LayerNormalization does, which no layer can hold"
            raise ValueError(found) from error
        return Symbols(np.expand_dims(sums, axis) if keepdims else sums, True)

    def _no_maximum(self, *inputs: Value, **attributes: object) -> Symbols:
        raise ValueError("takes the maximum of a bag; sum and mean are read")

    # --- layers

    def gemm(
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
        if not isinstance(a, Symbols) or a.ids.ndim != 2:
            raise ValueError("is not a layer: its first input is not [batch, values]")
        a = Symbols(a.ids.T, a.real) if transA else a
        product = self._linear(a, b, transposed=bool(transB))
        return product if c is None else self.add(product, c, shape=product.ids.shape)

    def matmul(self, a: Value, b: Value) -> Symbols:
        if isinstance(a, Symbols) and isinstance(b, Symbols):
            if not (a.real and b.real) or min(a.ids.ndim, b.ids.ndim) < 2:
                raise ValueError("multiplies something other than matrices of computed values")
            ids = self.lookups.matmul(a.ids, b.ids) if self.lookups.are_all(a, b) else None
            if ids is not None:
                return Symbols(ids, True)
            return Symbols(self.expressions.dot(a.ids, np.swapaxes(b.ids, -1, -2)), True)
        if not isinstance(a, Symbols) and a.ndim == 2 and b.ids.ndim > 2:  # W x of columns [batch, values, 1]
            product = self._linear(Symbols(np.swapaxes(b.ids, -1, -2), b.real), a, transposed=True)
            return Symbols(np.swapaxes(product.ids, -1, -2), True)
        if not isinstance(a, Symbols) or a.ids.ndim < 2:
            raise ValueError("is not a layer: its first input is not [batch, values]")
        return self._linear(a, b, transposed=False)

    def _linear(self, data: Symbols, weight: Value, *, transposed: bool) -> Symbols:
        if isinstance(weight, Symbols):
            raise ValueError("has a weight that depends on the graph's inputs")
        if data.real and weight.ndim == 2 and is_float(weight.dtype) and self.lookups.are_all(data):
            ids = self.lookups.linear(data.ids, weight, transposed, self.table_name)
            if ids is not None:
                return Symbols(ids, True)
        if not data.real or weight.ndim != 2 or weight.dtype != np.float32:
            raise ValueError(f"has a weight of shape {weight.shape}, {weight.dtype}; a matrix of float32 is wanted")
        return Symbols(self.expressions.linear(data.ids, weight, transposed), True)

    def add(self, a: Value, b: Value, *, shape: tuple[int, ...] | None = None) -> Symbols:
        """A constant bias added to computed values, or x_l to a cross layer's product; shape: that of the result,
        checked where given."""
        found = on_lookups(self.lookups, "Add", [a, b], {})
        if found is not None and shape in (None, found.ids.shape):
            return found
        if self._is_combined(a, b, {"product"}):
            return Symbols(self.expressions.elementwise("plus", a.ids, b.ids), True)
        data, bias = (a, b) if isinstance(a, Symbols) else (b, a)
        if isinstance(bias, Symbols):
            raise ValueError("adds two computed values that are neither of one index nor a cross layer's")
        if not data.real or bias.dtype != np.float32:
            raise ValueError("adds something other than a float32 constant")
        sums = self.expressions.add(data.ids, bias)
        if shape is not None and sums.shape != shape:
            raise ValueError(f"adds a bias of shape {bias.shape} to {shape}")
        return Symbols(sums, True)

    def _subtract(self, a: Value, b: Value) -> Symbols:
        if isinstance(b, Symbols):
            b = self.times(b, np.float32(-1))
        return self.add(a, b if isinstance(b, Symbols) else -b)

    def function(self, kind: str, data: Symbols) -> Symbols:
        found = on_lookups(self.lookups, kind.capitalize(), [data], {})
        if found is not None:
            return found
        if not data.real:
            raise ValueError("is applied to whole numbers")
        return Symbols(self.expressions.apply(kind, data.ids), True)

    # --- types

    def _cast(self, data: Symbols, *, to: int) -> Symbols:
        found = self.lookups.dtype(data)
        if found is not None and found == onnx.helper.tensor_dtype_to_np_dtype(to):
            return data
        same = (onnx.TensorProto.FLOAT,) if data.real else (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        if to not in same:
            name = onnx.TensorProto.DataType.Name(to)
            if not data.real:
                raise ValueError(f"casts to {name}")
            if name.startswith("INT"):
                raise ValueError("makes whole numbers of floats; indices are inputs of their own, INT32 or INT64")
            raise ValueError(f"casts to {name}; layers are read in FLOAT alone, so export the model in float32")
        return data

    def _cast_like(self, data: Value, like: Value) -> Value:
        if isinstance(data, Symbols) and isinstance(like, np.ndarray):
            return self._cast(data, to=onnx.helper.np_dtype_to_tensor_dtype(like.dtype))
        if isinstance(like, Symbols) and like.real and not isinstance(data, Symbols):
            return data.astype(np.float32)
        if isinstance(data, Symbols) and isinstance(like, Symbols) and data.real and like.real:
            return data
        if isinstance(data, np.ndarray) and isinstance(like, Symbols) and (dtype := self.lookups.dtype(like)):
            return data.astype(dtype)
        raise ValueError("casts to a type that may be 32 or 64 bits wide")


def _is_real(value: Value) -> bool:
    return value.real if isinstance(value, Symbols) else is_float(value.dtype)
