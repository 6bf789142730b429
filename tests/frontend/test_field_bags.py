"""Recorded exports whose embedding bags were changed as people change them: read for every bag that is a table's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_surgery import EXPORTS, body_of, read_export
from graphs import onnxruntime_outputs, onnxruntime_session
from onnx import helper, numpy_helper
from recorded_bags import feed, random_bags

from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.reference import predict

ITEMS, DIM = 7, 4


def _constant(graph: onnx.GraphProto, array: np.ndarray, name: str) -> str:
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def _behind_each_bag(graph: onnx.GraphProto, *operators: str) -> None:
    """MatMul, Add with a constant, or Relu, in this order, on what each Loop over bags gives."""
    rng = np.random.default_rng(2)
    for t, loop in enumerate([node for node in graph.node if node.op_type == "Loop"]):
        last, source = loop.output[0], f"bags_{t}"
        loop.output[0] = source
        at = list(graph.node).index(loop) + 1
        for step, operator in enumerate(operators):
            shape = {"MatMul": (DIM, DIM), "Add": (DIM,)}.get(operator)
            inputs = [source]
            if shape:
                inputs.append(_constant(graph, rng.normal(size=shape).astype(np.float32), f"constant_{t}_{step}"))
            source = last if step == len(operators) - 1 else f"step_{t}_{step}"
            node = helper.make_node(operator, inputs, [source], name=f"{operator}_{t}_behind")
            graph.node.insert(at + step, node)


def _unchanged(graph: onnx.GraphProto) -> None:
    """Bags of any lengths, also empty ones, as PyTorch's exporters write them."""


def _projected(graph: onnx.GraphProto) -> None:
    _behind_each_bag(graph, "MatMul")


def _with_a_bias(graph: onnx.GraphProto) -> None:
    _behind_each_bag(graph, "MatMul", "Add")


def _with_relu(graph: onnx.GraphProto) -> None:
    _behind_each_bag(graph, "Relu")


def _one_joint_table(graph: onnx.GraphProto) -> None:
    """The tables in one, their offsets added to the indices of each bag."""
    tables = [tensor for tensor in graph.initializer if tensor.name.startswith("emb")]
    arrays = [numpy_helper.to_array(tensor) for tensor in tables]
    starts = np.cumsum([0, *map(len, arrays)])[:-1]
    _constant(graph, np.concatenate(arrays), "joint")
    for t, (tensor, start) in enumerate(zip(tables, starts)):
        _constant(graph, start, f"start_{t}")
        for loop in (node for node in graph.node if node.op_type == "Loop"):
            body = body_of(loop)
            for lookup in [node for node in body.node if tensor.name in node.input]:
                added = helper.make_node("Add", [lookup.input[1], f"start_{t}"], [f"shifted_{t}"], name=f"Add_{t}")
                body.node.insert(list(body.node).index(lookup), added)
                lookup.input[:] = ["joint", f"shifted_{t}"]
        graph.initializer.remove(tensor)


# Per case: the export, its change, and the operator that allows bags of one index alone.
CASES = {
    "offsets stacked": ("op11_stacked", _unchanged, None),
    "offsets per table": ("op13_lists", _unchanged, None),
    "offsets with the last end": ("op13_cross_last_lists", _unchanged, None),
    "offsets stacked, torch.export": ("dynamo18_stacked", _unchanged, None),
    "offsets per table, padding_idx": ("dynamo18_padding_lists", _unchanged, None),
    "sums projected": ("op11_stacked", _projected, None),
    "means projected": ("op17_mean", _projected, None),
    "sums with a bias": ("op13_lists", _with_a_bias, "Add"),
    "means with a bias": ("op17_mean", _with_a_bias, "Add"),
    "sums with Relu": ("op13_lists", _with_relu, "Relu"),
    "a joint table": ("op13_lists", _one_joint_table, None),
}


@pytest.mark.parametrize("name", CASES)
def test_bags_of_what_is_a_table_are_read_as_onnxruntime_computes_them(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export, change, only_one = CASES[name]
    rows = [table.num_rows for table in read_export(export).tables]
    found, wanted, reason = _both(EXPORTS / f"{export}.onnx", change, rows, tmp_path / "changed.onnx")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)
    assert only_one in reason if only_one else reason == ""


def _both(path: Path, change: Callable, rows: list[int], target: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Ours, ONNX Runtime's, and why bags have one index each."""
    model, rng = onnx.load(path), np.random.default_rng(5)
    change(model.graph)
    onnx.save(model, target)
    read = read_dlrm(target)
    reason = read.graph_inputs.one_index
    dense = rng.normal(size=(ITEMS, read.num_dense)).astype(np.float32)
    total = ITEMS if reason else 3 * ITEMS
    empty = not reason and read.tables[0].pooling == "sum"  # ONNX Runtime's mean of none is NaN
    indices, offsets = random_bags(rng, items=ITEMS, table_rows=rows, total=total, empty=empty)
    offsets = [np.arange(ITEMS)] * len(rows) if reason else offsets
    wanted = onnxruntime_outputs(onnxruntime_session(target), feed(read.graph_inputs, dense, indices, offsets))
    return predict(read, dense, indices, offsets), wanted, reason
