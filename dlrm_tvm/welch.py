"""Do two samples differ by more than their own scatter? Welch's t interval (Biometrika 34, 1947), two-sided, 95 %.

    d = mean(b) - mean(a),   s = sqrt(va / na + vb / nb),   f = s^4 / ((va/na)^2 / (na - 1) + (vb/nb)^2 / (nb - 1))
    interval = d -+ t(0.975, f) s          v: variances with n - 1; f: degrees of freedom (Satterthwaite)

Takes the values of a sample to be independent of each other.
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
    of freedom on, to 0.4 % from 3 on, and up to a fifth too large below 2. Samples of ten give 9 to 18."""
    inverse = [1 / each for each in _FREEDOM]
    return float(np.interp(1 / freedom, inverse[::-1], _T[::-1]))


def welch_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of mean(b) - mean(a). Raises ValueError where a sample has fewer than two values."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"samples of {len(a)} and {len(b)} values; two or more of each were wanted")
    difference = float(np.mean(b) - np.mean(a))
    square_a, square_b = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    total = square_a + square_b
    if total == 0:
        return difference, difference
    freedom = 1 / ((square_a / total) ** 2 / (len(a) - 1) + (square_b / total) ** 2 / (len(b) - 1))
    half = t_975(freedom) * math.sqrt(total)
    return difference - half, difference + half
