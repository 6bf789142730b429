"""A stored DLRM as an ONNX graph: the picture in model/dlrm.py with plain operators, one Gather per table.

    dense_x [batch, D0] - Gemm, Relu - x -------------------+----------------------------+
    indices [T, batch] - Gather row t, Gather table t - e_t -+- interaction of [x, e_1 ..] +- top MLP, Sigmoid - pred
    or per table indices_t [batch, number] - Gather table t - ReduceSum - e_t

    Dot      Concat, Reshape: z [batch, V, D] - MatMul with its Transpose - Reshape - Gather pairs - Concat behind x
    Concat   Concat: x0 - for each cross layer: Gemm V, Gemm W, Mul by x0, Add x_l

Weights stay in the data file beside it, given by offset and length; no tensor is loaded to write the graph.
The only writer of ONNX; frontend/reader.py reads this graph like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..model.interactions import Concat, Dot
from .stored_model import StoredLayer, StoredModel, StoredTensor

_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def dlrm_graph(stored: StoredModel, *, name: str, data_name: str, marker: str) -> ModelProto:
    """The model (opset 17): inputs dense_x float32 [batch, D0], indices int64 [T, batch]; output pred [batch, 1].

    With indices per bag it has inputs indices_0, indices_1 .. [batch, number] in place of `indices`.
    name: the graph's. data_name: the data file's name, without a folder. marker: stored as metadata, which is at the
    end of the file.
    """
    writer = _Writer(data_name)
    writer.write(stored)
    indices = {f"indices_{t}": ["batch", number] for t, number in enumerate(stored.indices_per_bag)}
    indices = indices or {"indices": [len(stored.tables), "batch"]}
    graph = helper.make_graph(
        writer.nodes,
        name,
        inputs=[
            helper.make_tensor_value_info("dense_x", TensorProto.FLOAT, ["batch", stored.bottom[0].inputs]),
            *(helper.make_tensor_value_info(each, TensorProto.INT64, dims) for each, dims in indices.items()),
        ],
        outputs=[helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["batch", 1])],
        initializer=writer.tensors,
    )
    # IR version 8 belongs to opset 17; older runtimes would refuse the newest one.
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="dlrm_tvm")
    helper.set_model_props(model, {"marker": marker})
    return model


class _Writer:
    """Nodes and tensors of one graph; its methods take and give names of values."""

    def __init__(self, data_name: str) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self._data_name = data_name

    def write(self, stored: StoredModel) -> None:
        x = self._mlp("bottom", "dense_x", stored.bottom, last="Relu", output="x")
        looked_up = self._bag if stored.indices_per_bag else self._row
        vectors = [x, *(looked_up(t, table) for t, table in enumerate(stored.tables))]
        joined = _INTERACTIONS[type(stored.interaction)](self, vectors, stored)
        order = _column_order(stored) if stored.upper_triangle else None
        self._mlp("top", joined, stored.top, last="Sigmoid", output="pred", order=order)

    def dots(self, vectors: list[str], stored: StoredModel) -> str:
        count, pairs = stored.num_vectors, stored.interaction.pairs(stored.num_vectors)
        flat = self._node("Concat", vectors, "vectors_flat", axis=1)
        z = self._node("Reshape", [flat, self._integers("vectors_shape", [-1, count, stored.dim])], "vectors")
        transposed = self._node("Transpose", [z], "vectors_transposed", perm=[0, 2, 1])
        products = self._node("MatMul", [z, transposed], "products")
        shape = self._integers("products_shape", [-1, count**2])
        products = self._node("Reshape", [products, shape], "products_flat")
        places = self._integers("pairs", [i * count + j for i, j in pairs])
        dots = self._node("Gather", [products, places], "dots", axis=1)
        return self._node("Concat", [vectors[0], dots], "top_input", axis=1)

    def crossed(self, vectors: list[str], stored: StoredModel) -> str:
        first = x = self._node("Concat", vectors, "vectors_flat", axis=1)
        for at, crossing in enumerate(stored.crossings):
            y = x
            for layer, part in zip(crossing, ("v", "w") if len(crossing) > 1 else ("w",)):
                y = self._gemm(layer, y, f"cross.{at}.{part}")
            product = self._node("Mul", [first, y], f"cross.{at}.product")
            x = self._node("Add", [product, x], f"cross.{at}")
        return x

    def _bag(self, t: int, table: StoredTensor) -> str:
        rows = self._node("Gather", [self._stored(table), f"indices_{t}"], f"table.{t}.rows", axis=0)
        return self._node("ReduceSum", [rows, self._integers(f"table.{t}.axes", [1])], f"table.{t}.bag", keepdims=0)

    def _row(self, t: int, table: StoredTensor) -> str:
        position = self._add(numpy_helper.from_array(np.array(t), f"table.{t}.position"))
        row_numbers = self._node("Gather", ["indices", position], f"table.{t}.row_numbers", axis=0)
        return self._node("Gather", [self._stored(table), row_numbers], f"table.{t}.rows", axis=0)

    def _mlp(
        self,
        prefix: str,
        x: str,
        layers: Sequence[StoredLayer],
        *,
        last: str,
        output: str,
        order: list[int] | None = None,
    ) -> str:
        """order: of the first weight's columns."""
        for i, layer in enumerate(layers):
            x = self._gemm(layer, x, f"{prefix}.{i}", None if i else order)
            is_last = i + 1 == len(layers)
            x = self._node(last, [x], output) if is_last else self._node("Relu", [x], f"{prefix}.{i}.relu")
        return x

    def _gemm(self, layer: StoredLayer, x: str, output: str, order: list[int] | None = None) -> str:
        weights = [self._stored(layer.weight)]
        if order is not None:
            columns = [weights[0], self._integers(f"{output}.order", order)]
            weights = [self._node("Gather", columns, f"{output}.ordered", axis=1)]
        if layer.bias is not None:
            weights.append(self._stored(layer.bias, (layer.outputs,)))
        return self._node("Gemm", [x, *weights], output, transB=1)

    def _node(self, op: str, inputs: list[str], output: str, **attributes: int | list[int]) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes))
        return output

    def _integers(self, name: str, values: list[int]) -> str:
        return self._add(numpy_helper.from_array(np.array(values, np.int64), name))

    def _stored(self, tensor: StoredTensor, shape: tuple[int, ...] | None = None) -> str:
        proto = TensorProto(name=tensor.name, data_type=_TYPES[tensor.dtype], dims=shape or tensor.shape)
        proto.data_location = TensorProto.EXTERNAL
        places = (("location", tensor.file or self._data_name), ("offset", tensor.offset), ("length", tensor.num_bytes))
        for key, value in places:
            proto.external_data.add(key=key, value=str(value))
        name = self._add(proto)
        return (
            name if tensor.dtype == "float32" else self._node("Cast", [name], f"{name}.float32", to=TensorProto.FLOAT)
        )

    def _add(self, proto: TensorProto) -> str:
        self.tensors.append(proto)
        return proto.name


def _column_order(stored: StoredModel) -> list[int]:
    """Of a top weight for dots (0,1), (0,2), .., (1,2), ..: where the columns for `Dot.pairs` are."""
    pairs = stored.interaction.pairs(stored.num_vectors)
    places = {pair: at for at, pair in enumerate(sorted((j, i) for i, j in pairs))}
    return [*range(stored.dim), *(stored.dim + places[j, i] for i, j in pairs)]


_INTERACTIONS = {Dot: _Writer.dots, Concat: _Writer.crossed}
