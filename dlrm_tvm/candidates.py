"""`compile.py --precision auto`: which precisions come into question, and whether a library keeps to the accuracy gate.

The fastest comes first: int8 multiplies four times, bf16 twice as many numbers per instruction as fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .demo import DEMO_REFERENCE
from .errors import UserError
from .manifest import describe
from .model import Dlrm
from .narrowing import check_precision
from .reference_data import open_reference
from .scoring import MIN_AUC_RATIO, gate_for, judge, score
from .target import CpuTarget

FASTEST_FIRST = ("int8", "bf16", "fp32")


def candidates(model: Dlrm, cpu: CpuTarget, wanted: str) -> list[str]:
    """The one that is wanted, or for "auto" those that CPU and model have, the fastest first.

    Raises UserError where what is wanted cannot be had, and for "auto" where the library could not run here.
    """
    if wanted != "auto":
        check_precision(model, wanted, cpu)
        return [wanted]
    if not cpu.is_host:
        raise UserError(
            f"--precision auto runs each library on this machine, which is not a {cpu.cpu}. Leave out --target-cpu."
        )
    found = []
    for precision in FASTEST_FIRST:
        try:
            check_precision(model, precision, cpu)
            found.append(precision)
        except UserError as error:
            print(f"auto        not {precision}: {error}")
    return found


def gate_on(model: Dlrm, path: Path | None, min_auc_ratio: float | None) -> Callable[[Path], bool]:
    """A function that scores a library on the reference data at `path` (None: the demo's) and says whether it passes.

    Raises UserError for data that does not fit the model or lacks labels or reference outputs.
    """
    path = path or DEMO_REFERENCE
    least = MIN_AUC_RATIO if min_auc_ratio is None else min_auc_ratio
    gate_for("fp32", min_auc_ratio=least)
    data = open_reference(path, describe(model))
    if not (data.has_labels and data.has_reference):
        lacks = "reference outputs" if data.has_labels else "labels"
        raise UserError(f"{path} has no {lacks}, which an AUC ratio is made of. Give --ref-data an MLPerf-style npz.")

    def accept(library: Path) -> bool:
        from . import load

        loaded = load(library)
        precision = loaded.artifact.manifest.precision
        verdict = judge(score(loaded, data), gate_for(precision, min_auc_ratio=least))
        ratio = "undefined" if verdict.auc_ratio is None else f"{verdict.auc_ratio:.6f}"
        passed = verdict.passed and verdict.auc_ratio is not None
        print(
            f"auto        {precision}: AUC ratio {ratio} on {verdict.items:,} items, {'taken' if passed else 'refused'}"
        )
        return passed

    return accept
