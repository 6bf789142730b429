"""Flags of multi_instance.py that measure many combinations in place of one run, and the settings they make."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from ..bench.options import DEFAULT_LIBRARY, count, run_settings
from ..bench.session import RunSettings
from ..engines.interface import OURS
from ..errors import UserError
from ..machine.files import check_not_read, check_writable
from ..runtime.artifact import files_of_library
from .libraries import sweep_name
from .plan import AUTO, SweepSpec
from .plot import check_plot, roofline_path
from .state import is_of_a_sweep

_DURATION_S, _WARMUP_S = 2.0, 0.5  # a sweep has many windows
FORMATS = ("markdown", "csv", "json")
_MOST_REPEATS = 1000
_OVERHEAD_S = 4.0  # of a run: starting the instances, and the peak before and after


@dataclass(frozen=True)
class SweepSettings:
    """What is swept. run: everything else of each run; its instances and threads are those of axes left out.

    compile_model: whether the demo is compiled where run.model is missing; seed: None draws one; output: the result,
    None for NAME.sweep.json beside the libraries, with .ENGINE and .PRECISION where --engine and its precision are
    given.
    """

    spec: str
    run: RunSettings
    duration_s: float
    warmup_s: float
    repeats: int = 3
    seed: int | None = None
    max_latency_ms: float | None = None
    csv: Path | None = None
    output: Path | None = None
    plot: Path | None = None
    resume: bool = False
    compile_model: bool = False

    @property
    def result_path(self) -> Path:
        engine = None if self.run.engine == OURS else self.run.engine
        parts = (sweep_name(self.run.model), engine, self.run.engine_precision, "sweep", "json")
        return self.output or self.run.model.with_name(".".join(filter(None, parts)))

    @property
    def state_path(self) -> Path:
        return self.result_path.with_suffix(".jsonl")

    @property
    def files(self) -> dict[str, Path]:
        """What is written, by the option that names it."""
        named = {"--output": self.result_path, "--output's state": self.state_path}
        named |= {"--csv": self.csv, "--plot": self.plot}
        return {option: path for option, path in named.items() if path}

    @property
    def seconds_each(self) -> float:
        """Of one run."""
        return self.warmup_s + self.duration_s + _OVERHEAD_S


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--sweep",
        metavar="SPEC",
        nargs="+",
        help="auto, or axes such as cores=1-8*2 threads=1,2 batch=16,100 engine=ours,openvino precision=int8 rate=50",
    )
    group.add_argument("--repeats", type=count, metavar="N", help="rounds over all combinations; default 3")
    group.add_argument("--csv", type=Path, metavar="FILE", help="write the table there")
    group.add_argument("--resume", action="store_true", help="go on with an interrupted sweep")
    group.add_argument("--sweep-seed", type=int, metavar="N", help="of the random order; default: drawn")


def add_table_options(group: argparse._ArgumentGroup) -> None:
    """Of runs and sweeps."""
    group.add_argument(
        "--format", choices=FORMATS, help="print a table in place of the summary, which goes to stderr; or the JSON"
    )
    group.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw as .png, .svg or .pdf: of a sweep throughput against p99, of a run its latencies, with --profile "
        "its roofline as FILE.roofline too",
    )
    group.add_argument(
        "--results",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: one table, and with --plot one picture, of what --output left earlier",
    )


def check_sweep_options(args: argparse.Namespace) -> None:
    """Raises UserError for flags that need --sweep, flags that --sweep excludes, and an impossible latency."""
    named = ("repeats", "csv", "resume", "sweep_seed")
    values = {name: getattr(args, name) for name in named}
    given = [name for name, value in values.items() if value is not None and value is not False]  # 0 is given
    if given and args.sweep is None:
        raise UserError(f"--{given[0].replace('_', '-')} is of a sweep: add --sweep auto, or leave it out.")
    if args.repeats and args.repeats > _MOST_REPEATS:
        raise UserError(f"--repeats {args.repeats}: at most {_MOST_REPEATS:,} were wanted.")
    if args.scenario and (args.plot or args.format in ("markdown", "csv")):
        raise UserError("--plot and tables are of runs and sweeps without LoadGen. Leave them or --scenario out.")
    if args.results and (args.sweep or args.scenario):
        raise UserError("--results shows what was measured earlier. Leave --sweep and --scenario out.")
    if args.results and (args.output or args.format == "json"):
        raise UserError("--results is of JSON files and makes none: give --format markdown or csv, without --output.")
    if args.sweep is None:
        _check_files_of_run(args)
    if args.sweep is not None and (args.arrivals != "closed" or args.until_stable or args.profile or args.baseline):
        raise UserError(
            "--sweep runs windows of one length, of rates by its axis rate=. Leave --arrivals, --until-stable, "
            "--profile and --baseline out."
        )


def _check_files_of_run(args: argparse.Namespace) -> None:
    written = {"--output": args.output, "--latencies": args.latencies, "--plot": args.plot}
    if args.plot:
        check_plot(args.plot)
        written |= {"--plot's roofline": roofline_path(args.plot)} if args.profile else {}
    for option, path in written.items():
        if path:
            check_writable(option, path)
    read = [args.ref_data, args.trace, args.mlperf_conf, args.user_conf, *(args.results or ()), *(args.baseline or ())]
    check_not_read(written, [*files_of_library(args.model, args.onnx_model), *read])


def sweep_settings(args: argparse.Namespace) -> SweepSettings:
    return SweepSettings(
        spec=";".join(args.sweep),
        run=run_settings(args),
        duration_s=_DURATION_S if args.duration is None else args.duration,
        warmup_s=_WARMUP_S if args.warmup is None else args.warmup,
        repeats=args.repeats or 3,
        seed=args.sweep_seed,
        max_latency_ms=args.max_latency_ms,
        csv=args.csv,
        output=args.output,
        plot=args.plot,
        resume=args.resume,
        compile_model=args.model == DEFAULT_LIBRARY,
    )


def check_files(settings: SweepSettings) -> None:
    """What can be known of files before the state is locked and the library is opened. Raises UserError."""
    run, state = settings.run, settings.state_path
    check_not_read(settings.files, [*files_of_library(run.model, run.onnx_model), run.ref_data])
    if settings.plot:
        check_plot(settings.plot)
    for option, path in settings.files.items():
        check_writable(option, path)
    if settings.resume and not state.exists():
        raise UserError(f"{state}: no such file, so there is no sweep to resume. Leave --resume out.")
    is_empty = state.exists() and not state.stat().st_size  # left by a sweep that was killed before its first run
    for path in (settings.result_path, *([] if is_empty else [state])):
        if path.exists() and not is_of_a_sweep(path):
            raise UserError(f"--output {path}: a file that no sweep left has that name. Give another name.")


def check_contradictions(settings: SweepSettings, spec: SweepSpec) -> None:
    """Raises UserError for flags of a single run that the sweep would have to overrule."""
    run, chosen = settings.run, {axis for axis, values in asdict(spec).items() if values}
    if settings.spec == AUTO:
        chosen = {"instances", "threads"}
    for axis, flag, is_given in (
        ("instances", "--num-instances", run.instances is not None),
        ("cores", "--num-instances", run.instances is not None),
        ("threads", "--num-threads", run.threads != 1),
        ("engine", "--engine", run.engine != OURS),
        ("precision", "--engine-precision", run.engine_precision is not None),
    ):
        if is_given and axis in chosen:
            raise UserError(f"--sweep chooses {axis}, {flag} too: give one of the two.")
