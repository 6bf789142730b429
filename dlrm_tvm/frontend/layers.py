"""Layers in the formulas of one run, taken apart from the last one down; recognition.py's part for them.

activation(x W^T + b), with factors and constants folded into W and b
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx

from ..model.dlrm import Dense
from ..symbols.expressions import Expressions
from ..symbols.graph import OnnxGraph
from .features import Origins, folded, is_layer, origins, terms_of


@dataclass(frozen=True, eq=False)
class Layer:
    dense: Dense
    inputs: np.ndarray  # [batch, K] numbers of the layer's inputs
    node: onnx.NodeProto  # multiplies by the weight


class Layers:
    """Those of one run. Raises UserError for weights that are not finite."""

    def __init__(self, graph: OnnxGraph, expressions: Expressions) -> None:
        self.graph = graph
        self.expressions = expressions

    def before(self, rows: np.ndarray) -> list[Layer]:
        """The layers that end in `rows` [batch, N], first layer first."""
        layers: list[Layer] = []
        while (layer := self.of(rows)) is not None:
            rows = layer.inputs
            found = self.of_one_vector(rows) if self.of(rows) is None else None
            if found is not None and self._is_of_mlp(found[1]):  # normalized before it
                rows = found[1]
                layer = replace(layer, dense=folded(layer.dense, found[0], rows.shape[1]), inputs=rows)
            layers.insert(0, layer)
        return layers

    def before_one_output(self, rows: np.ndarray) -> list[Layer]:
        """The same for `rows` [batch, 1] that are one of the last layer's several outputs."""
        firsts, positions, _ = self.expressions.whereabouts(rows[:, 0])
        layers = self.before(self._whole(firsts.tolist())) if len(set(positions.tolist())) == 1 else []
        if layers:
            dense, own = layers[-1].dense, slice(int(positions[0]), int(positions[0]) + 1)
            layers[-1] = replace(layers[-1], dense=replace(dense, weight=dense.weight[own], bias=dense.bias[own]))
        return layers

    def _is_of_mlp(self, rows: np.ndarray) -> bool:
        first = int(rows.flat[0])
        return self.expressions.kind_of(first) == "dense" or is_layer(self.expressions, first)

    def of_one_vector(self, rows: np.ndarray) -> tuple[Origins, np.ndarray] | None:
        """Where `rows` [batch, N] come from among the elements of one vector for each item, and those [batch, W]."""
        terms = terms_of(self.expressions, rows)
        firsts, _, _ = self.expressions.whereabouts(np.maximum(terms.ids, 0))
        own = [set(each[ids >= 0].tolist()) for each, ids in zip(firsts, terms.ids)]
        if any(len(each) != 1 for each in own):
            return None
        vectors = [self.expressions.elements(each.pop()) for each in own]
        if len({len(vector) for vector in vectors}) > 1:
            return None
        found, _ = origins(self.expressions, terms, np.stack(vectors))
        return None if found is None else (found, np.stack(vectors))

    def of(self, rows: np.ndarray) -> Layer | None:
        """The layer activation(x Wᵀ + b) that gives `rows`; None if they are anything else."""
        activation, sums = self._activation(rows)
        affine, products = self._affine(sums)
        operands = self.expressions.operands("linear", products)
        if operands is None:
            return None
        weights = {(identity, transposed) for identity, transposed, _ in operands}
        if len(weights) != 1 or affine is None:
            return None
        ((identity, transposed),) = weights
        weight = self.expressions.array(identity)
        inputs = np.stack([self.expressions.elements(row) for *_, row in operands])
        node = self.expressions.maker_of(int(products[0, 0]))
        weight, (factors, bias) = weight if transposed else weight.T, affine
        weight = weight if factors is None else weight * factors[:, None]
        return Layer(self._dense(node, weight, bias, activation), inputs, node)

    def _activation(self, rows: np.ndarray) -> tuple[str, np.ndarray]:
        """(its name, numbers before it); the maximum of a value and 0 is a ReLU."""
        for kind, name in (("relu", "relu"), ("max", "relu"), ("sigmoid", "sigmoid")):
            operands = self.expressions.operands(kind, rows)
            if operands is not None and not any(bound for _, *bounds in operands for bound in bounds):
                return name, self._whole([first for first, *_ in operands])
        return "none", rows

    def _affine(self, sums: np.ndarray) -> tuple[tuple[np.ndarray | None, np.ndarray] | None, np.ndarray]:
        """((factors [N] float64 or None, bias [N] float32), numbers before both); None in place of the first if they
        differ between items."""
        factors, bias = None, np.zeros(sums.shape[1], np.float32)
        while (step := self._constants_of(sums)) is not None:
            kind, own, sums = step
            if own is None:
                return None, sums
            if kind == "times":
                factors = own if factors is None else factors * own
            else:
                bias = bias + own if factors is None else bias + factors * own
        return (factors, bias.astype(np.float32)), sums

    def _constants_of(self, rows: np.ndarray) -> tuple[str, np.ndarray | None, np.ndarray] | None:
        """("add" or "times", the constants [N], numbers before) if one of them gives all `rows`; None for constants
        that differ between items."""
        for kind, dtype in (("add", np.float32), ("times", np.float64)):
            operands = self.expressions.operands(kind, rows)
            if operands is not None:
                constants = {constant for _, constant in operands}
                own = np.frombuffer(constants.pop(), dtype) if len(constants) == 1 else None
                return kind, own, self._whole([first for first, _ in operands])
        return None

    def _whole(self, firsts: list[int]) -> np.ndarray:
        return np.stack([self.expressions.elements(first) for first in firsts])

    def _dense(self, node: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray, activation: str) -> Dense:
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise self.graph.refusal(node, "has a weight or bias that is not finite")
        return Dense(np.array(weight, np.float32, order="C"), bias, activation)
