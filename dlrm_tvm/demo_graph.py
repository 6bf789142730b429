"""The demo model as an ONNX graph: the picture in model.py with plain operators, one Gather per table.

    dense_x [batch,13] - Gemm, Relu x3 - x ------------------+-------------------------------------+
    indices [26,batch] - Gather row t, Gather table.t - e_t -+- Concat, Reshape: z [batch,27,128]  |
    z - MatMul with its Transpose - Reshape - Gather pairs - dots [batch,351] ---------------------+- Concat - top MLP

Weights stay in the data file beside it, named by offset and length; no tensor is loaded to write the graph.
The one writer of ONNX here; reading, of this graph too, is onnx_reader's.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto, helper

from .demo_weights import BOTTOM, CRITEO_TABLE_ROWS, DIM, TOP, DemoTensor
from .model import Interaction

_NUM_TABLES = len(CRITEO_TABLE_ROWS)
_NUM_VECTORS = _NUM_TABLES + 1


def demo_graph(tensors: list[DemoTensor], *, data_name: str, marker: str) -> ModelProto:
    """The model (opset 17): inputs dense_x float32 [batch, 13], indices int64 [26, batch]; output pred [batch, 1].

    data_name: the data file's name, without a folder. marker: stored as metadata, which a file has at its very end.
    """
    graph = helper.make_graph(
        _nodes(),
        "demo_dlrm",
        inputs=[
            helper.make_tensor_value_info("dense_x", TensorProto.FLOAT, ["batch", BOTTOM[0]]),
            helper.make_tensor_value_info("indices", TensorProto.INT64, [_NUM_TABLES, "batch"]),
        ],
        outputs=[helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["batch", 1])],
        initializer=[*_constants(), *(_external(tensor, data_name) for tensor in tensors)],
    )
    # IR version 8 belongs to opset 17; the newest one would shut out older runtimes.
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="dlrm_tvm")
    helper.set_model_props(model, {"marker": marker})
    return model


def _external(tensor: DemoTensor, data_name: str) -> TensorProto:
    proto = TensorProto(name=tensor.name, data_type=TensorProto.FLOAT, dims=tensor.shape)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", data_name), ("offset", tensor.offset), ("length", tensor.num_bytes)):
        proto.external_data.add(key=key, value=str(value))
    return proto


def _constants() -> list[TensorProto]:
    pairs = Interaction("dot").pairs(_NUM_VECTORS)
    vectors = {
        "vectors_shape": [-1, _NUM_VECTORS, DIM],
        "products_shape": [-1, _NUM_VECTORS**2],
        "pairs": [i * _NUM_VECTORS + j for i, j in pairs],
    }
    positions = [helper.make_tensor(f"table.{t}.position", TensorProto.INT64, [], [t]) for t in range(_NUM_TABLES)]
    return [helper.make_tensor(k, TensorProto.INT64, [len(v)], v) for k, v in vectors.items()] + positions


def _nodes() -> list[NodeProto]:
    nodes: list[NodeProto] = []

    def node(op: str, inputs: list[str], output: str, **attributes: int | list[int]) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes))
        return output

    def mlp(prefix: str, x: str, *, last: int, last_op: str, output: str) -> str:
        for i in range(last + 1):
            x = node("Gemm", [x, f"{prefix}.{i}.weight", f"{prefix}.{i}.bias"], f"{prefix}.{i}", transB=1)
            x = node("Relu", [x], f"{prefix}.{i}.relu") if i < last else node(last_op, [x], output)
        return x

    x = mlp("bottom", "dense_x", last=len(BOTTOM) - 2, last_op="Relu", output="x")
    vectors = [x]
    for t in range(_NUM_TABLES):
        row_numbers = node("Gather", ["indices", f"table.{t}.position"], f"table.{t}.row_numbers", axis=0)
        vectors.append(node("Gather", [f"table.{t}", row_numbers], f"table.{t}.rows", axis=0))
    z = node("Reshape", [node("Concat", vectors, "vectors_flat", axis=1), "vectors_shape"], "vectors")
    products = node("MatMul", [z, node("Transpose", [z], "vectors_transposed", perm=[0, 2, 1])], "products")
    products_flat = node("Reshape", [products, "products_shape"], "products_flat")
    dots = node("Gather", [products_flat, "pairs"], "dots", axis=1)
    top_input = node("Concat", [x, dots], "top_input", axis=1)
    mlp("top", top_input, last=len(TOP) - 2, last_op="Sigmoid", output="pred")
    return nodes
