"""Flags of multi_instance.py for a run under LoadGen, their checks, and the options made of them."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from ..bench.options import MOST_QPS, count
from ..data.query_samples import MLPERF_SAMPLES
from ..engines.interface import OURS
from ..errors import UserError
from .run import NO_RATE
from .settings import SCENARIOS, LoadgenRequest

_MOST_SAMPLES = 10_000_000


def add_loadgen_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("MLPerf LoadGen")
    group.add_argument(
        "--scenario",
        type=str.lower,
        choices=SCENARIOS,
        metavar="|".join(SCENARIOS.values()),
        help="have MLPerf's LoadGen drive the instances; in any case",
    )
    group.add_argument("--accuracy", action="store_true", help="its accuracy mode: all samples once, then their AUC")
    group.add_argument("--samples", type=count, metavar="N", help=f"in its library; default {MLPERF_SAMPLES:,}")
    group.add_argument("--target-qps", type=float, metavar="Q", help="samples per second that it issues or expects")
    for flag, says in (
        ("qps", "server: search the highest valid rate"),
        ("performance", "the same, in MLPerf's words"),
    ):
        group.add_argument(f"--find-peak-{flag}", dest="find_peak_qps", action="store_true", help=says)
    group.add_argument("--mlperf-conf", type=Path, metavar="FILE", help="its settings; default: those it brings along")
    group.add_argument("--user-conf", type=Path, metavar="FILE", help="settings that go before those")
    group.add_argument("--log-dir", type=Path, metavar="DIR", help="for its logs; default loadgen_logs/NAME_TIME")


def check_loadgen_options(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together."""
    wants = ("accuracy", "samples", "target_qps", "find_peak_qps", "mlperf_conf", "user_conf", "log_dir")
    values = {f"--{name.replace('_', '-')}": getattr(args, name) for name in wants}
    given = [flag for flag, value in values.items() if value is not None and value is not False]  # 0 is given
    if given and not args.scenario:
        raise UserError(f"{given[0]} is for LoadGen: add --scenario Offline or --scenario Server.")
    if not args.scenario:
        return
    if args.arrivals != "closed" or args.until_stable or args.max_latency_ms is not None:
        raise UserError("--scenario leaves arrivals and the length of the run to LoadGen: leave the others out.")
    if args.sweep is not None:
        raise UserError("--sweep measures without LoadGen. Leave it or --scenario out.")
    if args.engine != OURS or args.profile:
        other = "--profile" if args.profile else f"--engine {args.engine}"
        raise UserError(f"{other}: LoadGen drives our own library as it is. Leave it or --scenario out.")
    if args.baseline:
        raise UserError("--baseline compares runs without LoadGen. Leave it or --scenario out.")
    if args.samples and args.samples > _MOST_SAMPLES:
        raise UserError(f"--samples {args.samples}: at most {_MOST_SAMPLES:,} were wanted.")
    if args.find_peak_qps and (args.scenario != "server" or args.accuracy or args.target_qps is not None):
        raise UserError("--find-peak-qps goes with --scenario server, without --accuracy and --target-qps.")
    if args.target_qps is not None and not 0 < args.target_qps <= MOST_QPS:
        raise UserError(f"--target-qps {args.target_qps:g}: more than 0 and at most {MOST_QPS:,} were wanted.")
    says_rate = args.target_qps or args.find_peak_qps or args.mlperf_conf or args.user_conf
    if args.scenario == "server" and not (says_rate or args.accuracy):
        raise UserError(NO_RATE)
    for path in (args.mlperf_conf, args.user_conf):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file. LoadGen's settings were wanted, such as a user.conf.")


def loadgen_request(args: argparse.Namespace) -> LoadgenRequest:
    mode = "accuracy" if args.accuracy else "performance"
    stamp = f"{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}"
    return LoadgenRequest(
        scenario=args.scenario,
        mode=mode,
        log_dir=str(args.log_dir or Path("loadgen_logs") / f"{args.scenario}_{mode}_{stamp}"),
        conf_files=tuple(str(path) for path in (args.mlperf_conf, args.user_conf) if path),
        duration_s=args.duration,
        target_qps=args.target_qps,
    )
