#!/usr/bin/env python3
"""Run a compiled library as N pinned instances at once and measure them together.

Reads the library that compile.py left (.so, parameters, manifest); leaves nothing. Prints what is to be measured and
the peak of exactly these cores, then throughput, latency, share of the peak and memory; the last line is JSON.
Ctrl-C ends the run early and prints what was measured so far. A sweep does this for many combinations, and leaves
NAME.sweep.json beside the libraries.

    python multi_instance.py --num-instances 2 --duration 4
    python multi_instance.py --sweep "instances=1,2;threads=1,2;batch=16,100,400" --max-latency-ms 10
"""

from __future__ import annotations

import argparse
import json

from dlrm_tvm.errors import run_script
from dlrm_tvm.options import (
    add_run_options,
    add_sweep_options,
    check_run_options,
    check_sweep_options,
    run_settings,
    set_durations,
    sweep_settings,
)
from dlrm_tvm.report import results_json, results_text
from dlrm_tvm.session import measure, open_session
from dlrm_tvm.sweep import run_sweep


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_run_options(parser)
    add_sweep_options(parser)
    args = parser.parse_args()
    set_durations(args)
    return args


def main() -> int:
    args = parse_args()
    check_run_options(args)
    check_sweep_options(args)
    if args.sweep is not None:
        return run_sweep(sweep_settings(args), show)
    with open_session(run_settings(args), show) as session:
        report = measure(session, duration_s=args.duration, warmup_s=args.warmup, show=show)
    print(results_text(report))
    print(json.dumps(results_json(report)), flush=True)
    return 1 if report.interrupted else 0


def show(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    run_script(main)
