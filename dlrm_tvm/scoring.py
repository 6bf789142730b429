"""Whether a library's predictions are good enough: run it over a file of reference data, measure, judge.

    precision     every prediction finite   none outside atol + rtol |reference|                AUC ratio >= its minimum
    fp32          judged                    judged                                              judged
    bf16, int8    judged                    only where asked for and no AUC ratio can be had    judged

AUC ratio = AUC of the library / AUC of the reference. MLPerf Inference's rule for DLRM is 99.9 % of the fp32 model's
AUC (its lesser one 99 %), and that is the default. What the data does not allow (no labels, no reference outputs) is
not judged, and the verdict says so. Knows models as functions and data as `ReferenceData`; nothing of files or TVM.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tqdm import tqdm

from .errors import UserError
from .metrics import auc, compare, log_loss
from .reference_data import ReferenceData

MIN_AUC_RATIO = 0.999
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Gate:
    """What a library must keep to. A prediction outside atol + rtol * |reference| is a mismatch: always counted.

    mismatches_fail: whether one fails the library. "without_auc": where no AUC ratio can be had.
    """

    precision: str
    min_auc_ratio: float
    rtol: float
    atol: float
    mismatches_fail: Literal["always", "without_auc", "never"]


@dataclass(frozen=True, eq=False)
class Score:
    """predictions [n] float32; reference [n] float32 and labels [n] uint8, None where the data has none."""

    predictions: np.ndarray
    reference: np.ndarray | None
    labels: np.ndarray | None


@dataclass(frozen=True)
class Rule:
    """kept: None where it was not judged, `reason` says why."""

    name: str
    kept: bool | None
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """Figures and what follows from them. None: the data has no reference or no labels, or the value is undefined."""

    items: int
    not_finite: int
    max_abs_error: float | None
    mean_abs_error: float | None
    max_logit_error: float | None
    mean_logit_error: float | None
    mismatches: int | None
    auc: float | None
    reference_auc: float | None
    log_loss: float | None
    reference_log_loss: float | None
    rules: tuple[Rule, ...]

    @property
    def auc_ratio(self) -> float | None:
        return _ratio(self.auc, self.reference_auc)

    @property
    def passed(self) -> bool:
        """Whether no rule was broken. Of a narrow library that may mean little: whether auc_ratio is None says so."""
        return all(rule.kept is not False for rule in self.rules)


def gate_for(
    precision: str, *, min_auc_ratio: float = MIN_AUC_RATIO, rtol: float | None = None, atol: float | None = None
) -> Gate:
    """The gate of a library of this precision ("fp32" or a narrower one). rtol, atol: None where not asked for.

    Raises UserError for a min_auc_ratio that is not above 0 and at most 1.
    """
    if not 0 < min_auc_ratio <= 1:
        raise UserError(f"--min-auc-ratio {min_auc_ratio}: more than 0 and at most 1 was wanted, such as 0.999.")
    asked_for = rtol is not None or atol is not None
    return Gate(
        precision=precision,
        min_auc_ratio=min_auc_ratio,
        rtol=TOLERANCE if rtol is None else rtol,
        atol=TOLERANCE if atol is None else atol,
        mismatches_fail="always" if precision == "fp32" else "without_auc" if asked_for else "never",
    )


def score(predict: Callable[..., np.ndarray], data: ReferenceData) -> Score:
    """Run every item of the data through `predict`, a model as load() gives it, chunk by chunk."""
    predictions, references, labels = [], [], []
    with tqdm(total=data.num_items, unit=" items", disable=None) as bar:
        for chunk in data:
            predictions.append(np.array(predict(chunk.dense, *chunk.lookups), dtype=np.float32))
            references.append(chunk.reference)
            labels.append(chunk.labels)
            bar.update(len(chunk.dense))
    return Score(
        np.concatenate(predictions),
        np.concatenate(references) if data.has_reference else None,
        np.concatenate(labels) if data.has_labels else None,
    )


def judge(score: Score, gate: Gate) -> Verdict:
    """Errors against the reference and ranking against the labels, each where the data has them, held to the gate."""
    errors = None
    if score.reference is not None:
        errors = compare(score.predictions, score.reference, rtol=gate.rtol, atol=gate.atol)
    mismatches = errors.mismatches if errors else None
    not_finite = int(np.count_nonzero(~np.isfinite(score.predictions)))
    our_auc, our_log_loss = _rank(score.labels, score.predictions)
    reference_auc, reference_log_loss = _rank(score.labels, score.reference)
    auc_rule = _auc_rule(score, gate, _ratio(our_auc, reference_auc))
    return Verdict(
        items=len(score.predictions),
        not_finite=not_finite,
        max_abs_error=_defined(errors.max_abs) if errors else None,
        mean_abs_error=_defined(errors.mean_abs) if errors else None,
        max_logit_error=_defined(errors.max_logit) if errors else None,
        mean_logit_error=_defined(errors.mean_logit) if errors else None,
        mismatches=mismatches,
        auc=our_auc,
        reference_auc=reference_auc,
        log_loss=our_log_loss,
        reference_log_loss=reference_log_loss,
        rules=(
            Rule("every prediction finite", not not_finite),
            _tolerance_rule(gate, mismatches, has_auc_ratio=auc_rule.kept is not None),
            auc_rule,
        ),
    )


def _tolerance_rule(gate: Gate, mismatches: int | None, *, has_auc_ratio: bool) -> Rule:
    name = "none outside tolerance"
    if mismatches is None:
        return Rule(name, None, "the data has no reference outputs")
    if gate.mismatches_fail != "always" and has_auc_ratio:
        return Rule(name, None, f"{gate.precision}: the AUC ratio is, in its place")
    if gate.mismatches_fail == "never":
        return Rule(name, None, f"{gate.precision}, and neither --rtol nor --atol was given")
    return Rule(name, not mismatches)


def _auc_rule(score: Score, gate: Gate, ratio: float | None) -> Rule:
    name = f"AUC ratio at least {gate.min_auc_ratio}"
    if ratio is not None:
        return Rule(name, ratio >= gate.min_auc_ratio)
    if score.reference is None:
        return Rule(name, None, "the data has no reference outputs")
    if score.labels is None:
        return Rule(name, None, "the data has no labels")
    if not np.isfinite(score.predictions).all():
        return Rule(name, None, "not all predictions are finite")
    return Rule(name, None, "the reference's AUC is undefined or 0 on these items")


def _rank(labels: np.ndarray | None, scores: np.ndarray | None) -> tuple[float | None, float | None]:
    """AUC and log loss, or None and None where there is nothing to rank."""
    if labels is None or scores is None or not np.isfinite(scores).all():
        return None, None
    return _defined(auc(labels, scores)), _defined(log_loss(labels, scores))


def _ratio(ours: float | None, reference: float | None) -> float | None:
    return ours / reference if ours is not None and reference else None


def _defined(value: float) -> float | None:
    """JSON has no NaN: an undefined value (an AUC without clicks, an error of a NaN) is None."""
    return value if math.isfinite(value) else None
