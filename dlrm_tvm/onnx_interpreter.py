"""Runs an ONNX graph on symbols: what comes out is the formula of every output element.

    inputs as symbols -> nodes in order -> Symbols of the output       (constants stay arrays throughout)

Each operator either moves elements (onnx_operators), or is one of the few computations that a DLRM is made of, or
is refused with its node's name. So everything that influences the output is understood, or nothing is accepted.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from .errors import UserError
from .expressions import Expressions, Symbols
from .onnx_graph import OnnxGraph, live_nodes
from .onnx_operators import MOVES, ON_CONSTANTS, VIEWS, shape

Value = np.ndarray | Symbols
Scope = ChainMap[str, Value]

_MOST_TRIPS = 100_000
_MOST_COPIED_ELEMENTS = 2**26
_DOMAINS = ("", "ai.onnx")


class NeedsValues(Exception):  # noqa: N818 - a request, not an error
    """A node works with the very values of an input that was given as symbols (as a Loop over bags needs offsets)."""

    def __init__(self, input_name: str, node: onnx.NodeProto) -> None:
        super().__init__(input_name)
        self.input_name = input_name
        self.node = node


class Interpreter:
    """One run over `graph`. Index symbols are made as ("index", input name, ...): see `NeedsValues`."""

    def __init__(self, graph: OnnxGraph, expressions: Expressions) -> None:
        self.graph = graph
        self.expressions = expressions
        self._computations = {
            "Add": self._add,
            "Cast": self._cast,
            "Gather": self._lookup,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "ReduceSum": self._reduce_sum,
            "Relu": lambda data: self._function("relu", data),
            "Sigmoid": lambda data: self._function("sigmoid", data),
        }

    def run(self, inputs: Mapping[str, Value]) -> Value:
        """The graph's output. Raises UserError naming the node that is not understood, NeedsValues."""
        scope: Scope = ChainMap(dict(inputs))
        self._run_nodes(self.graph.nodes, scope)
        return self._read(self.graph.output, scope, None)

    def _run_nodes(self, nodes: Iterable[onnx.NodeProto], scope: Scope) -> None:
        for node in nodes:
            try:
                results = self._run_node(node, scope)
            except UserError:
                raise
            except (ValueError, IndexError, TypeError, OverflowError) as error:
                raise self.graph.refusal(node, f"cannot be followed: {_one_line(error)}") from None
            scope.update(zip(node.output, results))

    def _run_node(self, node: onnx.NodeProto, scope: Scope) -> tuple[Value, ...]:
        self.expressions.maker = node
        if node.domain not in _DOMAINS:
            raise self.graph.refusal(node, f"is of the operator set {node.domain!r}, which no DLRM needs")
        if node.op_type == "Loop":
            return self._loop(node, scope)
        attributes = {attribute.name: self._attribute(attribute) for attribute in node.attribute}
        if node.op_type == "Constant":
            kept = self.graph.constant(node.output[0]) if len(scope.maps) == 1 else None
            return (_constant(**attributes) if kept is None else kept,)
        if node.op_type == "Split":
            attributes["outputs"] = len(node.output)
        inputs = [self._read(name, scope, node) for name in node.input]
        result = self._compute(node, inputs, attributes)
        return result if isinstance(result, tuple) else (result,)

    def _compute(self, node: onnx.NodeProto, inputs: list[Value | None], attributes: dict) -> Value | tuple:
        operator = node.op_type
        symbolic = [place for place, value in enumerate(inputs) if isinstance(value, Symbols)]
        if not symbolic and operator in ON_CONSTANTS:
            return _on_constants(operator, inputs, attributes)
        if operator == "Shape":
            return shape(inputs[0].ids, **attributes)
        if operator == "Concat":
            return self._concat(inputs, attributes)
        if symbolic == [0] and operator in MOVES:
            return self._move(operator, inputs, attributes)
        if symbolic and operator in self._computations:
            if operator == "Gather":
                attributes |= {"name": node.input[0]}
            return self._computations[operator](*inputs, **attributes)
        # What an operator moves may be symbols; by how much, or where to, it has to know.
        for place in symbolic[1:] if operator in MOVES and symbolic[0] == 0 else symbolic:
            self._demand_values(inputs[place], node)
        known = operator in ON_CONSTANTS or operator in self._computations
        raise self.graph.refusal(node, f"is no operation of a DLRM{' on such inputs' if known else ''}")

    def _demand_values(self, value: Symbols, node: onnx.NodeProto) -> None:
        if not value.real and value.ids.size:
            key, _ = self.expressions.key(int(value.ids.flat[0]))
            if key[0] == "index":
                raise NeedsValues(key[1], node)

    def _read(self, name: str, scope: Scope, node: onnx.NodeProto | None) -> Value | None:
        if not name:
            return None
        value = scope.get(name)
        if value is None:
            value = self.graph.constant(name)
        if value is None:
            raise self.graph.refusal(node, f"reads {name!r}, which nothing before it makes")
        return value

    def _attribute(self, attribute: onnx.AttributeProto) -> object:
        if attribute.type == onnx.AttributeProto.TENSOR:
            return self.graph.array(attribute.t)
        return onnx.helper.get_attribute_value(attribute)

    def _loop(self, node: onnx.NodeProto, scope: Scope) -> tuple[Value, ...]:
        """ONNX Loop: carried values go round; what the body makes besides is stacked, one slice per trip."""
        trips, condition, *carried = [self._read(name, scope, node) for name in node.input]
        trips = self._single(trips, node)
        if trips is None or not 0 < trips <= _MOST_TRIPS:
            raise ValueError(f"runs {'without end' if trips is None else trips} times")
        (body,) = [attribute.g for attribute in node.attribute]
        stacks: list[list[Value]] = [[] for _ in body.output[1 + len(carried) :]]
        for trip in range(trips):
            if self._single(condition, node) not in (None, True):
                raise ValueError("stops before its trip count")
            given = [np.array(trip, np.int64), np.array(True), *carried]
            condition, *made = self._run_body(body, given, scope)
            carried = made[: len(carried)]
            for stack, value in zip(stacks, made[len(carried) :], strict=True):
                stack.append(value)
        self.expressions.maker = node
        return (*carried, *(self._join(stack, lambda arrays: np.stack(arrays)) for stack in stacks))

    def _single(self, value: Value | None, node: onnx.NodeProto) -> int | bool | None:
        if isinstance(value, Symbols):
            self._demand_values(value, node)
            raise ValueError("depends on computed values")
        return None if value is None else value.item()

    def _run_body(self, body: onnx.GraphProto, given: list[Value], scope: Scope) -> list[Value]:
        names = [value.name for value in body.input]
        inner = scope.new_child({tensor.name: self.graph.array(tensor) for tensor in body.initializer})
        inner.update(zip(names, given, strict=True))
        outputs = [value.name for value in body.output]
        self._run_nodes(live_nodes(body.node, outputs), inner)
        return [self._read(name, inner, None) for name in outputs]

    # --- operators on symbols

    def _move(self, operator: str, inputs: list[Value | None], attributes: dict) -> Value | tuple:
        real = inputs[0].real
        moved = MOVES[operator](inputs[0].ids, *inputs[1:], **attributes)
        if isinstance(moved, tuple):
            return tuple(Symbols(part, real) for part in moved)
        return Symbols(moved, real)

    def _concat(self, inputs: list[Value], attributes: dict) -> Symbols:
        return self._join(inputs, lambda arrays: MOVES["Concat"](*arrays, **attributes))

    def _join(self, values: list[Value], join) -> Value:
        """One array out of several, constants among them turned into symbols where the others are symbols."""
        kinds = {value.real for value in values if isinstance(value, Symbols)}
        if not kinds:
            return join(values)
        if len(kinds) > 1 or any(_is_real(value) not in kinds for value in values):
            raise TypeError("joins whole numbers and floats")
        ids = [value.ids if isinstance(value, Symbols) else self.expressions.constants(value) for value in values]
        return Symbols(join(ids), kinds.pop())

    def _lookup(self, data: Value, indices: Symbols, *, axis: int = 0, name: str) -> Symbols:
        if isinstance(data, Symbols) or indices.real:
            raise ValueError("picks computed values by an input's values")
        if data.ndim != 2 or axis != 0 or data.dtype != np.float32 or not data.size:
            raise ValueError(
                f"looks up in {name!r} of shape {data.shape}, {data.dtype}, axis {axis}; "
                "an embedding table is [rows, dim] float32, axis 0"
            )
        return Symbols(self.expressions.lookup(data, indices.ids, name), True)

    def _gemm(
        self,
        a: Value,
        b: Value,
        c: Value | None = None,
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

    def _cast(self, data: Symbols, *, to: int) -> Symbols:
        same = (onnx.TensorProto.FLOAT,) if data.real else (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        if to not in same:
            raise ValueError(f"casts to {onnx.TensorProto.DataType.Name(to)}")
        return data

    def _reduce_sum(
        self, data: Symbols, axes: np.ndarray | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Symbols:
        if axes is None or len(axes) != 1 or not data.real:
            raise ValueError("sums over what is not one axis of looked-up rows")
        axis = int(axes[0])
        sums = self.expressions.total(np.moveaxis(data.ids, axis, -1))
        return Symbols(np.expand_dims(sums, axis) if keepdims else sums, True)

    def _function(self, kind: str, data: Symbols) -> Symbols:
        if not data.real:
            raise ValueError("is applied to whole numbers")
        return Symbols(self.expressions.apply(kind, data.ids), True)


def _on_constants(operator: str, inputs: list[np.ndarray | None], attributes: dict) -> np.ndarray | tuple:
    largest = max((value.size for value in inputs if value is not None), default=0)
    if operator not in VIEWS and largest > _MOST_COPIED_ELEMENTS:
        raise ValueError(f"computes on {largest} constants; a table is used as it is stored")
    return ON_CONSTANTS[operator](*inputs, **attributes)


def _constant(**attributes: object) -> np.ndarray:
    """A Constant node's value, in whichever of its forms."""
    ((form, value),) = attributes.items()
    dtypes = {"value": None, "value_int": np.int64, "value_ints": np.int64, "value_float": "f4", "value_floats": "f4"}
    if form not in dtypes:
        raise ValueError(f"holds its value as {form}")
    return np.asarray(value, dtypes[form])


def _is_real(value: Value) -> bool:
    return value.real if isinstance(value, Symbols) else value.dtype.kind == "f"


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
