"""Statistics of runs: percentiles of latencies, and the interval in which one more run would lie.

    mean -+ t(0.975, n - 1) s sqrt(1 + 1 / n)          of n runs' values; s: their standard deviation, with n - 1

This is the 95 % prediction interval of a normal distribution (Student's t: Biometrika 6, 1908).
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


def t_975(freedom: int) -> float:
    """The 97.5 % point of Student's t; above 30 degrees of freedom linear in 1 / freedom between the table's lines."""
    inverse = [1 / each for each in _FREEDOM]
    return float(np.interp(1 / freedom, inverse[::-1], _T[::-1]))


def prediction_half_width(values: Sequence[float]) -> float:
    """Half the width of the interval, from two or more runs' values."""
    return t_975(len(values) - 1) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / len(values))


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
