"""The names in an ONNX graph: each has one meaning, or a second one that makes no difference.

Some exporters define a name twice. ONNX Runtime refuses such a file; it is read, with a warning, where nothing depends
on which definition counts:

    a node that is there twice          a second definition that nothing reads        a name inside a Loop's body that
    a constant with the same values     an input that is declared twice               stands for something else outside
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from ..errors import UserError


def label(node: onnx.NodeProto) -> str:
    """A node in messages: by its name, or by its output where it has none."""
    return f"{node.name} ({node.op_type})" if node.name else f"{node.op_type} that makes {node.output[0]!r}"


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """All names that a node reads, with those that its inner graphs (a Loop's body) read from outside."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from names_read(inner)
            yield from (value.name for value in attribute.g.output)


def single_assignment(graph: onnx.GraphProto, path: Path, around: frozenset[str] = frozenset()) -> list[str]:
    """Warnings about names that are defined twice; what repeats is taken out of the graph. Raises UserError where it
    matters which definition counts. around: names outside a Loop's body."""
    stored = _stored(graph, path)
    warnings = _single_inputs(graph, path)
    made: dict[str, object] = {**stored, **{value.name: value for value in graph.input}}
    read = {name for node in graph.node for name in names_read(node)} | {value.name for value in graph.output}
    kept = []
    for node in list(graph.node):
        kept.append(node)
        again = [name for name in filter(None, node.output) if name in made]
        if own := set(filter(None, node.input)) & set(node.output):
            raise _taken(path, node, min(own))
        if again:
            if _repeats(made[again[0]], node) or (read.isdisjoint(again) and len(again) == len(node.output)):
                kept.pop()
            elif read.isdisjoint(again):
                node.output[:] = ["" if name in again else name for name in node.output]
            else:
                raise _taken(path, node, again[0])
            warnings.append(f"{again[0]!r} is defined twice, to the same effect: other engines refuse the file")
        made.update((name, node) for name in filter(None, node.output) if name not in made)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                warnings += single_assignment(attribute.g, path, around | made.keys())
    if len(kept) < len(graph.node):  # `remove` would take the first one that is equal
        del graph.node[:]
        graph.node.extend(kept)
    for name in sorted(around & {name for node in graph.node for name in node.output} - {""}):
        warnings.append(
            f"{name!r} means one thing inside a Loop or If and another around it: other engines refuse that"
        )
    return warnings


def _taken(path: Path, node: onnx.NodeProto, name: str) -> UserError:
    return UserError(
        f"{path}: node {label(node)} makes {name!r}, a name that is taken already. Export the model again."
    )


def _stored(graph: onnx.GraphProto, path: Path) -> dict[str, onnx.TensorProto]:
    """A weight that is there twice with the same values is harmless."""
    first: dict[str, onnx.TensorProto] = {}
    for tensor in [*graph.initializer, *(tensor.values for tensor in graph.sparse_initializer)]:
        if first.setdefault(tensor.name, tensor) != tensor:
            raise UserError(f"{path}: there are two tensors {tensor.name!r} with different values. Export it again.")
    return first


def _single_inputs(graph: onnx.GraphProto, path: Path) -> list[str]:
    first: dict[str, onnx.ValueInfoProto] = {}
    warnings = []
    for value in list(graph.input):
        if first.setdefault(value.name, value) != value:
            raise UserError(f"{path}: there are two inputs {value.name!r}. Export the model again.")
        if first[value.name] is not value:
            warnings.append(f"the input {value.name!r} is declared twice: other engines refuse the file")
    if warnings:
        kept = list(first.values())
        del graph.input[:]
        graph.input.extend(kept)
    return warnings


def _repeats(first: object, node: onnx.NodeProto) -> bool:
    """Whether the node gives what the first definition gives."""
    if isinstance(first, onnx.TensorProto):
        values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        return node.op_type == "Constant" and len(values) == 1 and _nameless(values[0]) == _nameless(first)
    return isinstance(first, onnx.NodeProto) and _nameless(first) == _nameless(node)


def _nameless(proto: onnx.NodeProto | onnx.TensorProto) -> bytes:
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.name = copy.doc_string = ""
    return copy.SerializeToString(deterministic=True)
