"""Flags of multi_instance.py for one run, their checks, and the settings made of them.

Flags for LoadGen and for sweeps: loadgen/options.py, sweep/options.py.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from ..engines.interface import ENGINES, OURS, check_precision
from ..errors import UserError
from ..instances.arrivals import KINDS, Arrivals, read_trace
from ..instances.progress import LEAST_STABLE_S
from ..machine.numa import POLICIES
from ..model.precision import PRECISIONS
from ..paths import DEFAULT_LIBRARY
from .rate_search import Target
from .session import RunSettings

_DURATION_S, _WARMUP_S = 10.0, 2.0
_MAX_SECONDS = 86_400
MOST_QPS = 1_000_000
_MOST_REQUESTS = 50_000_000
_MOST_BURST = 1_000_000


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Library, cores, inputs and durations; arrivals, a profile, another engine."""
    _add_setting_options(parser)
    _add_arrival_options(parser)
    _add_profile_options(parser)
    _add_engine_options(parser)


def _add_setting_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=DEFAULT_LIBRARY, metavar="SO", help="default: %(default)s")
    parser.add_argument("--num-instances", type=count, metavar="N", help="default: as many as there are cores for")
    parser.add_argument("--num-threads", type=count, default=1, metavar="T", help="of each instance; default 1")
    parser.add_argument(
        "--duration", type=float, metavar="S", help="timed window; default 10 s, 2 s in a sweep, 60 s under LoadGen"
    )
    parser.add_argument("--warmup", type=float, metavar="S", help="before it; default 2 s, in a sweep 0.5 s")
    parser.add_argument("--cores", metavar="LIST", help="use these, in this order, such as 0-3,8,10-11")
    parser.add_argument("--hyper-threading", action="store_true", help="use all hardware threads of a core, not one")
    parser.add_argument("--ref-data", type=Path, metavar="FILE", help="take inputs from it; default: random rows")
    parser.add_argument(
        "--max-ind-range",
        type=count,
        metavar="N",
        help="take its indices modulo N, as facebookresearch/dlrm's --max-ind-range does in training",
    )
    parser.add_argument(
        "--indices-per-bag",
        type=_counts,
        metavar="P",
        help="random bags of P rows, or one number for each table as in 3,1,20; default: as the model's graph fixes "
        "them, else 1: no bags",
    )
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
        help="compare with the outputs of earlier runs; the noise between runs is known from two or more",
    )
    parser.add_argument(
        "--fail-on-regression",
        type=float,
        nargs="?",
        const=0.0,
        metavar="PERCENT",
        help="exit status 3 where items/s are lower than --baseline's by more than the noise and so many percent",
    )

    parser.add_argument("--latencies", type=Path, metavar="FILE", help="write each batch's latency there: .npz or .csv")


def _add_arrival_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("arrivals")
    group.add_argument("--arrivals", choices=KINDS, default="closed", help="when batches are requested; default closed")
    group.add_argument("--rate", type=float, metavar="R", help="batches per second in all; of a trace: as recorded")
    group.add_argument("--burst", type=count, default=1, metavar="N", help="so many at a time, at the same rate")
    group.add_argument(
        "--arrival-seed",
        type=int,
        metavar="N",
        help="which random moments --arrivals poisson has; default 0; with --ray those of node 0",
    )
    group.add_argument("--trace", type=Path, metavar="FILE", help="of --arrivals trace: a time in seconds per line")
    group.add_argument(
        "--max-latency-ms",
        type=float,
        metavar="X",
        help="search the highest poisson rate that keeps to X ms; in a sweep: name the fastest whose p99 does",
    )
    group.add_argument("--percentile", type=float, metavar="P", help="of the latency that X bounds; default 99")
    group.add_argument("--until-stable", action="store_true", help="end early when throughput is stable within 1 %%")


def _add_profile_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where the time goes")
    group.add_argument(
        "--profile",
        action="store_true",
        help="time of each layer beside its limit; for libraries of compile.py --profile",
    )


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("another engine in the library's place")
    group.add_argument(
        "--engine", choices=(OURS, *ENGINES), default=OURS, help="which one is measured; default: %(default)s"
    )
    group.add_argument(
        "--onnx-model",
        type=Path,
        metavar="PATH",
        help="the file it runs; default: that of the library",
    )
    group.add_argument("--engine-precision", choices=PRECISIONS, help="its precision; default: the library's")


def check_run_options(args: argparse.Namespace) -> None:
    """Raises UserError for values out of range and for flags that do not go together."""
    _check_setting_options(args)
    _check_arrival_options(args)


def _check_setting_options(args: argparse.Namespace) -> None:
    for option, seconds in (("--duration", args.duration), ("--warmup", args.warmup)):
        if seconds is not None:
            check_seconds(option, seconds)
    if args.duration == 0:
        raise UserError("--duration 0: more than 0 seconds were wanted.")
    is_of_many = args.sweep is not None or args.scenario
    if args.latencies is not None and (args.latencies.suffix not in (".npz", ".csv") or is_of_many):
        raise UserError(f"--latencies {args.latencies}: a name in .npz or .csv, for a run of its own, was wanted.")
    if args.ref_data is not None and not args.ref_data.exists():
        raise UserError(f"{args.ref_data}: no such file. Give data with --ref-data FILE.")
    if args.indices_per_bag and args.ref_data:
        raise UserError(f"--indices-per-bag makes random bags, {args.ref_data} has its own: give one of the two.")
    if args.max_ind_range and not args.ref_data:
        raise UserError("--max-ind-range is for the indices of a file. Give --ref-data FILE too, or leave it out.")
    if args.fail_on_regression is not None and not (args.baseline and 0 <= args.fail_on_regression < 100):
        raise UserError("--fail-on-regression takes 0 to 100 percent, of what --baseline FILE says. Give both.")
    if args.engine == OURS and args.onnx_model and args.sweep is None:
        raise UserError(f"--onnx-model is what another engine runs. Give --engine {' or '.join(ENGINES)} too.")
    if args.engine == OURS and args.engine_precision:
        raise UserError(
            "--engine-precision is what another engine runs at; a library's is that of compile.py --precision. "
            f"Give --engine {' or '.join(ENGINES)} too."
        )
    if args.engine != OURS:
        check_ours_only(args, args.engine)
        if args.engine_precision:
            check_precision(args.engine, args.engine_precision)


def check_ours_only(run: argparse.Namespace | RunSettings, engine: str) -> None:
    """Raises UserError for what another engine cannot do."""
    for option in ("profile", "preload", "huge_pages", "numa"):
        if getattr(run, option):
            flag = "--" + option.replace("_", "-")
            raise UserError(f"{flag} is for our own library, not for --engine {engine}: give one of the two.")


def _check_arrival_options(args: argparse.Namespace) -> None:
    is_open = args.arrivals != "closed"
    if is_open and args.profile:
        raise UserError(f"--profile times calls back to back, not --arrivals {args.arrivals}: give one of the two.")
    if args.until_stable and args.duration is not None and args.duration < LEAST_STABLE_S:
        raise UserError(
            f"--until-stable --duration {args.duration:g}: three windows of a second must be alike. Give "
            f"{LEAST_STABLE_S:g} s or more."
        )
    if is_open and args.rate is None and args.arrivals != "trace":
        raise UserError(f"--arrivals {args.arrivals} needs a rate. Give --rate R, in batches per second.")
    if not is_open and args.rate is not None:
        raise UserError("--rate goes with --arrivals fixed, poisson or trace; a closed loop has none.")
    if args.rate is not None and not 0 < args.rate <= MOST_QPS:
        raise UserError(f"--rate {args.rate:g}: more than 0 and at most {MOST_QPS:,} were wanted.")
    if args.burst > 1 and args.arrivals not in ("fixed", "poisson"):
        raise UserError(f"--burst {args.burst} goes with --arrivals fixed or poisson, not with {args.arrivals}.")
    if args.arrival_seed is not None and (args.arrivals != "poisson" or args.arrival_seed < 0):
        raise UserError(f"--arrival-seed {args.arrival_seed}: 0 or more was wanted, with --arrivals poisson.")
    if args.burst > _MOST_BURST:
        raise UserError(f"--burst {args.burst}: at most {_MOST_BURST:,} were wanted.")
    if (args.arrivals == "trace") != (args.trace is not None):
        raise UserError("--arrivals trace and --trace FILE go together: give both or none.")
    _check_target(args, is_open=is_open)
    rate = args.rate
    if args.trace:
        times_s = read_trace(str(args.trace))
        rate = rate or (len(times_s) - 1) / times_s[-1]
    seconds = duration_s(args) + warmup_s(args)
    if is_open and rate * seconds > _MOST_REQUESTS:
        raise UserError(
            f"{rate:g} batches/s for {seconds:g} s, the warm-up included, are more than {_MOST_REQUESTS:,} batches, "
            "whose times are kept in memory. Give a lower rate, or a shorter --duration and --warmup."
        )


def _check_target(args: argparse.Namespace, *, is_open: bool) -> None:
    bound, percentile = args.max_latency_ms, args.percentile
    if bound is not None and not 0 < bound < float("inf"):
        raise UserError(f"--max-latency-ms {bound:g}: milliseconds above 0 were wanted.")
    if percentile is not None and (bound is None or args.sweep is not None or not 0 < percentile < 100):
        raise UserError(f"--percentile {percentile:g}: above 0, below 100, with --max-latency-ms, not in a sweep.")
    if bound is not None and args.sweep is None and (is_open or args.until_stable or args.profile):
        raise UserError("--max-latency-ms searches a rate: leave --arrivals, --until-stable and --profile out.")


def arrivals_of(args: argparse.Namespace) -> Arrivals:
    return Arrivals(args.arrivals, args.rate, args.burst, args.trace and str(args.trace), args.arrival_seed or 0)


def target_of(args: argparse.Namespace) -> Target | None:
    """What the search of a rate is for, None where none was asked for."""
    return None if args.max_latency_ms is None else Target(args.max_latency_ms, args.percentile or 99.0)


def run_settings(args: argparse.Namespace) -> RunSettings:
    named = {field.name: getattr(args, field.name) for field in fields(RunSettings) if hasattr(args, field.name)}
    return RunSettings(**named, instances=args.num_instances, threads=args.num_threads)


def duration_s(args: argparse.Namespace) -> float:
    """Of the timed window of one run."""
    return _DURATION_S if args.duration is None else args.duration


def warmup_s(args: argparse.Namespace) -> float:
    return _WARMUP_S if args.warmup is None else args.warmup


def count(text: str) -> int:
    """An argparse type: an integer from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _counts(text: str) -> tuple[int, ...]:
    """An argparse type: integers from 1 up with commas between."""
    try:
        return tuple(count(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, or numbers as in 3,1,20") from None


def check_seconds(option: str, value: float) -> None:
    if not 0 <= value <= _MAX_SECONDS:  # a NaN is neither
        raise UserError(f"{option} {value:g}: 0 to {_MAX_SECONDS} seconds (a day) were wanted.")
