"""Checks a new library on random items against the NumPy reference of its model.

In bf16 and int8 the reference rounds as the library does (model/reference_quantized.py). Sums that differ in their last
bit may then round to different neighbours, which later layers carry on: most items agree to 1e-5, a few are off by
about one scale of a quantized value; one in a hundred by more, but no more than all roundings together do to the
float32 model. A wrong kernel, or one wrong column, is off on all items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..machine.memory import let_go
from ..model import reference, reference_quantized
from ..model.dlrm import Dlrm
from ..model.precision import Numerics
from ..runtime.artifact import Artifact
from ..runtime.executor import Executor

VERIFIED_BATCHES = 3
VERIFIED_ROWS = 48  # of each table, per batch
VERIFIED_BAG = 4  # indices of a bag at most
VERIFIED_ITEMS = 256  # at most per batch: the reference is slow
TOLERANCE = 1e-5
QUANTIZED_ITEMS = 24  # at least, in several calls of a smaller library: of one item no share can be told
QUANTIZED_AGREE = 0.25  # least share of items that agree to the tolerance
QUANTIZED_TOLERANCE = 0.05  # for the others
QUANTIZED_FAR = 0.01  # share of items, or one, that may be off by as much as the model is from itself in float32
_LARGE = 1e15  # of a value that may take float32 beyond its range
ROUNDING_MARGIN = 4  # over the rounding error of NumPy's own sums, whose order is another


@dataclass(frozen=True)
class Verification:
    """items: random items compared; max_abs_error: largest error against the NumPy reference."""

    items: int
    max_abs_error: float


def verify(artifact: Artifact, model: Dlrm, numerics: Numerics) -> Verification:
    """Run random batches through the library. Raises UserError where they differ from the model's NumPy reference, and
    where that is not finite in float32, with table and row."""
    executor = Executor(artifact)
    least = 1 if numerics.precision == "fp32" else QUANTIZED_ITEMS
    items, largest = max(least, min(executor.batch_size, VERIFIED_ITEMS)), []
    for dense, *lookups in _batches(model, items):
        for table in model.tables:
            let_go(table.rows)
        artifact.tables.let_go()
        with np.errstate(all="ignore"):
            in_float32 = reference.predict(model, dense, *lookups, dtype=np.float32)
            wanted = _wanted(model, numerics, dense, *lookups)
        error = np.abs(executor(dense, *lookups) - wanted)
        allowed = _tolerance(wanted, in_float32, numerics.precision)
        is_finite = bool(np.isfinite(in_float32).all())
        if not (is_finite and _agree(error, allowed, wanted, in_float32, numerics.precision)):
            reason = f"the library's predictions are off by {error.max():.3g} from the model's, more than "
            reason += f"{allowed.min():.3g}: nothing was written. Please report this model."
            raise UserError(_beyond_float32(model, *lookups, is_finite=is_finite) or reason)
        largest.append(error.max())
    return Verification(VERIFIED_BATCHES * items, float(max(largest)))


def _beyond_float32(model: Dlrm, *lookups, is_finite: bool) -> str | None:
    """What is wrong with the model rather than with the library: the sampled row with the value farthest from zero, if
    that is so far that float32 ends; NaN counts as infinite."""
    worst, where = _LARGE, None if is_finite else "its layers have weights so large that"
    for table, sampled in zip(model.tables, reference.per_table(*lookups)[0]):
        for row in np.unique(sampled):
            values = table.rows[row] if table.row_weights is None else table.rows[row] * table.row_weights[row]
            size = np.nan_to_num(np.abs(values), nan=np.inf)
            if size.max() > worst:
                worst, where = size.max(), f"table {table.name}, row {row} holds {values[size.argmax()]:.6g}:"
    return where and f"{model.name}: {where} predictions are not finite in float32. Export the model anew."


def _batches(model: Dlrm, items: int) -> Iterator[tuple]:
    """dense and lookups: one index per table and item, in the last batch bags of all lengths, empty ones included."""
    rng = np.random.default_rng(0)
    for number in range(VERIFIED_BATCHES):
        dense = rng.random((items, model.num_dense), dtype=np.float32) * 4
        yield dense, *(_one_each(model, items, rng) if number < VERIFIED_BATCHES - 1 else _bags(model, items, rng))


def _wanted(model: Dlrm, numerics: Numerics, dense: np.ndarray, *lookups) -> np.ndarray:
    if numerics.precision == "fp32":
        return reference.predict(model, dense, *lookups)
    return reference_quantized.predict(model, numerics, dense, *lookups)


def _agree(error: np.ndarray, allowed: np.ndarray, wanted: np.ndarray, in_float32: np.ndarray, precision: str) -> bool:
    close = error <= allowed
    if precision == "fp32":
        return bool(close.all())
    far = error > QUANTIZED_TOLERANCE * np.maximum(1, np.abs(wanted))
    within = (error[far] <= np.abs(wanted - in_float32).max()).all() and far.sum() <= max(1, QUANTIZED_FAR * far.size)
    return bool(within and not np.isnan(error).any() and close.mean() >= QUANTIZED_AGREE)


def _tolerance(wanted: np.ndarray, in_float32: np.ndarray, precision: str) -> np.ndarray:
    """1e-5 of the value, or of 1; more where NumPy in float32 is off by more. Where large values cancel out, as in a
    model without a sigmoid at its end, no order of additions gives 1e-5."""
    rounding = np.abs(in_float32 - wanted).max() if precision == "fp32" else 0
    return np.maximum(TOLERANCE * np.maximum(1, np.abs(wanted)), ROUNDING_MARGIN * rounding)


def _one_each(model: Dlrm, items: int, rng: np.random.Generator) -> tuple:
    return (np.stack([_some_rows(table.num_rows, items, rng) for table in model.tables], axis=1),)


def _bags(model: Dlrm, items: int, rng: np.random.Generator) -> tuple:
    """indices, offsets per table, as torch.nn.EmbeddingBag takes them."""
    least, most = (1, 1) if model.graph_inputs.one_index else (0, VERIFIED_BAG)
    lengths = rng.integers(least, most + 1, (len(model.tables), items))
    indices = [_some_rows(table.num_rows, each.sum(), rng) for table, each in zip(model.tables, lengths)]
    return indices, [np.cumsum([0, *each[:-1]]) for each in lengths]


def _some_rows(num_rows: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` rows: the first, the last, and few others, as each may bring 2 MB of a table into memory."""
    rows = np.concatenate([[0, num_rows - 1], rng.integers(0, num_rows, VERIFIED_ROWS - 2)])
    return rng.permutation(np.resize(rng.permutation(rows), count))
