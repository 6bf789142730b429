"""The search for the highest valid rate, on machines that are made up."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from dlrm_tvm.loadgen.peak_search import find_peak_qps
from dlrm_tvm.loadgen.settings import LoadgenRequest

REQUEST = LoadgenRequest("server", "performance", "logs")


def search(is_valid: Callable[[float, float], bool], duration_s: float = 60) -> list[SimpleNamespace]:
    """is_valid(rate, seconds): LoadGen's verdict on such a test of a machine whose closed loop does 100 samples/s."""

    def test(request: LoadgenRequest) -> SimpleNamespace:
        valid = is_valid(request.target_qps, request.duration_s)
        verdict = SimpleNamespace(is_valid=valid, reasons=() if valid else ("late",), latency_ms={"p99": 20.0})
        return SimpleNamespace(request=request, verdict=verdict)

    return find_peak_qps(test, REQUEST, most_qps=100, duration_s=duration_s, say=lambda label, text: None)


@pytest.mark.parametrize("most", [3, 20, 63, 99])
def test_the_highest_valid_rate_is_found_within_two_percent_of_the_closed_loop(most: float) -> None:
    tests = search(lambda qps, _: qps <= most)
    last = tests[-1]
    assert last.verdict.is_valid and last.request.duration_s == 60
    assert most - 2 <= last.request.target_qps <= most
    assert len({test.request.log_dir for test in tests}) == len(tests)


def test_short_tests_are_long_enough_for_early_stopping() -> None:
    """LoadGen wants 459 queries at least for a p99; a thousand, or the whole length."""
    for test in search(lambda qps, _: qps <= 40, duration_s=600):
        assert test.request.duration_s * test.request.target_qps >= 1000 or test.request.duration_s == 600


def test_a_lucky_short_test_is_not_believed() -> None:
    tests = search(lambda qps, seconds: qps <= 50 or (seconds < 60 and qps <= 55))
    assert tests[-1].verdict.is_valid and 45 < tests[-1].request.target_qps <= 50
    full = [test for test in tests if "full" in test.request.log_dir]
    assert [test.verdict.is_valid for test in full[:-1]] == [False] * (len(full) - 1)


def test_a_machine_without_a_valid_rate_ends_with_a_test_that_says_so() -> None:
    tests = search(lambda qps, _: False)
    assert 5 <= len(tests) < 10 and not tests[-1].verdict.is_valid


def test_a_machine_that_never_confirms_ends_after_six_tries() -> None:
    tests = search(lambda qps, seconds: seconds < 60)
    assert sum("full" in test.request.log_dir for test in tests) == 6 and not tests[-1].verdict.is_valid
