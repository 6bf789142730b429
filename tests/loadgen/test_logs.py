"""LoadGen's logs of tests that it ran itself, over a system that answers at once or late."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from dlrm_tvm.loadgen.logs import Verdict, read_verdict

lg = pytest.importorskip("mlperf_loadgen", reason="LoadGen is not installed (requirements-loadgen.txt)")


def server_test(folder: Path, *, queries: int, late: int) -> Verdict:
    """LoadGen's on so many queries of a p90 within 0.2 s, of which `late` count as slower."""
    settings, log = lg.TestSettings(), lg.LogSettings()
    settings.scenario, settings.mode = lg.TestScenario.Server, lg.TestMode.PerformanceOnly
    settings.server_target_qps, settings.min_duration_ms, settings.min_query_count = 1000, 0, queries
    settings.server_target_latency_percentile, settings.server_target_latency_ns = 0.9, 200_000_000
    log.log_output.outdir, log.log_output.copy_summary_to_stdout, log.enable_trace = str(folder), False, False
    seen = 0

    def issue(samples: list) -> None:
        nonlocal seen
        responses = [lg.QuerySampleResponse(sample.id, 0, 0) for sample in samples]
        if seen < late:
            threading.Timer(0.5, lg.QuerySamplesComplete, [responses]).start()
        else:
            lg.QuerySamplesComplete(responses)
        seen += 1

    system = lg.ConstructSUT(issue, lambda: None)
    library = lg.ConstructQSL(4, 4, lambda _: None, lambda _: None)
    lg.StartTestWithLogSettings(system, library, settings, log)
    time.sleep(0.05)
    lg.DestroyQSL(library)
    lg.DestroySUT(system)
    return read_verdict(folder)


def test_too_few_queries_are_no_broken_bound(tmp_path: Path) -> None:
    """p90 of 20 queries: 0.9^n <= 0.01 wants 44, so 24 more."""
    verdict = server_test(tmp_path, queries=20, late=0)
    assert (verdict.is_valid, verdict.queries, verdict.more_queries) == (False, 20, 24)
    (reason,) = verdict.reasons
    assert reason.startswith("it kept the bound, but LoadGen wants 24 queries more to be sure")


def test_a_broken_bound_asks_for_no_more_queries(tmp_path: Path) -> None:
    verdict = server_test(tmp_path, queries=20, late=5)
    assert not verdict.is_valid and verdict.more_queries == 0
    assert "its latency is beyond the bound" in verdict.reasons


def test_enough_queries_are_valid(tmp_path: Path) -> None:
    verdict = server_test(tmp_path, queries=50, late=0)
    assert verdict.is_valid and verdict.reasons == () and verdict.more_queries == 0
