"""How good predictions are: AUC, log loss, errors. NumPy only, and little memory beside the arrays given: the day that
MLPerf scores has 89 million items, and twice that the whole of it. What comes in parts is added up.

Knows arrays, no files and no models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# A float32 sigmoid can be exactly 0 or 1; one such prediction must not make a loss or a logit infinite.
_PROBABILITY_FLOOR = float(np.finfo(np.float32).eps)
_PART = 1 << 20
EXACT_ITEMS = 100_000_000
_BUCKET_BITS = 24  # of a float32's 32: a sign, 8 bits of exponent, 15 of mantissa; 270 MB of counts


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

        AUC = sum over the positives of (negatives below + half of the negatives equal) / (P N)

    (Mann-Whitney U; Hanley and McNeil 1982.) labels: [n] 0 or 1; scores: [n] finite. Exact, O(n log n); a sorted copy
    of the scores, two bytes per item and a few MB are all the memory that it takes.
    NaN where there are no positives or no negatives: the area is undefined then.
    Raises ValueError for other labels, other lengths or scores that are not finite.
    """
    positive = _checked_labels(labels, scores)
    positives, negatives = scores[positive], scores[~positive]
    if not len(positives) or not len(negatives):
        return float("nan")
    positives.sort()
    negatives.sort()
    twice_wins = 0  # in integers, exact at any size
    for part in _parts(len(positives)):
        below = np.searchsorted(negatives, positives[part], "left")
        not_above = np.searchsorted(negatives, positives[part], "right")
        twice_wins += int(below.sum() + not_above.sum())
    return twice_wins / (2 * len(positives) * len(negatives))


class AucSum:
    """The AUC of items that come in parts: exact, with a sorted copy of the scores, or from counts of the scores.

        AUC = (pairs of buckets, the positive's above the negative's, + half of the pairs within one bucket) / (P N)
        |error| <= half of the pairs within one bucket / (P N)

    A bucket holds the float32 values that agree in their first 24 bits (apart by 2^-15 of themselves), so the memory
    is 270 MB for any number of items. The bound is certain, and is of these very items: `value` has it as its second.
    """

    def __init__(self, *, exact: bool) -> None:
        self._exact: list[tuple[np.ndarray, np.ndarray]] | None = [] if exact else None
        self._counts = None if exact else np.zeros((2, 1 << _BUCKET_BITS), np.int64)

    def add(self, labels: np.ndarray, scores: np.ndarray) -> None:
        """labels: [n] 0 or 1; scores: [n] finite float32. Raises ValueError as `auc` does."""
        if self._counts is None:
            self._exact.append((labels, scores))
            return
        positive = _checked_labels(labels, scores)
        for part in _parts(len(scores)):
            bits = (scores[part].astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
            ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> (32 - _BUCKET_BITS)
            for counts, taken in zip(self._counts, (~positive[part], positive[part])):
                buckets, found = np.unique(ordered[taken], return_counts=True)
                counts[buckets] += found

    def value(self) -> tuple[float, float]:
        """(AUC, how far the exact one may be from it): (NaN, NaN) without positives or negatives."""
        if self._counts is None:
            if not self._exact:
                return float("nan"), float("nan")
            labels, scores = (np.concatenate(each) if len(each) > 1 else each[0] for each in zip(*self._exact))
            return auc(labels, scores), 0.0
        negatives, positives = self._counts
        pairs = int(positives.sum()) * int(negatives.sum())
        if not pairs:
            return float("nan"), float("nan")
        # Python's integers: at 10^10 items twice the pairs are beyond int64.
        below = np.cumsum(negatives) - negatives
        taken = np.flatnonzero(positives)
        each = [counts[taken].tolist() for counts in (positives, below, negatives)]
        wins = sum(many * under for many, under, _ in zip(*each))
        ties = sum(many * same for many, _, same in zip(*each))
        return (2 * wins + ties) / (2 * pairs), ties / (2 * pairs)


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean of -log(predicted probability of the label), in nats; probabilities are kept 1.2e-7 away from 0 and 1.

    labels: [n] 0 or 1; probabilities: [n] finite, 0..1. Raises ValueError as `auc` does; NaN for no items.
    """
    positive = _checked_labels(labels, probabilities)
    if not len(positive):
        return float("nan")
    total = 0.0
    for part in _parts(len(positive)):
        p = _inside(probabilities[part])
        total -= float(np.log(np.where(positive[part], p, 1 - p)).sum())
    return total / len(positive)


def logit_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """The log loss of 1 / (1 + exp(-logit)), without rounding to 0 or 1. Arguments and errors as of `log_loss`."""
    positive = _checked_labels(labels, logits)
    if not len(positive):
        return float("nan")
    total = 0.0
    for part in _parts(len(positive)):
        against = logits[part].astype(np.float64)
        total += float(np.logaddexp(0, np.where(positive[part], -against, against)).sum())
    return total / len(positive)


def logit(probabilities: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) in float64, [n]: the last sigmoid's input. NaN where p is not within 0..1.

    p is kept 1.2e-7 (float32's epsilon) away from 0 and 1, so logits end at ±15.94. Near 1 a float32 p determines its
    logit less precisely than near 0: the next float32 differs by 6e-5 in the logit at p = 0.999, by 1.2e-7 at 0.001.
    """
    p = np.where((probabilities >= 0) & (probabilities <= 1), _inside(probabilities), np.nan)
    return np.log(p) - np.log1p(-p)


def compare(predictions: np.ndarray, reference: np.ndarray, *, rtol: float, atol: float) -> ErrorSummary:
    """predictions and reference: [n]. A value that is not finite is a mismatch, and the errors are NaN.

    Logit errors are also NaN where a value is outside 0..1, as of a model without a last sigmoid.
    """
    if not len(predictions):
        return ErrorSummary(0, 0.0, 0.0, 0.0, 0.0, 0)
    largest, totals, mismatches = np.zeros(2), np.zeros(2), 0
    for part in _parts(len(predictions)):
        ours, expected = predictions[part].astype(np.float64), reference[part].astype(np.float64)
        errors = np.stack([np.abs(ours - expected), np.abs(logit(ours) - logit(expected))])
        # Written so that NaN, which compares false, counts as a mismatch.
        mismatches += int(np.count_nonzero(~(errors[0] <= atol + rtol * np.abs(expected))))
        largest, totals = np.maximum(largest, errors.max(axis=1)), totals + errors.sum(axis=1)
    (max_abs, max_logit), (mean_abs, mean_logit) = largest.tolist(), (totals / len(predictions)).tolist()
    return ErrorSummary(len(predictions), max_abs, mean_abs, max_logit, mean_logit, mismatches)


def joined_errors(parts: Sequence[ErrorSummary]) -> ErrorSummary:
    """Of all their items together."""
    if len(parts) == 1:
        return parts[0]
    items = sum(part.items for part in parts)
    largest = [float(np.max([getattr(part, name) for part in parts], initial=0)) for name in ("max_abs", "max_logit")]
    means = [mean_of([(getattr(part, name), part.items) for part in parts]) for name in ("mean_abs", "mean_logit")]
    return ErrorSummary(items, largest[0], means[0], largest[1], means[1], sum(part.mismatches for part in parts))


def mean_of(means: Sequence[tuple[float, int]]) -> float:
    """The mean over all items of (mean, items) each; parts without items do not count."""
    items = sum(count for _, count in means)
    return sum(mean * count for mean, count in means if count) / items if items else float("nan")


def _parts(count: int) -> Iterator[slice]:
    """Slices of at most a million values, so that temporary arrays stay small."""
    for start in range(0, count, _PART):
        yield slice(start, start + _PART)


def _inside(probabilities: np.ndarray) -> np.ndarray:
    """In float64, kept away from 0 and 1."""
    return np.clip(probabilities.astype(np.float64), _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)


def _checked_labels(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The labels as [n] bool."""
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape}; want one of each per item")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("a label is neither 0 nor 1")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    return labels.astype(bool)
