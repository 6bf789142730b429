"""Shapes and weights of the demo models, from a seed: MLPerf's DLRMs with capped tables, the same bits everywhere.

Weights are raw PCG64 words (a stream that NumPy guarantees), turned into float32 by exact integer steps, one
correctly rounded multiplication and one addition. No transcendental function and no NumPy `Generator` method is used,
as their results change between versions. Each tensor has its own stream, so a table capped lower is the beginning of
the same table capped higher. Knows where each tensor lies in the data file, but no file and no ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ..errors import UserError
from ..model.interactions import Concat, Dot
from .stored_model import StoredLayer, StoredModel, StoredTensor

# Distinct values per categorical feature of the Criteo Terabyte set, hashed to at most 40 million: MLPerf's tables.
CRITEO_TABLE_ROWS = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10,
    2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip
DIM = 128
BOTTOM = (13, 512, 256, DIM)
TOP = (479, 1024, 1024, 512, 256, 1)
# MLPerf's second DLRM: recommendation/dlrm_v2/pytorch of mlcommons/inference.
V2_TABLE_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10,
    2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)  # fmt: skip
V2_INDICES_PER_BAG = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)

_ALIGNMENT = 4096
_TABLES_ALIGNMENT = 2 << 20  # a huge page, so that the tables can be mapped by huge pages
_CHUNK_VALUES = 1 << 20


@dataclass(frozen=True)
class DemoModel:
    """name: of its files. bottom, top: widths from input to output; ranks: of its cross layers, none for dots of pairs;
    indices_per_bag: of each table, empty where the graph takes one.

    Gains: factors of the He-uniform bound sqrt(6 / inputs) of each layer. With the bounds of table rows and the last
    bias they give logits of mean -2.0 and standard deviation 1.4 on the demo's items: well-spread predictions, like a
    click model's. table_bound: of the sum of a bag of one; rows of longer bags are smaller, their sums alike.
    data_sha256: of the whole data file, by cap; mlp_sha256: of its beginning, the layers, which are the same at
    every cap; reference: the file of items that is shipped.
    """

    name: str
    table_rows: tuple[int, ...]
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    bottom_gains: tuple[float, ...]
    top_gains: tuple[float, ...]
    last_bias: float
    table_bound: float
    seed: int
    mlp_sha256: str
    reference: str
    ranks: tuple[int, ...] = ()
    cross_gains: tuple[float, float] = (1.0, 1.0)
    indices_per_bag: tuple[int, ...] = ()
    bias_bound: float = 0.0625
    data_sha256: Mapping[int, str] = field(default_factory=dict, hash=False)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Indices per bag of each table."""
        return self.indices_per_bag or (1,) * len(self.table_rows)


V1 = DemoModel(
    name="demo_dlrm",
    table_rows=CRITEO_TABLE_ROWS,
    bottom=BOTTOM,
    top=TOP,
    bottom_gains=(0.5, 1.0, 0.25),
    top_gains=(1.0, 1.0, 1.0, 1.0, 1.5625),
    last_bias=1.0,
    table_bound=0.5,
    seed=20190606,
    mlp_sha256="69fca0d1c1172d195c8b562e67ab54eb152b7e47c1d9a61f0faaf5133de8561e",
    reference="demo_data_small.npz",
    data_sha256={
        10_000: "a384e7349d82e94521a8c3d53667035efd24d75dc07dfd25650cbeb957ca2b70",
        100_000: "7011c47d393c8f2f9e992de5c7f468a963e7be9fcde2d753cb39ceb972599c41",
    },
)
V2 = DemoModel(
    name="demo_dlrm_v2",
    table_rows=V2_TABLE_ROWS,
    indices_per_bag=V2_INDICES_PER_BAG,
    bottom=BOTTOM,
    ranks=(512, 512, 512),
    top=(27 * DIM, 1024, 1024, 512, 256, 1),
    bottom_gains=(0.5, 1.0, 0.25),
    cross_gains=(1.0, 0.5),
    top_gains=(1.0, 1.0, 1.0, 1.0, 2.25),
    last_bias=0.125,
    table_bound=1.0,
    seed=20230911,
    mlp_sha256="5fdc0ef7b4c08b0e8653b1f7fd59f0ee7d62253ecf7a084cf4551003ba7259eb",
    reference="demo_v2_data_small.npz",
    data_sha256={
        10_000: "041cde621cea23b292fe845948fb0c17290d3755f5d76adce2ba66fec325b793",
        100_000: "ec283e8a3de9779d98994f759686133e57d2796ff9b68c7f5dac5506988c0f75",
    },
)
DEMOS = {"v1": V1, "v2": V2}


@dataclass(frozen=True)
class DemoTensor:
    """One tensor of the data file: float32 within center ± bound, from the stream of `seed`, at byte `offset`."""

    name: str
    shape: tuple[int, ...]
    seed: int
    offset: int
    bound: float
    center: float = 0.0

    @property
    def num_bytes(self) -> int:
        return 4 * math.prod(self.shape)

    @property
    def end(self) -> int:
        return self.offset + self.num_bytes

    @property
    def is_table(self) -> bool:
        return self.name.startswith("table.")

    def values(self) -> Iterator[np.ndarray]:
        """All values, flat, in chunks of at most `_CHUNK_VALUES` little-endian float32."""
        words = np.random.PCG64(self.seed)
        left = math.prod(self.shape)
        while left:
            count = min(left, _CHUNK_VALUES)
            halves = words.random_raw((count + 1) // 2).astype("<u8").view("<u4")[:count]
            integers = (halves >> 8).astype(np.int32) - (1 << 23)  # 24 bits: exact in float32
            scaled = integers.astype(np.float32) * np.float32(self.bound / (1 << 23))
            yield (scaled + np.float32(self.center)).astype("<f4")
            left -= count


def demo_tensors(table_rows: int, model: DemoModel = V1) -> list[DemoTensor]:
    """All tensors of the model in the order of the data file: bottom MLP, cross layers, top MLP, tables."""
    if table_rows < 1:
        raise UserError(f"the demo model's tables are capped at {table_rows} rows; give at least 1.")
    tensors: list[DemoTensor] = []

    def add(name: str, shape: tuple[int, ...], bound: float, *, center: float = 0.0, align: int = _ALIGNMENT) -> None:
        offset = -(-tensors[-1].end // align) * align if tensors else 0
        tensors.append(DemoTensor(name, shape, model.seed + len(tensors), offset, bound, center))

    def layer(name: str, inputs: int, outputs: int, gain: float, *, bias: bool = True) -> None:
        # math.sqrt is correctly rounded (IEEE 754), so the bound is the same on every machine.
        add(f"{name}.weight", (outputs, inputs), gain * math.sqrt(6 / inputs))
        if bias:
            add(f"{name}.bias", (outputs,), model.bias_bound, center=model.last_bias if outputs == 1 else 0.0)

    for i, (fan, gain) in enumerate(zip(pairwise(model.bottom), model.bottom_gains)):
        layer(f"bottom.{i}", *fan, gain)
    for i, rank in enumerate(model.ranks):
        layer(f"cross.{i}.v", model.top[0], rank, model.cross_gains[0], bias=False)
        layer(f"cross.{i}.w", rank, model.top[0], model.cross_gains[1])
    for i, (fan, gain) in enumerate(zip(pairwise(model.top), model.top_gains)):
        layer(f"top.{i}", *fan, gain)
    for t, (rows, length) in enumerate(zip(model.table_rows, model.lengths)):
        bound = model.table_bound / math.sqrt(length)
        add(f"table.{t}", (min(rows, table_rows), DIM), bound, align=_ALIGNMENT if t else _TABLES_ALIGNMENT)
    return tensors


def demo_network(tensors: list[DemoTensor], model: DemoModel = V1) -> StoredModel:
    """The model that the data file holds."""
    stored = {tensor.name: StoredTensor(tensor.name, tensor.shape, tensor.offset) for tensor in tensors}

    def layer(name: str) -> StoredLayer:
        return StoredLayer(stored[f"{name}.weight"], stored.get(f"{name}.bias"))

    return StoredModel(
        bottom=tuple(layer(f"bottom.{i}") for i in range(len(model.bottom) - 1)),
        tables=tuple(stored[tensor.name] for tensor in tensors if tensor.is_table),
        interaction=Concat() if model.ranks else Dot(),
        top=tuple(layer(f"top.{i}") for i in range(len(model.top) - 1)),
        crossings=tuple((layer(f"cross.{i}.v"), layer(f"cross.{i}.w")) for i in range(len(model.ranks))),
        indices_per_bag=model.indices_per_bag,
    )


def index_names(model: DemoModel) -> tuple[str, ...]:
    """Of the graph's index inputs: one [T, batch], or of each table one [batch, indices per bag]."""
    return tuple(f"indices_{t}" for t in range(len(model.indices_per_bag))) or ("indices",)


def mlp_end(tensors: list[DemoTensor]) -> int:
    """The byte of the data file where the weights of layers end and the padding before the tables begins."""
    return max(tensor.end for tensor in tensors if not tensor.is_table)


def data_chunks(tensors: list[DemoTensor]) -> Iterator[bytes | memoryview]:
    """The data file's bytes in order, padding included."""
    end = 0
    for tensor in tensors:
        yield bytes(tensor.offset - end)
        for values in tensor.values():
            yield values.data.cast("B")
        end = tensor.end
