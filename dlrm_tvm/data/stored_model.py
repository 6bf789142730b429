"""A DLRM whose weights lie in files: what an ONNX graph of it needs to know, which is no weight's value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..model.interactions import Concat, Dot


@dataclass(frozen=True)
class StoredTensor:
    """Values in C order, from byte `offset` of the file on; dtype: float32, float16 or bfloat16; file: another one than
    the model's, from its folder on."""

    name: str
    shape: tuple[int, ...]
    offset: int
    dtype: str = "float32"
    file: str = ""

    @property
    def num_bytes(self) -> int:
        return (4 if self.dtype == "float32" else 2) * math.prod(self.shape)


@dataclass(frozen=True)
class StoredLayer:
    """weight: [outputs, inputs]; bias: outputs values in any shape, or None."""

    weight: StoredTensor
    bias: StoredTensor | None

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class StoredModel:
    """ReLU behind every layer of the MLPs but the last, which has a sigmoid.

    crossings: cross layers on the joined vectors, (V, W) of low rank or (W,) of full rank each, as `Cross` has them;
    their interaction is Concat. upper_triangle: the top MLP takes dots in the order (0,1), (0,2), .., (1,2), ..
    indices_per_bag: of each table, to be fixed in the graph; empty for one, which leaves bags to the library's caller.
    """

    bottom: tuple[StoredLayer, ...]
    tables: tuple[StoredTensor, ...]
    interaction: Dot | Concat
    top: tuple[StoredLayer, ...]
    crossings: tuple[tuple[StoredLayer, ...], ...] = ()
    upper_triangle: bool = False
    indices_per_bag: tuple[int, ...] = ()

    @property
    def dim(self) -> int:
        return self.bottom[-1].outputs

    @property
    def num_vectors(self) -> int:
        return len(self.tables) + 1
