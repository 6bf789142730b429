"""A sweep: every combination measured round by round, kept after every run.

    prepared -> rounds, shuffled -> state file after each run -> table, CSV, JSON, plot

Ctrl-C and SIGTERM end it with what was measured; the run they fall into is dropped, its window being short of the
others'. A combination that fails is recorded with its error, and the sweep goes on.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import UserError, one_line
from .output_files import write_whole_file
from .report import results_json
from .result_line import result_line
from .session import measure, open_session
from .sweep_libraries import deleted_text
from .sweep_lock import locked
from .sweep_plan import Combination, Planned
from .sweep_plot import draw_plot
from .sweep_progress import Progress
from .sweep_report import run_figures, sweep_csv, sweep_json, sweep_text
from .sweep_results import Outcome, Summary, summarise
from .sweep_setup import Prepared, SweepSettings, check_files, heading, prepare
from .sweep_state import keep_earlier, write_state

MeasureOne = Callable[[SweepSettings, Combination, Path], dict[str, object]]


def run_sweep(settings: SweepSettings, show: Callable[[str], None], measure_one: MeasureOne | None = None) -> int:
    """The whole story; the exit status. Raises UserError before anything is measured, or when nothing could be."""
    check_files(settings)
    with _termination_as_interrupt(), locked(settings.state_path):
        prepared = prepare(settings, show)
        outcomes, interrupted = measure_all(settings, prepared, show, measure_one or measure_combination)
        if not any(outcome.figures for outcome in outcomes):
            if interrupted:
                raise KeyboardInterrupt
            raise UserError(f"None of the runs succeeded. The first: {outcomes[0].error}")
        summary = summarise(outcomes, settings.max_latency_ms)
        show(sweep_text(summary, settings.repeats))
        fields = _fields(settings, prepared, outcomes, interrupted)
        failed = _unwritten(write_state, settings.state_path, fields)
        if interrupted and not failed:
            show(f"Interrupted: {fields['runs_left']} runs are left. The same command with --resume does them.")
        show(result_line(fields))  # whatever becomes of the files
        failed += _write_tables(settings, summary, fields)
        if failed:
            raise UserError(f"{'; '.join(failed)}. The line before has all figures.")
    return 1 if interrupted else 0


def measure_all(
    settings: SweepSettings, prepared: Prepared, show: Callable[[str], None], measure_one: MeasureOne
) -> tuple[list[Outcome], bool]:
    """Every run that is not done yet, in order; all outcomes, and whether it was interrupted.

    Ends after a first round in which nothing could be measured, and as if interrupted where the state cannot be kept.
    """
    outcomes = list(prepared.done)
    done = {outcome.planned for outcome in outcomes}
    pending = [planned for planned in prepared.planned if planned not in done]
    if not settings.resume and (said := keep_earlier(settings.state_path)):
        show(said)
    if settings.resume:
        show(f"resumed: {len(done)} runs were measured already, {len(pending)} are left")
    try:
        with Progress(pending, show) as progress:
            for planned in pending:
                if planned.round and not any(outcome.figures for outcome in outcomes):
                    break
                outcome = _measured(settings, prepared, planned, measure_one)
                outcomes.append(outcome)
                fields = _fields(settings, prepared, outcomes, interrupted=False)
                failed = _unwritten(write_state, settings.state_path, fields)
                progress.advance(outcome)
                if failed:
                    show(f"{failed[0]}: the sweep ends here, for no more runs could be kept.")
                    return outcomes, True
    except KeyboardInterrupt:
        return outcomes, True
    return outcomes, False


def measure_combination(settings: SweepSettings, combination: Combination, library: Path) -> dict[str, object]:
    """The JSON that multi_instance.py prints of one run. Raises KeyboardInterrupt where that was cut short."""
    run = replace(settings.run, model=library, instances=combination.instances, threads=combination.threads)
    with open_session(run, _quiet) as session:
        report = measure(session, duration_s=settings.duration_s, warmup_s=settings.warmup_s, show=_quiet)
    if report.interrupted:
        raise KeyboardInterrupt
    return results_json(report)


def _measured(settings: SweepSettings, prepared: Prepared, planned: Planned, measure_one: MeasureOne) -> Outcome:
    combination = planned.combination
    library = prepared.libraries[combination.batch]
    try:
        figures = run_figures(measure_one(settings, combination, library))
        _check_finite(figures)
    except (UserError, OSError, RuntimeError) as error:
        if not library.exists():
            return Outcome(planned, error=deleted_text(combination.batch, library))
        return Outcome(planned, error=one_line(error))
    return Outcome(planned, figures=figures)


def _fields(
    settings: SweepSettings, prepared: Prepared, outcomes: Sequence[Outcome], interrupted: bool
) -> dict[str, object]:
    """The sweep's JSON as of now."""
    left = len(set(prepared.planned) - {outcome.planned for outcome in outcomes})
    facts = prepared.facts | {"finished": left == 0, "interrupted": interrupted, "runs_left": left}
    return sweep_json(summarise(outcomes, settings.max_latency_ms), outcomes, facts)


def _check_finite(figures: dict[str, object]) -> None:
    try:
        json.dumps(figures, allow_nan=False)
    except ValueError as error:
        raise UserError(f"The run has figures that are no numbers ({error}).") from None


def _write_tables(settings: SweepSettings, summary: Summary, fields: dict[str, object]) -> list[str]:
    """CSV and plot; what could not be written."""
    failed = []
    if settings.csv:
        failed += _unwritten(write_whole_file, settings.csv, sweep_csv(summary))
    if settings.plot:
        title = f"{heading(fields)}: {fields['environment']['cpu']}"
        file_format = settings.plot.suffix.lower().removeprefix(".")
        content = draw_plot(summary, title=title, file_format=file_format)
        failed += _unwritten(write_whole_file, settings.plot, content)
    return failed


def _unwritten(write: Callable[[Path, Any], None], path: Path, content: object) -> list[str]:
    """Write it -> what the disk says to it, none where it was written."""
    try:
        write(path, content)
    except OSError as error:
        return [f"{path} could not be written ({error.strerror or error})"]
    return []


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM does what Ctrl-C would at that moment."""

    def pass_on(number: int, frame: object) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # Ctrl-C is ignored, as after a shell's &
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _quiet(text: str) -> None:
    """A run's own lines would drown the table."""
