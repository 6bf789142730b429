"""What a DLRM is, as data: layers, tables, interaction, and what one item costs.

    dense [B,13] -- bottom MLP --+---------------- x [B,D] --+
                                 |                           |
    indices [B,T] - tables ------+-- dots of pairs [B,P] ----+-- top MLP -- pred [B]

(Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
arXiv 1906.00091.) Knows neither ONNX nor TVM; weights may be memory maps of any size and are never copied here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

ACTIVATIONS = ("none", "relu", "sigmoid")
POOLINGS = ("sum", "mean")
INTERACTIONS = ("dot", "cat")

_FINGERPRINT_ROWS = 64


@dataclass(frozen=True, eq=False)
class Dense:
    """One fully connected layer: y = activation(x Wᵀ + b).

    weight: [outputs, inputs] float32; bias: [outputs] float32; activation: one of `ACTIVATIONS`.
    """

    weight: np.ndarray
    bias: np.ndarray
    activation: str

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class Table:
    """One embedding table and how a bag of its rows becomes one vector (torch.nn.EmbeddingBag).

    name: as its source calls it; rows: [number of rows, dim] float32, often a memory map.
    pooling: "sum" or "mean" of the bag's rows; an empty bag gives zeros either way.
    row_weights: [number of rows] float32 by which each row is multiplied first (dlrm's weighted pooling), None for 1.
    """

    name: str
    rows: np.ndarray
    pooling: str = "sum"
    row_weights: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        return self.rows.shape[0]

    @property
    def dim(self) -> int:
        return self.rows.shape[1]


@dataclass(frozen=True)
class Interaction:
    """How the bottom MLP's output x and the embedding rows e1..eT meet.

    kind "dot": [x, dots], where dots are z_i . z_j of z = [x, e1, .., eT] for j < i (j <= i with `with_self`),
    row by row: (1,0), (2,0), (2,1), ... kind "cat": [x, e1, .., eT].
    """

    kind: str
    with_self: bool = False

    def pairs(self, num_vectors: int) -> list[tuple[int, int]]:
        """The (i, j) whose dots are taken, in the model's own order; empty for "cat"."""
        if self.kind == "cat":
            return []
        reach = 1 if self.with_self else 0
        return [(i, j) for i in range(num_vectors) for j in range(i + reach)]


@dataclass(frozen=True)
class GraphInputs:
    """The names under which the ONNX graph takes its inputs, so that data saved under those names can be read.

    indices: one name (stacked, [T, items]) or T names ([items] each). offsets: none where the graph has none, else one
    name (stacked, [T, items]) or T names ([items] each).
    """

    dense: str
    indices: tuple[str, ...]
    offsets: tuple[str, ...]
    output: str


@dataclass(frozen=True, eq=False)
class Dlrm:
    """A whole model. Raises ValueError when its parts do not fit together.

    clamp: (least, greatest) value of a prediction, where the model cuts them off (dlrm's --loss-threshold).
    """

    name: str
    bottom: tuple[Dense, ...]
    tables: tuple[Table, ...]
    interaction: Interaction
    top: tuple[Dense, ...]
    graph_inputs: GraphInputs
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not (self.bottom and self.tables and self.top):
            raise ValueError("a DLRM has a bottom MLP, at least one table and a top MLP")
        for layers in (self.bottom, self.top):
            for layer in layers:
                if layer.activation not in ACTIVATIONS:
                    raise ValueError(f"activation {layer.activation!r} is not one of {', '.join(ACTIVATIONS)}")
                if layer.bias.shape != (layer.outputs,):
                    raise ValueError(f"a bias of shape {layer.bias.shape} for {layer.outputs} outputs")
            for first, second in pairwise(layers):
                if first.outputs != second.inputs:
                    raise ValueError(f"a layer of {first.outputs} outputs feeds one of {second.inputs} inputs")
        if self.interaction.kind not in INTERACTIONS:
            raise ValueError(f"interaction {self.interaction.kind!r} is not one of {', '.join(INTERACTIONS)}")
        for table in self.tables:
            if table.dim != self.dim:
                raise ValueError(f"table {table.name} has dimension {table.dim}, the bottom MLP ends in {self.dim}")
            if table.pooling not in POOLINGS:
                raise ValueError(f"table {table.name} pools by {table.pooling!r}, not by one of {', '.join(POOLINGS)}")
            if table.row_weights is not None and table.row_weights.shape != (table.num_rows,):
                shape = table.row_weights.shape
                raise ValueError(f"table {table.name} has weights of shape {shape} for {table.num_rows} rows")
        if self.top[0].inputs != self.top_inputs:
            raise ValueError(f"the interaction gives {self.top_inputs} values, the top MLP takes {self.top[0].inputs}")
        if self.top[-1].outputs != 1:
            raise ValueError(f"the top MLP ends in {self.top[-1].outputs} values, not in one prediction")
        if self.clamp is not None and not self.clamp[0] <= self.clamp[1]:
            raise ValueError(f"predictions are clamped to {self.clamp[0]:g}..{self.clamp[1]:g}, which is empty")

    @property
    def num_dense(self) -> int:
        return self.bottom[0].inputs

    @property
    def dim(self) -> int:
        """Embedding dimension D, which is the bottom MLP's output width too."""
        return self.bottom[-1].outputs

    @property
    def num_vectors(self) -> int:
        """x and one row of each table: what the interaction pairs up."""
        return len(self.tables) + 1

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        return self.interaction.pairs(self.num_vectors)

    @property
    def top_inputs(self) -> int:
        if self.interaction.kind == "cat":
            return self.num_vectors * self.dim
        return self.dim + len(self.pairs)

    @property
    def layers(self) -> tuple[Dense, ...]:
        return self.bottom + self.top

    @property
    def macs_per_item(self) -> int:
        """Multiply-adds of the model's formulas, padding not counted; 2,410,112 for the MLPerf model."""
        return sum(layer.weight.size for layer in self.layers) + len(self.pairs) * self.dim

    @property
    def flops_per_item(self) -> int:
        return 2 * self.macs_per_item

    @property
    def gather_bytes_per_item(self) -> int:
        return len(self.tables) * self.dim * 4

    @property
    def mlp_bytes(self) -> int:
        return sum(layer.weight.nbytes + layer.bias.nbytes for layer in self.layers)

    @property
    def table_bytes(self) -> int:
        return sum(table.rows.nbytes for table in self.tables)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every shape, all MLP weights and 64 evenly spaced rows of each table.

        Equal for the same model however it is stored; cheap at any table size, which is why rows are sampled.
        """
        digest = hashlib.sha256()
        digest.update(repr((self.interaction, [layer.activation for layer in self.layers])).encode())
        # Added to the digest only where a model has them, so that recordings for older models stay valid.
        if self.clamp is not None:
            digest.update(repr(self.clamp).encode())
        for layer in self.layers:
            for array in (layer.weight, layer.bias):
                digest.update(repr(array.shape).encode())
                digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        for table in self.tables:
            digest.update(repr(table.rows.shape).encode())
            sample = np.unique(np.linspace(0, table.num_rows - 1, _FINGERPRINT_ROWS).astype(np.int64))
            digest.update(np.ascontiguousarray(table.rows[sample], dtype="<f4").tobytes())
            if table.pooling != "sum":
                digest.update(table.pooling.encode())
            if table.row_weights is not None:
                digest.update(np.ascontiguousarray(table.row_weights[sample], dtype="<f4").tobytes())
        return digest.hexdigest()
