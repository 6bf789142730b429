"""From a model's arrays to the ones that the kernels read: weights in register tiles, tables in whole vectors.

Pure NumPy. Everything of the MLPs goes into one float32 array, each part from a 64-byte boundary, in the order in
which the layers run, so that a batch of one streams through it from front to back.
"""

from __future__ import annotations

import numpy as np

from ..model import Dlrm
from .forms import UNIT, VALUES, column_order
from .interaction import Grouping, group_pairs
from .vectors import LANES, padded


def pack_weight(weight: np.ndarray, nr: int, columns: np.ndarray, precision: str = "fp32") -> np.ndarray:
    """[N, K] -> flat [N/nr][words of len(columns)][nr] float32; columns[k] is the model's input for the kernel's k, -1
    for none.

    weight: float32, uint16 (bfloat16 bits) or int8, as the precision has it. Outputs are padded to whole vectors with
    zeros; the last column of tiles may be narrower than nr. Columns lie in the order in which they are packed.
    """
    values = VALUES[precision]
    full = np.zeros((padded(weight.shape[0]), len(columns)), weight.dtype)
    used = columns >= 0
    full[: weight.shape[0], used] = weight[:, columns[used]]
    full = full[:, column_order(precision, len(columns))]
    words = np.ascontiguousarray(full).reshape(len(full), -1, values)
    tiles = [np.ascontiguousarray(words[at : at + nr].transpose(1, 0, 2)) for at in range(0, len(full), nr)]
    return np.concatenate([tile.reshape(-1).view(np.float32) for tile in tiles])


def pack_bias(bias: np.ndarray, activation: str) -> np.ndarray:
    """The bias in whole vectors; what is past the end makes the activation 0, as columns of nothing should be."""
    full = np.full(padded(len(bias)), -np.inf if activation == "sigmoid" else 0, np.float32)
    full[: len(bias)] = bias
    return full


def pack_numbers(numbers: np.ndarray) -> np.ndarray:
    """One number per output, float32 or int32, in whole vectors of words."""
    return np.concatenate([numbers, np.zeros(padded(len(numbers)) - len(numbers), numbers.dtype)]).view(np.float32)


def plain_columns(count: int, precision: str) -> np.ndarray:
    """Inputs 0 .. count - 1 in order, in whole units of a precision."""
    columns = np.full(unit_padded(count, precision), -1, np.int64)
    columns[:count] = np.arange(count)
    return columns


def unit_padded(count: int, precision: str) -> int:
    """count columns in whole units: for fp32 as they are."""
    width = UNIT[precision] * LANES if precision != "fp32" else 1
    return -(-count // width) * width


def top_columns(
    model: Dlrm, precision: str = "fp32", row_columns: int | None = None
) -> tuple[np.ndarray, Grouping | None]:
    """Which input of the first top layer each column of our tiles holds (-1: none), and the grouping behind it.

    precision: of that layer; row_columns: columns that a row takes where rows are taken over as they lie ("cat").
    """
    dim = model.dim
    if model.interaction.kind == "cat":
        columns = np.full((model.num_vectors, row_columns or padded(dim)), -1, np.int64)
        columns[:, :dim] = np.arange(model.top_inputs).reshape(-1, dim)
        return columns.reshape(-1), None
    columns = np.full(unit_padded(padded(dim), precision), -1, np.int64)
    columns[:dim] = np.arange(dim)
    grouping = group_pairs(model.pairs, model.num_vectors)
    number = {pair: dim + at for at, pair in enumerate(model.pairs)}
    dots = np.full(unit_padded(len(grouping.order), precision), -1, np.int64)
    dots[: len(grouping.order)] = [-1 if pair is None else number[pair] for pair in grouping.order]
    return np.concatenate([columns, dots]), grouping


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
