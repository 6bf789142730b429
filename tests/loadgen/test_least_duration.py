"""What a test takes at least is told before it starts: min_query_count may be hours at the rate that is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dlrm_tvm.errors import UserError
from dlrm_tvm.loadgen.report import AccuracyResult, loadgen_text
from dlrm_tvm.loadgen.settings import EffectiveSettings, LoadgenRequest, _check_length


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
    settings = EffectiveSettings(60, rate, 30, 0.99, queries)
    assert settings.least_text == text


@pytest.mark.parametrize(
    ("rate", "queries", "advice"),
    [
        (1e5, 20_000_000, "Give a lower min_query_count in the file of settings."),  # too many at any rate
        (1, 200_000, "Give a higher --target-qps, or a lower min_query_count in the file of settings."),
        (1e6, 1, "Give a lower --target-qps or a shorter --duration."),
    ],
)
def test_what_makes_a_test_too_long_is_what_is_named(rate, queries, advice):
    settings = SimpleNamespace(offline_expected_qps=rate, min_query_count=queries, min_duration_ms=60_000)
    with pytest.raises(UserError, match=f"{advice}$"):
        _check_length(settings, LoadgenRequest("offline", "performance", "logs", conf_files=("user.conf",)))


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_an_interrupt_between_two_tests_is_said(is_interrupted):
    last = SimpleNamespace(
        cut_after_s=None, samples=9, items=20, cpu_share=0.1, request=SimpleNamespace(log_dir="logs")
    )
    run = SimpleNamespace(tests=(last,), interrupted=is_interrupted, memory_bytes=1, warnings=())
    first = loadgen_text(run, AccuracyResult(9, 0.5, 0.1)).splitlines()[0]
    assert first.endswith("20 items, accuracy mode" + " (interrupted)" * is_interrupted)
