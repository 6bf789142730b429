"""What is judged at each precision and with each kind of data, and where exactly the gates are."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dlrm_tvm.data.chunks import Chunk, ReferenceData
from dlrm_tvm.data.scoring import Score, gate_for, judge, score, verdict_text
from dlrm_tvm.errors import UserError
from dlrm_tvm.model.dlrm import GraphInputs

LABELS = np.array([0] * 100 + [1] * 10, np.uint8)
QUANTIZED = ("bf16", "int8")


def ranked(inversions: int = 0) -> np.ndarray:
    """Scores of `LABELS` of which so many of the 1,000 pairs are in the wrong order: AUC = 1 - inversions / 1000."""
    scores = np.concatenate([np.linspace(0.1, 0.4, 100), np.linspace(0.6, 0.9, 10)])
    if inversions:
        scores[100] = (scores[99 - inversions] + scores[100 - inversions]) / 2
    return scores.astype(np.float32)


def scored(predictions: np.ndarray, *, reference: bool = True, labels: bool = True) -> Score:
    return Score(predictions, ranked() if reference else None, LABELS if labels else None)


def kept(verdict) -> list[bool | None]:
    """Of finiteness, tolerance and AUC ratio, in that order."""
    return [rule.kept for rule in verdict.rules]


@pytest.mark.parametrize("precision", ["fp32", *QUANTIZED])
def test_auc_ratio_passes_at_its_minimum_and_fails_just_below(precision):
    loose = {"rtol": 1, "atol": 1}
    at_it = judge(scored(ranked(1)), gate_for(precision, **loose))
    assert (at_it.auc, at_it.reference_auc, at_it.auc_ratio, at_it.passed) == (0.999, 1.0, 0.999, True)
    above = math.nextafter(0.999, 1)
    assert not judge(scored(ranked(1)), gate_for(precision, min_auc_ratio=above, **loose)).passed
    assert not judge(scored(ranked(2)), gate_for(precision, **loose)).passed
    assert judge(scored(ranked(2)), gate_for(precision, min_auc_ratio=0.998, **loose)).passed


def log_loss_of(probabilities: np.ndarray) -> float:
    return float(np.mean(-np.log(np.where(LABELS == 1, probabilities, 1 - probabilities))))


@pytest.mark.parametrize("factor, told", [(12, False), (1, True), (0.1, True), (2000, False)])
def test_log_loss_of_logits_is_that_of_their_sigmoid_and_said_so(factor, told):
    """Those outside 0..1 show it; of others the model's card says it. Far ones are not clipped."""
    logits = ((ranked().astype(np.float64) - 0.5) * factor + (0.6 if told else 0)).astype(np.float32)
    gate = gate_for("fp32")
    verdict = judge(Score(logits, logits, LABELS), gate, is_logit=told)
    with np.errstate(over="ignore", divide="ignore"):
        wanted = log_loss_of(1 / (1 + np.exp(-logits.astype(np.float64))))
    assert verdict.log_loss == verdict.reference_log_loss == pytest.approx(wanted, rel=1e-9)
    assert "log loss" in verdict_text(verdict, gate) and "logits: of their sigmoid" in verdict_text(verdict, gate)
    assert "logits" not in verdict_text(judge(scored(ranked()), gate), gate)
    assert judge(scored(ranked()), gate).log_loss == pytest.approx(log_loss_of(ranked().astype(np.float64)), rel=1e-6)


@pytest.mark.parametrize("tolerance", [math.inf, -math.inf, math.nan, -1e-12, 1.0001, 1e300])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_tolerances_with_which_everything_passes_are_refused(name, tolerance):
    with pytest.raises(UserError, match=f"^--{name} .*: 0 to 1 was wanted"):
        gate_for("fp32", **{name: tolerance})


def test_a_better_auc_than_the_references_passes():
    verdict = judge(Score(ranked(), ranked(5), LABELS), gate_for("bf16", min_auc_ratio=1))
    assert verdict.auc_ratio > 1
    assert verdict.passed


def test_fp32_fails_outside_the_tolerance_and_narrower_precisions_only_count_it():
    predictions = ranked() + np.float32(2e-3)  # same order: the AUC is the same
    exact = judge(scored(predictions), gate_for("fp32"))
    assert (kept(exact), exact.mismatches, exact.passed) == ([True, False, True], 110, False)
    for precision in QUANTIZED:
        for asked_for in ({}, {"rtol": 1e-5}, {"atol": 1e-5}):
            verdict = judge(scored(predictions), gate_for(precision, **asked_for))
            assert (kept(verdict), verdict.mismatches, verdict.passed) == ([True, None, True], 110, True)


def test_tolerance_is_exact_at_its_boundary():
    reference = np.array([0.5, 0.25], np.float32)
    step = 2.0**-10
    verdict = judge(Score(reference + np.float32(step), reference, None), gate_for("fp32", rtol=0, atol=step))
    assert (verdict.mismatches, verdict.passed) == (0, True)
    verdict = judge(Score(reference + np.float32(step), reference, None), gate_for("fp32", rtol=0, atol=step * 0.999))
    assert (verdict.mismatches, verdict.passed) == (2, False)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_quantized_without_labels_is_judged_by_finiteness_and_by_tolerances_that_were_asked_for(precision):
    unlabelled = scored(ranked() + np.float32(2e-3), labels=False)
    verdict = judge(unlabelled, gate_for(precision))
    assert (kept(verdict), verdict.mismatches, verdict.passed) == ([True, None, None], 110, True)
    assert [rule.reason for rule in verdict.rules[1:]] == [
        f"{precision}, and neither --rtol nor --atol was given",
        "the data has no labels",
    ]
    assert kept(judge(unlabelled, gate_for(precision, atol=1e-3))) == [True, False, None]
    assert kept(judge(unlabelled, gate_for(precision, atol=3e-3))) == [True, True, None]
    assert kept(judge(unlabelled, gate_for(precision, rtol=0.5))) == [True, True, None]


@pytest.mark.parametrize("precision", ["fp32", *QUANTIZED])
def test_without_reference_outputs_only_finiteness_is_judged(precision):
    verdict = judge(scored(ranked(), reference=False), gate_for(precision, atol=1e-9))
    assert (kept(verdict), verdict.auc, verdict.passed) == ([True, None, None], 1.0, True)
    assert {rule.reason for rule in verdict.rules[1:]} == {"the data has no reference outputs"}


@pytest.mark.parametrize("precision", ["fp32", *QUANTIZED])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("given", [{}, {"labels": False}, {"reference": False}])
def test_a_prediction_that_is_not_finite_fails_whatever_else_is_judged(precision, value, given):
    predictions = ranked()
    predictions[3] = value
    verdict = judge(scored(predictions, **given), gate_for(precision))
    assert (verdict.not_finite, verdict.auc_ratio, verdict.passed) == (1, None, False)
    assert kept(verdict)[0] is False


def test_an_auc_that_is_undefined_is_not_judged():
    items = slice(0, 50)  # not one click among them
    verdict = judge(Score(ranked()[items], ranked()[items], LABELS[items]), gate_for("fp32"))
    assert (kept(verdict), verdict.auc_ratio, verdict.passed) == ([True, True, None], None, True)
    assert "undefined" in verdict.rules[2].reason


def test_logit_errors_are_those_of_the_formula():
    rng = np.random.default_rng(3)
    reference = np.append(rng.uniform(0.01, 0.99, 500), [0, 1, 0.5]).astype(np.float32)
    ours = np.append(reference[:500] + 0.005 * rng.standard_normal(500), [0, 1, 1]).astype(np.float32)
    verdict = judge(Score(ours, reference, None), gate_for("int8"))
    eps = float(np.finfo(np.float32).eps)
    p, q = (np.clip(x.astype(np.float64), eps, 1 - eps) for x in (ours, reference))
    errors = np.abs(np.log(p / (1 - p)) - np.log(q / (1 - q)))
    assert verdict.max_logit_error == pytest.approx(errors.max(), rel=1e-12)
    assert verdict.mean_logit_error == pytest.approx(errors.mean(), rel=1e-12)
    assert verdict.max_logit_error == pytest.approx(math.log((1 - eps) / eps))  # 1 in place of 0.5


def test_outputs_that_are_no_probabilities_have_no_logit_errors():
    logits = np.array([-2.0, 0.5, 3.0], np.float32)
    verdict = judge(Score(logits, logits, None), gate_for("fp32"))
    assert (verdict.max_logit_error, verdict.mean_logit_error, verdict.max_abs_error) == (None, None, 0)


@pytest.mark.parametrize("ratio", [0, -0.5, 1.0001, 999, math.nan, math.inf])
def test_a_minimum_ratio_outside_0_to_1_is_refused_in_one_line(ratio):
    with pytest.raises(UserError, match=r"^--min-auc-ratio \S+: more than 0 and at most 1 was wanted") as refused:
        gate_for("fp32", min_auc_ratio=ratio)
    assert "\n" not in str(refused.value)


def seven_items(last: int = 7) -> ReferenceData:
    """Seven items, of which those before `last` are there to read, in two chunks."""
    dense = np.arange(7, dtype=np.float32)[:, None]
    labels, indices = np.arange(7, dtype=np.uint8) % 2, np.zeros((7, 1), np.int64)

    def read(items: range):
        for part in (slice(0, 4), slice(4, min(items.stop, last))):
            yield Chunk(dense[part], indices[part], dense[part, 0] / 8, labels[part])

    inputs = GraphInputs("dense", ("indices",), (), "pred")
    card = SimpleNamespace(table_rows=(1,), table_names=("t",), graph_inputs=inputs)
    return ReferenceData(Path("made"), "made", range(7), True, True, card, read)


def test_score_runs_every_chunk_and_keeps_the_order():
    told, wanted = [], np.arange(7, dtype=np.float32) / 8
    outputs = score(lambda x, rows: x[:, 0] / 8, seven_items(), told.append)
    assert outputs.predictions.dtype == np.float32
    for found in (outputs.predictions, outputs.reference):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(outputs.labels, np.arange(7) % 2)
    assert (told, outputs.left) == ([4, 3], 0)


def test_data_that_end_early_are_no_interruption():
    with pytest.raises(UserError, match="made: 6 of 7 items from 0 on were there to read"):
        score(lambda x, rows: x[:, 0], seven_items(last=6))


def test_an_interrupted_score_is_of_the_chunks_before_or_none():
    def predict(x, rows):
        if x[0, 0] == 4:
            raise KeyboardInterrupt
        return x[:, 0]

    outputs = score(predict, seven_items())
    assert (outputs.predictions.tolist(), outputs.left) == ([0, 1, 2, 3], 3)
    with pytest.raises(KeyboardInterrupt):
        score(predict, seven_items(), keep_part=False)
