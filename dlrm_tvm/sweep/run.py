"""A sweep: every combination measured round by round, kept after every run.

    prepared -> rounds, shuffled -> a line of state after each run -> table, JSON, CSV, plot

Ctrl-C and SIGTERM end it with what was measured; the run that they cut short is dropped, because its window is shorter
than the others'. A combination that fails is recorded with its error, and the sweep goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from io import FileIO
from pathlib import Path

from ..bench.measure import measure
from ..bench.report import results_json
from ..bench.session import open_session
from ..console import Bar, percentiles_text, show_result
from ..errors import FOUND_WANTING, UserError, interrupted_status, one_line
from ..instances.arrivals import CLOSED, Arrivals
from ..machine.files import leave_result, unwritten
from .libraries import Kind, deleted_text
from .options import SweepSettings, check_files
from .plan import Combination, Planned
from .plot import throughput_picture
from .prepare import Prepared, prepare
from .report import run_figures, sweep_csv, sweep_json, sweep_text
from .results import Outcome, Summary, summarise
from .state import KIND, append, keep_earlier, open_state, run_entry, start_entry

MeasureOne = Callable[[SweepSettings, Combination, Path], dict[str, object]]


def run_sweep(
    settings: SweepSettings,
    show: Callable[[str], None],
    measure_one: MeasureOne | None = None,
    show_fields: Callable[[Mapping[str, object]], bool] | None = None,
) -> int:
    """The whole story; the exit status. Raises UserError before anything is measured, or when nothing could be."""
    check_files(settings)
    with open_state(settings.state_path) as state:
        prepared = prepare(settings, show)
        outcomes, interrupted = measure_all(settings, prepared, state, show, measure_one or measure_combination)
        if not any(outcome.figures for outcome in outcomes):
            if interrupted:
                raise KeyboardInterrupt
            raise UserError(f"None of the runs succeeded. The first: {outcomes[0].error}")
        summary = summarise(outcomes, settings.max_latency_ms)
        show(sweep_text(summary, settings.repeats))
        left = len(set(prepared.planned) - {outcome.planned for outcome in outcomes})
        if interrupted:
            show(f"Interrupted: {left} runs are left. The same command with --resume does them.")
        facts = prepared.facts | {"finished": left == 0, "interrupted": interrupted, "runs_left": left}
        fields = sweep_json(summary, outcomes, facts)
        files = _files(settings, prepared, summary, fields)
        leave_result(fields, settings.result_path, files, show_fields or show_result, of_file={"kind": KIND})
    return interrupted_status() if interrupted else FOUND_WANTING if summary.failed else 0


def measure_all(
    settings: SweepSettings,
    prepared: Prepared,
    state: FileIO,
    show: Callable[[str], None],
    measure_one: MeasureOne,
) -> tuple[list[Outcome], bool]:
    """Every run that is not done yet, in order; all outcomes, and whether it was interrupted.

    Ends after a first round in which nothing could be measured, and as if interrupted where the state cannot be kept.
    """
    pending, outcomes = prepared.pending, list(prepared.done)
    entries = [start_entry(prepared.seed, prepared.fixed, prepared.environment, len(prepared.planned))]
    if prepared.state:
        state.truncate(prepared.state.whole_bytes)
        were = "run was" if len(outcomes) == 1 else "runs were"
        show(f"resumed: {len(outcomes)} {were} measured already, {len(pending)} left")
    elif said := keep_earlier(state, settings.state_path, settings.result_path):
        show(said)
    try:
        with Bar("sweep", len(pending), "runs") as bar:
            for number, planned in enumerate(pending, 1):
                if planned.round and not any(outcome.figures for outcome in outcomes):
                    break
                outcomes.append(_measured(settings, prepared, planned, measure_one))
                try:
                    append(state, *entries, run_entry(outcomes[-1]))
                except OSError as error:
                    show(f"{unwritten(settings.state_path, error)}; no more runs could be kept: the sweep ends here.")
                    return outcomes, True
                entries = []
                bar.update()
                show(f"  {number}/{len(pending)}  {_said(outcomes[-1])}")
    except KeyboardInterrupt:
        return outcomes, True
    return outcomes, False


def _said(outcome: Outcome) -> str:
    combination, figures = outcome.planned.combination, outcome.figures
    if figures is None:
        return f"{combination}: failed: {outcome.error}"
    return f"{combination}: {figures['items_per_s']:,.0f} items/s, {percentiles_text(figures['latency_ms'], 'p99')} ms"


def measure_combination(settings: SweepSettings, combination: Combination, library: Path) -> dict[str, object]:
    """The JSON that multi_instance.py prints of one run. Raises KeyboardInterrupt where that was cut short."""
    run = replace(
        settings.run,
        model=library,
        instances=combination.instances,
        threads=combination.threads,
        engine=combination.engine or settings.run.engine,
    )
    arrivals = CLOSED if combination.rate is None else Arrivals("poisson", combination.rate)
    timing = {"duration_s": settings.duration_s, "warmup_s": settings.warmup_s}
    with open_session(run, _quiet) as session:
        report = measure(session, **timing, show=_quiet, arrivals=arrivals)
    if report.interrupted:
        raise KeyboardInterrupt
    return results_json(report)


def _quiet(text: str) -> None:
    """A run's own lines would drown the table."""


def _measured(settings: SweepSettings, prepared: Prepared, planned: Planned, measure_one: MeasureOne) -> Outcome:
    kind = Kind.of(planned.combination, prepared.base)
    library = prepared.libraries[kind]
    try:
        figures = run_figures(measure_one(settings, planned.combination, library))
        json.dumps(figures, allow_nan=False)  # a ValueError where figures are no numbers
        return Outcome(planned, figures=figures)
    except (ValueError, OSError, RuntimeError) as error:  # a UserError is a ValueError
        return Outcome(planned, error=one_line(error) if library.exists() else deleted_text(library, kind))


def _files(
    settings: SweepSettings, prepared: Prepared, summary: Summary, fields: Mapping[str, object]
) -> dict[Path, Callable[[], bytes]]:
    """CSV and plot."""
    files: dict[Path, Callable[[], bytes]] = {}
    if settings.csv:
        files[settings.csv] = partial(sweep_csv, summary)
    if settings.plot:
        title = f"{prepared.heading}: {fields['environment']['cpu']}"
        files[settings.plot] = partial(throughput_picture, summary, title, settings.plot.suffix)
    return files
