"""A DLRM as data: layers, tables, interaction, and the cost of one item.

    dense [B,13] -- bottom MLP --+---------------- x [B,D] --+
                                 |                           |
    indices [B,T] - tables ------+-- interaction ------------+-- top MLP -- pred [B]

(Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
arXiv 1906.00091.) Knows neither ONNX nor TVM; weights may be memory maps of any size and are never copied here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from .computed_rows import ComputedRows
from .interactions import Interaction
from .layers import Dense

POOLINGS = ("sum", "mean")

_FINGERPRINT_ROWS = 64


@dataclass(frozen=True, eq=False)
class Table:
    """One embedding table, and how a bag of its rows becomes one vector (torch.nn.EmbeddingBag).

    name: its name in the ONNX file; rows: [number of rows, dim] float32, often a memory map.
    pooling: "sum" or "mean" of the bag's rows; an empty bag gives zeros.
    row_weights: [number of rows] float32, multiplied into the rows (dlrm's weighted pooling); None for ones.
    wraps: indices up to this one begin again with the first row behind the last, as where the model hashes by a
    remainder; 0: none do.
    """

    name: str
    rows: np.ndarray | ComputedRows
    pooling: str = "sum"
    row_weights: np.ndarray | None = None
    wraps: int = 0

    @property
    def num_rows(self) -> int:
        return self.rows.shape[0]

    @property
    def dim(self) -> int:
        return self.rows.shape[1]


@dataclass(frozen=True)
class GraphInputs:
    """The names of the ONNX graph's inputs and output. Data saved under these names can be read.

    indices, offsets: one name (stacked, [T, items]) or T names ([items] each); offsets: empty if the graph has none.
    indices_per_bag: per table, where the graph takes indices [items, number] of each; empty where it does not.
    last_offset: offsets have one more element, the end of the last bag (include_last_offset).
    items_first: the one index input is [items, T]. one_index: why bags of another number than one are not the model's;
    empty where they are. wraps: of each table that hashes its number, and the last index that is taken modulo its rows.
    """

    dense: str
    indices: tuple[str, ...]
    offsets: tuple[str, ...]
    output: str
    indices_per_bag: tuple[int, ...] = ()
    last_offset: bool = False
    items_first: bool = False
    one_index: str = ""
    wraps: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Dlrm:
    """A whole model. Raises ValueError when its layers and tables do not fit together.

    clamp: (least, greatest) value of a prediction if the model clamps them (dlrm's --loss-threshold). warnings: what is
    odd about the file that it was read from.
    """

    name: str
    bottom: tuple[Dense, ...]
    tables: tuple[Table, ...]
    interaction: Interaction
    top: tuple[Dense, ...]
    graph_inputs: GraphInputs
    clamp: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.bottom and self.tables and self.top):
            raise ValueError("a DLRM has a bottom MLP, at least one table and a top MLP")
        for layers in (self.bottom, self.top):
            for first, second in pairwise(layers):
                if first.outputs != second.inputs:
                    raise ValueError(f"a layer of {first.outputs} outputs feeds one of {second.inputs} inputs")
        for table in self.tables:
            if table.dim != self.dim:
                raise ValueError(f"table {table.name} has dimension {table.dim}, the bottom MLP ends in {self.dim}")
            if table.pooling not in POOLINGS:
                raise ValueError(f"table {table.name} pools by {table.pooling!r}, not by one of {', '.join(POOLINGS)}")
            if table.row_weights is not None and table.row_weights.shape != (table.num_rows,):
                shape = table.row_weights.shape
                raise ValueError(f"table {table.name} has weights of shape {shape} for {table.num_rows} rows")
        self.interaction.check(self.num_vectors, self.dim)
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
        """Embedding dimension D, and width of the bottom MLP's output."""
        return self.bottom[-1].outputs

    @property
    def num_vectors(self) -> int:
        """V = 1 + T: x and one vector per table meet in the interaction."""
        return len(self.tables) + 1

    @property
    def top_inputs(self) -> int:
        return self.interaction.num_outputs(self.num_vectors, self.dim)

    @property
    def layers(self) -> tuple[Dense, ...]:
        """All of them in the order in which they run; those of the interaction lie between the MLPs'."""
        return self.bottom + self.interaction.layers + self.top

    @property
    def first_top(self) -> int:
        """The number of the first top layer among `layers`."""
        return len(self.layers) - len(self.top)

    @property
    def macs_per_item(self) -> int:
        """Multiply-adds of the model's formulas, padding not counted; 2,410,112 for the MLPerf model."""
        layers = sum(layer.weight.size for layer in self.layers)
        return layers + self.interaction.macs(self.num_vectors, self.dim)

    @property
    def flops_per_item(self) -> int:
        return 2 * self.macs_per_item

    @property
    def gather_bytes_per_item(self) -> int:
        return len(self.tables) * self.dim * 4

    @property
    def mlp_bytes(self) -> int:
        """Of all layers, those of the interaction too."""
        return sum(layer.weight.nbytes + layer.bias.nbytes for layer in self.layers)

    @property
    def table_bytes(self) -> int:
        return sum(table.rows.nbytes for table in self.tables)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every shape, all weights of layers and 64 evenly spaced rows of each table.

        The same model has the same fingerprint however it is stored. Rows are sampled to keep it fast at any size.
        """
        digest = hashlib.sha256()
        activations = [layer.activation for layer in self.layers]
        digest.update(f"({self.interaction.identity}, {activations})".encode())
        # Clamp, pooling and weights count only if a model has them: older recordings stay valid.
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
