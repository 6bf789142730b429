"""Little DLRMs as people build them by hand, as ONNX files: any embedding, any way to join, any layout of indices.

    path = write_graph(tmp_path / "g.onnx", embed=plain, join=lower_triangle)

`embed(builder, indices)` gives the names of the tables' vectors [batch, DIM]; `join(builder, x, vectors)` the name and
width of what the top MLP reads. Written with plain operators, independently of dlrm_tvm, for comparison with ONNX
Runtime on the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from graphs import onnxruntime_outputs, onnxruntime_session
from onnx import TensorProto, helper, numpy_helper, save_model

from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.reference import predict

DENSE, DIM, ROWS = 3, 4, (11, 5, 7)
ITEMS = 9
SIZES = {"separate": [], "columns": [1], "bags": [3]}  # of an item's indices


class Builder:
    def __init__(self, seed: int = 0) -> None:
        self.nodes: list = []
        self.constants: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(seed)

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        domain = {"domain": "com.microsoft"} if op.startswith("Fused") else {}
        names = [f"{op}_{len(self.nodes)}_{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}_{len(self.nodes)}", **domain, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, array: object, dtype: object = np.int64) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(array, dtype)
        return name

    def random(self, *shape: int, dtype: object = np.float32) -> str:
        return self.constant(self.rng.uniform(-1, 1, shape), dtype)

    def layer(self, x: str, inputs: int, outputs: int, activation: str | None = None) -> str:
        weight = self.constant(self.rng.uniform(-1, 1, (outputs, inputs)) * (3 / inputs) ** 0.5, np.float32)
        y = self.add("Gemm", x, weight, self.random(outputs), transB=1)
        return self.add(activation, y) if activation else y

    def table(self, rows: int, dim: int = DIM, dtype: object = np.float32) -> str:
        return self.random(rows, dim, dtype=dtype)


Embed = Callable[[Builder, list[str]], list[str]]
Join = Callable[[Builder, str, list[str]], tuple[str, int]]


def plain(b: Builder, indices: list[str]) -> list[str]:
    """Of the last tables, as many as there are indices."""
    return [b.add("Gather", b.table(rows), index) for rows, index in zip(ROWS[-len(indices) :], indices)]


def stacked(b: Builder, vectors: Sequence[str]) -> str:
    """[batch, V, DIM]"""
    flat = b.add("Concat", *vectors, axis=1)
    return b.add("Reshape", flat, b.constant([-1, len(vectors), DIM]))


def products(b: Builder, vectors: Sequence[str]) -> str:
    """[batch, V, V]"""
    z = stacked(b, vectors)
    return b.add("MatMul", z, b.add("Transpose", z, perm=[0, 2, 1]))


def picked(b: Builder, dots: str, pairs: Sequence[tuple[int, int]], count: int) -> str:
    flat = b.add("Reshape", dots, b.constant([-1, count * count]))
    return b.add("Gather", flat, b.constant([i * count + j for i, j in pairs]), axis=1)


LOWER = [(i, j) for i in range(4) for j in range(i)]  # of x and three vectors


def lower_triangle(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    count = len(vectors) + 1
    pairs = [(i, j) for i in range(count) for j in range(i)]
    dots = picked(b, products(b, [x, *vectors]), pairs, count)
    return b.add("Concat", x, dots, axis=1), DIM + len(pairs)


def write_graph(
    path: Path,
    *,
    embed: Embed = plain,
    join: Join = lower_triangle,
    layout: str = "separate",
    index_type: int = TensorProto.INT64,
    bottom: Callable[[Builder], str] | None = None,
    after_join: Callable[[Builder, str, int], str] | None = None,
    head: Callable[[Builder, str], str] | None = None,
    batch: int | None = None,
    opset: int = 17,
) -> Path:
    """layout: "separate" inputs indices_0 .. [batch], "columns" ([batch, 1] each), "bags" ([batch, 3] each, as they
    are), "items_first" or "tables_first"."""
    b, items, tables = Builder(), batch or "batch", len(ROWS)
    x = bottom(b) if bottom else b.layer(b.layer("dense_x", DENSE, 6, "Relu"), 6, DIM, "Relu")
    if layout in SIZES:
        indices = [f"indices_{t}" for t in range(tables)]
        dims = {name: [items, *SIZES[layout]] for name in indices}
        if layout == "columns":
            indices = [b.add("Squeeze", name, b.constant([1])) for name in indices]
    else:
        dims = {"indices": [items, tables] if layout == "items_first" else [tables, items]}
        axis = 1 if layout == "items_first" else 0
        indices = [b.add("Gather", "indices", b.constant(t), axis=axis) for t in range(tables)]
    joined, width = join(b, x, embed(b, indices))
    joined = after_join(b, joined, width) if after_join else joined
    hidden = b.layer(joined, width, 6, "Relu")
    pred = head(b, hidden) if head else b.add("Sigmoid", b.layer(hidden, 6, 1))
    b.nodes.append(helper.make_node("Identity", [pred], ["pred"], name="last"))
    inputs = [helper.make_tensor_value_info("dense_x", TensorProto.FLOAT, [items, DENSE])]
    inputs += [helper.make_tensor_value_info(name, index_type, dim) for name, dim in dims.items()]
    output = helper.make_tensor_value_info("pred", TensorProto.FLOAT, None if head else [items, 1])
    constants = [numpy_helper.from_array(array, name) for name, array in b.constants.items()]
    graph = helper.make_graph(b.nodes, "dlrm", inputs, [output], constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def feed_of(dense: np.ndarray, indices: np.ndarray, layout: str) -> dict:
    """The items under the graph's own names; indices: [n, T]."""
    if layout == "items_first":
        return {"dense_x": dense, "indices": indices}
    if layout == "tables_first":
        return {"dense_x": dense, "indices": np.ascontiguousarray(indices.T)}
    shaped = indices[:, :, None] if layout == "columns" else indices
    return {"dense_x": dense} | {f"indices_{t}": np.ascontiguousarray(shaped[:, t]) for t in range(indices.shape[1])}


def check(
    path: Path, *, layout: str = "separate", rows: tuple = ROWS, dtype: type = np.int64, items: int = ITEMS
) -> Dlrm:
    """Our reading of the file, once it gives what ONNX Runtime computes from it, with indices below `rows`."""
    pytest.importorskip("onnxruntime")
    model = read_dlrm(path)
    rng = np.random.default_rng(7)
    dense = rng.uniform(-2, 2, (items, DENSE)).astype(np.float32)
    indices = np.stack([rng.integers(0, most, items) for most in rows], axis=1)
    session = onnxruntime_session(path)
    wanted = onnxruntime_outputs(session, feed_of(dense, indices.astype(dtype), layout))
    assert wanted.std() > 0.02 or items == 1, "predictions are spread, so that a wrong one shows"
    np.testing.assert_allclose(predict(model, dense, indices), wanted, rtol=1e-5, atol=2e-6)
    return model
