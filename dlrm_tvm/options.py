"""Flags of multi_instance.py, a group and its checks per purpose, and the settings that they make."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .errors import UserError
from .numa import POLICIES
from .session import RunSettings
from .sweep_setup import SweepSettings

DEFAULT_MODEL = Path(os.path.relpath(Path(__file__).parents[1] / "__prebuilt" / "dlrm_avx512_b100.so"))
_MAX_SECONDS = 86_400


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What is run, where, on which inputs; how long."""
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="SO", help="default: %(default)s")
    parser.add_argument("--num-instances", type=count, metavar="N", help="default: as many as there are cores for")
    parser.add_argument("--num-threads", type=count, default=1, metavar="T", help="of each instance; default 1")
    parser.add_argument("--duration", type=float, metavar="S", help="timed window; default 10 s, in a sweep 2 s")
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


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Many combinations in place of one run."""
    group = parser.add_argument_group("sweep")
    group.add_argument("--sweep", metavar="SPEC", help='such as "instances=1,2;threads=1-4;batch=16,100", or auto')
    group.add_argument("--repeats", type=count, metavar="N", help="rounds over all combinations; default 3")
    group.add_argument("--max-latency-ms", type=float, metavar="X", help="name the fastest whose p99 is at most X ms")
    group.add_argument("--csv", type=Path, metavar="FILE", help="write the table there")
    group.add_argument("--json", type=Path, metavar="FILE", help="keep the state there; default: NAME.sweep.json")
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw throughput against p99: .png or .svg")
    group.add_argument("--resume", action="store_true", help="go on with an interrupted sweep")
    group.add_argument("--sweep-seed", type=int, metavar="N", help="of the order of the runs; default: drawn")


def set_durations(args: argparse.Namespace) -> None:
    """What was not given: a sweep has many windows, and makes them shorter."""
    duration_s, warmup_s = (2.0, 0.5) if args.sweep is not None else (10.0, 2.0)
    args.duration = duration_s if args.duration is None else args.duration
    args.warmup = warmup_s if args.warmup is None else args.warmup


def check_sweep_options(args: argparse.Namespace) -> None:
    """Raises UserError for flags that need --sweep, and for a latency that is none."""
    named = ("repeats", "max_latency_ms", "csv", "json", "plot", "resume", "sweep_seed")
    given = [name for name in named if getattr(args, name) not in (None, False)]
    if given and args.sweep is None:
        raise UserError(f"--{given[0].replace('_', '-')} is of a sweep: add --sweep auto, or leave it out.")
    if args.max_latency_ms is not None and not 0 < args.max_latency_ms < float("inf"):
        raise UserError(f"--max-latency-ms {args.max_latency_ms:g}: milliseconds above 0 were wanted.")


def check_run_options(args: argparse.Namespace) -> None:
    """Raises UserError for what no run can be made of."""
    check_seconds("--duration", args.duration)
    check_seconds("--warmup", args.warmup)
    if args.duration == 0:
        raise UserError("--duration 0: more than 0 seconds were wanted.")
    if args.indices_per_bag and args.ref_data:
        raise UserError(f"--indices-per-bag makes random bags, {args.ref_data} has its own: give one of the two.")


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
    )


def sweep_settings(args: argparse.Namespace) -> SweepSettings:
    return SweepSettings(
        spec=args.sweep,
        run=run_settings(args),
        duration_s=args.duration,
        warmup_s=args.warmup,
        repeats=args.repeats or 3,
        seed=args.sweep_seed,
        max_latency_ms=args.max_latency_ms,
        csv=args.csv,
        state=args.json,
        plot=args.plot,
        resume=args.resume,
        compile_model=args.model == DEFAULT_MODEL,
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
