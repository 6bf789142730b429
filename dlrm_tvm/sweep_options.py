"""Flags of multi_instance.py by which many combinations are measured in place of one run, and what they make."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import UserError
from .options import DEFAULT_MODEL, count, run_settings
from .sweep_setup import SweepSettings

_DURATION_S, _WARMUP_S = 2.0, 0.5  # a sweep has many windows


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Many combinations in place of one run."""
    group = parser.add_argument_group("sweep")
    group.add_argument("--sweep", metavar="SPEC", help='such as "instances=1,2;threads=1-4;batch=16,100", or auto')
    group.add_argument("--repeats", type=count, metavar="N", help="rounds over all combinations; default 3")
    group.add_argument("--max-latency-ms", type=float, metavar="X", help="name the fastest whose p99 is at most X ms")
    group.add_argument("--csv", type=Path, metavar="FILE", help="write the table there")
    group.add_argument(
        "--json", type=Path, metavar="FILE", help="keep the state there; default: NAME[.ENGINE].sweep.json"
    )
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw throughput against p99: .png or .svg")
    group.add_argument("--resume", action="store_true", help="go on with an interrupted sweep")
    group.add_argument("--sweep-seed", type=int, metavar="N", help="of the order of the runs; default: drawn")


def check_sweep_options(args: argparse.Namespace) -> None:
    """Raises UserError for flags that need --sweep, and for a latency that is none."""
    named = ("repeats", "max_latency_ms", "csv", "json", "plot", "resume", "sweep_seed")
    given = [name for name in named if getattr(args, name) not in (None, False)]
    if given and args.sweep is None:
        raise UserError(f"--{given[0].replace('_', '-')} is of a sweep: add --sweep auto, or leave it out.")
    if args.sweep is not None and (args.arrivals != "closed" or args.until_stable or args.profile or args.baseline):
        raise UserError(
            "--sweep runs closed loops of one length. Leave arrivals, --until-stable, --profile and --baseline out."
        )
    if args.max_latency_ms is not None and not 0 < args.max_latency_ms < float("inf"):
        raise UserError(f"--max-latency-ms {args.max_latency_ms:g}: milliseconds above 0 were wanted.")


def sweep_settings(args: argparse.Namespace) -> SweepSettings:
    return SweepSettings(
        spec=args.sweep,
        run=run_settings(args),
        duration_s=_DURATION_S if args.duration is None else args.duration,
        warmup_s=_WARMUP_S if args.warmup is None else args.warmup,
        repeats=args.repeats or 3,
        seed=args.sweep_seed,
        max_latency_ms=args.max_latency_ms,
        csv=args.csv,
        state=args.json,
        plot=args.plot,
        resume=args.resume,
        compile_model=args.model == DEFAULT_MODEL,
    )
