"""The highest rate that LoadGen finds valid in its Server scenario: a bisection with short tests, then a full one.

    0 < low (valid) .. high (not valid) <= the closed loop's rate       halved until within 2 % of the closed loop's

A short test can be lucky: from `low` the rate goes down in steps of 3 % until a test of full length is valid. A test
that kept the bound with too few queries for LoadGen to be sure (early stopping) says nothing about the rate: it is run
again, longer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from ..bench.rate_search import bisected
from ..console import ms_text
from .process import LoadgenTest
from .settings import LoadgenRequest, too_long

_PROBE_S, _PROBE_QUERIES = 10.0, 1000  # early stopping forgives 2 of 1,000 queries
_CONFIRMATIONS, _STEP_DOWN = 6, 0.97
_STRETCHES = 3

Say = Callable[[str, str], None]


def until_sure(test: Callable[[LoadgenRequest], LoadgenTest], request: LoadgenRequest, say: Say) -> list[LoadgenTest]:
    """The test, and again with twice the queries that LoadGen wants while it wants more and a test may have so many;
    the last one counts."""
    tests = [test(request)]
    while (verdict := tests[-1].verdict) and verdict.more_queries and len(tests) <= _STRETCHES:
        wanted = 2 * (verdict.queries + verdict.more_queries)
        if why := too_long(wanted * tests[-1].samples / verdict.queries, verdict.samples_per_s):
            say("not again", f"{verdict.queries:,} queries were too few to be sure of the bound, but {why}")
            break
        say("again, longer", f"{verdict.queries:,} queries were too few to be sure of the bound; now {wanted:,}")
        tests.append(test(replace(request, least_queries=wanted)))
    return tests


def find_peak_qps(
    test: Callable[[LoadgenRequest], LoadgenTest],
    request: LoadgenRequest,
    *,
    most_qps: float,
    duration_s: float,
    say: Say,
) -> list[LoadgenTest]:
    """All tests in their order; the last one is of full length, and valid if a valid rate was found.

    most_qps: a rate beyond reach, the closed loop's. Each test's logs have a folder of their own below the request's.
    """
    tests: list[LoadgenTest] = []

    def is_valid(qps: float, seconds: float, name: str) -> bool:
        folder = os.path.join(request.log_dir, name)
        asked = replace(request, target_qps=qps, duration_s=seconds, log_dir=folder)
        tests.extend(until_sure(test, asked, say))
        verdict = tests[-1].verdict
        found = "valid" if verdict.is_valid else "; ".join(verdict.reasons)
        say(
            name,
            f"{qps:,.1f} samples/s, {verdict.queries:,} queries: p99 {ms_text(verdict.latency_ms['p99'])} ms, {found}",
        )
        return verdict.is_valid

    def probe(qps: float) -> bool:
        return is_valid(qps, min(max(_PROBE_S, _PROBE_QUERIES / qps), duration_s), f"probe_{len(tests):02}")

    highest, _ = bisected(probe, most_qps)
    for attempt in range(_CONFIRMATIONS if highest else 0):
        if is_valid(highest * _STEP_DOWN**attempt, duration_s, f"full_{attempt}"):
            break
    return tests
