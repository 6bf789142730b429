"""int8's activation steps from data: the largest magnitudes that a model's activations reach on sample items.

    between layers   one step per layer: largest / 255 after a ReLU or sigmoid, / 127 where values may be negative
    x, dots          x's step: largest / 127; each pair's dot has a step of its own, as pairs differ a hundredfold

A layer's weights take its inputs' steps in: W[n, k] * steps[k]. One pair with a range far beyond the others' (x . x of
a model whose pairs include themselves) therefore coarsens the other weights of its row; rows of their own steps, the
default, do not have that. A value beyond what the sample showed is cut off there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from . import reference
from .errors import UserError
from .manifest import describe
from .model import Dlrm
from .numerics import Numerics
from .reference_data import Chunk, open_reference

MOST_ITEMS = 32_768  # more bring the largest value up by little, and NumPy takes a second per 8,000
_ITEMS_AT_ONCE = 2048  # whose vectors take 28 MB


def calibrate(model: Dlrm, numerics: Numerics, path: Path) -> Numerics:
    """int8's numbers with static steps: `path` is any kind of file that accuracy.py reads (reference_data.py).

    Its first 32,768 items are run through the float32 model. Raises UserError for a file that does not fit the model
    or holds no items.
    """
    largest: list[np.ndarray] | None = None
    data = open_reference(path, describe(model), max_items=MOST_ITEMS, outputs_wanted=False)
    for chunk in data:
        for first in range(0, len(chunk.dense), _ITEMS_AT_ONCE):
            found = _largest(model, *_part(chunk, first, first + _ITEMS_AT_ONCE))
            largest = found if largest is None else [np.maximum(*pair) for pair in zip(largest, found)]
    if largest is None:
        raise UserError(f"{path} holds no items. Give sample items with --calibration-data FILE.")
    return with_ranges(model, numerics, largest, f"{path} ({data.num_items:,} items)")


def _part(chunk: Chunk, first: int, last: int) -> tuple:
    """dense and lookups of some items, as reference.predict takes them."""
    dense = chunk.dense[first:last]
    if chunk.bags is None:
        return dense, chunk.indices[first:last]
    bags = chunk.bags.part(first, first + len(dense))
    return dense, bags.indices, bags.offsets


def with_ranges(model: Dlrm, numerics: Numerics, largest: list[np.ndarray], source: str) -> Numerics:
    """largest: per layer the magnitudes of its inputs, [1] or for the first top layer [top_inputs]; source: of them."""
    first_top, layers = len(model.bottom), []
    x_step = _step(largest[first_top][: model.dim].max(), 127)
    for at, (layer, each) in enumerate(zip(model.layers, numerics.layers)):
        if each.precision != "int8":
            layers.append(each)
            continue
        if at == first_top:
            steps = _step(largest[at], 127)
            steps[: model.dim] = x_step
        else:
            steps = np.full(layer.inputs, _step(largest[at].max(), 127 if each.signed else 255), np.float32)
        layers.append(replace(each, steps=steps))
    return replace(numerics, layers=tuple(layers), x_step=float(x_step), calibration=source)


def _step(largest: np.ndarray, most: int) -> np.ndarray:
    """1 for what was always zero: any step does."""
    return np.where(largest > 0, largest / most, 1).astype(np.float32)


def _largest(model: Dlrm, dense: np.ndarray, *lookups) -> list[np.ndarray]:
    """Per layer the largest magnitude of its inputs over the items; of each input for the first top layer."""
    seen: list[np.ndarray] = []

    def run(layers: tuple, x: np.ndarray) -> np.ndarray:
        for layer in layers:
            seen.append(np.abs(x).max(axis=0))
            x = reference.mlp((layer,), x)
        return x

    x = run(model.bottom, dense.astype(np.float32))
    run(model.top, reference.interact(model, reference.vectors(model, x, *lookups, dtype=np.float32)))
    return seen
