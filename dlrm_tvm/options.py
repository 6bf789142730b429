"""Flags of multi_instance.py, a group and its checks per purpose, and the settings that they make."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from .arrivals import KINDS
from .errors import UserError
from .loadgen_run import LoadgenOptions
from .loadgen_settings import SCENARIOS
from .numa import POLICIES
from .peers import OURS, PEERS
from .query_samples import MLPERF_SAMPLES
from .session import RunSettings

DEFAULT_MODEL = Path(os.path.relpath(Path(__file__).parents[1] / "__prebuilt" / "dlrm_avx512_b100.so"))
_MAX_SECONDS = 86_400
_MOST_QPS, _MOST_SAMPLES = 10_000_000, 10_000_000


def add_options(parser: argparse.ArgumentParser) -> None:
    for add in (add_run_options, add_arrival_options, add_loadgen_options, add_profile_options, add_engine_options):
        add(parser)


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError for what no run can be made of."""
    for check in (check_run_options, check_arrival_options, check_loadgen_options):
        check(args)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What is run, where, on which inputs; how long."""
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="SO", help="default: %(default)s")
    parser.add_argument("--num-instances", type=count, metavar="N", help="default: as many as there are cores for")
    parser.add_argument("--num-threads", type=count, default=1, metavar="T", help="of each instance; default 1")
    parser.add_argument("--duration", type=float, metavar="S", help="timed window; default 10 s")
    parser.add_argument("--warmup", type=float, default=2.0, metavar="S", help="before it; default 2 s")
    parser.add_argument("--cores", metavar="LIST", help="use these, in this order, such as 0-3,8,10-11")
    parser.add_argument("--hyper-threading", action="store_true", help="use all hardware threads of a core, not one")
    parser.add_argument("--ref-data", type=Path, metavar="FILE", help="take inputs from it; default: random rows")
    parser.add_argument("--indices-per-bag", type=count, metavar="P", help="random bags of P rows; default 1: no bags")
    parser.add_argument("--preload", action="store_true", help="read the tables into memory first, in parallel")
    parser.add_argument(
        "--huge-pages",
        action="store_true",
        help="copy the tables into shared memory of huge pages, if the kernel has any",
    )
    parser.add_argument(
        "--numa", choices=POLICIES, help="where tables lie on several nodes; default: the best that fits"
    )
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="compare with the result of an earlier run")


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where the time goes")
    group.add_argument(
        "--profile",
        action="store_true",
        help="time of each layer beside its limit; for libraries of compile.py --profile",
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("another engine in the library's place")
    group.add_argument("--engine", choices=(OURS, *PEERS), default=OURS, help="what is measured; default: %(default)s")
    group.add_argument(
        "--onnx-model", type=Path, metavar="PATH", help="the file it runs; default: what the library was compiled from"
    )


def check_run_options(args: argparse.Namespace) -> None:
    """Raises UserError for what no run can be made of."""
    check_seconds("--duration", 1 if args.duration is None else args.duration)
    check_seconds("--warmup", args.warmup)
    if args.duration == 0:
        raise UserError("--duration 0: more than 0 seconds were wanted.")
    if args.indices_per_bag and args.ref_data:
        raise UserError(f"--indices-per-bag makes random bags, {args.ref_data} has its own: give one of the two.")
    if args.engine == OURS and args.onnx_model:
        raise UserError(f"--onnx-model is what another engine runs. Give --engine {' or '.join(PEERS)} too.")
    if args.engine != OURS:
        _check_ours_only(args)


def _check_ours_only(args: argparse.Namespace) -> None:
    for option in ("profile", "preload", "huge_pages", "numa"):
        if getattr(args, option):
            flag = "--" + option.replace("_", "-")
            raise UserError(f"{flag} is for our own library, not for --engine {args.engine}: give one of the two.")


def run_settings(args: argparse.Namespace) -> RunSettings:
    return RunSettings(
        model=args.model,
        instances=args.num_instances,
        threads=args.num_threads,
        cores=args.cores,
        hyper_threading=args.hyper_threading,
        ref_data=args.ref_data,
        indices_per_bag=args.indices_per_bag or 1,
        preload=args.preload,
        huge_pages=args.huge_pages,
        numa=args.numa,
        profile=args.profile,
        engine=args.engine,
        onnx_model=args.onnx_model,
    )


def add_arrival_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("arrivals")
    group.add_argument("--arrivals", choices=KINDS, default="closed", help="when batches are asked for; default closed")
    group.add_argument("--rate", type=float, metavar="R", help="of fixed and poisson: batches per second in all")
    group.add_argument("--until-stable", action="store_true", help="end early when throughput is stable within 1 %%")


def check_arrival_options(args: argparse.Namespace) -> None:
    """Raises UserError for rates that no run can be made of."""
    is_open = args.arrivals != "closed"
    if is_open and args.rate is None:
        raise UserError(f"--arrivals {args.arrivals} needs a rate. Give --rate R, in batches per second.")
    if not is_open and args.rate is not None:
        raise UserError("--rate goes with --arrivals fixed or --arrivals poisson; a closed loop has none.")
    if is_open and not 0 < args.rate <= _MOST_QPS:
        raise UserError(f"--rate {args.rate:g}: more than 0 and at most {_MOST_QPS:,} were wanted.")
    if args.scenario and (is_open or args.until_stable):
        raise UserError("--scenario leaves arrivals and the length of the run to LoadGen: leave the others out.")


def add_loadgen_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("MLPerf LoadGen")
    group.add_argument("--scenario", choices=SCENARIOS, help="have MLPerf's LoadGen drive the instances")
    group.add_argument("--accuracy", action="store_true", help="its accuracy mode: all samples once, then their AUC")
    group.add_argument("--samples", type=count, metavar="N", help=f"in its library; default {MLPERF_SAMPLES:,}")
    group.add_argument("--target-qps", type=float, metavar="Q", help="samples per second that it issues or expects")
    group.add_argument("--find-peak-qps", action="store_true", help="server: search the highest valid rate")
    group.add_argument("--mlperf-conf", type=Path, metavar="FILE", help="its settings; default: those it brings along")
    group.add_argument("--user-conf", type=Path, metavar="FILE", help="settings that go before those")
    group.add_argument("--log-dir", type=Path, metavar="DIR", help="for its logs; default loadgen_logs/NAME_TIME")


def check_loadgen_options(args: argparse.Namespace) -> None:
    """Raises UserError for what LoadGen cannot be asked for."""
    wants = ("accuracy", "samples", "target_qps", "find_peak_qps", "mlperf_conf", "user_conf", "log_dir")
    given = [f"--{name.replace('_', '-')}" for name in wants if getattr(args, name)]
    if given and not args.scenario:
        raise UserError(f"{given[0]} is for LoadGen: add --scenario offline or --scenario server.")
    if not args.scenario:
        return
    if args.engine != OURS or args.profile:
        other = "--profile" if args.profile else f"--engine {args.engine}"
        raise UserError(f"{other}: LoadGen drives our own library as it is. Leave it or --scenario out.")
    if args.baseline:
        raise UserError("--baseline compares runs without LoadGen. Leave it or --scenario out.")
    if args.indices_per_bag:
        raise UserError("--indices-per-bag: MLPerf's samples have one index per table. Leave it or --scenario out.")
    if args.samples and args.samples > _MOST_SAMPLES:
        raise UserError(f"--samples {args.samples}: at most {_MOST_SAMPLES:,} were wanted.")
    if args.find_peak_qps and (args.scenario != "server" or args.accuracy or args.target_qps):
        raise UserError("--find-peak-qps goes with --scenario server, without --accuracy and --target-qps.")
    if args.target_qps is not None and not 0 < args.target_qps <= _MOST_QPS:
        raise UserError(f"--target-qps {args.target_qps:g}: more than 0 and at most {_MOST_QPS:,} were wanted.")
    for path in (args.mlperf_conf, args.user_conf):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file. LoadGen's settings were wanted, such as a user.conf.")


def loadgen_options(args: argparse.Namespace) -> LoadgenOptions:
    mode = "accuracy" if args.accuracy else "performance"
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return LoadgenOptions(
        scenario=args.scenario,
        accuracy=args.accuracy,
        samples=args.samples or MLPERF_SAMPLES,
        log_dir=args.log_dir or Path("loadgen_logs") / f"{args.scenario}_{mode}_{stamp}",
        duration_s=args.duration,
        target_qps=args.target_qps,
        find_peak=args.find_peak_qps,
        conf_files=tuple(path for path in (args.mlperf_conf, args.user_conf) if path),
    )


def count(text: str) -> int:
    """An argparse type: an integer from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def check_seconds(option: str, value: float) -> None:
    if not 0 <= value <= _MAX_SECONDS:  # a NaN is neither
        raise UserError(f"{option} {value:g}: 0 to {_MAX_SECONDS} seconds (a day) were wanted.")
