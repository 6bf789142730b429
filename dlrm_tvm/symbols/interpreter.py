"""Runs an ONNX graph on symbols, which gives the formula of every output element.

    inputs as symbols -> nodes in order -> Symbols of the output       (constants stay arrays throughout)

An operator moves elements or computes with constants (operators.py, masks.py), is one of the few computations of a DLRM
(computations.py, fused.py, aten.py) or part of a table (lookup_operators.py), controls the flow (Loop, If) or builds a
sequence. Any other is refused by its node's name, so everything that influences the output is understood.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..errors import UserError
from . import aten
from .branches import Branches
from .computations import Computations, LateCast, Value
from .expressions import Expressions, Symbols
from .fused import FUSED, domains_of
from .graph import OnnxGraph, live_nodes
from .lookup_operators import on_lookups
from .lookups import BagsDifferError
from .masks import MASKS
from .names import names_read
from .operators import MOVES, OF_SMALL_FLOATS, ON_CONSTANTS, constant, evaluate, shape, size
from .row_operators import OF_CONSTANTS, evaluate_constants
from .sizes import MOST_COPIED_ELEMENTS, Made

Scope = ChainMap[str, Value]

_OUTERMOST = 2  # maps in the graph's own scope: nodes' outputs and inputs; a Loop's body adds one
_MOST_TRIPS = 1000  # plus two per row of the largest input: more than any loop over items or tables takes
_MOST_IN_ALL = 50_000  # of all loops together, those in loops too
# Raised by NumPy, onnx and Python's own calls where a node's inputs and attributes do not fit together.
_MISFITS = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
# Operators whose results jump at some value of an input.
_STEPPED = ("Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod")
_OF_LAYERS = {*(name for _, name in FUSED), "Add", "Clip", "Gemm", "MatMul", "Max", "Min", "Sub"}
_ON_WHOLE_NUMBERS = ("Cast", "CastLike", "Gather", "GatherElements", "GatherND")


@dataclass(frozen=True, eq=False)
class _Step:
    """A node prepared to run many times. bodies: the graphs of a Loop or an If, by attribute. fixed: per input, whether
    it is the same for all graph inputs."""

    node: onnx.NodeProto
    attributes: dict[str, object]
    bodies: dict[str, _Body]
    fixed: list[bool]


@dataclass(frozen=True, eq=False)
class _Body:
    steps: list[_Step]
    inputs: list[str]
    outputs: list[str]
    constants: dict[str, np.ndarray]


class Interpreter:
    """One run of `graph`. The keys of index symbols are ("index", input name, ...): see `NeedsValues`.

    most_tried: the largest number that sizes and positions of bags may be compared with. The runs would not show what
    happens beyond a larger one (as in `Min(size, 1000)`). branches: see branches.py.
    """

    def __init__(
        self, graph: OnnxGraph, expressions: Expressions, most_tried: int, branches: Branches | None = None
    ) -> None:
        self.graph = graph
        self._branches = branches
        self.expressions = expressions
        self._computations = Computations(expressions)
        self._most_tried = most_tried
        self._steering = {"Loop": self._loop, "If": self._if}
        self._sequences: dict[str, Callable[..., Value]] = {
            "ConcatFromSequence": self._concat_from_sequence,
            "SequenceAt": lambda sequence, place: sequence[self._single(place)],
            "SequenceConstruct": lambda *values: list(values),
            "SequenceEmpty": lambda *, dtype=1: [],
            "SequenceInsert": self._insert,
        }

    def run(self, inputs: Mapping[str, Value], made: dict[str, Value] | None = None) -> Value:
        """The graph's output. Raises NeedsValues, or UserError with the name of the node that is not understood.

        made: results of an earlier run, which are reused; this run adds its own, also when it fails.
        """
        made = {} if made is None else made
        scope: Scope = ChainMap(made, dict(inputs))
        largest = max((max(_shape(value), default=0) for value in inputs.values()), default=0)
        self._trips, self._most_trips, self._made = 0, _MOST_TRIPS + 2 * largest, Made()
        varying = set(inputs) | self.graph.size_constants
        steps = (self._followed(node, self._step, node, varying) for node in self.graph.nodes)
        self._run_steps((step for step in steps if made.keys().isdisjoint(step.node.output)), scope)
        return self._read(self.graph.output, scope, None)

    def _run_steps(self, steps: Iterable[_Step], scope: Scope) -> None:
        for step in steps:
            results = self._followed(step.node, self._run_step, step, scope)
            self._followed(step.node, self._made.add, results)
            scope.maps[0].update(zip(step.node.output, results))

    def _followed(self, node: onnx.NodeProto, follow: Callable, *arguments: object) -> Any:
        """What `follow` gives; the node is named where its inputs and attributes do not fit together."""
        try:
            return follow(*arguments)
        except UserError:
            raise
        except BagsDifferError as error:
            raise self.graph.of_long_bags(node, str(error)) from None
        except _MISFITS as error:
            raise self.graph.refusal(node, f"cannot be followed: {_one_line(error)}") from None

    def _run_step(self, step: _Step, scope: Scope) -> tuple[Value, ...]:
        node = step.node
        self.expressions.maker = node
        if node.domain not in (aten.DOMAINS if node.op_type == "ATen" else domains_of(node.op_type)):
            raise self.graph.refusal(node, f"is of the operator set {node.domain!r}, which no DLRM needs")
        if node.op_type in self._steering:
            return self._steering[node.op_type](step, scope)
        if node.op_type == "Constant":
            kept = self.graph.constant(node.output[0]) if len(scope.maps) == _OUTERMOST else None
            return (constant(**step.attributes) if kept is None else kept,)
        inputs = [self._read(name, scope, node) for name in node.input]
        if node.op_type in _STEPPED:
            self._check_tried(step, inputs)
        if node.op_type in _OF_LAYERS:
            self._check_fixed(step, inputs)
        result = self._compute(node, inputs, step.attributes, all(step.fixed))
        return result if isinstance(result, tuple) else (result,)

    def _compute(self, node: onnx.NodeProto, inputs: list[Value], attributes: dict, fixed: bool) -> Value | tuple:
        operator, named = node.op_type, zip(node.input, inputs)
        constants = (name for name, value in named if isinstance(value, (np.ndarray, LateCast)))
        self._computations.table_name = next(constants, "")
        if operator == "ATen":
            return aten.run_aten(self._computations, inputs, **attributes)
        fused = FUSED.get((node.domain.replace("ai.onnx", ""), operator))
        if fused is not None and any(isinstance(value, Symbols) for value in inputs):
            return fused(self._computations, *inputs, **attributes)
        if operator in self._sequences:
            return self._sequences[operator](*inputs, **attributes)
        if any(isinstance(value, LateCast) for value in inputs):
            return self._computations.lookup_cast(operator, inputs, **attributes)
        if any(isinstance(value, list) for value in inputs):
            raise self.graph.refusal(node, "is no operation of a DLRM on a sequence")
        symbolic = [place for place, value in enumerate(inputs) if isinstance(value, Symbols)]
        if not symbolic and operator == "Cast" and inputs[0].size > MOST_COPIED_ELEMENTS:
            return LateCast(inputs[0], **attributes)
        if not symbolic and operator in ON_CONSTANTS:
            return evaluate(operator, inputs, attributes)
        if not symbolic and operator in OF_CONSTANTS and fixed:
            return evaluate_constants(operator, self.graph.opset, inputs, attributes)
        if operator in ("Shape", "Size"):
            return {"Shape": shape, "Size": size}[operator](inputs[0].ids, **attributes)
        if operator == "Concat":
            return self._computations.join(inputs, lambda arrays: MOVES["Concat"](*arrays, **attributes))
        if symbolic == [0] and operator in MOVES:
            return self._computations.move(operator, inputs, attributes)
        if symbolic and (found := on_lookups(self._computations.lookups, operator, inputs, attributes)) is not None:
            return found
        if symbolic and operator in MASKS:
            return MASKS[operator](self._computations, *inputs, **attributes)
        if symbolic and operator in self._computations.by_operator:
            # Arithmetic on whole numbers needs their values: an input is asked for its.
            for value in inputs if operator not in _ON_WHOLE_NUMBERS else ():
                self._computations.demand_values(value)
            return self._computations.by_operator[operator](*inputs, **attributes)
        # An operator may move symbols, but how far and where to must be values.
        for place in symbolic[1:] if operator in MOVES and symbolic[:1] == [0] else symbolic:
            self._computations.demand_values(inputs[place])
        known = operator in ON_CONSTANTS or operator in self._computations.by_operator
        raise self.graph.refusal(node, f"is no operation of a DLRM{' on such inputs' if known else ''}")

    def _check_fixed(self, step: _Step, inputs: list[Value]) -> None:
        """Refuse a weight, bias or bound that depends on the sizes of the inputs: it may differ at sizes not tried."""
        if not any(isinstance(value, Symbols) and value.real for value in inputs):
            return
        for value, fixed in zip(inputs, step.fixed):
            if not fixed and isinstance(value, np.ndarray) and value.dtype.kind == "f":
                reason = "takes a weight, bias or bound that may depend on the batch size or on the offsets"
                raise self.graph.refusal(step.node, reason)

    def _check_tried(self, step: _Step, inputs: list[Value]) -> None:
        if all(step.fixed) or any(isinstance(value, Symbols) for value in inputs):
            return
        for value in (value for value, fixed in zip(inputs, step.fixed) if fixed and value is not None and value.size):
            if value.dtype != np.bool_ and np.abs(value).max() > self._most_tried:
                bound = value.flat[np.abs(value).argmax()]
                reason = f"depends on whether a size or position is above or below {bound}; no DLRM does"
                raise self.graph.refusal(step.node, reason)

    def _read(self, name: str, scope: Scope, node: onnx.NodeProto | None) -> Value:
        if not name:
            return None
        for values in scope.maps:  # ChainMap's own get takes five times as long
            if name in values:
                return values[name]
        value = self.graph.constant(name)
        if value is None:
            raise self.graph.refusal(node, f"reads {name!r}, which nothing before it makes")
        return value

    # --- Loop and If

    def _loop(self, step: _Step, scope: Scope) -> tuple[Value, ...]:
        """ONNX Loop: carried values go from trip to trip; other outputs of the body are stacked, a slice per trip."""
        node, body = step.node, step.bodies["body"]
        limit, condition, *carried = [self._read(name, scope, node) for name in node.input]
        limit, conditional = self._single(limit), condition is not None
        stacks: list[list[Value]] = [[] for _ in body.outputs[1 + len(carried) :]]
        trip = 0
        while (limit is None or trip < limit) and (not conditional or self._truth(condition)):
            self._trips += 1
            if trip == self._most_trips or self._trips > _MOST_IN_ALL:
                raise ValueError(f"runs more than {trip:,} times, all loops together {self._trips:,}")
            given = [np.array(trip, np.int64), np.array(True), *carried]
            condition, *made = self._run_body(body, given, scope)
            carried = made[: len(carried)]
            for stack, value in zip(stacks, made[len(carried) :], strict=True):
                stack.append(value)
            trip += 1
        self.expressions.maker = node
        if stacks and not trip:
            raise ValueError("runs 0 times")
        return (*carried, *(self._computations.join(stack, lambda arrays: np.stack(arrays)) for stack in stacks))

    def _if(self, step: _Step, scope: Scope) -> tuple[Value, ...]:
        (condition,) = [self._read(name, scope, step.node) for name in step.node.input]
        taken = None if self._branches is None else self._branches.taken(self._computations.lookups, condition)
        taken = self._truth(condition) if taken is None else taken
        branch = step.bodies["then_branch" if taken else "else_branch"]
        return tuple(self._run_body(branch, [], scope))

    def _truth(self, value: Value) -> bool:
        found = self._single(value)
        if not isinstance(found, bool):
            raise TypeError(f"goes by {found!r}, which is neither true nor false")
        return found

    def _single(self, value: Value) -> int | bool | None:
        if isinstance(value, Symbols):
            self._computations.demand_values(value)
            raise ValueError("depends on computed values")
        return None if value is None else value.item()

    def _run_body(self, body: _Body, given: list[Value], scope: Scope) -> list[Value]:
        inner = scope.new_child(dict(body.constants))
        inner.maps[0].update(zip(body.inputs, given, strict=True))
        self._run_steps(body.steps, inner)
        return [self._read(name, inner, None) for name in body.outputs]

    # --- sequences

    def _insert(self, sequence: list[Value], value: Value, place: Value = None) -> list[Value]:
        position = len(sequence) if place is None else self._single(place)
        if not -len(sequence) <= position <= len(sequence):
            raise IndexError(f"inserts at {position} of {len(sequence)}")
        position += len(sequence) if position < 0 else 0
        return [*sequence[:position], value, *sequence[position:]]

    def _concat_from_sequence(self, sequence: list[Value], *, axis: int, new_axis: int = 0) -> Value:
        put_together = np.stack if new_axis else np.concatenate
        return self._computations.join(sequence, lambda arrays: put_together(arrays, axis))

    # --- preparing nodes

    def _step(self, node: onnx.NodeProto, varying: set[str]) -> _Step:
        """varying: the names whose values depend on the graph's inputs; the node's outputs are added."""
        graphs = [attribute for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
        others = [attribute for attribute in node.attribute if attribute.type != onnx.AttributeProto.GRAPH]
        values = [attribute for attribute in others if attribute.name not in OF_SMALL_FLOATS]
        attributes = {attribute.name: self._attribute(attribute) for attribute in values}
        if node.op_type == "Split":
            attributes["outputs"] = len(node.output)
        bodies = {attribute.name: self._body(attribute.g, varying) for attribute in graphs}
        fixed = [name not in varying for name in node.input]
        alters = not varying.isdisjoint(names_read(node))
        alters = alters or any(self.graph.holds_size(attribute.t) for attribute in values if attribute.HasField("t"))
        (varying.update if alters else varying.difference_update)(node.output)
        return _Step(node, attributes, bodies, fixed)

    def _body(self, body: onnx.GraphProto, around: set[str]) -> _Body:
        outputs = [value.name for value in body.output]
        varying = around.union(value.name for value in body.input)  # the number of the trip among them
        varying.update(tensor.name for tensor in body.initializer if self.graph.holds_size(tensor))
        steps = [self._step(node, varying) for node in live_nodes(body.node, outputs)]
        constants = {tensor.name: self.graph.array(tensor) for tensor in body.initializer}
        return _Body(steps, [value.name for value in body.input], outputs, constants)

    def _attribute(self, attribute: onnx.AttributeProto) -> object:
        if attribute.type == onnx.AttributeProto.TENSOR:
            return self.graph.array(attribute.t)
        return onnx.helper.get_attribute_value(attribute)


def _shape(value: Value) -> tuple[int, ...]:
    return value.ids.shape if isinstance(value, Symbols) else value.shape


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
