"""Graphs that are a DLRM at the sizes tried and something else at larger ones; sizes that no graph has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graph_surgery import changed, refusal
from onnx import TensorProto, helper, numpy_helper

from dlrm_tvm.frontend.reader import read_dlrm

INT8, INT64, FLOAT = TensorProto.INT8, TensorProto.INT64, TensorProto.FLOAT
Steps = list[tuple[str, list, dict]]

# How a number is made of the batch size that is 0 up to some batch, and another beyond it. Strings name what was made
# before: "batch" [int64 scalar], then "0", "1", .. in order; other operands are constants.
STEPS: dict[str, Steps] = {
    "both sides vary": [
        ("Mul", ["batch", np.int64(2)], {}),
        ("Add", ["batch", np.int64(60)], {}),
        ("Greater", ["0", "1"], {}),
        ("Cast", ["2"], {"to": FLOAT}),
    ],
    "a constant is taken off first": [
        ("Sub", ["batch", np.int64(60)], {}),
        ("Greater", ["0", np.int64(0)], {}),
        ("Cast", ["1"], {"to": FLOAT}),
    ],
    "a narrow cast wraps": [
        ("Mul", ["batch", np.int64(2)], {}),
        ("Cast", ["0"], {"to": INT8}),
        ("Cast", ["1"], {"to": INT64}),
        ("Sub", ["0", "2"], {}),
        ("Cast", ["3"], {"to": FLOAT}),
    ],
    "a float is cut off": [
        ("Cast", ["batch"], {"to": FLOAT}),
        ("Mul", ["0", np.float32(0.01)], {}),
        ("Cast", ["1"], {"to": INT64}),
        ("Cast", ["2"], {"to": FLOAT}),
    ],
    "a range steps": [
        ("Range", [np.int64(0), "batch", np.int64(60)], {}),
        ("Size", ["0"], {}),
        ("Sub", ["1", np.int64(1)], {}),
        ("Cast", ["2"], {"to": FLOAT}),
    ],
}


def stepping_bias(steps: Steps) -> Callable[[onnx.GraphProto], None]:
    """Adds the number that `steps` make to the last layer's bias."""

    def change(graph: onnx.GraphProto) -> None:
        made: list[onnx.NodeProto] = [
            helper.make_node("Shape", ["dense_x"], ["step.shape"]),
            helper.make_node("Gather", ["step.shape", _constant(graph, "step.first", np.int64(0))], ["step.batch"]),
        ]
        for number, (operator, operands, attributes) in enumerate(steps):
            names = [
                f"step.{operand}" if isinstance(operand, str) else _constant(graph, f"step.c{number}.{at}", operand)
                for at, operand in enumerate(operands)
            ]
            made.append(helper.make_node(operator, names, [f"step.{number}"], **attributes))
        layer = [node for node in graph.node if node.op_type == "Gemm"][-1]
        made.append(helper.make_node("Add", [layer.input[2], f"step.{len(steps) - 1}"], ["step.bias"]))
        layer.input[2] = "step.bias"
        for node in reversed(made):
            graph.node.insert(0, node)

    return change


def _constant(graph: onnx.GraphProto, name: str, value: np.generic) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


@pytest.mark.parametrize("case", STEPS)
def test_a_bias_that_changes_with_the_batch_size_is_refused_though_small_ones_do_not_show_it(case, tmp_path):
    message = refusal(changed(tmp_path, stepping_bias(STEPS[case])))
    assert "depend on the batch size" in message or "is above or below" in message


def test_the_graph_that_the_steps_are_put_into_is_read(tmp_path):
    assert len(read_dlrm(changed(tmp_path, lambda graph: None)).tables) == 3


@pytest.mark.parametrize("size", [-1, 0])
def test_a_size_that_is_no_size_is_an_open_one(tmp_path, size):
    def change(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = size

    assert read_dlrm(changed(tmp_path, change)).num_dense == 13


@pytest.mark.parametrize("size", [1 << 21, 1 << 40])
def test_a_size_beyond_any_batch_is_refused_at_once(tmp_path, size):
    def change(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = size

    assert f"has dims [{size}, 13]" in refusal(changed(tmp_path, change))
