"""States of sweeps and journals of conversions with right checksums over wrong values: one line, or taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hostile import refused_or, spoilt
from outcomes import made_up_run

from dlrm_tvm.compiler.conversion_journal import ConversionJournal, _Progress
from dlrm_tvm.console import result_line
from dlrm_tvm.runtime.parameters import Kept
from dlrm_tvm.sweep.plan import Combination
from dlrm_tvm.sweep.report import sweep_csv, sweep_json, sweep_markdown, sweep_text
from dlrm_tvm.sweep.results import Outcome, summarise
from dlrm_tvm.sweep.state import _line, check_known, check_same, read_state, run_entry, start_entry

ONE, TWO = Combination(1, 1, 4, "ours", "int8"), Combination(1, 2, 8, "openvino", "fp32", 20.5)
SETTINGS, ENVIRONMENT = {"duration_s": 2, "cpu": "AMD", "combinations": [[1, 1, 4]]}, {"cpu": "AMD", "command": "x"}
RUNS = [made_up_run(ONE, 0, 400, 2, "disturbed"), made_up_run(ONE, 1, 410, 2), made_up_run(TWO, 0, 300, 1)]
RUNS.append(Outcome(replace(RUNS[2].planned, round=1), error="Instance 0 was killed."))
ENTRIES = [start_entry(3, SETTINGS, ENVIRONMENT, 4), *map(run_entry, RUNS)]


def resumed(path: Path) -> bool:
    """What --resume does with a state: compares it, and makes tables and JSON of its runs."""
    state = read_state(path)
    check_same(path, state, SETTINGS)
    check_known(path, state, (ONE, TWO))
    summary = summarise(state.measured, 10.0)
    if summary.rows:
        assert sweep_text(summary, 2) and sweep_markdown(summary) and sweep_csv(summary)
    json.loads(result_line(sweep_json(summary, state.outcomes, {"environments": state.environments})))
    return True


def written(path: Path, entries: list[object]) -> Path:
    """Each line with its checksum; a line that is no object as it is."""
    lines = [_line(each) if isinstance(each, dict) else json.dumps(each).encode() + b"\n" for each in entries]
    path.write_bytes(b"".join(lines))
    return path


def test_a_state_as_a_sweep_writes_it_is_taken(tmp_path) -> None:
    assert resumed(written(tmp_path / "a.jsonl", ENTRIES))


@pytest.mark.parametrize("part", range(4))
def test_states_with_changed_values_and_right_checksums_are_one_line_or_taken(tmp_path, part) -> None:
    for seed in range(150 * part, 150 * (part + 1)):
        entries = spoilt(ENTRIES, np.random.default_rng(seed))
        try:
            path = written(tmp_path / "a.jsonl", entries)
        except ValueError:  # NaN, which no line can hold
            continue
        refused_or(lambda path=path: resumed(path))


CHANGED: dict[str, Callable[[list[dict]], object]] = {
    "a run twice": lambda lines: lines.append(lines[1]),
    "a run of another sweep": lambda lines: lines[1].update(batch_size=16),
    "figures beside an error": lambda lines: lines[1].update(error="no"),
    "neither figures nor an error": lambda lines: lines[1].pop("figures"),
    "no start": lambda lines: lines.pop(0),
    "a round below 0": lambda lines: lines[1].update(round=-1),
    "a round of a half": lambda lines: lines[1].update(round=0.5),
    "true as a number": lambda lines: lines[1].update(threads=True),
    "an engine that is a list": lambda lines: lines[1].update(engine=[]),
    "a precision that nobody knows": lambda lines: lines[1].update(precision="fp8"),
    "no throughput": lambda lines: lines[1]["figures"].update(items_per_s=0),
    "a throughput of text": lambda lines: lines[1]["figures"].update(items_per_s="4"),
    "a latency of 10^400": lambda lines: lines[1]["figures"]["latency_ms"].update(p99=10**400),
    "warnings of numbers": lambda lines: lines[1]["figures"].update(warnings=[1]),
    "a figure that no sweep has": lambda lines: lines[1]["figures"].update(colour=1),
    "a seed of text": lambda lines: lines[0].update(seed="3"),
    "settings of another sweep": lambda lines: lines[0]["settings"].update(cpu="Intel"),
    "no command in the environment": lambda lines: lines[0].update(environment={}, settings={}),
    "an environment that is a list": lambda lines: lines[0].update(environment=[]),
    "lists in lists": lambda lines: lines[0]["settings"].update(cpu=json.loads("[" * 400 + "]" * 400)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_state_that_no_sweep_left_is_refused(tmp_path, name) -> None:
    entries = json.loads(json.dumps(ENTRIES))
    CHANGED[name](entries)
    assert refused_or(lambda: resumed(written(tmp_path / "a.jsonl", entries))) is None


def test_a_key_that_comes_twice_is_refused(tmp_path) -> None:
    """The checksum of what a program reads may be right."""
    path = written(tmp_path / "a.jsonl", ENTRIES)
    path.write_bytes(path.read_bytes().replace(b'"threads": 1,', b'"threads": 2, "threads": 1,', 1))
    assert refused_or(lambda: resumed(path)) is None


PROGRESS = asdict(_Progress("key", "build", (0.5, 0.25), Kept(2 << 20, "sha"), ""))


def test_a_journal_with_changed_values_is_begun_anew_and_one_of_ours_is_not(tmp_path) -> None:
    def largest(fields: object) -> list[float]:
        (tmp_path / "progress.json").write_text(json.dumps(fields))
        return ConversionJournal(tmp_path, "key").largest

    right = PROGRESS | {"sha256": _Progress("key", "build", (0.5, 0.25), Kept(2 << 20, "sha"), "").checksum}
    assert largest(right) == [0.5, 0.25]
    for seed in range(150):
        if (changed := spoilt(right, np.random.default_rng(seed))) != right:
            assert largest(changed) == [], changed
    for text in (b"", b"\xff", b"[" * 99_999, b"null", b'{"key": "key"}'):
        (tmp_path / "progress.json").write_bytes(text)
        assert not ConversionJournal(tmp_path, "key").found
