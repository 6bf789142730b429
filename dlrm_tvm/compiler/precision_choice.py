"""Which precisions a library can be compiled in, its numerics, and the accuracy gate of `compile.py --precision auto`.

auto compiles all that CPU and model allow, times those that keep to the AUC ratio (ranking.py), and takes the fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..console import Bar
from ..data.demo import reference_for
from ..data.reference_data import open_reference
from ..data.scoring import MIN_AUC_RATIO, Verdict, gate_for, judge, score
from ..errors import UserError
from ..kernels.isa import AVX512, Family
from ..model.card import describe
from ..model.dlrm import Dlrm
from ..model.precision import Numerics, numerics_of
from ..runtime.artifact import open_artifact
from ..runtime.executor import Executor
from ..schedules.target import CpuTarget
from .calibration import calibrate
from .conversion_journal import ConversionJournal
from .table_conversion import table_scales

# By multiply-adds per instruction; whether one is faster is measured.
CANDIDATES = ("int8", "bf16", "fp32")


@dataclass(frozen=True)
class Candidates:
    """precisions: to be tried; refused: precision -> the reason why it is not tried."""

    precisions: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


def candidates(cpu: CpuTarget, wanted: str) -> Candidates:
    """The precision asked for, or for "auto" all that the CPU allows.

    Raises UserError where the precision asked for is not possible.
    """
    if wanted != "auto":
        check_precision(wanted, cpu)
        return Candidates((wanted,))
    refused: dict[str, str] = {}
    for precision in CANDIDATES:
        try:
            check_precision(precision, cpu)
        except UserError as error:
            refused[precision] = str(error)
    return Candidates(tuple(each for each in CANDIDATES if each not in refused), refused)


def check_precision(precision: str, cpu: CpuTarget) -> None:
    """Raises UserError where the CPU lacks a precision's instructions."""
    if precision != "fp32":  # which TVM's default code computes on any CPU
        cpu.family(precision)


def judge_on(
    model: Dlrm, path: Path | None, min_auc_ratio: float | None, max_ind_range: int | None = None
) -> Callable[[Path], Verdict]:
    """A function that scores a library on the reference data at `path` (None: the demo's) and judges the scores.

    Raises UserError for data that does not fit the model or lacks labels or reference outputs.
    """
    path = path or reference_for(model.fingerprint)
    least = MIN_AUC_RATIO if min_auc_ratio is None else min_auc_ratio
    data = open_reference(path, describe(model), max_ind_range=max_ind_range)
    if not (data.has_labels and data.has_reference):
        lacks = "reference outputs" if data.has_labels else "labels"
        raise UserError(f"{path} has no {lacks}, which an AUC ratio needs. Give --ref-data an MLPerf-style npz.")

    def judged(library: Path) -> Verdict:
        loaded = Executor(open_artifact(library))
        gate = gate_for(loaded.artifact.manifest.precision, min_auc_ratio=least)
        return judge(score(loaded, data), gate)

    return judged


def accepted(verdict: Verdict) -> bool:
    """An AUC ratio that is undefined, as with labels all alike, does not count as kept."""
    return verdict.passed and verdict.auc_ratio is not None


def choose_numerics(
    model: Dlrm,
    precision: str,
    calibration: Path | None = None,
    *,
    family: Family = AVX512,
    max_ind_range: int | None = None,
    journal: ConversionJournal | None = None,
) -> Numerics:
    """A precision's numerics for this model. calibration: int8's activation scales are taken from this file's items;
    without it each row has a scale of its own. family: AMX has no fp32 for the first layer, AVX2 none of int8's largest
    weights. max_ind_range: of the file's indices. journal: of the tables' scales.

    Raises UserError for tables with values that are not finite, and for a file that does not fit the model.
    """
    first_layer = "bf16" if family.tiles else "fp32"
    if precision != "int8":
        return numerics_of(model, precision, first_layer=first_layer)
    try:
        with Bar("table scales", model.table_bytes, "B") as bar:
            known = {} if journal is None else {"known": journal.largest, "found": journal.add_largest}
            scales = table_scales(model, bar.update, **known)
            how = {"first_layer": first_layer, "largest_weight": family.largest_weight}
            numerics = numerics_of(model, precision, scales, **how)
    except ValueError as error:
        raise UserError(f"{model.name}: {error}. Use --precision fp32, or export the model anew.") from None
    return numerics if calibration is None else calibrate(model, numerics, calibration, max_ind_range)
