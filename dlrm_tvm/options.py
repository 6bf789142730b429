"""Flags of multi_instance.py that say what one run is, their checks, and the settings that they make.

LoadGen's and a sweep's are in loadgen_options.py and sweep_options.py.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .arrivals import KINDS
from .errors import UserError
from .numa import POLICIES
from .numerics import PRECISIONS
from .peer_precision import check_precision
from .peers import OURS, PEERS
from .progress import LEAST_STABLE_S
from .session import RunSettings

DEFAULT_MODEL = Path(os.path.relpath(Path(__file__).parents[1] / "__prebuilt" / "dlrm_avx512_b100.so"))
_MAX_SECONDS = 86_400
MOST_QPS = 1_000_000
_MOST_REQUESTS = 50_000_000


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What is run, where, on which inputs; how long."""
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="SO", help="default: %(default)s")
    parser.add_argument("--num-instances", type=count, metavar="N", help="default: as many as there are cores for")
    parser.add_argument("--num-threads", type=count, default=1, metavar="T", help="of each instance; default 1")
    parser.add_argument(
        "--duration", type=float, metavar="S", help="timed window; default 10 s, 2 s in a sweep, 60 s under LoadGen"
    )
    parser.add_argument("--warmup", type=float, metavar="S", help="before it; default 2 s, in a sweep 0.5 s")
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
    parser.add_argument(
        "--baseline",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="compare with the results of earlier runs; with two or more, the noise between runs is known",
    )


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
    group.add_argument("--engine-precision", choices=PRECISIONS, help="it runs at; default: the library's")


def check_run_options(args: argparse.Namespace) -> None:
    """Raises UserError for what no run can be made of."""
    for option, seconds in (("--duration", args.duration), ("--warmup", args.warmup)):
        if seconds is not None:
            check_seconds(option, seconds)
    if args.duration == 0:
        raise UserError("--duration 0: more than 0 seconds were wanted.")
    if args.indices_per_bag and args.ref_data:
        raise UserError(f"--indices-per-bag makes random bags, {args.ref_data} has its own: give one of the two.")
    if args.engine == OURS and args.onnx_model:
        raise UserError(f"--onnx-model is what another engine runs. Give --engine {' or '.join(PEERS)} too.")
    if args.engine == OURS and args.engine_precision:
        raise UserError(
            f"--engine-precision is what another engine runs at; a library has its own, of compile.py --precision. "
            f"Give --engine {' or '.join(PEERS)} too."
        )
    if args.engine != OURS:
        _check_ours_only(args)
        if args.engine_precision:
            check_precision(args.engine, args.engine_precision)


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
        engine_precision=args.engine_precision,
    )


def add_arrival_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("arrivals")
    group.add_argument("--arrivals", choices=KINDS, default="closed", help="when batches are asked for; default closed")
    group.add_argument("--rate", type=float, metavar="R", help="of fixed and poisson: batches per second in all")
    group.add_argument("--until-stable", action="store_true", help="end early when throughput is stable within 1 %%")


def check_arrival_options(args: argparse.Namespace) -> None:
    """Raises UserError for rates that no run can be made of."""
    is_open = args.arrivals != "closed"
    if is_open and args.profile:
        raise UserError(f"--profile times calls back to back, not --arrivals {args.arrivals}: give one of the two.")
    if args.until_stable and args.duration is not None and args.duration < LEAST_STABLE_S:
        raise UserError(
            f"--until-stable --duration {args.duration:g}: three windows of a second must be alike. Give "
            f"{LEAST_STABLE_S:g} s or more."
        )
    if is_open and args.rate is None:
        raise UserError(f"--arrivals {args.arrivals} needs a rate. Give --rate R, in batches per second.")
    if not is_open and args.rate is not None:
        raise UserError("--rate goes with --arrivals fixed or --arrivals poisson; a closed loop has none.")
    if is_open and not 0 < args.rate <= MOST_QPS:
        raise UserError(f"--rate {args.rate:g}: more than 0 and at most {MOST_QPS:,} were wanted.")
    if is_open and args.rate * (args.duration or 0) > _MOST_REQUESTS:
        raise UserError(
            f"--rate {args.rate:g} for {args.duration:g} s are more than {_MOST_REQUESTS:,} batches, whose times are "
            "kept in memory. Give a lower rate or a shorter --duration."
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
