"""Metrics against their definitions, computed the slow way."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from dlrm_tvm.bench.statistics import percentiles_ms
from dlrm_tvm.data.metrics import auc, compare, log_loss, logit


def auc_by_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    """The definition: every positive against every negative, ties half. O(n^2)."""
    positives, negatives = scores[labels == 1], scores[labels == 0]
    above = (positives[:, None] > negatives[None, :]).sum()
    ties = (positives[:, None] == negatives[None, :]).sum()
    return (above + ties / 2) / (len(positives) * len(negatives))


@pytest.mark.parametrize("distinct", [2, 10, 100_000])
def test_auc_equals_pair_counting_with_few_and_many_ties(distinct):
    rng = np.random.default_rng(distinct)
    for size in (2, 3, 50, 700):
        labels = rng.integers(0, 2, size)
        labels[:2] = 0, 1
        scores = (rng.integers(0, distinct, size) / distinct).astype(np.float32)
        assert auc(labels, scores) == pytest.approx(auc_by_pairs(labels, scores), abs=1e-15)


@pytest.mark.parametrize("distinct", [3, 50, 1_000_000])
def test_auc_is_that_of_scikit_learn(distinct):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (requirements-dev.txt)")
    rng = np.random.default_rng(distinct)
    labels = rng.random(20_000) < 0.03
    scores = ((rng.integers(0, distinct, 20_000) + 0.3 * distinct * labels) / distinct).astype(np.float32)
    assert auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert log_loss(labels, scores / 2) == pytest.approx(metrics.log_loss(labels, np.clip(scores / 2, 1.2e-7, 1)))


def test_metrics_take_little_memory_beside_their_arrays():
    """At the 178 million items of day 23, the 8 bytes allowed here are 1.4 GB."""
    count = 3_000_000
    rng = np.random.default_rng(1)
    scores, labels = rng.random(count, dtype=np.float32), (rng.random(count) < 0.03).astype(np.uint8)
    tracemalloc.start()
    peaks = []
    for metric in (auc, log_loss, lambda _, p: compare(p, p, rtol=0, atol=0)):
        tracemalloc.reset_peak()
        metric(labels, scores)
        peaks.append(tracemalloc.get_traced_memory()[1] / count)
    tracemalloc.stop()
    parts = 16 * 2**20 * 8 / count  # of temporary arrays of a million float64, at any number of items
    assert peaks[0] < 8 + parts and max(peaks[1:]) < 4 + parts


def test_auc_of_perfect_reversed_and_constant_scores():
    labels = np.array([0, 0, 1, 1, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert auc(labels, scores) == 1.0
    assert auc(labels, -scores) == 0.0
    assert auc(labels, np.ones(5)) == 0.5


def test_auc_is_undefined_with_one_class_only():
    assert math.isnan(auc(np.ones(3), np.arange(3.0)))
    assert math.isnan(auc(np.zeros(3), np.arange(3.0)))
    assert math.isnan(auc(np.zeros(0), np.zeros(0)))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (np.array([0, 2]), np.array([0.1, 0.2]), "neither 0 nor 1"),
        (np.array([0, 1]), np.array([0.1, np.nan]), "not finite"),
        (np.array([0, 1]), np.array([0.1]), "one of each"),
        (np.array([[0, 1]]), np.array([[0.1, 0.2]]), "one of each"),
    ],
)
def test_auc_and_log_loss_refuse_what_cannot_be_ranked(labels, scores, message):
    for metric in (auc, log_loss):
        with pytest.raises(ValueError, match=message):
            metric(labels, scores)


def test_log_loss_is_the_mean_over_items():
    labels, p = np.array([1, 0, 1]), np.array([0.9, 0.2, 0.5])
    assert log_loss(labels, p) == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.5)) / 3)


def test_log_loss_stays_finite_at_saturated_predictions():
    worst = log_loss(np.array([1, 0]), np.array([0, 1], dtype=np.float32))
    assert worst == pytest.approx(-math.log(np.finfo(np.float32).eps), rel=1e-6)


def test_compare_counts_what_lies_outside_and_takes_nan_as_outside():
    reference = np.array([0.5, 0.5, 0.0, 0.5], dtype=np.float32)
    ours = np.array([0.5 + 2**-12, 0.5 + 2**-8, 0.0, np.nan], dtype=np.float32)
    assert compare(ours, reference, rtol=0, atol=2**-10).mismatches == 2
    assert compare(ours, reference, rtol=2**-7, atol=0).mismatches == 1
    summary = compare(ours[:3], reference[:3], rtol=0, atol=0)
    assert (summary.items, summary.max_abs, summary.mismatches) == (3, 2**-8, 2)
    assert summary.mean_abs == pytest.approx((2**-12 + 2**-8) / 3)


def test_logit_undoes_the_sigmoid_and_stays_finite_at_its_ends():
    z = np.linspace(-12, 12, 49)
    assert logit(1 / (1 + np.exp(-z))) == pytest.approx(z, abs=1e-9)
    assert logit(np.array([0, 1], np.float32)) == pytest.approx([-15.94, 15.94], abs=0.01)
    assert np.isnan(logit(np.array([np.nan, np.inf, -0.1, 1.1]))).all()


def test_percentiles_are_latencies_that_occurred():
    shuffled = np.random.default_rng(0).permutation(np.arange(1, 1001)) * 1_000_000
    result = percentiles_ms(shuffled)
    assert result == {"min": 1, "p50": 500, "p90": 900, "p99": 990, "p999": 999, "max": 1000, "mean": 500.5}
    assert set(percentiles_ms(np.array([7_000_000])).values()) == {7.0}


def test_percentiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no latencies"):
        percentiles_ms(np.array([]))
