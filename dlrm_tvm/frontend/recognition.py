"""One probe's run of the graph, and the DLRM found in its formulas, taken apart from the prediction down.

They must be exactly those of a DLRM, item by item, up to the order of what the top MLP reads (features.py). Any other
is refused with the name of the node that makes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from ..model.dlrm import Dense, GraphInputs, Table
from ..model.interactions import Dot
from ..symbols.branches import Branches
from ..symbols.computations import NeedsValues
from ..symbols.expressions import Expressions, Symbols
from ..symbols.functions import Functions
from ..symbols.graph import OnnxGraph
from ..symbols.interpreter import Interpreter
from .crossings import Crossings, take_apart
from .features import Origins, Terms, origins, terms_of, widened
from .layers import Layer, Layers
from .probes import Probe, bind
from .roles import Roles
from .tables import TableUses

# The missing bound of a clamp that has only one: every finite float32 passes it.
_LOWEST, _HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Found:
    """What one run shows: layers with their weights' columns in the graph's order, and where those come from.

    dots: whether there are any; crossings: the layers of each; joined: where the first cross layer's inputs, or the top
    MLP's, come from; crossed: where the top MLP's come from among the last cross layer's outputs.
    """

    graph_inputs: GraphInputs
    bottom: tuple[Dense, ...]
    tables: tuple[Table, ...]
    dots: bool
    crossings: tuple[tuple[Dense, ...], ...]
    top: tuple[Dense, ...]
    clamp: tuple[float, float] | None
    joined: Origins
    crossed: Origins | None
    joiner: onnx.NodeProto

    @property
    def width(self) -> int:
        """Of x and all pooled rows together."""
        return (len(self.tables) + 1) * self.tables[0].dim

    @property
    def layers(self) -> tuple[Dense, ...]:
        return (*self.bottom, *(layer for each in self.crossings for layer in each), *self.top)


class Recognition:
    """One probe's run, and the model found in its formulas."""

    def __init__(self, graph: OnnxGraph, roles: Roles, probe: Probe, functions: Functions, branches: Branches) -> None:
        self.graph = graph
        self.branches = branches.in_run(probe.are_unusual)
        self.roles = roles
        self.probe = probe
        self.expressions = Expressions(functions)
        self.layers = Layers(graph, self.expressions)

    def found(self) -> Found:
        values = bind(self.roles, self.probe, self.expressions)
        try:
            prediction = Interpreter(self.graph, self.expressions, self.roles.most_tried, self.branches).run(values)
        except NeedsValues as need:
            raise self.graph.refusal(need.node, f"works with the values of {need.input_name!r}") from None
        rows, clamp = self._clamp(self._prediction_rows(prediction))
        top = self.layers.before(rows) or self.layers.before_one_output(rows)
        if not top:
            raise self.graph.refusal(
                self.expressions.maker_of(int(rows.flat[0])),
                "gives the prediction, but is no layer of an MLP",
            )
        crossed, crossings = self._crossings(top[0].inputs)
        reader = next((layer for each in crossings.layers for layer in each), top[0])
        joiner = self.graph.producer(reader.node.input[0]) or reader.node
        terms = terms_of(self.expressions, crossings.inputs)
        uses = TableUses(self.graph, self.roles, self.expressions, terms.ids, joiner, self.branches)
        if uses.dots and crossings.layers:
            reason = "begins cross layers on dots; a DLRM's take x and the pooled rows themselves"
            raise self.graph.refusal(reader.node, reason)
        tables = uses.tables()
        bottom = self._bottom(uses.x, joiner)
        vectors = uses.vectors(tables, self.probe)
        joined = self._joined(terms, vectors, tables, uses.dots, joiner)
        return Found(
            graph_inputs=self._graph_inputs(),
            bottom=(*(layer.dense for layer in bottom[:-1]), widened(bottom[-1].dense, tables[0].dim)),
            tables=tables,
            dots=uses.dots,
            crossings=tuple(tuple(layer.dense for layer in each) for each in crossings.layers),
            top=tuple(layer.dense for layer in top),
            clamp=clamp,
            joined=joined,
            crossed=crossed,
            joiner=joiner,
        )

    def _crossings(self, joined: np.ndarray) -> tuple[Origins | None, Crossings]:
        """Where the values come from among the outputs of the last cross layer, if it is one that gives them; and the
        cross layers."""
        found = self.layers.of_one_vector(joined)
        if found is None or self.expressions.kind_of(found[1].flat[0]) != "plus":
            return None, Crossings((), joined)
        return found[0], take_apart(self.graph, self.expressions, found[1], self.layers.of)

    def _joined(
        self, terms: Terms, vectors: np.ndarray, tables: tuple[Table, ...], dots: bool, joiner: onnx.NodeProto
    ) -> Origins:
        """Where the values come from among the features of vectors [batch, 1 + T, D]; `joiner` is named where one is
        none of them."""
        features = vectors.reshape(len(vectors), -1)
        if dots:
            i, j = np.array(Dot(with_self=True).pairs(vectors.shape[1])).T
            features = np.concatenate([vectors[:, 0], self.expressions.dot(vectors, vectors)[:, i, j]], axis=1)
        found, (item, place) = origins(self.expressions, terms, features)
        if found is not None:
            return found
        number = int(terms.ids[item, place])
        names = dict(zip(self.expressions.rows(vectors[item]).tolist(), ["x", *(table.name for table in tables)]))
        what = "a constant of this item alone" if number < 0 else self._describe(number, names)
        at_fault = joiner if number < 0 else self.expressions.maker_of(number)
        kinds = "x and dots of x and pooled rows" if dots else "x and pooled rows"
        raise self.graph.refusal(at_fault, f"gives the top MLP {what} as value {place}, where a DLRM has {kinds}")

    def _graph_inputs(self) -> GraphInputs:
        return GraphInputs(
            dense=self.roles.dense.name,
            indices=tuple(source.name for source in self.roles.indices),
            offsets=tuple(source.name for source in self.roles.offsets),
            output=self.graph.output,
            indices_per_bag=tuple(self.roles.indices_per_bag) if self.roles.takes_several else (),
            last_offset=self.roles.last_offset,
            items_first=self.roles.items_first,
            one_index=self.roles.one_index,
        )

    def _prediction_rows(self, prediction: Symbols | np.ndarray) -> np.ndarray:
        batch = self.probe.batch
        if not isinstance(prediction, Symbols):
            raise self.graph.refusal(self.graph.producer(self.graph.output), "gives a constant as the output")
        if prediction.ids.shape not in ((batch, 1), (batch,), () if batch == 1 else (batch,)):
            shape = prediction.ids.shape
            raise self.graph.refusal(
                self.graph.producer(self.graph.output),
                f"gives an output of shape {shape} for {batch} items; one prediction each is wanted",
            )
        return prediction.ids.reshape(batch, 1)

    def _clamp(self, rows: np.ndarray) -> tuple[np.ndarray, tuple[float, float] | None]:
        """(rows before the last clamps, the least and greatest value that those let through)."""
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
        """(rows before the limit, "max" or "min", the bound) if one bound limits all `rows`, else None."""
        for kind in ("max", "min"):
            operands = self.expressions.operands(kind, rows)
            if operands is not None and len({bound for _, bound in operands}) == 1:
                return np.array([[first] for first, _ in operands], np.int64), kind, operands[0][1]
        return None

    # --- the bottom MLP

    def _bottom(self, rows: np.ndarray, joiner: onnx.NodeProto) -> list[Layer]:
        """The layers from the dense input to `rows` [batch, D]."""
        items = range(self.probe.batch)
        dense = np.stack([self.expressions.vector(("dense", item), self.roles.num_dense) for item in items])
        if np.array_equal(rows, dense):  # joined as they are
            whole = Dense(np.eye(self.roles.num_dense, dtype=np.float32), np.zeros(rows.shape[1], np.float32), "none")
            return [Layer(whole, dense, joiner)]
        layers = self.layers.before(rows)
        if not layers:
            raise self.graph.refusal(joiner, "does not begin with the bottom MLP's output, as [x, interactions] does")
        if not np.array_equal(layers[0].inputs, dense):
            reason = f"takes something other than {self.roles.dense.name!r}, and no layer is before it"
            raise self.graph.refusal(layers[0].node, reason)
        return layers

    # --- in words

    def _describe(self, number: int, names: dict[int, str]) -> str:
        """A formula in words; names: of the vectors that dots are made of."""
        (kind, *operands), position = self.expressions.key(number)
        if kind == "dot":
            return " . ".join(names.get(operand) or self._another(operand) for operand in operands)
        if kind == "function":
            return f"element {position} of {' and '.join(operands[0].tables)}"
        plain = {"sum": "a sum", "mean": "a mean", "constant": "a constant"}
        return plain.get(kind, f"an output of {kind}")

    def _another(self, vector: int) -> str:
        """A vector that no bag of this item gives."""
        (kind, *operands), _ = self.expressions.key(vector)
        if kind in ("sum", "mean"):
            (kind, *operands), _ = self.expressions.key(int(np.frombuffer(operands[0], np.int64)[0]))
        return f"other rows of {' and '.join(operands[0].tables)}" if kind == "function" else "another vector"
