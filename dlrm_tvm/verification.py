"""A new library against the NumPy reference of its model, on random items, before success is reported.

In bf16 and int8 the reference rounds as the library does (reference_narrow.py). Sums that differ in their last bit may
then round to different neighbours, which later layers carry on: most items agree to 1e-5, a few are off by a step or so
of a narrow number. A wrong kernel, or one wrong column, is off on all items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import reference, reference_narrow
from .artifact import Artifact
from .errors import UserError
from .model import Dlrm
from .numerics import Numerics
from .table_files import let_go_of_rows

VERIFIED_BATCHES = 3
VERIFIED_ROWS = 48  # of each table, per batch
VERIFIED_BAG = 4  # indices of a bag at most
VERIFIED_ITEMS = 256  # at most per batch: the reference is slow
TOLERANCE = 1e-5
NARROW_AGREE = 0.25  # of the items at least agree to the tolerance
NARROW_TOLERANCE = 0.05  # of the others
ROUNDING_MARGIN = 4  # sums in another order err by about as much as NumPy's own


@dataclass(frozen=True)
class Verification:
    """items: how many random items were compared; max_abs_error: against the NumPy reference."""

    items: int
    max_abs_error: float


def verify(artifact: Artifact, model: Dlrm, numerics: Numerics) -> Verification:
    """Random batches through the library against the NumPy reference of the model; UserError when they differ.

    One index per table and item in all but the last batch, which has bags of all lengths, empty ones included.
    """
    from .executor import Executor

    executor = Executor(artifact)
    rng = np.random.default_rng(0)
    items, worst = min(executor.batch_size, VERIFIED_ITEMS), 0.0
    for number in range(VERIFIED_BATCHES):
        for table in model.tables:
            let_go_of_rows(table.rows)
        artifact.tables.let_go()
        dense = rng.random((items, model.num_dense), dtype=np.float32) * 4
        inputs = _one_each(model, items, rng) if number < VERIFIED_BATCHES - 1 else _bags(model, items, rng)
        wanted = _wanted(model, numerics, dense, *inputs)
        error = np.abs(executor(dense, *inputs) - wanted)
        worst = float(np.maximum(worst, error.max()))  # unlike max(), keeps a NaN
        allowed = _tolerance(wanted, reference.predict(model, dense, *inputs, dtype=np.float32), numerics.precision)
        if not _agree(error, allowed, wanted, numerics.precision):
            raise UserError(
                f"the library's predictions are off by {worst:.3g} from the model's, more than {allowed.min():.3g}: "
                "nothing was written. Please report this model."
            )
    return Verification(VERIFIED_BATCHES * items, worst)


def _wanted(model: Dlrm, numerics: Numerics, dense: np.ndarray, *lookups) -> np.ndarray:
    if numerics.precision == "fp32":
        return reference.predict(model, dense, *lookups)
    return reference_narrow.predict(model, numerics, dense, *lookups)


def _agree(error: np.ndarray, allowed: np.ndarray, wanted: np.ndarray, precision: str) -> bool:
    close = error <= allowed
    if precision == "fp32":
        return bool(close.all())
    near = error <= NARROW_TOLERANCE * np.maximum(1, np.abs(wanted))
    return bool(near.all() and close.mean() >= NARROW_AGREE)


def _tolerance(wanted: np.ndarray, in_float32: np.ndarray, precision: str) -> np.ndarray:
    """1e-5 of the value, or of 1; more only where NumPy errs as much when it computes in float32: where large values
    cancel out, as in a model without a sigmoid at its end, no order of additions gives 1e-5."""
    rounding = np.abs(in_float32 - wanted).max() if precision == "fp32" else 0
    return np.maximum(TOLERANCE * np.maximum(1, np.abs(wanted)), ROUNDING_MARGIN * rounding)


def _one_each(model: Dlrm, items: int, rng: np.random.Generator) -> tuple:
    return (np.stack([_some_rows(table.num_rows, items, rng) for table in model.tables], axis=1),)


def _bags(model: Dlrm, items: int, rng: np.random.Generator) -> tuple:
    """indices, offsets per table, as torch.nn.EmbeddingBag takes them."""
    lengths = rng.integers(0, VERIFIED_BAG + 1, (len(model.tables), items))
    indices = [_some_rows(table.num_rows, each.sum(), rng) for table, each in zip(model.tables, lengths)]
    return indices, [np.cumsum([0, *each[:-1]]) for each in lengths]


def _some_rows(num_rows: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` rows: the first, the last, and few others, as each may bring 2 MB of a table into memory."""
    rows = np.concatenate([[0, num_rows - 1], rng.integers(0, num_rows, VERIFIED_ROWS - 2)])
    return rng.permutation(np.resize(rng.permutation(rows), count))
