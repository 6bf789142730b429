"""int8's activation scales from data: the largest magnitudes of a model's activations on sample items.

    between layers   one scale per layer: largest / 255 after a ReLU or sigmoid, / 127 where values may be negative
    x, dots          x's scale: largest / 127; each pair's dot has a scale of its own, as pairs differ a hundredfold
    x0, x_l          of joined vectors and cross layers, see model/joined.py

The inputs' scales are folded into the layer's weights: W[n, k] * scales[k]. One pair with a far larger range than the
others (x . x where vectors are paired with themselves) makes the other weights of its row coarse; scales per row, the
default, avoid that. A value beyond the sample's range is clipped.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.reference_data import Chunk, open_reference
from ..errors import UserError
from ..model import reference
from ..model.card import describe
from ..model.dlrm import Dlrm
from ..model.layers import scale_of
from ..model.precision import Numerics

MOST_ITEMS = 32_768  # more would hardly raise the largest value, and NumPy takes a second per 8,000
_ITEMS_AT_ONCE = 2048  # their vectors take 28 MB


def calibrate(model: Dlrm, numerics: Numerics, path: Path, max_ind_range: int | None = None) -> Numerics:
    """int8's numerics with static scales, from a file of any kind that accuracy.py reads (data/reference_data.py).

    The float32 model runs the first 32,768 items, of those for calibration where MLPerf cuts the file (data/splits.py).
    Raises UserError for a file that does not fit the model or is empty.
    """
    largest: list[np.ndarray] | None = None
    items = {"max_items": MOST_ITEMS, "for_calibration": True, "max_ind_range": max_ind_range}
    data = open_reference(path, describe(model), outputs_wanted=False, **items)
    for chunk in data:
        for first in range(0, len(chunk.dense), _ITEMS_AT_ONCE):
            found = _largest(model, *_items(chunk, first, first + _ITEMS_AT_ONCE))
            largest = found if largest is None else [np.maximum(*pair) for pair in zip(largest, found)]
    if largest is None:
        raise UserError(f"{path} holds no items. Give sample items with --calibration-data FILE.")
    if not all(np.isfinite(each).all() for each in largest):
        raise UserError(f"{path}: its items take activations beyond float32. Give data as the model was trained on.")
    return with_ranges(model, numerics, largest, f"{path} ({data.portion})")


def _items(chunk: Chunk, first: int, last: int) -> tuple:
    """dense and lookups of items [first, last), as reference.predict takes them."""
    dense = chunk.dense[first:last]
    if chunk.bags is None:
        return dense, chunk.indices[first:last]
    bags = chunk.bags.part(first, first + len(dense))
    return dense, bags.indices, bags.offsets


def with_ranges(model: Dlrm, numerics: Numerics, largest: list[np.ndarray], source: str) -> Numerics:
    """largest: per layer the largest magnitudes of its inputs; source: the file and its items, for people."""
    first, after, layers = len(model.bottom), model.first_top + 1, list(numerics.layers)
    joined = model.interaction.static_scales(largest[first:after], model.dim, numerics.table_scales)
    for at, (layer, each) in enumerate(zip(model.layers, numerics.layers)):
        if each.precision != "int8":
            continue
        if first <= at < after:
            scales = joined[at - first]
        else:
            scales = np.full(layer.inputs, scale_of(largest[at].max(), 127 if each.signed else 255), np.float32)
        layers[at] = replace(each, scales=scales)
    return replace(numerics, layers=tuple(layers), x_scale=float(joined[0][0]), calibration=source)


def _largest(model: Dlrm, dense: np.ndarray, *lookups) -> list[np.ndarray]:
    """Per layer the largest magnitude of each of its inputs over the items."""
    seen: list[np.ndarray] = []

    def run(layers: tuple, x: np.ndarray) -> np.ndarray:
        for layer in layers:
            seen.append(np.abs(x).max(axis=0))
            x = reference.mlp((layer,), x)
        return x

    x = run(model.bottom, dense.astype(np.float32))
    vectors = reference.vectors(model, x, *lookups, dtype=np.float32)
    run(model.top, model.interaction.join(vectors, lambda at, x: run((model.interaction.layers[at],), x)))
    return seen
