"""The search for the highest valid rate, on machines that are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dlrm_tvm.loadgen.peak_search import find_peak_qps, until_sure
from dlrm_tvm.loadgen.settings import LoadgenRequest

REQUEST = LoadgenRequest("server", "performance", "logs")


def search(is_valid: Callable[[float, float], bool], duration_s: float = 60) -> list[SimpleNamespace]:
    """is_valid(rate, seconds): LoadGen's verdict on such a test of a machine whose closed loop does 100 samples/s."""

    def test(request: LoadgenRequest) -> SimpleNamespace:
        valid = is_valid(request.target_qps, request.duration_s)
        reasons = () if valid else ("late",)
        verdict = SimpleNamespace(
            is_valid=valid, reasons=reasons, latency_ms={"p99": 20.0}, queries=999, more_queries=0
        )
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


def unsure(enough: int, qps: float) -> tuple[list[SimpleNamespace], Callable[[LoadgenRequest], SimpleNamespace]]:
    """Requests seen, and a machine that keeps the bound below `qps`, as LoadGen believes from `enough` queries on."""
    seen: list[LoadgenRequest] = []

    def test(request: LoadgenRequest) -> SimpleNamespace:
        seen.append(request)
        queries = max(round((request.duration_s or 1) * request.target_qps), request.least_queries)
        kept, sure = request.target_qps <= qps, queries >= enough
        more, reasons = (enough - queries if kept and not sure else 0), () if kept and sure else ("no",)
        fields = {"latency_ms": {"p99": 20.0}, "queries": queries, "more_queries": min(more, 240)}
        fields |= {"is_valid": not reasons, "reasons": reasons, "samples_per_s": request.target_qps}
        return SimpleNamespace(request=request, samples=queries, verdict=SimpleNamespace(**fields))

    return seen, test


def test_a_test_of_too_few_queries_is_stretched_until_loadgen_is_sure() -> None:
    seen, test = unsure(enough=700, qps=50)
    (*_, last) = until_sure(test, replace(REQUEST, target_qps=10, duration_s=46), lambda label, text: None)
    assert [request.least_queries for request in seen] == [1, 1400]
    assert last.verdict.is_valid and {request.target_qps for request in seen} == {10}


def test_a_test_that_never_is_sure_ends_after_three_stretches_and_one_that_is_late_is_not_stretched() -> None:
    seen, test = unsure(enough=10**9, qps=50)
    tests = until_sure(test, replace(REQUEST, target_qps=10), print)
    assert len(seen) == 4 and not tests[-1].verdict.is_valid
    late, test = unsure(enough=700, qps=50)
    until_sure(test, replace(REQUEST, target_qps=60), print)
    assert len(late) == 1


@pytest.mark.parametrize(("qps", "queries"), [(0.1, 5_000), (1e5, 10_000_000)])
def test_a_test_is_not_stretched_beyond_a_day_or_the_samples_of_one_test(qps: float, queries: int) -> None:
    seen, test = unsure(enough=10**9, qps=qps)
    lines: list[tuple[str, str]] = []
    request = replace(REQUEST, target_qps=qps, duration_s=queries / qps)
    tests = until_sure(test, request, lambda *line: lines.append(line))
    assert len(seen) == 1 and not tests[-1].verdict.is_valid
    ((label, text),) = lines
    assert label == "not again" and ("than a day" in text or "more than the 16,000,000 of one test" in text)


def test_the_search_goes_up_in_time_not_down_in_rate_where_queries_are_too_few() -> None:
    """1,000 queries are too few here to be sure at any rate: a rate below 63 would be found if that were lateness."""
    seen, test = unsure(enough=2500, qps=63)
    tests = find_peak_qps(test, REQUEST, most_qps=100, duration_s=60, say=lambda label, text: None)
    assert tests[-1].verdict.is_valid and 61 <= tests[-1].request.target_qps <= 63
    assert max(request.least_queries for request in seen) >= 2500
