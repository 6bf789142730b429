"""How good predictions are and how long calls took: AUC, log loss, errors, percentiles. NumPy only.

Knows arrays, no files and no models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A float32 sigmoid reaches 0 and 1 exactly; one such prediction must not make a loss or a logit infinite.
_PROBABILITY_FLOOR = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class ErrorSummary:
    """Predictions against a reference; `mismatches` counts |ours - reference| > atol + rtol * |reference|.

    max_logit, mean_logit: |logit(ours) - logit(reference)|, see `logit`.
    """

    items: int
    max_abs: float
    mean_abs: float
    max_logit: float
    mean_logit: float
    mismatches: int


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a random positive scores above a random negative, ties half.

        AUC = (sum of the positives' ranks - P (P + 1) / 2) / (P N), tied scores sharing their mean rank

    (Mann-Whitney U; Hanley and McNeil 1982.) labels: [n] 0 or 1; scores: [n] finite. Exact, O(n log n).
    NaN where there are no positives or no negatives: the area is undefined then.
    Raises ValueError for other labels, other lengths or scores that are not finite.
    """
    positive = _checked_labels(labels, scores)
    num_positive = int(np.count_nonzero(positive))
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    # The run of equal scores that ends at rank e (1-based, inclusive) after the one that ended at b has the mean
    # rank (b + 1 + e) / 2; twice that keeps the sum in integers, exact at any size.
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    begins = np.concatenate([[0], ends[:-1]])
    positives_up_to = np.concatenate([[0], np.cumsum(positive[order])])
    positives_in_run = positives_up_to[ends] - positives_up_to[begins]
    twice_rank_sum = int(np.dot(positives_in_run, begins + 1 + ends))
    return (twice_rank_sum - num_positive * (num_positive + 1)) / (2 * num_positive * num_negative)


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean of -log(probability given to what happened), in nats; probabilities are kept 1.2e-7 away from 0 and 1.

    labels: [n] 0 or 1; probabilities: [n] finite, 0..1. Raises ValueError as `auc` does; NaN for no items.
    """
    positive = _checked_labels(labels, probabilities)
    if not len(positive):
        return float("nan")
    p = _inside(probabilities)
    return float(-np.mean(np.log(np.where(positive, p, 1 - p))))


def logit(probabilities: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) in float64, [n]: what the last sigmoid took. NaN where p is not within 0..1.

    p is kept 1.2e-7 (float32's epsilon) away from 0 and 1, so logits end at ±15.94. A float32 p near 1 says less of its
    logit than one near 0: at p = 0.999 the next float32 is 6e-5 away in the logit, at 0.001 it is 1.2e-7.
    """
    p = np.where((probabilities >= 0) & (probabilities <= 1), _inside(probabilities), np.nan)
    return np.log(p) - np.log1p(-p)


def compare(predictions: np.ndarray, reference: np.ndarray, *, rtol: float, atol: float) -> ErrorSummary:
    """predictions and reference: [n]. One that is not finite is a mismatch, and the errors are NaN.

    So are the errors of logits where either holds a value outside 0..1: of a model without a last sigmoid.
    """
    expected = reference.astype(np.float64)
    errors = np.abs(predictions.astype(np.float64) - expected)
    logit_errors = np.abs(logit(predictions) - logit(reference))
    # Written so that NaN, which compares false, counts as outside.
    mismatches = np.count_nonzero(~(errors <= atol + rtol * np.abs(expected)))
    if not len(errors):
        return ErrorSummary(0, 0.0, 0.0, 0.0, 0.0, 0)
    return ErrorSummary(
        items=len(errors),
        max_abs=float(errors.max()),
        mean_abs=float(errors.mean()),
        max_logit=float(logit_errors.max()),
        mean_logit=float(logit_errors.mean()),
        mismatches=int(mismatches),
    )


def percentiles_ms(latencies_ns: np.ndarray) -> dict[str, float]:
    """Latencies in ns [n >= 1] -> min, p50, p90, p99, p999, max, mean in ms.

    A percentile is a latency that occurred: the smallest that at least that share of the calls did not exceed.
    """
    if not len(latencies_ns):
        raise ValueError("percentiles of no latencies")
    ordered_ms = np.sort(np.asarray(latencies_ns)) / 1e6
    shares = {"p50": 500, "p90": 900, "p99": 990, "p999": 999}  # per mille, so that the rank is exact
    ranks = {name: -(-per_mille * len(ordered_ms) // 1000) for name, per_mille in shares.items()}
    return {
        "min": float(ordered_ms[0]),
        **{name: float(ordered_ms[rank - 1]) for name, rank in ranks.items()},
        "max": float(ordered_ms[-1]),
        "mean": float(ordered_ms.mean()),
    }


def _inside(probabilities: np.ndarray) -> np.ndarray:
    """As float64, kept away from 0 and 1."""
    return np.clip(probabilities.astype(np.float64), _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)


def _checked_labels(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The labels as [n] bool."""
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape}; want one of each per item")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("a label is neither 0 nor 1")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    return labels.astype(bool)
