"""How far a new library in int8 may be off from NumPy that rounds as it does; the library is made up."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from models import random_dlrm
from quantized import dynamic

from dlrm_tvm.compiler import verify
from dlrm_tvm.errors import UserError
from dlrm_tvm.model import reference, reference_quantized

# Logits of some 20 behind layers of one output: one value rounded to its other neighbour moves them by more than 0.05.
SMALL = random_dlrm(interaction="cross", ranks=(1, 1), top=())
LAST = replace(SMALL.top[0], weight=SMALL.top[0].weight * np.float32(20), activation="none")
MODEL = replace(SMALL, top=(LAST,))
NUMERICS = dynamic(MODEL, "int8")


def verified(monkeypatch, shift) -> verify.Verification:
    """shift(wanted, largest rounding error) -> what the library computes."""

    class Library:
        batch_size = 64

        def __init__(self, artifact) -> None:
            pass

        def __call__(self, *inputs) -> np.ndarray:
            wanted = reference_quantized.predict(MODEL, NUMERICS, *inputs)
            return shift(wanted, np.abs(wanted - reference.predict(MODEL, *inputs)).max())

    monkeypatch.setattr(verify, "Executor", Library)
    return verify.verify(SimpleNamespace(tables=SimpleNamespace(let_go=lambda: None)), MODEL, NUMERICS)


def one_item_off(share: float):
    def shift(wanted: np.ndarray, rounding: float) -> np.ndarray:
        assert rounding > 3 * verify.QUANTIZED_TOLERANCE
        item = np.abs(wanted).argmin()
        return wanted + np.where(np.arange(len(wanted)) == item, share * rounding, 0)

    return shift


def test_an_item_may_be_off_by_as_much_as_all_roundings_together(monkeypatch) -> None:
    assert verified(monkeypatch, one_item_off(0.9)).max_abs_error > verify.QUANTIZED_TOLERANCE


def a_quarter_off(wanted: np.ndarray, rounding: float) -> np.ndarray:
    assert rounding > 3 * verify.QUANTIZED_TOLERANCE
    return wanted + np.where(np.arange(len(wanted)) % 4 == 0, np.maximum(0.1 * np.abs(wanted), 0.9 * rounding), 0)


@pytest.mark.parametrize("shift", [one_item_off(1.1), a_quarter_off, lambda wanted, rounding: wanted + 0.1 * rounding])
def test_more_than_that_is_refused_and_a_little_on_all_items(monkeypatch, shift) -> None:
    with pytest.raises(UserError, match="predictions are off by"):
        verified(monkeypatch, shift)
