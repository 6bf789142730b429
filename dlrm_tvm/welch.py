"""Do two samples differ by more than their own scatter? Welch's t interval (Biometrika 34, 1947), two-sided, 95 %.

    d = mean(b) - mean(a),   s = sqrt(va / na + vb / nb),   f = s^4 / ((va/na)^2 / (na - 1) + (vb/nb)^2 / (nb - 1))
    interval = d -+ t(0.975, f) s          v: variances with n - 1; f: degrees of freedom (Satterthwaite)

Values that follow each other in time say less than independent ones: with r, their correlation with the next one,

    n' = n (1 - r) / (1 + r),   at least n / 3         takes the place of n (of an AR(1) process)

Where several runs were made, how they differ is known, and a further one is held against the interval in which it
would lie if it were one of them:

    mean -+ t(0.975, n - 1) s sqrt(1 + 1 / n)          of n runs' values
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# t(0.975, f) for f = 1..30, 40, 60, 120 and without end, as in every book of statistics.
_FREEDOM = (*range(1, 31), 40, 60, 120, math.inf)
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
    *(2.021, 2.000, 1.980, 1.960),
)


def t_975(freedom: float) -> float:
    """The 97.5 % point of Student's t; between the table's lines linear in 1 / freedom: right to 0.01 % from 8 degrees
    of freedom on, to 0.4 % from 3 on, up to a fifth too large between 1 and 2, and below 1 that of 1."""
    inverse = [1 / each for each in _FREEDOM]
    return float(np.interp(1 / freedom, inverse[::-1], _T[::-1]))


def effective_size(values: Sequence[float]) -> float:
    """How many independent values say as much about the mean as these, which follow each other in time."""
    away = np.asarray(values, float) - np.mean(values)
    square = float(away @ away)
    if not square:
        return float(len(values))
    # An estimate from n values is too small by about 1 / n on average.
    correlation = float(away[:-1] @ away[1:]) / square + 1 / len(values)
    correlation = min(max(correlation, 0.0), 1.0)
    return max(len(values) * (1 - correlation) / (1 + correlation), len(values) / 3, 1.5)


def welch_interval(
    a: Sequence[float], b: Sequence[float], sizes: tuple[float, float] | None = None
) -> tuple[float, float]:
    """The 95 % interval of mean(b) - mean(a). sizes: in the place of their lengths, above 1. Raises ValueError where a
    sample has fewer than two values."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"samples of {len(a)} and {len(b)} values; two or more of each were wanted")
    size_a, size_b = sizes or (len(a), len(b))
    difference = float(np.mean(b) - np.mean(a))
    square_a, square_b = np.var(a, ddof=1) / size_a, np.var(b, ddof=1) / size_b
    total = square_a + square_b
    if total == 0:
        return difference, difference
    freedom = 1 / ((square_a / total) ** 2 / (size_a - 1) + (square_b / total) ** 2 / (size_b - 1))
    half = t_975(freedom) * math.sqrt(total)
    return difference - half, difference + half


def mean_half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of the mean of values that follow each other in time."""
    size = effective_size(values)
    return t_975(size - 1) * math.sqrt(np.var(values, ddof=1) / size)


def prediction_half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval around the mean of two or more runs' values in which one more run's value would lie."""
    return t_975(len(values) - 1) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / len(values))
