"""Results that multi_instance.py left earlier, runs and sweeps of any machine, as rows of one table and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bench.baseline import read_files
from ..console import result_line, show, show_result
from ..errors import UserError, printable
from ..machine.files import write_whole_file
from ..runtime.typed_json import parse
from .plot import throughput_picture
from .report import run_figures, sweep_csv, sweep_markdown, table_lines
from .results import Outcome, Summary, read_outcome, summarise


def read_results(paths: Sequence[Path], max_latency_ms: float | None) -> tuple[Summary, str]:
    """All their runs, and a title. Rows say which file they are of where there are several.

    Raises UserError for a file that is no result.
    """
    outcomes, models = [], {}
    names = [path.stem.removesuffix(".sweep") for path in paths]
    if len(set(names)) < len(names):  # of several folders
        names = [str(path) for path in paths]
    for path, name, fields in zip(paths, names, read_files("--results", paths)):
        try:
            outcomes += outcomes_of(fields, printable(name) if len(paths) > 1 else None)
            models[printable(f"{fields['model']}: {fields['environment']['cpu']}")] = None
        except (KeyError, TypeError, AttributeError, ValueError):
            raise UserError(f"--results {path}: no result of multi_instance.py. Give files of its --output.") from None
    return summarise(outcomes, max_latency_ms), "; ".join(models)


def outcomes_of(fields: Mapping[str, Any], source: str | None = None) -> list[Outcome]:
    """The runs of a result: one, or a sweep's; at least one. source: the file's name.

    Raises KeyError, TypeError, AttributeError or ValueError where it is something else.
    """
    if "combinations" not in fields:
        return [_outcome(fields, fields, {**fields, "round": 0}, source)]
    combinations = [(each, run) for each in fields["combinations"] for run in each["repeats"]]
    if not combinations:
        raise ValueError("no runs")
    return [_outcome(each, fields, run, source) for each, run in combinations]


def show_results(paths: Sequence[Path], max_latency_ms: float | None, form: str | None, plot: Path | None) -> None:
    summary, title = read_results(paths, max_latency_ms)
    if form:
        print_table(summary, form)
    else:
        show("\n".join([title, *table_lines(summary)]))
    if plot:
        write_whole_file(plot, throughput_picture(summary, title, plot.suffix))


def show_as(fields: Mapping[str, object], form: str | None = None) -> bool:
    """A result on stdout, for programs; whether all of it. form: of --format."""
    if form in ("markdown", "csv") and fields.keys() & {"latency_ms", "combinations"}:  # a search may end without
        print_table(summarise(outcomes_of(parse(result_line(fields))), None), form)
        return False
    if form != "json":
        return show_result(fields)
    print(result_line(fields), flush=True)
    return True


def print_table(summary: Summary, form: str) -> None:
    print(sweep_markdown(summary) if form == "markdown" else sweep_csv(summary).decode().rstrip("\n"), flush=True)


def _outcome(one: Mapping[str, Any], fields: Mapping[str, Any], run: Mapping[str, Any], source: str | None) -> Outcome:
    """one: the combination; what it does not name, the result does."""
    named = {key: one.get(key) or fields.get(key) for key in ("engine", "precision")}
    numbers = {key: one[key] for key in ("instances", "threads", "batch_size")}
    entry = {"round": run["round"], **numbers, **named, "rate": one.get("rate"), "figures": run_figures(run)}
    return read_outcome(entry, source, _arrivals(one))


def _arrivals(run: Mapping[str, Any]) -> str | None:
    """ "fixed, 8 at a time", "trace of a.txt"; None for a closed loop."""
    kind, burst, trace = (run.get(key) for key in ("arrivals", "burst", "trace"))
    if kind in (None, "closed"):
        return None
    return f"{kind} of {trace}" if trace else f"{kind}, {burst} at a time" if burst and burst > 1 else kind
