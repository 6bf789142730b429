#!/usr/bin/env python3
"""Run a compiled library as N pinned instances at once and measure them together.

Reads the library that compile.py left (.so, parameters, manifest); leaves nothing. Prints what is to be measured and
the peak of exactly these cores, then throughput, latency, share of the peak and memory; the last line is JSON where
stdout is no terminal. Ctrl-C and SIGTERM end the run early and print what was measured so far. A sweep does this for
many combinations, and leaves NAME.sweep.json and its state NAME.sweep.jsonl beside the libraries. Exit status 3:
LoadGen finds the run invalid, combinations of a sweep failed, --fail-on-regression found one.

    python multi_instance.py --num-instances 2 --duration 4
    python multi_instance.py --max-latency-ms 10 --percentile 99
    python multi_instance.py --sweep instances=1,2 threads=1,2 batch=16,100,400 --max-latency-ms 10
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # python -I and -P leave it out
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from dlrm_tvm.errors import FOUND_WANTING, UserError, interrupted_status, interrupts_blocked, reported, run_script

with reported(), interrupts_blocked():
    import argparse
    from collections.abc import Callable
    from dataclasses import asdict
    from functools import partial
    from pathlib import Path

    from dlrm_tvm.bench.baseline import compare_with_baselines, comparison_json, comparison_text, read_baselines
    from dlrm_tvm.bench.measure import latencies_file, measure, profiled
    from dlrm_tvm.bench.options import (
        add_run_options,
        arrivals_of,
        check_run_options,
        count,
        duration_s,
        run_settings,
        target_of,
        warmup_s,
    )
    from dlrm_tvm.bench.rate_search import RateSearch, find_rate
    from dlrm_tvm.bench.report import results_json, results_text
    from dlrm_tvm.bench.session import Session, open_session
    from dlrm_tvm.console import Parser, add_output_options, show, terminal
    from dlrm_tvm.data.query_samples import MLPERF_SAMPLES
    from dlrm_tvm.loadgen.options import add_loadgen_options, check_loadgen_options, loadgen_request
    from dlrm_tvm.loadgen.report import loadgen_json, loadgen_text, score_accuracy_log
    from dlrm_tvm.loadgen.run import run_loadgen
    from dlrm_tvm.machine.files import leave_result
    from dlrm_tvm.sweep.earlier import show_as, show_results
    from dlrm_tvm.sweep.options import add_sweep_options, add_table_options, check_sweep_options, sweep_settings
    from dlrm_tvm.sweep.plot import run_pictures
    from dlrm_tvm.sweep.run import run_sweep

Ended = tuple[dict[str, object], int, dict[Path, Callable[[], bytes]]]  # result, exit status, what makes other files


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    for add in (add_run_options, add_loadgen_options, add_sweep_options):
        add(parser)
    of_a_sweep = "; of a sweep with its state beside it as .jsonl, default NAME[.ENGINE].sweep.json"
    add_table_options(add_output_options(parser, of_a_sweep))
    group = parser.add_argument_group("many machines")
    group.add_argument("--ray", metavar="HOST:PORT", help="measure on all nodes of the Ray cluster at this address")
    group.add_argument("--ray-nodes", type=count, metavar="N", help="on N of them (default: all)")
    parser.add_argument("--start-gate", type=int, metavar="PID", help=argparse.SUPPRESS)  # cluster/start_gate.py
    args = parser.parse_args()
    for check in (check_run_options, check_loadgen_options, check_sweep_options):
        check(args)
    if args.ray is not None:
        from dlrm_tvm.cluster.measure import check_cluster_flags

        check_cluster_flags(args)
    elif args.ray_nodes is not None:
        raise UserError("--ray-nodes is for a Ray cluster. Give --ray HOST:PORT too, or leave it out.")
    return args


def main() -> int:
    args = parse_args()
    show_fields = partial(show_as, form=args.format)
    with terminal(quiet=args.quiet, stdout_for_programs=args.format is not None):
        if args.results:
            show_results(args.results, args.max_latency_ms, args.format, args.plot)
            return 0
        if args.ray is None and args.sweep is not None:
            return run_sweep(sweep_settings(args), show, show_fields=show_fields)
        run = run_cluster if args.ray is not None else run_scenario if args.scenario else run_once
        fields, status, files = run(args)
    leave_result(fields, args.output, files, show_fields)
    return status


def run_once(args: argparse.Namespace) -> Ended:
    """One window, of the instances of this machine."""
    baselines = read_baselines(args.baseline or ())
    timing = {"duration_s": duration_s(args), "warmup_s": warmup_s(args), "show": show}
    wait_for_start = start_gate(args.start_gate)
    with open_session(run_settings(args), show) as session:
        wait_for_start()
        target, arrivals, search = target_of(args), arrivals_of(args), None
        if target is not None:
            search = find_rate(session.instances, target, **timing)
            arrivals = search.arrivals
        try:
            if search and search.interrupted:
                raise KeyboardInterrupt
            report = measure(session, **timing, arrivals=arrivals, until_stable=args.until_stable)
        except KeyboardInterrupt:
            if search is None:
                raise
            return interrupted_search(session, search), interrupted_status(), {}
        if args.profile:
            report = profiled(session, report)
    show(results_text(report))
    files = {path: partial(latencies_file, path, report.measurement) for path in (args.latencies,) if path}
    files |= run_pictures(args.plot, report) if args.plot else {}
    fields = results_json(report)
    if search:
        show(search.text())
        fields["rate_search"] = asdict(search)
    if baselines:
        comparison = compare_with_baselines(fields, baselines)
        show(comparison_text(comparison))
        fields["baseline"] = comparison_json(comparison)
        if (most := args.fail_on_regression) is not None and comparison.is_slower(most) and not report.interrupted:
            return fields, FOUND_WANTING, files
    return fields, interrupted_status() if report.interrupted else 0, files


def interrupted_search(session: Session, search: RateSearch) -> dict[str, object]:
    """The result: no run at the rate that was to be found."""
    show(search.text())
    plan = session.plan
    what = {"model": plan.manifest.model.name, "library": str(plan.settings.model), "environment": plan.environment}
    return {**what, "rate_search": asdict(search), "interrupted": True}


def start_gate(raylet_pid: int | None) -> Callable[[], None]:
    """On a node of a cluster: what returns when all nodes are to start."""
    if raylet_pid is None:
        return lambda: None
    from dlrm_tvm.cluster.start_gate import StartGate

    return StartGate(raylet_pid).wait


def run_cluster(args: argparse.Namespace) -> Ended:
    """On the nodes of a Ray cluster; status 3 where one was lost."""
    from dlrm_tvm.cluster.measure import measure_cluster

    report = measure_cluster(args, show)
    show(report.text())
    return report.to_json(), report.status, {}


def run_scenario(args: argparse.Namespace) -> Ended:
    """Under MLPerf's LoadGen; status 0 where LoadGen finds the run valid."""
    library = {"samples": args.samples or MLPERF_SAMPLES, "find_peak": args.find_peak_qps}
    run = run_loadgen(run_settings(args), loadgen_request(args), **library, warmup_s=warmup_s(args), show=show)
    accuracy = score_accuracy_log(run) if args.accuracy and run.tests[-1].cut_after_s is None else None
    show(loadgen_text(run, accuracy))
    status = 0 if args.accuracy or run.tests[-1].is_valid else FOUND_WANTING
    return loadgen_json(run, accuracy), interrupted_status() if run.interrupted else status, {}


def command() -> None:
    run_script(main)


if __name__ == "__main__":
    command()
