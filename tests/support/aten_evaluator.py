"""Evaluates graphs with ATen nodes, which ONNX Runtime refuses: onnx's reference evaluator plus the two of DLRM.

Written from PyTorch's documentation of EmbeddingBag and of indexing, independently of dlrm_tvm.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun


class ATen(OpRun):
    def _run(self, *inputs, operator=None, mode=None, sparse=None, scale_grad_by_freq=None, include_last_offset=None):
        if operator == "index":
            data, *indices = inputs
            return (data[tuple(slice(None) if index is None else index for index in indices)],)
        weight, indices, offsets = inputs
        assert (operator, include_last_offset) == ("embedding_bag", 0)
        bags = [weight[bag] for bag in np.split(indices, offsets[1:])]
        pool = {0: np.sum, 1: lambda rows, axis: np.sum(rows, axis) / max(len(rows), 1)}[mode]
        return (np.stack([pool(bag, axis=0) for bag in bags]).astype(np.float32), *[np.zeros(0)] * 3)


def evaluate_with_aten(model: ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The graph's output, flat."""
    unlisted = ModelProto()
    unlisted.CopyFrom(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    del unlisted.graph.input[:]
    unlisted.graph.input.extend(kept)
    return ReferenceEvaluator(unlisted, new_ops=[ATen]).run(None, inputs)[0].reshape(-1)
