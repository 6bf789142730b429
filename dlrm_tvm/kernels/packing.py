"""From a model's arrays to the ones that the kernels read: weights in register tiles, tables in whole vectors.

Pure NumPy. Everything of the MLPs goes into one float32 array, each part from a 64-byte boundary, in the order in
which the layers run, so that a batch of one streams through it from front to back.
"""

from __future__ import annotations

import numpy as np

from ..model import Dense, Dlrm
from .interaction import Grouping, group_pairs
from .vectors import LANES, padded


def pack_weight(weight: np.ndarray, nr: int, columns: np.ndarray) -> np.ndarray:
    """[N, K] -> flat [N/nr][len(columns)][nr]; columns[k] is the model's input for the kernel's k, -1 for none.

    Outputs are padded to whole vectors with zeros; the last column of tiles may be narrower than nr.
    """
    full = np.zeros((padded(weight.shape[0]), len(columns)), np.float32)
    used = columns >= 0
    full[: weight.shape[0], used] = weight[:, columns[used]]
    tiles = [full[at : at + nr].T for at in range(0, len(full), nr)]
    return np.concatenate([np.ascontiguousarray(tile).reshape(-1) for tile in tiles])


def pack_bias(layer: Dense) -> np.ndarray:
    """The bias in whole vectors; what is past the end makes the activation 0, as columns of nothing should be."""
    bias = np.full(padded(layer.outputs), -np.inf if layer.activation == "sigmoid" else 0, np.float32)
    bias[: layer.outputs] = layer.bias
    return bias


def top_columns(model: Dlrm) -> tuple[np.ndarray, Grouping | None]:
    """Which input of the first top layer each column of our tiles holds (-1: none), and the grouping behind it."""
    dim = model.dim
    if model.interaction.kind == "cat":
        columns = np.full((model.num_vectors, padded(dim)), -1, np.int64)
        columns[:, :dim] = np.arange(model.top_inputs).reshape(-1, dim)
        return columns.reshape(-1), None
    columns = np.full(padded(dim), -1, np.int64)
    columns[:dim] = np.arange(dim)
    grouping = group_pairs(model.pairs, model.num_vectors)
    number = {pair: dim + at for at, pair in enumerate(model.pairs)}
    dots = [-1 if pair is None else number[pair] for pair in grouping.order]
    return np.concatenate([columns, np.array(dots, np.int64)]), grouping


class Packer:
    """Appends parts to one flat array and tells where each begins, in elements."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._size = 0

    def add(self, part: np.ndarray) -> int:
        at = self._size
        fill = np.zeros(-part.size % LANES, np.float32)
        self._parts += [part, fill]
        self._size += part.size + fill.size
        return at

    def finish(self) -> np.ndarray:
        return np.concatenate(self._parts)
