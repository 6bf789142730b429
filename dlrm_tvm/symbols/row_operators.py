"""Operators that no DLRM has between layers but an embedding may have behind its lookup: they become part of a table.

    elementwise    LeakyRelu, Gelu, Log, Sin ..             of each value
    row by row     LayerNormalization, Softmax, ReduceL2 .. of the last axis
    of constants   those and MatMul, CumSum ..              of what an exporter has not folded

Computed by onnx's own reference evaluator: on rows of a table, [n, width], and on constants that are the same at every
batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from .sizes import check_constants

ELEMENTWISE = {
    *("BitShift", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "IsNaN"),
    *("LeakyRelu", "Log", "Mish", "PRelu", "Pow", "Round", "Selu", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
    *("Tan", "ThresholdedRelu", "Xor"),
}
ROW_BY_ROW = {
    *("LayerNormalization", "LogSoftmax", "LpNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"),
    *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax"),
}

OF_CONSTANTS = ELEMENTWISE | ROW_BY_ROW | {"BatchNormalization", "CumSum", "Einsum", "Gemm", "MatMul", "Sum"}


def of_last_axis(
    operator: str, opset: int, rank: int, inputs: list, attributes: dict
) -> tuple[list, dict, bool] | None:
    """(inputs behind the first, attributes, whether the last axis stays) of a row-by-row operator, as it is for arrays
    of rank 2; None where it goes over other axes."""
    attributes, others = dict(attributes), list(inputs[1:])
    reduces = operator.startswith("Reduce")
    if not reduces:
        if attributes.get("p", 2) != 2:  # onnx's evaluator adds up the values themselves, not their sizes
            return None
        axis = attributes.pop("axis", 1 if opset < 13 and operator.endswith("Softmax") else -1)
        return (others, {**attributes, "axis": -1}, True) if axis in (-1, rank - 1) else None
    axes = attributes.pop("axes", None)
    axes = others.pop(0) if axes is None and others else axes
    keeps = bool(attributes.pop("keepdims", 1))
    if axes is None or others or [int(axis) % rank for axis in axes] != [rank - 1]:
        return None
    return [], {"axes": (1,), "keepdims": 1}, keeps


def evaluate_constants(operator: str, opset: int, inputs: list[np.ndarray | None], attributes: dict) -> np.ndarray:
    """One of `OF_CONSTANTS`. Raises ValueError where it would load a large table into memory."""
    check_constants(operator, inputs, attributes)
    names = ["" if value is None else f"x{at}" for at, value in enumerate(inputs)]
    feeds = {name: value for name, value in zip(names, inputs) if name}
    with _told(operator, opset):
        dtypes = {name: value.dtype for name, value in feeds.items()}
        return np.asarray(_evaluator(operator, opset, names, dtypes, attributes).run(None, feeds)[0])


@contextmanager
def _told(operator: str, opset: int) -> Iterator[None]:
    try:
        yield
    except (NotImplementedError, RuntimeError, TypeError) as error:  # the reference evaluator's
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"is no {operator} of operator set {opset}: {reason}") from None


def evaluate_rows(operator: str, opset: int, values: list[np.ndarray], attributes: dict) -> np.ndarray:
    """values: [n, width], or constants [width] or [1]. Raises ValueError where the operator does not take them."""
    with _told(operator, opset):
        return _evaluated(operator, opset, values, attributes)


def _evaluated(operator: str, opset: int, values: list[np.ndarray], attributes: dict) -> np.ndarray:
    session = _session(operator, opset, tuple(str(value.dtype) for value in values), tuple(sorted(attributes.items())))
    feeds = {f"x{at}": value for at, value in enumerate(values)}
    if "axes" in attributes and opset >= _axes_are_an_input(operator):
        feeds["axes"] = np.array(attributes["axes"], np.int64)
    (result,) = session.run(None, feeds)
    return np.asarray(result)


def _axes_are_an_input(operator: str) -> int:
    """Since this operator set."""
    return 13 if operator == "ReduceSum" else 18


@cache
def _session(operator: str, opset: int, dtypes: tuple[str, ...], attributes: tuple) -> ReferenceEvaluator:
    given, names = dict(attributes), [f"x{at}" for at in range(len(dtypes))]
    if "axes" in given and opset >= _axes_are_an_input(operator):
        given.pop("axes")
        names.append("axes")
        dtypes = (*dtypes, "int64")
    return _evaluator(operator, opset, names, dict(zip(names, map(np.dtype, dtypes))), given)


def _evaluator(
    operator: str, opset: int, names: list[str], dtypes: dict[str, np.dtype], attributes: dict
) -> ReferenceEvaluator:
    """Of one node. names: of its inputs, "" for one that is left out; dtypes: of the others."""
    node = onnx.helper.make_node(operator, names, ["y"], **attributes)
    kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(dtype) for name, dtype in dtypes.items()}
    inputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    graph = onnx.helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name="y")])
    return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)]))
