"""Logs that LoadGen left on a full disk, and what an accuracy log holds of logits and of predictions that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hostile import refused_or, spoilt

from dlrm_tvm.errors import FoundWantingError
from dlrm_tvm.loadgen.logs import read_accuracy, read_verdict
from dlrm_tvm.loadgen.report import score_pairs

LATENCIES = ("min", "50.00_percentile", "90.00_percentile", "99.00_percentile", "99.90_percentile", "max", "mean")
FACTS = {
    "loadgen_version": "5.1",
    "effective_samples_per_query": 1,
    "result_validity": "VALID",
    "result_samples_per_second": 20.5,
    "result_query_count": 9,
    **{f"result_{name}_latency_ns": 10**6 for name in LATENCIES},
}  # in LoadGen's order: what is read without is never last
DETAIL = "".join(f":::MLLOG {json.dumps({'key': key, 'value': value})}\n" for key, value in FACTS.items())
PAIRS = np.column_stack([np.linspace(0, 1, 9), np.arange(9) % 2]).astype(np.float32)
RESPONSES = [
    {"seq_id": at, "qsl_idx": at, "data": pair.tobytes().hex(), "token_count": 0} for at, pair in enumerate(PAIRS)
]
ACCURACY = json.dumps(RESPONSES)


def test_whole_logs_are_read(tmp_path: Path) -> None:
    (tmp_path / "mlperf_log_detail.txt").write_text(DETAIL)
    (tmp_path / "mlperf_log_accuracy.json").write_text(ACCURACY)
    assert read_verdict(tmp_path).is_valid and read_verdict(tmp_path).latency_ms["p99"] == 1
    np.testing.assert_array_equal(np.column_stack(read_accuracy(tmp_path)), PAIRS)


@pytest.mark.parametrize("part", range(20))
def test_logs_cut_short_are_one_line(tmp_path: Path, part: int) -> None:
    (tmp_path / "mlperf_log_detail.txt").write_text(DETAIL[: len(DETAIL) * part // 20])
    (tmp_path / "mlperf_log_accuracy.json").write_text(ACCURACY[: len(ACCURACY) * part // 20])
    assert refused_or(lambda: read_accuracy(tmp_path)) is None
    taken = refused_or(lambda: read_verdict(tmp_path))
    (tmp_path / "mlperf_log_detail.txt").write_text(DETAIL)
    assert taken in (None, read_verdict(tmp_path))


def test_responses_with_changed_values_are_one_line_or_taken(tmp_path: Path) -> None:
    for seed in range(100):
        changed = spoilt(RESPONSES, np.random.default_rng(seed))
        (tmp_path / "mlperf_log_accuracy.json").write_text(json.dumps(changed))
        refused_or(lambda: read_accuracy(tmp_path))


def test_the_log_loss_of_logits_is_that_of_their_sigmoid() -> None:
    logits, labels = np.float32([-3, 2, 0.5, -8]), np.float32([0, 1, 0, 1])
    wanted = -np.log(np.where(labels == 1, 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits)))).mean()
    for told in (True, False):
        result = score_pairs(logits, labels, gives_logits=told)
        assert result.is_logit and result.log_loss == pytest.approx(wanted, rel=1e-5)
    inside = np.float32([0.2, 0.9, 0.4, 0.6])  # logits too, where the model says so
    assert (
        score_pairs(inside, labels, gives_logits=True).log_loss
        > score_pairs(inside, labels, gives_logits=False).log_loss
    )


def test_predictions_that_are_not_finite_are_told_and_no_score() -> None:
    with pytest.raises(FoundWantingError, match="1 of 3 predictions in LoadGen's accuracy log are not finite"):
        score_pairs(np.float32([0.5, np.nan, 1]), np.float32([0, 1, 1]), gives_logits=False)
