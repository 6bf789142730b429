"""Changing ONNX graphs by hand, for tests, and asking the reader for its refusal."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import write_dlrm
from onnx import helper, numpy_helper

from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.paths import ROOT

EXPORTS = ROOT / "tests" / "exports"  # recorded by make_exports.py
SHARED_EXPORTS = ROOT.parent / "shared" / "exports"  # of MLPerf's shape, not in the repository
SHARED_NAMES = ("t171_stacked", "t213_legacy_onehot")

Change = Callable[[onnx.GraphProto], None]


@cache
def read_export(name: str) -> Dlrm:
    """A recorded export as the reader has it, read once for all tests of a process. Not to be changed."""
    return read_dlrm(EXPORTS / f"{name}.onnx")


def shared_export(name: str) -> Path:
    path = SHARED_EXPORTS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def changed(tmp_path: Path, change: Change, **options: object) -> Path:
    """A small DLRM's file after `change(graph)`."""
    return changed_file(tmp_path, change, write_dlrm(tmp_path / "changed.onnx", **options))


def changed_file(tmp_path: Path, change: Change, original: Path) -> Path:
    model = onnx.load(original)
    change(model.graph)
    onnx.save(model, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


def node_of(graph: onnx.GraphProto, op_type: str, place: int = 0) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == op_type][place]


def body_of(node: onnx.NodeProto) -> onnx.GraphProto:
    return next(attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH)


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    for attribute in [one for one in node.attribute if one.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


def add_constant(graph: onnx.GraphProto, name: str, array: np.ndarray) -> None:
    graph.initializer.append(numpy_helper.from_array(array, name))


def set_constant(graph: onnx.GraphProto, name: str, array: np.ndarray) -> None:
    (tensor,) = [tensor for tensor in graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def add_before_output(graph: onnx.GraphProto, *nodes: onnx.NodeProto) -> None:
    """`nodes` in a row after the node that makes the output; each one's first input and its output are set here."""
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    name = graph.output[0].name
    last.output[0] = source = f"{name}_before"
    for place, node in enumerate(nodes):
        node.input.insert(0, source)
        source = name if place == len(nodes) - 1 else f"{name}_{place}"
        node.output.append(source)
        graph.node.append(node)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_dlrm(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message
