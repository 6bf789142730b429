"""A model's arrays -> the arrays that the kernels read: weights in register tiles, columns in whole vectors.

Pure NumPy. All arrays of the layers go into one float32 array, each from a 64-byte boundary, in the order in which the
layers run, so that a batch of one streams through it from front to back.
"""

from __future__ import annotations

import numpy as np

from ..model.precision import from_bf16, to_bf16
from .vectors import LANES, padded
from .words import UNIT, VALUES, column_order


def pack_weight(weight: np.ndarray, nr: int, columns: np.ndarray, precision: str = "fp32") -> np.ndarray:
    """[N, K] -> flat [N/nr][words of len(columns)][nr] float32

    columns[k]: the model's input in the kernel's column k, -1 for none. weight: float32, uint16 (bfloat16 bits) or
    int8, by precision. Outputs are padded to whole vectors with zeros; the last tiles may be narrower than nr.
    """
    full = _placed(weight, columns)[:, column_order(precision, len(columns))]
    return _in_tiles(np.ascontiguousarray(full).reshape(len(full), -1, VALUES[precision]), nr)


def pack_weight_parts(weight: np.ndarray, nr: int, columns: np.ndarray, parts: int) -> np.ndarray:
    """[N, K] float32 -> flat [N/nr][columns / 32][part][16][nr] words of two bfloat16, in the order of
    Form.pack_parts. Each part is what the ones before lack, to nearest: three hold 24 bits of mantissa."""
    full, halves = _placed(weight, columns), []
    for _ in range(parts):
        bits = to_bf16(full)
        full = full - from_bf16(bits)
        halves.append(bits.reshape(len(full), -1, 2, LANES).swapaxes(2, 3))
    return _in_tiles(np.stack(halves, axis=2).reshape(len(full), -1, 2), nr)


def _placed(weight: np.ndarray, columns: np.ndarray) -> np.ndarray:
    full = np.zeros((padded(weight.shape[0]), len(columns)), weight.dtype)
    used = columns >= 0
    full[: weight.shape[0], used] = weight[:, columns[used]]
    return full


def _in_tiles(words: np.ndarray, nr: int) -> np.ndarray:
    """[N, words, values per word] -> flat [N/nr][words][nr] float32"""
    tiles = [np.ascontiguousarray(words[at : at + nr].transpose(1, 0, 2)) for at in range(0, len(words), nr)]
    return np.concatenate([tile.reshape(-1).view(np.float32) for tile in tiles])


def pack_bias(bias: np.ndarray, activation: str) -> np.ndarray:
    """The bias in whole vectors; past the end it makes the activation 0."""
    full = np.full(padded(len(bias)), -np.inf if activation == "sigmoid" else 0, np.float32)
    full[: len(bias)] = bias
    return full


def pack_numbers(numbers: np.ndarray) -> np.ndarray:
    """One number per output, float32 or int32, in whole vectors."""
    return np.concatenate([numbers, np.zeros(padded(len(numbers)) - len(numbers), numbers.dtype)]).view(np.float32)


def plain_columns(count: int, precision: str) -> np.ndarray:
    """Inputs 0 .. count - 1 in order, in whole units."""
    columns = np.full(unit_padded(count, precision), -1, np.int64)
    columns[:count] = np.arange(count)
    return columns


def unit_padded(count: int, precision: str) -> int:
    """The number of columns in whole units; fp32 has none."""
    width = UNIT[precision] * LANES if precision != "fp32" else 1
    return -(-count // width) * width


class Packer:
    """Appends arrays to one flat array and returns where each begins, in elements."""

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
