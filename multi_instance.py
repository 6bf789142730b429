#!/usr/bin/env python3
"""Run a compiled library as N pinned instances at once and measure them together.

Reads the library that compile.py left (.so, parameters, manifest); leaves nothing. Prints what is to be measured and
the peak of exactly these cores, then throughput, latency, share of the peak and memory; the last line is JSON.
Ctrl-C ends the run early and prints what was measured so far, except of LoadGen's tests. A sweep does this for many
combinations, and leaves NAME.sweep.json beside the libraries.

    python multi_instance.py --num-instances 2 --duration 4
    python multi_instance.py --sweep "instances=1,2;threads=1,2;batch=16,100,400" --max-latency-ms 10
"""

from __future__ import annotations

import argparse

from dlrm_tvm.arrivals import Arrivals
from dlrm_tvm.baseline import read_baselines
from dlrm_tvm.comparison import compare_with_baselines, comparison_json, comparison_text
from dlrm_tvm.errors import run_script
from dlrm_tvm.loadgen_options import add_loadgen_options, check_loadgen_options, loadgen_options
from dlrm_tvm.loadgen_report import loadgen_json, loadgen_text, score_accuracy_log
from dlrm_tvm.loadgen_run import run_loadgen
from dlrm_tvm.options import (
    add_arrival_options,
    add_engine_options,
    add_profile_options,
    add_run_options,
    check_arrival_options,
    check_run_options,
    run_settings,
)
from dlrm_tvm.profile_report import profiled
from dlrm_tvm.report import results_json, results_text
from dlrm_tvm.result_line import result_line
from dlrm_tvm.session import measure, open_session
from dlrm_tvm.sweep import run_sweep
from dlrm_tvm.sweep_options import add_sweep_options, check_sweep_options, sweep_settings

DURATION_S, WARMUP_S = 10.0, 2.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_run_options(parser)
    add_arrival_options(parser)
    add_profile_options(parser)
    add_engine_options(parser)
    add_loadgen_options(parser)
    add_sweep_options(parser)
    args = parser.parse_args()
    for check in (check_run_options, check_arrival_options, check_loadgen_options, check_sweep_options):
        check(args)
    return args


def main() -> int:
    args = parse_args()
    if args.scenario:
        return run_scenario(args)
    if args.sweep is not None:
        return run_sweep(sweep_settings(args), show)
    baselines = read_baselines(args.baseline or ())
    with open_session(run_settings(args), show) as session:
        report = measure(
            session,
            duration_s=DURATION_S if args.duration is None else args.duration,
            warmup_s=WARMUP_S if args.warmup is None else args.warmup,
            show=show,
            arrivals=Arrivals(args.arrivals, args.rate),
            until_stable=args.until_stable,
        )
        if args.profile:
            report = profiled(session, report)
    print(results_text(report))
    fields = results_json(report)
    if baselines:
        comparison = compare_with_baselines(fields, baselines)
        print(comparison_text(comparison))
        fields["baseline"] = comparison_json(comparison)
    print(result_line(fields), flush=True)
    return 1 if report.interrupted else 0


def run_scenario(args: argparse.Namespace) -> int:
    """Under MLPerf's LoadGen; status 0 where LoadGen finds the run valid."""
    run = run_loadgen(
        run_settings(args), loadgen_options(args), warmup_s=WARMUP_S if args.warmup is None else args.warmup, show=show
    )
    accuracy = score_accuracy_log(run) if args.accuracy else None
    print(loadgen_text(run, accuracy))
    print(result_line(loadgen_json(run, accuracy)), flush=True)
    return 0 if accuracy or run.tests[-1].verdict.is_valid else 1


def show(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    run_script(main)
