"""What a test takes at least is told before it starts: min_query_count may be hours at the rate that is asked for."""

from __future__ import annotations

import pytest

from dlrm_tvm.loadgen.settings import EffectiveSettings


@pytest.mark.parametrize(
    ("rate", "queries", "text"),
    [
        (100, 1, "60 s at least"),
        (100, 6_000, "60 s at least"),
        (5, 270_336, "54,067 s at least (15.0 hours): 270,336 samples at 5 per second"),
        (100, 270_336, "2,703 s at least: 270,336 samples at 100 per second"),
        (None, 270_336, "60 s and 270,336 samples at least"),
        (None, 1, "60 s at least"),
    ],
)
def test_least_duration_is_the_longer_of_duration_and_query_count(rate, queries, text):
    settings = EffectiveSettings(60, rate, 30, 0.99, 40, queries)
    assert settings.least_text == text
