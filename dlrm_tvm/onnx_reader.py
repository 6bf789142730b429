"""ONNX graph -> Dlrm, by what the graph computes; or a refusal that names the node and the reason.

The graph is run on symbols (onnx_interpreter), so that each output element arrives as a formula. The formula is
taken apart from the prediction down, and what is found must be exactly

    top MLP ( [x, z_i . z_j ...] )    z = [x, e_1 .. e_T]    x = bottom MLP (dense)    e_t = pooled rows of table t

or a clamp of it, for every item of several probes: several batch sizes, and bags of all lengths where the graph takes
offsets. Node names
and the order of operations do not matter; an element in another place does. Knows nothing of TVM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from .errors import UserError
from .expressions import Expressions, Symbols
from .model import Dense, Dlrm, GraphInputs, Interaction, Table
from .onnx_computations import NeedsValues
from .onnx_graph import OnnxGraph
from .onnx_interpreter import Interpreter
from .onnx_probes import Probe, Roles, bind, find_roles, probes_for, shrunk
from .onnx_tables import TableUses

# Bounds of a clamp that has only one: every finite float32 passes them.
_LOWEST, _HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
_INTERACTIONS = (Interaction("dot"), Interaction("dot", with_self=True), Interaction("cat"))


def read_dlrm(path: str | Path) -> Dlrm:
    """The DLRM that the file at `path` computes; its name is the file's stem.

    Tables in external data are read-only memory maps and stay unread. Raises UserError, in one line, for a file that
    cannot be read and for a graph that computes anything else than a DLRM.
    """
    graph = OnnxGraph(path)
    if small := shrunk(graph):
        try:
            return _read(small)
        except UserError:
            pass  # it may be one at the file's own batch size only
    return _read([graph])


def _read(graphs: list[OnnxGraph]) -> Dlrm:
    """graphs: one, at one or several sizes."""
    models = []
    for graph in graphs:
        roles = find_roles(graph)
        models += [_Recognition(graph, roles, probe).model() for probe in probes_for(roles)]
    for model in models[1:]:
        if not _same(models[0], model):
            raise graphs[0].refusal(None, "the weights depend on the batch size or on the offsets")
    return models[0]


@dataclass(frozen=True, eq=False)
class _Layer:
    dense: Dense
    inputs: np.ndarray  # [batch, K] numbers of what the layer takes
    node: onnx.NodeProto  # the one that multiplies by the weight


class _Recognition:
    """One probe's run, and the model found in its formulas."""

    def __init__(self, graph: OnnxGraph, roles: Roles, probe: Probe) -> None:
        self.graph = graph
        self.roles = roles
        self.probe = probe
        self.expressions = Expressions()

    def model(self) -> Dlrm:
        values = bind(self.roles, self.probe, self.expressions)
        try:
            prediction = Interpreter(self.graph, self.expressions, self.roles.most_tried).run(values)
        except NeedsValues as need:
            raise self.graph.refusal(need.node, f"works with the values of {need.input_name!r}") from None
        rows, clamp = self._clamp(self._prediction_rows(prediction))
        top = self._layers(rows)
        if not top:
            raise self.graph.refusal(
                self.expressions.maker_of(int(rows.flat[0])),
                "gives the prediction, but is no layer of an MLP",
            )
        uses = TableUses(self.graph, self.roles, self.expressions)
        tables = uses.tables()
        joined, joiner = top[0].inputs, self.graph.producer(top[0].node.input[0]) or top[0].node
        bottom = self._bottom(joined[:, : tables[0].dim], joiner)
        vectors = uses.vectors(joined[:, : tables[0].dim], tables, self.probe)
        interaction = self._interaction(joined, vectors, tables, joiner)
        try:
            return Dlrm(
                name=self.graph.path.stem,
                bottom=tuple(layer.dense for layer in bottom),
                tables=tables,
                interaction=interaction,
                top=tuple(layer.dense for layer in top),
                graph_inputs=self._graph_inputs(),
                clamp=clamp,
            )
        except ValueError as error:
            raise self.graph.refusal(None, str(error)) from None

    def _graph_inputs(self) -> GraphInputs:
        return GraphInputs(
            dense=self.roles.dense.name,
            indices=tuple(source.name for source in self.roles.indices),
            offsets=tuple(source.name for source in self.roles.offsets),
            output=self.graph.output,
        )

    def _prediction_rows(self, prediction: Symbols | np.ndarray) -> np.ndarray:
        batch = self.probe.batch
        if not isinstance(prediction, Symbols):
            raise self.graph.refusal(self.graph.producer(self.graph.output), "gives a constant as the output")
        if prediction.ids.shape not in ((batch, 1), (batch,)):
            shape = prediction.ids.shape
            raise self.graph.refusal(
                self.graph.producer(self.graph.output),
                f"gives an output of shape {shape} for {batch} items; one prediction each is wanted",
            )
        return prediction.ids.reshape(batch, 1)

    def _clamp(self, rows: np.ndarray) -> tuple[np.ndarray, tuple[float, float] | None]:
        """(what the last clamps took, the least and greatest value that they let through)."""
        bounds = []
        while (limits := self._limits(rows)) is not None:
            rows, *limit = limits
            bounds.insert(0, limit)
        least, greatest = _LOWEST, _HIGHEST
        for kind, bound in bounds:
            limit = max if kind == "max" else min
            least, greatest = limit(least, bound), limit(greatest, bound)
        return rows, ((least, greatest) if bounds else None)

    def _limits(self, rows: np.ndarray) -> tuple[np.ndarray, str, float] | None:
        """(what was limited, "max" or "min", by what) where all of `rows` are limited by the same."""
        for kind in ("max", "min"):
            operands = self.expressions.operands(kind, rows)
            if operands is not None and len({bound for _, bound in operands}) == 1:
                return np.array([[first] for first, _ in operands], np.int64), kind, operands[0][1]
        return None

    # --- layers

    def _layers(self, rows: np.ndarray) -> list[_Layer]:
        """The layers that end in `rows` [batch, N], first layer first."""
        layers: list[_Layer] = []
        while (layer := self._layer(rows)) is not None:
            layers.insert(0, layer)
            rows = layer.inputs
        return layers

    def _layer(self, rows: np.ndarray) -> _Layer | None:
        """The layer activation(x Wᵀ + b) that gives `rows`; None where they are anything else."""
        activation, sums = self._activation(rows)
        bias, products = self._bias(sums)
        operands = self.expressions.operands("linear", products)
        if operands is None:
            return None
        weights = {(identity, transposed) for identity, transposed, _ in operands}
        if len(weights) != 1 or bias is None:
            return None
        ((identity, transposed),) = weights
        weight = self.expressions.array(identity)
        inputs = np.stack([self.expressions.elements(row) for *_, row in operands])
        node = self.expressions.maker_of(int(products[0, 0]))
        return _Layer(self._dense(node, weight if transposed else weight.T, bias, activation), inputs, node)

    def _activation(self, rows: np.ndarray) -> tuple[str, np.ndarray]:
        for kind in ("relu", "sigmoid"):
            operands = self.expressions.operands(kind, rows)
            if operands is not None:
                return kind, self._whole([first for (first,) in operands])
        return "none", rows

    def _bias(self, sums: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """([N] float32 bias, numbers of what it was added to); no bias where the items' ones differ."""
        operands = self.expressions.operands("add", sums)
        if operands is None:
            return np.zeros(sums.shape[1], np.float32), sums
        biases = {constant for _, constant in operands}
        bias = np.frombuffer(biases.pop(), np.float32) if len(biases) == 1 else None
        return bias, self._whole([first for first, _ in operands])

    def _whole(self, firsts: list[int]) -> np.ndarray:
        return np.stack([self.expressions.elements(first) for first in firsts])

    def _dense(self, node: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray, activation: str) -> Dense:
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise self.graph.refusal(node, "has a weight or bias that is not finite")
        return Dense(np.array(weight, np.float32, order="C"), bias, activation)

    def _bottom(self, rows: np.ndarray, joiner: onnx.NodeProto) -> list[_Layer]:
        """The layers from the dense input to `rows` [batch, D]."""
        layers = self._layers(rows)
        if not layers:
            raise self.graph.refusal(joiner, "does not begin with the bottom MLP's output, as [x, interactions] does")
        items = range(self.probe.batch)
        dense = np.stack([self.expressions.vector(("dense", item), self.roles.num_dense) for item in items])
        if not np.array_equal(layers[0].inputs, dense):
            reason = f"takes something else than {self.roles.dense.name!r} as it is, and no layer is before it"
            raise self.graph.refusal(layers[0].node, reason)
        return layers

    # --- interaction

    def _interaction(
        self, joined: np.ndarray, vectors: np.ndarray, tables: tuple[Table, ...], joiner: onnx.NodeProto
    ) -> Interaction:
        """How `joined` [batch, N] comes from the vectors [batch, 1 + T, D] of x and the tables; `joiner` is named
        where no interaction gives it."""
        candidates = {interaction: self._joined(vectors, interaction) for interaction in _INTERACTIONS}
        for interaction, wanted in candidates.items():
            if np.array_equal(joined, wanted):
                return interaction
        same_width = [wanted for wanted in candidates.values() if wanted.shape == joined.shape]
        if not same_width:
            widths = ", ".join(str(wanted.shape[1]) for wanted in candidates.values())
            reason = f"gives the top MLP {joined.shape[1]} values; dot, dot with self and cat would give {widths}"
            raise self.graph.refusal(joiner, reason)
        item, place = np.argwhere(joined != same_width[0])[0]
        # A value that belongs to the model elsewhere was put in the wrong place; any other was computed wrongly.
        at_fault = joiner if joined[item, place] in same_width[0] else self.expressions.maker_of(joined[item, place])
        names = dict(zip(self.expressions.rows(vectors[item]).tolist(), ["x", *(table.name for table in tables)]))
        found, wanted = (self._describe(int(ids[item, place]), names) for ids in (joined, same_width[0]))
        raise self.graph.refusal(at_fault, f"gives the top MLP {found} as value {place}, where a DLRM has {wanted}")

    def _joined(self, vectors: np.ndarray, interaction: Interaction) -> np.ndarray:
        """What the top MLP takes, [batch, N], from `vectors`."""
        if interaction.kind == "cat":
            return vectors.reshape(len(vectors), -1)
        i, j = np.array(interaction.pairs(vectors.shape[1])).T
        return np.concatenate([vectors[:, 0], self.expressions.dot(vectors, vectors)[:, i, j]], axis=1)

    def _describe(self, number: int, names: dict[int, str]) -> str:
        """A formula in words; names: of the vectors that dots are made of."""
        (kind, *operands), position = self.expressions.key(number)
        if kind == "dot":
            return " . ".join(names.get(operand, "another vector") for operand in operands)
        if kind == "row":
            return f"element {position} of {self.expressions.array_name(operands[0])}"
        plain = {"sum": "a sum", "mean": "a mean", "scaled": "a weighted row", "constant": "a constant"}
        return plain.get(kind, f"an output of {kind}")


def _same(one: Dlrm, other: Dlrm) -> bool:
    """Whether two probes found the same model."""
    shapes = [
        (model.interaction, [layer.activation for layer in model.layers], len(model.bottom), model.clamp)
        for model in (one, other)
    ]
    if shapes[0] != shapes[1] or len(one.tables) != len(other.tables):
        return False
    layers = all(
        np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias) for a, b in zip(one.layers, other.layers)
    )
    return layers and all(_same_table(a, b) for a, b in zip(one.tables, other.tables))


def _same_table(a: Table, b: Table) -> bool:
    if a.pooling != b.pooling or (a.row_weights is None) != (b.row_weights is None):
        return False
    weights = a.row_weights is None or np.array_equal(a.row_weights, b.row_weights)
    return weights and _same_memory(a.rows, b.rows)


def _same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.ctypes.data, a.shape, a.strides) == (b.ctypes.data, b.shape, b.strides)
