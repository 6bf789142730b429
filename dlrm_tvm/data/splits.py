"""The items of Criteo's last day that MLPerf scores a model on, and those that it calibrates on: the same in v1 and v2.

    items, of 178,274,637                     day_23_reordered.npz (v1)   day_23_dense.npy .. (v2)
    0 .. 89,137,318        the first half     test, scored                val, scored
    89,137,319 ..          the second half    val                         test
    .. 89,265,318          its first 128,000  calib                       calib

The first half has the odd item. Sources: README.md ("Calibration set") of recommendation/dlrm/pytorch and of
recommendation/dlrm_v2/pytorch, and the latter's python/multihot_criteo.py, in the mlcommons/inference repository;
data_loader_terabyte.py of facebookresearch/dlrm (v1's test and val); MultiHotCriteoIterDataPipe of torchrec_dlrm there
(v2's). All of them halve whatever number of items they find, and so do we.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError

DAY_ITEMS = 178_274_637
SCORED_ITEMS = -(-DAY_ITEMS // 2)
SPLITS = ("test", "val", "calib", "all")

_CALIBRATION_ITEMS = 128_000

Splits = Mapping[str, range]  # by name; the first one is scored unless another is asked for


def halves(num_items: int, scored: str, other: str) -> Splits:
    """The splits of a file of so many items. One of `SCORED_ITEMS` is a half already: the scored one."""
    if num_items == SCORED_ITEMS:
        return {scored: range(num_items)}
    middle = -(-num_items // 2)
    calibration = range(middle, min(middle + _CALIBRATION_ITEMS, num_items))
    return {scored: range(middle), other: range(middle, num_items), "calib": calibration}


def choose_split(path: Path, splits: Splits, wanted: str | None, *, for_calibration: bool) -> str:
    """The name of a split, or "all". wanted: None for the one that is scored, or calibrated on, where there is one.

    Raises UserError where the file has no such split, or where it has nothing but what MLPerf scores and items for
    calibration are wanted.
    """
    if wanted == "all" or (wanted is None and not splits):
        return "all"
    name = wanted or ("calib" if for_calibration else next(iter(splits)))
    if name in splits:
        return name
    if wanted is None:
        raise UserError(f"{path}: holds the items that MLPerf scores and no others. Calibrate on the other half's.")
    if not splits:
        raise UserError(f"{path}: has no split {name}; it is not cut into splits. Leave --split out.")
    has = f"has {', '.join(splits)} and all"
    raise UserError(f"{path}: has no split {name}; it {has}. Give --split another or leave it out.")
