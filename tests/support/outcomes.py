"""Outcomes of a sweep's runs, made up: what a run's report would have said."""

from __future__ import annotations

from dlrm_tvm.sweep.plan import Combination, Planned
from dlrm_tvm.sweep.report import run_figures
from dlrm_tvm.sweep.results import Outcome


def made_up_run(combination: Combination, number: int, items_per_s: float, p99_ms: float, *warnings: str) -> Outcome:
    zeros = ("duration_s", "batches_per_s", "mlperf_qps_equivalent", "gflops", "peak_gflops", "peak_before_gflops")
    result = dict.fromkeys((*zeros, "peak_after_gflops", "streamed_fraction", "pss_mb"), 0.0) | {
        "cores": [0],
        "batches": 500,
        "items_per_s": items_per_s,
        "peak_fraction": items_per_s / 10_000,
        "latency_ms": {"p50": p99_ms / 2, "p99": p99_ms},
        "warnings": list(warnings),
        "environment": "of the whole sweep, not of each run",
    }
    return Outcome(Planned(number, combination), figures=run_figures(result))
