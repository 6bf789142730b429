"""Whether a model's numbers stay where three bfloat16 parts hold float32: for layers on AMX's tiles.

    parts hold     1e-31 <= |x| <= 3.38e38 to 24 bits; what is below 1.2e-38 of a part is lost, Inf and NaN give NaN
    bound of y     y[n] = sum_k |W[n, k]| * bound of x[k] + |b[n]|, for inputs and rows up to LARGEST_INPUT

The last layer is not asked about: it is a dot product of float32.
"""

from __future__ import annotations

import numpy as np

from .dlrm import Dlrm

LARGEST_SUM = 3.38e38  # beyond it rounding to bfloat16 gives Inf
LARGEST_WEIGHT = 1e20  # beyond it the losses below 1.2e-38 could be seen
LARGEST_INPUT = 1e4  # of dense inputs and pooled rows: logarithms of counts, which models are trained on, are far below


def why_not_in_parts(model: Dlrm) -> str | None:
    """Why float32 in three parts may not do for this model; None where it will."""
    reasons: list[str] = []

    def outputs(number: int, bounds: np.ndarray) -> np.ndarray:
        """Of layer `number`: [1, inputs] -> [1, outputs] float64, and what speaks against it."""
        layer, where = model.layers[number], f"layer {number + 1} of {len(model.layers)}"
        weight = np.abs(layer.weight).astype(np.float64)
        sums = bounds @ weight.T + np.abs(layer.bias)
        if not weight.max() <= LARGEST_WEIGHT:
            reasons.append(
                f"{where} has a weight of {weight.max():.2g}, three bfloat16 parts take {LARGEST_WEIGHT:g} at most"
            )
        elif not max(bounds.max(), sums.max()) <= LARGEST_SUM:
            reasons.append(f"{where} can overflow for inputs of {LARGEST_INPUT:g}, which in bfloat16 parts gives NaN")
        return np.ones_like(sums) if layer.activation == "sigmoid" else sums

    with np.errstate(over="ignore", invalid="ignore"):
        bounds = np.full((1, model.num_dense), LARGEST_INPUT)
        for number in range(len(model.bottom)):
            bounds = outputs(number, bounds)
        rows = np.full((1, len(model.tables), model.dim), LARGEST_INPUT)
        vectors = np.concatenate([bounds[:, None], rows], axis=1)
        bounds = model.interaction.join(vectors, lambda at, x: outputs(len(model.bottom) + at, x))
        for number in range(model.first_top, len(model.layers) - 1):
            bounds = outputs(number, bounds)
    return reasons[0] if reasons else None
