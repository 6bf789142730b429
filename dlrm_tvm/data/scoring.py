"""Are a library's predictions good enough? It is run over a file of reference data, measured, judged.

    precision     every prediction finite   none outside atol + rtol |reference|                AUC ratio >= its minimum
    fp32          judged                    judged                                              judged
    bf16, int8    judged                    only where asked for and there is no AUC ratio      judged

AUC ratio = AUC of the library / AUC of the reference. MLPerf Inference's rule for DLRM is 99.9 % of the fp32 model's
AUC (its lesser one 99 %), and that is the default. A rule for which the data lacks labels or reference outputs is not
judged, and the verdict says so. Knows models as functions and data as `ReferenceData`; nothing of files or TVM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from ..console import Bar
from ..errors import UserError
from .metrics import AucSum, compare, joined_errors, log_loss, logit_loss, mean_of
from .reference_data import ReferenceData

MIN_AUC_RATIO = 0.999
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Gate:
    """The rules for a library. A prediction outside atol + rtol * |reference| is a mismatch: always counted.

    mismatches_fail: when one fails the library. "without_auc": where there is no AUC ratio.
    """

    precision: str
    min_auc_ratio: float
    rtol: float
    atol: float
    mismatches_fail: Literal["always", "without_auc", "never"]


@dataclass(frozen=True, eq=False)
class Score:
    """predictions [n] float32; reference [n] float32 and labels [n] uint8, None where the data has none.

    left: items that Ctrl-C left out.
    """

    predictions: np.ndarray
    reference: np.ndarray | None
    labels: np.ndarray | None
    left: int = 0


@dataclass(frozen=True)
class Rule:
    """kept: None where it was not judged, for this `reason`."""

    name: str
    kept: bool | None
    reason: str = ""

    @property
    def found(self) -> str:
        return f"not judged, {self.reason}" if self.kept is None else "yes" if self.kept else "NO"


@dataclass(frozen=True)
class Verdict:
    """Figures and rules. None: the data has no reference or no labels, or the value is undefined.

    auc_error: the exact AUC is no further from `auc` than that, 0 where it is exact; left: items not scored.
    is_logit: the predictions are logits, and the log losses those of their sigmoid."""

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
    is_logit: bool = False
    auc_error: float | None = None
    left: int = 0

    @property
    def auc_ratio(self) -> float | None:
        return _ratio(self.auc, self.reference_auc)

    @property
    def passed(self) -> bool:
        """Whether no rule was broken. Of a quantized library that may mean little: if auc_ratio is None, it was not
        judged."""
        return all(rule.kept is not False for rule in self.rules)

    @property
    def said(self) -> str:
        if self.left:
            return f"INTERRUPTED: {self.left:,} items were not scored"
        return "PASS" if self.passed else "FAIL"


class _Ranking(NamedTuple):
    auc: float | None = None
    auc_error: float | None = None
    log_loss: float | None = None


_UNRANKED = _Ranking()


def gate_for(
    precision: str, *, min_auc_ratio: float = MIN_AUC_RATIO, rtol: float | None = None, atol: float | None = None
) -> Gate:
    """The gate of a library of this precision. rtol, atol: None where not asked for.

    Raises UserError for a min_auc_ratio that is not above 0 and at most 1, and a tolerance that is not 0 to 1: with a
    larger one everything passes.
    """
    for name, given in (("rtol", rtol), ("atol", atol)):
        if given is not None and not 0 <= given <= 1:
            raise UserError(f"--{name} {given}: 0 to 1 was wanted, such as {TOLERANCE:g}.")
    check_auc_ratio(min_auc_ratio)
    asked_for = rtol is not None or atol is not None
    return Gate(
        precision=precision,
        min_auc_ratio=min_auc_ratio,
        rtol=TOLERANCE if rtol is None else rtol,
        atol=TOLERANCE if atol is None else atol,
        mismatches_fail="always" if precision == "fp32" else "without_auc" if asked_for else "never",
    )


def check_auc_ratio(least: float) -> None:
    if not 0 < least <= 1:
        raise UserError(f"--min-auc-ratio {least}: more than 0 and at most 1 was wanted, such as 0.999.")


def score(
    predict: Callable[..., np.ndarray],
    data: ReferenceData,
    advance: Callable[[int], object] = lambda items: None,
    keep_part: bool = True,
) -> Score:
    """Predict every item of the data, chunk by chunk. predict: a model as load() gives it; advance: is told the number
    of items of each chunk; keep_part: after Ctrl-C the score is of what there is.

    What is kept takes 4 bytes per item, 1 more for its label and 4 more for its reference; AUC takes 6 more for a time.
    Raises UserError where the data ends early.
    """
    count, at = data.num_items, 0
    predictions = np.empty(count, np.float32)
    reference = np.empty(count, np.float32) if data.has_reference else None
    labels = np.empty(count, np.uint8) if data.has_labels else None
    try:
        with Bar("scoring", count, "items") as bar:
            for chunk in data:
                part = slice(at, at + len(chunk.dense))
                predictions[part] = predict(chunk.dense, *chunk.lookups)
                for kept, given in ((reference, chunk.reference), (labels, chunk.labels)):
                    if kept is not None:
                        kept[part] = given
                at = part.stop
                for told in (bar.update, advance):
                    told(len(chunk.dense))
        if at != count:
            raise UserError(f"{data.path}: {at:,} of {count:,} items from {data.items.start:,} on were there to read.")
    except KeyboardInterrupt:
        if not (keep_part and at):
            raise
    return Score(*(each if each is None else each[:at] for each in (predictions, reference, labels)), left=count - at)


def judge(score: Score, gate: Gate, *, is_logit: bool = False) -> Verdict:
    """Errors against the reference and ranking against the labels, where the data has them, by the gate's rules.

    is_logit: the model gives logits; so it does where a value lies outside 0..1.
    """
    return replace(judge_parts([score], gate, is_logit=is_logit, exact_auc=True), left=score.left)


def judge_parts(parts: Iterable[Score], gate: Gate, *, is_logit: bool, exact_auc: bool) -> Verdict:
    """The same of items in parts, which are iterated more than once and not kept. Only what all parts have is judged.

    exact_auc: keep all labels and scores of a column for it; else see `AucSum`.
    """
    errors, items, not_finite, has_reference, has_labels = [], 0, 0, True, True
    for part in parts:
        items += len(part.predictions)
        not_finite += int(np.count_nonzero(~np.isfinite(part.predictions)))
        is_logit = is_logit or any(map(_outside_0_to_1, (part.predictions, part.reference)))
        has_reference, has_labels = has_reference and part.reference is not None, has_labels and part.labels is not None
        if has_reference:
            errors.append(compare(part.predictions, part.reference, rtol=gate.rtol, atol=gate.atol))
    summary = joined_errors(errors) if has_reference else None
    mismatches = summary.mismatches if summary else None
    how = {"is_logit": is_logit, "exact_auc": exact_auc}
    ours = _rank(parts, "predictions", **how) if has_labels and not not_finite else _UNRANKED
    theirs = _rank(parts, "reference", **how) if has_labels and has_reference else _UNRANKED
    missing = "" if has_reference and has_labels else "labels" if has_reference else "reference outputs"
    auc_rule = _auc_rule(gate, _ratio(ours.auc, theirs.auc), missing=missing, all_finite=not not_finite)
    return Verdict(
        items=items,
        not_finite=not_finite,
        max_abs_error=_defined(summary.max_abs) if summary else None,
        mean_abs_error=_defined(summary.mean_abs) if summary else None,
        max_logit_error=_defined(summary.max_logit) if summary else None,
        mean_logit_error=_defined(summary.mean_logit) if summary else None,
        mismatches=mismatches,
        auc=ours.auc,
        reference_auc=theirs.auc,
        log_loss=ours.log_loss,
        reference_log_loss=theirs.log_loss,
        rules=(
            Rule("every prediction finite", not not_finite),
            _tolerance_rule(gate, mismatches, has_auc_ratio=auc_rule.kept is not None),
            auc_rule,
        ),
        is_logit=is_logit,
        auc_error=ours.auc_error,
    )


def verdict_text(verdict: Verdict, gate: Gate) -> str:
    """The table, each rule with whether it was kept, PASS or FAIL."""
    outside = "no reference outputs" if verdict.mismatches is None else f"{verdict.mismatches:,} of {verdict.items:,}"
    return "\n".join(
        [
            f"{'':<22}{'this library':>14}{'reference':>14}{'ratio':>14}",
            _row("AUC", verdict.auc, verdict.reference_auc, verdict.auc_ratio)
            + (f"   (± {verdict.auc_error:.1g}, from counts)" if verdict.auc_error else ""),
            _row("log loss", verdict.log_loss, verdict.reference_log_loss)
            + ("   (the model gives logits: of their sigmoid)" if verdict.is_logit and verdict.log_loss else ""),
            _row("largest |error|", verdict.max_abs_error, digits=".3g"),
            _row("mean |error|", verdict.mean_abs_error, digits=".3g"),
            _row("largest |logit error|", verdict.max_logit_error, digits=".3g"),
            _row("mean |logit error|", verdict.mean_logit_error, digits=".3g"),
            f"{'outside tolerance':<22}{outside:>14}   (rtol {gate.rtol:g}, atol {gate.atol:g})",
            *([f"{'not finite':<22}{verdict.not_finite:>14,}"] if verdict.not_finite else []),
            *(f"{rule.name + '?':<30}{rule.found}" for rule in verdict.rules),
            verdict.said,
        ]
    )


def verdict_json(verdict: Verdict, gate: Gate) -> dict[str, object]:
    """The script's result."""
    errors = ("max_abs_error", "mean_abs_error", "max_logit_error", "mean_logit_error", "mismatches")
    fields = {key: getattr(verdict, key) for key in ("items", *errors, "auc", "reference_auc", "auc_ratio")}
    fields |= {"min_auc_ratio": gate.min_auc_ratio, "log_loss": verdict.log_loss}
    return fields | {"passed": None if verdict.left else verdict.passed, "interrupted": verdict.left > 0}


def _row(name: str, *values: float | None, digits: str = ".6f") -> str:
    return f"{name:<22}" + "".join(f"{'-' if value is None else format(value, digits):>14}" for value in values)


def _tolerance_rule(gate: Gate, mismatches: int | None, *, has_auc_ratio: bool) -> Rule:
    name = "none outside tolerance"
    if mismatches is None:
        return Rule(name, None, "the data has no reference outputs")
    if gate.mismatches_fail != "always" and has_auc_ratio:
        return Rule(name, None, f"{gate.precision}: the AUC ratio is, in its place")
    if gate.mismatches_fail == "never":
        return Rule(name, None, f"{gate.precision}, and neither --rtol nor --atol was given")
    return Rule(name, not mismatches)


def _auc_rule(gate: Gate, ratio: float | None, *, missing: str, all_finite: bool) -> Rule:
    name = f"AUC ratio at least {gate.min_auc_ratio}"
    if ratio is not None:
        return Rule(name, ratio >= gate.min_auc_ratio)
    if missing:
        return Rule(name, None, f"the data has no {missing}")
    if not all_finite:
        return Rule(name, None, "not all predictions are finite")
    return Rule(name, None, "the reference's AUC is undefined or 0 on these items")


def _outside_0_to_1(values: np.ndarray | None) -> bool:
    return values is not None and bool(((values < 0) | (values > 1)).any())  # NaN tells nothing


def _rank(parts: Iterable[Score], column: str, *, is_logit: bool, exact_auc: bool) -> _Ranking:
    """Of one column of parts that have labels; None where there is nothing to rank."""
    area, losses = AucSum(exact=exact_auc), []
    for part in parts:
        scores = getattr(part, column)
        if not np.isfinite(scores).all():
            return _UNRANKED
        area.add(part.labels, scores)
        losses.append(((logit_loss if is_logit else log_loss)(part.labels, scores), len(scores)))
    value, error = area.value()
    return _Ranking(_defined(value), _defined(error), _defined(mean_of(losses)))


def _ratio(ours: float | None, reference: float | None) -> float | None:
    return ours / reference if ours is not None and reference else None


def _defined(value: float) -> float | None:
    """JSON has no NaN: an undefined value (an AUC without clicks, an error of a NaN) is None."""
    return value if math.isfinite(value) else None
