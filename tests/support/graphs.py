"""Little DLRMs as ONNX files, for tests: any shape, in the forms that exporters write.

    path = write_dlrm(tmp_path / "small.onnx", table_rows=(5, 7, 3), dim=20, bottom=(30,), top=(40, 17))
    dense, indices = random_items(6, num_dense=13, table_rows=(5, 7, 3))
    pred = onnxruntime_predictions(path, dense, indices)          # [6] float32

The graphs are written from the paper's picture with plain operators, independently of dlrm_tvm, so that what is read
from them can be compared with ONNX Runtime on the same file. Weights come from a seed, of a scale that keeps the
predictions apart (He-uniform layers, dots of about one).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, save_model


def write_dlrm(
    path: Path,
    *,
    num_dense: int = 13,
    table_rows: Sequence[int] = (5, 7, 3),
    dim: int = 16,
    bottom: Sequence[int] = (32,),
    top: Sequence[int] = (24,),
    interaction: str = "dot",
    ranks: Sequence[int | None] = (6, None),
    layers: str = "gemm",
    inputs: str = "gather",
    bias: bool = True,
    sigmoid_layer: int = -1,
    hot: Sequence[int] = (),
    batch: int | None = None,
    external: str | None = None,
    seed: int = 0,
) -> Path:
    """Write the model and return its path. Inputs: dense_x [batch, num_dense] float32, indices [T, batch] int64 (one
    index per bag); output: pred [batch, 1].

    hot: the number of indices per bag of each table, whose rows are summed; the inputs are then indices_t [batch, hot].

    bottom, top: hidden widths; `dim` and 1 are appended. interaction: "dot", "dot_self", "cat" or "cross"; ranks: of
    its layers, None for full rank.
    layers: "gemm" (Gemm, weights [out, in]), "gemm_plain" ([in, out]) or "matmul" (MatMul and Add).
    inputs: how a table's indices come out of the stacked ones, "gather" or "split"; or "separate": inputs
    indices_0, indices_1, ... [batch] in place of the stacked one. bias: False leaves the bias of every layer out.
    sigmoid_layer: which top layer ends in the sigmoid; the others have ReLU, the last one none if it is not this one.
    batch: a fixed batch size. external: None (all inside the file), "one_file" (PATH.data, aligned to 64 bytes) or
    "per_tensor" (a file per tensor, no offset and length, as torch 1.7 writes them).
    """
    weights = _weights(num_dense, table_rows, dim, bottom, top, interaction, ranks, np.random.default_rng(seed))
    if not bias:
        weights = {name: array for name, array in weights.items() if not name.endswith("bias")}
    nodes = _Nodes(weights, layers=layers)
    x = nodes.mlp("bottom", "dense_x", [*["Relu"] * (len(bottom) + 1)])
    indices = _indices(nodes, "separate" if hot else inputs, len(table_rows))
    rows = [nodes.add("Gather", [f"table.{t}", index], axis=0) for t, index in enumerate(indices)]
    if hot:
        rows = [nodes.add("ReduceSum", [each, nodes.integers([1])], keepdims=0) for each in rows]
    joined = _interaction(nodes, x, rows, interaction, dim, len(ranks))
    activations = [*["Relu"] * len(top), None]
    activations[sigmoid_layer] = "Sigmoid"
    nodes.mlp("top", joined, activations, output="pred")
    model = _model(nodes, _inputs(inputs, num_dense, len(table_rows), batch, hot), batch)
    return _save(model, Path(path), external)


def random_items(
    num_items: int, *, num_dense: int = 13, table_rows: Sequence[int] = (5, 7, 3), seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """dense [num_items, num_dense] float32 of about unit scale, indices [num_items, T] int64."""
    rng = np.random.default_rng(seed)
    dense = rng.uniform(-1.7, 1.7, (num_items, num_dense)).astype(np.float32)
    return dense, np.stack([rng.integers(0, rows, num_items) for rows in table_rows], axis=1)


def onnx_feed(input_names: Sequence[str], dense: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The items under a graph's own input names: dense_x, indices or indices_0 .., offsets (one index per bag)."""
    num_items, num_tables = indices.shape
    offsets = np.tile(np.arange(num_items, dtype=np.int64), (num_tables, 1))
    known = {"dense_x": dense, "indices": np.ascontiguousarray(indices.T), "offsets": offsets}
    known |= {f"indices_{t}": np.ascontiguousarray(indices[:, t]) for t in range(num_tables)}
    return {name: known[name] for name in input_names}


def onnxruntime_predictions(model: Path | bytes, dense: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes from the file (or the serialised model) -> [n] float32. Needs onnxruntime."""
    session = onnxruntime_session(model)
    feed = onnx_feed([value.name for value in session.get_inputs()], dense, indices)
    return session.run(None, feed)[0].reshape(-1)


def onnxruntime_outputs(session, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The same for a session and inputs under the graph's own names; those that it does not take are left out."""
    taken = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in inputs.items() if name in taken})[0].reshape(-1)


def onnxruntime_session(model: Path | bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _weights(
    num_dense: int,
    table_rows: Sequence[int],
    dim: int,
    bottom: Sequence[int],
    top: Sequence[int],
    interaction: str,
    ranks: Sequence[int | None],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    count = len(table_rows) + 1
    width = {
        "dot": dim + count * (count - 1) // 2,
        "dot_self": dim + count * (count + 1) // 2,
        "cat": dim * count,
        "cross": dim * count,
    }[interaction]
    weights = {}
    crossings = ranks if interaction == "cross" else ()
    chains = [(f"cross.{at}", [width, *([] if rank is None else [rank]), width]) for at, rank in enumerate(crossings)]
    for name, widths in (("bottom", [num_dense, *bottom, dim]), *chains, ("top", [width, *top, 1])):
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            weights[f"{name}.{i}.weight"] = rng.uniform(-1, 1, (fan_out, fan_in)) * np.sqrt(6 / fan_in)
            weights[f"{name}.{i}.bias"] = rng.uniform(-0.3, 0.3, fan_out)
    for t, rows in enumerate(table_rows):
        weights[f"table.{t}"] = rng.uniform(-1, 1, (rows, dim)) * np.sqrt(3) / dim**0.5
    return {name: array.astype(np.float32) for name, array in weights.items()}


class _Nodes:
    """The graph so far: nodes in order, and the constants they read."""

    def __init__(self, weights: dict[str, np.ndarray], *, layers: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants = dict(weights)
        self.layers = layers

    def add(self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: object) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output or name + "_out"], name=name, **attributes))
        return self.nodes[-1].output[0]

    def integers(self, values: Sequence[int] | int) -> str:
        name = f"integers_{len(self.constants)}"
        self.constants[name] = np.array(values, np.int64)
        return name

    def mlp(self, name: str, x: str, activations: Sequence[str | None], output: str | None = None) -> str:
        for i, activation in enumerate(activations):
            last = output if i == len(activations) - 1 else None
            x = self.layer(x, f"{name}.{i}.weight", f"{name}.{i}.bias", last if activation is None else None)
            x = x if activation is None else self.add(activation, [x], last)
        return x

    def layer(self, x: str, weight: str, bias: str, output: str | None) -> str:
        biases = [bias] if bias in self.constants else []
        if self.layers == "gemm":
            return self.add("Gemm", [x, weight, *biases], output, transB=1)
        self.constants[weight] = np.ascontiguousarray(self.constants[weight].T)
        if self.layers == "gemm_plain":
            return self.add("Gemm", [x, weight, *biases], output)
        product = self.add("MatMul", [x, weight], None if biases else output)
        return self.add("Add", [product, bias], output) if biases else product


def _indices(nodes: _Nodes, inputs: str, num_tables: int) -> list[str]:
    """The name of each table's indices [batch]."""
    if inputs == "separate":
        return [f"indices_{t}" for t in range(num_tables)]
    if inputs == "gather":
        return [nodes.add("Gather", ["indices", nodes.integers(t)], axis=0) for t in range(num_tables)]
    parts = [f"part_{t}" for t in range(num_tables)]
    nodes.nodes.append(
        helper.make_node("Split", ["indices", nodes.integers([1] * num_tables)], parts, name="Split_indices", axis=0)
    )
    return [nodes.add("Squeeze", [part, nodes.integers([0])]) for part in parts]


def _interaction(nodes: _Nodes, x: str, rows: list[str], interaction: str, dim: int, crossings: int) -> str:
    flat = nodes.add("Concat", [x, *rows], axis=1)
    if interaction == "cat":
        return flat
    if interaction == "cross":
        x = flat
        for at in range(crossings):
            depth = sum(name.startswith(f"cross.{at}.") and name.endswith("weight") for name in nodes.constants)
            gate = nodes.mlp(f"cross.{at}", x, [None] * depth)
            x = nodes.add("Add", [nodes.add("Mul", [flat, gate]), x])
        return x
    count, reach = len(rows) + 1, 1 if interaction == "dot_self" else 0
    z = nodes.add("Reshape", [flat, nodes.integers([-1, count, dim])])
    products = nodes.add("MatMul", [z, nodes.add("Transpose", [z], perm=[0, 2, 1])])
    products = nodes.add("Reshape", [products, nodes.integers([-1, count * count])])
    pairs = nodes.integers([i * count + j for i in range(count) for j in range(i + reach)])
    return nodes.add("Concat", [x, nodes.add("Gather", [products, pairs], axis=1)], axis=1)


def _inputs(inputs: str, num_dense: int, num_tables: int, batch: int | None, hot: Sequence[int]) -> list:
    items = batch or "batch"
    dense = helper.make_tensor_value_info("dense_x", TensorProto.FLOAT, [items, num_dense])
    if hot:
        shapes = {f"indices_{t}": [items, number] for t, number in enumerate(hot)}
        return [dense, *(helper.make_tensor_value_info(name, TensorProto.INT64, each) for name, each in shapes.items())]
    if inputs == "separate":
        names = [f"indices_{t}" for t in range(num_tables)]
        return [dense, *(helper.make_tensor_value_info(name, TensorProto.INT64, [items]) for name in names)]
    return [dense, helper.make_tensor_value_info("indices", TensorProto.INT64, [num_tables, items])]


def _model(nodes: _Nodes, inputs: list, batch: int | None) -> ModelProto:
    output = helper.make_tensor_value_info("pred", TensorProto.FLOAT, [batch or "batch", 1])
    constants = [numpy_helper.from_array(array, name) for name, array in nodes.constants.items()]
    graph: GraphProto = helper.make_graph(nodes.nodes, "dlrm", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _save(model: ModelProto, path: Path, external: str | None) -> Path:
    if external is not None:
        move_weights_out(model, path, external)
    save_model(model, path)
    return path


def move_weights_out(model: ModelProto, path: Path, external: str) -> None:
    """Put the float initializers of a model that will be saved at `path` beside it, in "one_file" or "per_tensor"."""
    offset = 0
    for tensor in model.graph.initializer:
        offset = _move_out(tensor, path, external, offset)


def _move_out(tensor: TensorProto, path: Path, external: str, offset: int) -> int:
    """Put a float tensor's bytes beside the model; returns where the next one goes in the one file."""
    if tensor.data_type != TensorProto.FLOAT:
        return offset
    data, fields = tensor.raw_data, {"location": tensor.name}
    if external == "one_file":
        fields = {"location": path.name + ".data", "offset": offset, "length": len(data)}
    file = path.parent / str(fields["location"])
    with file.open("ab" if external == "one_file" and offset else "wb") as stream:
        stream.write(data + b"\0" * (-len(data) % 64 if external == "one_file" else 0))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in fields.items():
        tensor.external_data.add(key=key, value=str(value))
    return offset + len(data) + -len(data) % 64
