"""Metrics against their definitions, computed the slow way."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from dlrm_tvm.bench.statistics import percentiles_ms
from dlrm_tvm.data.metrics import AucSum, auc, compare, joined_errors, log_loss, logit


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


@pytest.mark.parametrize(
    "scores",
    [
        np.random.default_rng(1).beta(0.3, 8, 20_000),  # as clicks are predicted: skewed, many near 0
        np.random.default_rng(2).normal(0, 3, 20_000),  # logits, of both signs
        np.random.default_rng(3).uniform(0.5, 0.5002, 20_000),  # many in one bucket
        np.repeat([-0.0, 0.0, 0.25, -1e-39, 1e30], 4000),
    ],
)
def test_auc_from_counts_is_within_its_own_bound_of_the_exact_one(scores):
    scores = scores.astype(np.float32)
    labels = np.random.default_rng(4).random(len(scores)) < np.clip(np.abs(scores), 0.05, 0.9)
    exact, counted = AucSum(exact=True), AucSum(exact=False)
    for part in np.array_split(np.arange(len(scores)), 7):
        exact.add(labels[part], scores[part])
        counted.add(labels[part], scores[part])
    (value, error), wanted = counted.value(), auc_by_pairs(labels, scores)
    assert exact.value() == (pytest.approx(wanted, abs=1e-12), 0)
    assert abs(value - wanted) <= error + 1e-15
    distinct = len(np.unique(scores))
    assert error < (1e-5 if distinct > 15_000 and scores.max() > 0.6 else 0.5)


def test_auc_from_counts_is_exact_where_each_bucket_holds_one_value_and_undefined_without_positives():
    labels, scores = np.array([0, 1, 0, 1, 1]), np.array([-2, -1, 0.5, 0.25, 3], np.float32)
    counted = AucSum(exact=False)
    counted.add(labels, scores)
    assert counted.value() == (auc_by_pairs(labels, scores), 0)
    for exact in (True, False):
        area = AucSum(exact=exact)
        area.add(np.zeros(3), np.ones(3, np.float32))
        assert np.isnan(area.value()[0]) and np.isnan(AucSum(exact=exact).value()[0])


def test_errors_of_parts_join_to_those_of_the_whole():
    rng = np.random.default_rng(5)
    ours, reference = rng.random((2, 1000), np.float32)
    whole = compare(ours, reference, rtol=0, atol=0.3)
    cuts = [slice(0, 10), slice(10, 600), slice(600, 1000)]
    joined = joined_errors([compare(ours[cut], reference[cut], rtol=0, atol=0.3) for cut in cuts])
    assert vars(joined) == pytest.approx(vars(whole), rel=1e-12)


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
