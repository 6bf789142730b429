"""Random changes of meaning to an ONNX graph, for tests: each may turn a DLRM into something else.

`mutate(model, rng)` changes a copy and says what it did. Most results are no DLRM any more, some are another DLRM
(two layers' weights swapped), some mean the same as before; a reader has to tell which.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, numpy_helper

_AXES = ("axis", "axes", "perm", "transA", "transB", "keepdims", "split")
_FUNCTIONS = ("Relu", "Sigmoid", "Tanh", "Identity", "Neg", "LeakyRelu")
_POOLINGS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceProd")
_COMPARISONS = ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Max", "Min", "Add", "Sub", "Mul", "Div")


def mutate(model: ModelProto, rng: np.random.Generator) -> tuple[ModelProto, str]:
    """(a changed copy, what was changed)."""
    changes = (
        _rewire,
        _swap_inputs,
        _change_index,
        _swap_weights,
        _change_axis,
        _change_activation,
        _drop_node,
        _scale,
        _change_operator,
        _change_number,
        _swap_branches,
        _cross_bags,
    )
    while True:
        changed = ModelProto()
        changed.CopyFrom(model)
        change = changes[rng.integers(len(changes))]
        said = change(changed.graph, rng)
        if said:
            return changed, f"{change.__name__[1:]}: {said}"


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes, those in Loop bodies included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _pick(rng: np.random.Generator, things: list) -> object:
    """One of `things`, every operator type being as likely as the others: Gathers outnumber Gemms ten to one."""
    kinds = sorted({thing.op_type for thing in things})
    kind = kinds[rng.integers(len(kinds))]
    alike = [thing for thing in things if thing.op_type == kind]
    return alike[rng.integers(len(alike))]


def _rewire(graph: GraphProto, rng: np.random.Generator) -> str:
    node = _pick(rng, [node for node in _nodes(graph) if node.input])
    place = rng.integers(len(node.input))
    # Half of the time to what a node of the same kind reads in that place: it then fits, and means something else.
    alike = [
        other.input[place] for other in _nodes(graph) if other.op_type == node.op_type and len(other.input) > place
    ]
    names = [value.name for value in graph.input] + [name for other in _nodes(graph) for name in other.output]
    source = alike if rng.random() < 0.5 else names
    old, node.input[place] = node.input[place], source[rng.integers(len(source))]
    return f"{node.name} input {place} from {old} to {node.input[place]}" if old != node.input[place] else ""


def _swap_inputs(graph: GraphProto, rng: np.random.Generator) -> str:
    node = _pick(rng, [node for node in _nodes(graph) if len(node.input) > 1])
    i, j = rng.choice(len(node.input), 2, replace=False)
    node.input[i], node.input[j] = node.input[j], node.input[i]
    return f"{node.name} inputs {i} and {j}" if node.input[i] != node.input[j] else ""


def _change_index(graph: GraphProto, rng: np.random.Generator) -> str:
    tensors = [(node.name, node.attribute[0].t) for node in _nodes(graph) if node.op_type == "Constant"]
    tensors += [(tensor.name, tensor) for tensor in graph.initializer]
    integers = [(name, tensor) for name, tensor in tensors if tensor.data_type == 7 and np.prod(tensor.dims) > 0]
    if not integers:
        return ""
    long = [(name, tensor) for name, tensor in integers if np.prod(tensor.dims) > 5]
    among = long if long and rng.random() < 0.5 else integers
    name, tensor = among[rng.integers(len(among))]
    values = numpy_helper.to_array(tensor).copy()
    place = rng.integers(values.size)
    old = values.flat[place]
    values.flat[place] = old - 1 if old > 2**31 else old + rng.choice([-1, 1])
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return f"{name}[{place}] from {old} to {values.flat[place]}"


def _swap_weights(graph: GraphProto, rng: np.random.Generator) -> str:
    floats = [tensor for tensor in graph.initializer if tensor.data_type == 1]
    first = floats[rng.integers(len(floats))]
    alike = [tensor for tensor in floats if tensor is not first and list(tensor.dims[1:]) == list(first.dims[1:])]
    if not alike:
        return ""
    second = alike[rng.integers(len(alike))]
    first.name, second.name = second.name, first.name
    return f"{first.name} and {second.name}"


def _change_axis(graph: GraphProto, rng: np.random.Generator) -> str:
    node = _pick(rng, [node for node in _nodes(graph) if any(a.name in _AXES for a in node.attribute)])
    attribute = next(a for a in node.attribute if a.name in _AXES)
    old = list(attribute.ints) or attribute.i
    if attribute.name == "perm":
        attribute.ints[:] = rng.permutation(old).tolist()
    elif attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] += int(rng.choice([-1, 1]))
    else:
        attribute.i = int(rng.choice([axis for axis in (-1, 0, 1, 2) if axis != attribute.i]))
    new = list(attribute.ints) or attribute.i
    return f"{node.name} {attribute.name} from {old} to {new}" if old != new else ""


def _change_activation(graph: GraphProto, rng: np.random.Generator) -> str:
    node = _pick(rng, [node for node in _nodes(graph) if node.op_type in _FUNCTIONS])
    old, node.op_type = node.op_type, str(rng.choice([name for name in _FUNCTIONS if name != node.op_type]))
    return f"{node.name} from {old} to {node.op_type}"


def _drop_node(graph: GraphProto, rng: np.random.Generator) -> str:
    """A node's readers read its first input instead; now and then it is one of a Loop's body."""
    nodes = list(_nodes(graph)) if rng.random() < 0.3 else list(graph.node)
    outputs = {value.name for value in graph.output}
    dropped = _pick(rng, [node for node in nodes if node.input and not outputs.intersection(node.output)])
    for node in _nodes(graph):
        node.input[:] = [dropped.input[0] if name == dropped.output[0] else name for name in node.input]
    return f"{dropped.name} ({dropped.op_type})"


def _change_operator(graph: GraphProto, rng: np.random.Generator) -> str:
    """A sum over a bag becomes a mean, a comparison another one; an ATen node pools in another mode."""
    for names in [_POOLINGS, _COMPARISONS][:: rng.choice([-1, 1])]:
        nodes = [node for node in _nodes(graph) if node.op_type in names]
        if nodes:
            node = _pick(rng, nodes)
            old, node.op_type = node.op_type, str(rng.choice([name for name in names if name != node.op_type]))
            return f"{node.name} from {old} to {node.op_type}"
    numbers = [attribute for node in graph.node if node.op_type == "ATen" for attribute in node.attribute]
    modes = [attribute for attribute in numbers if attribute.name == "mode"]
    if not modes:
        return ""
    mode = modes[rng.integers(len(modes))]
    mode.i = 1 - mode.i
    return f"an ATen node's mode to {mode.i}"


def _change_number(graph: GraphProto, rng: np.random.Generator) -> str:
    """One float constant of few values (a clamp's bound, a weight of rows) is changed."""
    tensors = [(node.name, node.attribute[0].t) for node in _nodes(graph) if node.op_type == "Constant"]
    tensors += [(tensor.name, tensor) for tensor in graph.initializer]
    few = [(name, tensor) for name, tensor in tensors if tensor.data_type == 1 and len(tensor.dims) < 2]
    if not few:
        return ""
    name, tensor = few[rng.integers(len(few))]
    values = numpy_helper.to_array(tensor).copy()
    if not values.size:
        return ""
    values.flat[rng.integers(values.size)] += np.float32(0.125)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return f"{name}: a value by 0.125"


def _swap_branches(graph: GraphProto, rng: np.random.Generator) -> str:
    choices = [node for node in _nodes(graph) if node.op_type == "If"]
    if not choices:
        return ""
    node = choices[rng.integers(len(choices))]
    first, second = node.attribute
    first.name, second.name = second.name, first.name
    return f"the branches of {node.name}"


def _cross_bags(graph: GraphProto, rng: np.random.Generator) -> str:
    """One thing that a table's Loop (or ATen node) reads from around it is taken from another table's."""
    bodies = [list(_nodes(a.g)) for node in graph.node for a in node.attribute if a.type == AttributeProto.GRAPH]
    bodies = bodies or [[node] for node in graph.node if node.op_type == "ATen" and len(node.output) > 1]
    if len(bodies) < 2:
        return ""
    # From an earlier one: what a later one reads is not made yet.
    other, one = (bodies[place] for place in np.sort(rng.choice(len(bodies), 2, replace=False)))
    around = {name for node in graph.node for name in node.output}
    around.update(value.name for value in (*graph.input, *graph.initializer))
    places = [
        (mine, theirs, place)
        for mine, theirs in zip(one, other)
        for place in range(min(len(mine.input), len(theirs.input)))
        if mine.input[place] != theirs.input[place] and around >= {mine.input[place], theirs.input[place]}
    ]
    if not places:
        return ""
    mine, theirs, place = places[rng.integers(len(places))]
    mine.input[place] = theirs.input[place]
    return f"{mine.name} input {place} to {theirs.name}'s {theirs.input[place]}"


def _scale(graph: GraphProto, rng: np.random.Generator) -> str:
    gemms = [node for node in graph.node if node.op_type == "Gemm"]
    if not gemms:
        return ""
    node = gemms[rng.integers(len(gemms))]
    name = str(rng.choice(["alpha", "beta"]))
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.add(name=name, type=AttributeProto.FLOAT, f=2.0)
    return f"{node.name} {name} = 2"
