"""The interval of one more run, against SciPy where it is installed and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_tvm.bench.statistics import prediction_half_width, t_975


@pytest.mark.parametrize("freedom", [*range(1, 32), 35, 40, 50, 60, 90, 120, 500, 10**9])
def test_points_of_students_t_are_those_of_scipy(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed (requirements-dev.txt)")
    assert t_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


@pytest.mark.parametrize("runs", [2, 3, 5, 12, 40])
def test_a_run_at_the_intervals_end_is_just_significant_in_scipys_t_test(runs: int) -> None:
    """One value against n is the two-sample t test with equal variances: p = 0.05 where the interval ends."""
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed (requirements-dev.txt)")
    values = np.random.default_rng(runs).normal(1000, 10, runs)
    mean, deviation = values.mean(), values.std(ddof=1)
    for end in (mean - prediction_half_width(values), mean + prediction_half_width(values)):
        assert stats.ttest_ind_from_stats(end, 0, 1, mean, deviation, runs).pvalue == pytest.approx(0.05, abs=5e-5)


def test_one_more_run_lies_in_the_interval_of_several_95_times_in_100() -> None:
    runs = np.random.default_rng(1).normal(1000, 10, (4000, 4))
    inside = [abs(run[3] - run[:3].mean()) < prediction_half_width(run[:3]) for run in runs]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
    assert prediction_half_width([990, 1000, 1010]) == pytest.approx(4.303 * 10 * (4 / 3) ** 0.5)
