"""Results that multi_instance.py left earlier, runs and sweeps of any machine, as rows of one table and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..bench.baseline import file_problem, is_positive, json_object
from ..console import result_line, show, show_result
from ..errors import UserError
from ..machine.files import write_whole_file
from ..model.precision import PRECISIONS
from .plan import Combination, Planned
from .plot import throughput_picture
from .report import run_figures, sweep_csv, sweep_markdown, table_lines
from .results import Outcome, Summary, summarise


def read_results(paths: Sequence[Path], max_latency_ms: float | None) -> tuple[Summary, str]:
    """All their runs, and a title. Rows say which file they are of where there are several.

    Raises UserError for a file that is no result.
    """
    outcomes, models = [], {}
    names = [path.stem.removesuffix(".sweep") for path in paths]
    if len(set(names)) < len(names):  # of several folders
        names = [str(path) for path in paths]
    for at, (path, name) in enumerate(zip(paths, names)):
        problem = "given twice" if path.resolve() in {each.resolve() for each in paths[:at]} else file_problem(path)
        if problem:
            raise UserError(f"--results {path}: {problem}. Give files of multi_instance.py's --output.")
        try:
            fields = json_object(path)
            found = outcomes_of(fields, name if len(paths) > 1 else None)
            _check(found)
            outcomes += found
            models[f"{fields['model']}: {fields['environment']['cpu']}"] = None
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"--results {path}: no result of multi_instance.py. Give files of its --output.") from None
    return summarise(outcomes, max_latency_ms), "; ".join(models)


def _check(outcomes: Sequence[Outcome]) -> None:
    """Raises TypeError for values that no run has, and where there is no run."""
    for outcome in outcomes:
        one, figures = outcome.planned.combination, outcome.figures
        numbers = [figures[key] for key in ("items_per_s", "peak_fraction", "batches")]
        numbers += [*(figures["latency_ms"][key] for key in ("p50", "p99")), one.rate or 1]
        counts = [one.instances, one.threads, one.batch, outcome.planned.round + 1]
        texts = [one.engine or "", one.arrivals or "", *figures["warnings"]]
        is_known = one.precision in (None, *PRECISIONS) and all(isinstance(each, int) for each in counts)
        if not (is_known and all(map(is_positive, numbers + counts)) and all(isinstance(each, str) for each in texts)):
            raise TypeError
    if not outcomes:
        raise TypeError


def outcomes_of(fields: Mapping[str, object], source: str | None = None) -> list[Outcome]:
    """The runs of a result: one, or a sweep's. source: the file's name. Raises KeyError where it is something else."""
    if "combinations" not in fields:
        return [Outcome(Planned(0, _combination(fields, fields, source)), run_figures(fields))]
    return [
        Outcome(Planned(run["round"], _combination(each, fields, source)), run_figures(run))
        for each in fields["combinations"]
        for run in each["repeats"]
    ]


def show_results(paths: Sequence[Path], max_latency_ms: float | None, form: str | None, plot: Path | None) -> None:
    summary, title = read_results(paths, max_latency_ms)
    if form:
        print_table(summary, form)
    else:
        show("\n".join([title, *table_lines(summary)]))
    if plot:
        write_whole_file(plot, throughput_picture(summary, title, plot.suffix))


def show_as(fields: Mapping[str, object], form: str | None = None) -> None:
    """A result on stdout, for programs. form: of --format."""
    if form in ("markdown", "csv"):
        print_table(summarise(outcomes_of(fields), None), form)
    elif form == "json":
        print(result_line(fields), flush=True)
    else:
        show_result(fields)


def print_table(summary: Summary, form: str) -> None:
    print(sweep_markdown(summary) if form == "markdown" else sweep_csv(summary).decode().rstrip("\n"), flush=True)


def _combination(each: Mapping[str, object], fields: Mapping[str, object], source: str | None) -> Combination:
    named = {key: each.get(key) or fields.get(key) for key in ("engine", "precision")}
    numbers = (each[key] for key in ("instances", "threads", "batch_size"))
    return Combination(*numbers, **named, rate=each.get("rate"), source=source, arrivals=_arrivals(each))


def _arrivals(run: Mapping[str, object]) -> str | None:
    """ "fixed, 8 at a time", "trace of a.txt"; None for a closed loop."""
    kind, burst, trace = (run.get(key) for key in ("arrivals", "burst", "trace"))
    if kind in (None, "closed"):
        return None
    return f"{kind} of {trace}" if trace else f"{kind}, {burst} at a time" if burst and burst > 1 else kind
