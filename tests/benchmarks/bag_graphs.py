"""ONNX graphs that pool embedding bags, and nothing else.

    loop_graph      per table what PyTorch's exporter writes: a Loop over the bags, in it Slice, Gather, ReduceSum
    gather_graph    for bags of one length: Gather all rows, Reshape to [batch, bag, dim], ReduceSum

Inputs table_T, indices_T and, for loops, offsets; outputs pooled_T. Tables are inputs, so that an engine reads them
where they lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from bags import Lookups

OPSET = 17


def gather_graph(lookups: Lookups) -> bytes:
    tables, _, dim = lookups.tables.shape
    shape = numpy_helper.from_array(np.array([lookups.batch, lookups.bag, dim]), "shape")
    axis = numpy_helper.from_array(np.array([1]), "axis")
    nodes = []
    for t in range(tables):
        nodes += [
            helper.make_node("Gather", [f"table_{t}", f"indices_{t}"], [f"rows_{t}"]),
            helper.make_node("Reshape", [f"rows_{t}", "shape"], [f"bags_{t}"]),
            helper.make_node("ReduceSum", [f"bags_{t}", "axis"], [f"pooled_{t}"], keepdims=0),
        ]
    return _model(nodes, lookups, [shape, axis], [])


def loop_graph(lookups: Lookups) -> bytes:
    constants = {"one": 1, "zero": 0, "huge": 2**62}
    initializers = [numpy_helper.from_array(np.array([value]), name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array(lookups.batch), "trips"))
    initializers.append(numpy_helper.from_array(np.array(True), "go"))
    nodes = []
    for t in range(lookups.tables.shape[0]):
        nodes += [
            helper.make_node("Shape", [f"indices_{t}"], [f"end_{t}"]),
            helper.make_node("Concat", ["offsets", f"end_{t}"], [f"borders_{t}"], axis=0),
            helper.make_node("Slice", [f"borders_{t}", "one", "huge"], [f"ends_{t}"]),
            helper.make_node("Loop", ["trips", "go"], [f"pooled_{t}"], body=_body(t)),
        ]
    offsets = helper.make_tensor_value_info("offsets", TensorProto.INT64, [lookups.batch])
    return _model(nodes, lookups, initializers, [offsets])


def _body(t: int):
    nodes = [
        helper.make_node("Gather", ["offsets", f"i_{t}"], [f"from_{t}"]),
        helper.make_node("Gather", [f"ends_{t}", f"i_{t}"], [f"to_{t}"]),
        helper.make_node("Unsqueeze", [f"from_{t}", "zero"], [f"from1_{t}"]),
        helper.make_node("Unsqueeze", [f"to_{t}", "zero"], [f"to1_{t}"]),
        helper.make_node("Slice", [f"indices_{t}", f"from1_{t}", f"to1_{t}", "zero"], [f"bag_{t}"]),
        helper.make_node("Gather", [f"table_{t}", f"bag_{t}"], [f"rows_{t}"]),
        helper.make_node("ReduceSum", [f"rows_{t}", "zero"], [f"sum_{t}"], keepdims=0),
        helper.make_node("Identity", [f"go_{t}"], [f"on_{t}"]),
    ]
    inputs = [
        helper.make_tensor_value_info(f"i_{t}", TensorProto.INT64, []),
        helper.make_tensor_value_info(f"go_{t}", TensorProto.BOOL, []),
    ]
    outputs = [
        helper.make_tensor_value_info(f"on_{t}", TensorProto.BOOL, []),
        helper.make_tensor_value_info(f"sum_{t}", TensorProto.FLOAT, None),
    ]
    return helper.make_graph(nodes, f"bags_{t}", inputs, outputs)


def _model(nodes: list, lookups: Lookups, initializers: list, more_inputs: list) -> bytes:
    tables, rows, dim = lookups.tables.shape
    count = lookups.batch * lookups.bag
    inputs = [helper.make_tensor_value_info(f"table_{t}", TensorProto.FLOAT, [rows, dim]) for t in range(tables)]
    inputs += [helper.make_tensor_value_info(f"indices_{t}", TensorProto.INT64, [count]) for t in range(tables)]
    shape = [lookups.batch, dim]
    outputs = [helper.make_tensor_value_info(f"pooled_{t}", TensorProto.FLOAT, shape) for t in range(tables)]
    graph = helper.make_graph(nodes, "bags", inputs + more_inputs, outputs, initializers)
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
