"""A sweep's story around a stand-in for measuring: rounds, failures, interrupts, resuming, libraries, files."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import pytest
from graphs import write_dlrm
from models import build_without_code, random_dlrm
from outcomes import made_up_run
from scripts import parsed

from dlrm_tvm.bench.session import RunSettings
from dlrm_tvm.console import result_line
from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.machine.environment import describe_environment
from dlrm_tvm.machine.files import check_not_read
from dlrm_tvm.machine.topology import read_topology
from dlrm_tvm.model.card import NumericsCard
from dlrm_tvm.paths import ROOT
from dlrm_tvm.runtime.artifact import files_of_model, open_artifact
from dlrm_tvm.runtime.manifest import Manifest
from dlrm_tvm.sweep import libraries, prepare
from dlrm_tvm.sweep.libraries import Kind, ensure_libraries, name_libraries, sweep_name
from dlrm_tvm.sweep.options import SweepSettings
from dlrm_tvm.sweep.plan import Combination
from dlrm_tvm.sweep.prepare import heading
from dlrm_tvm.sweep.run import run_sweep
from dlrm_tvm.sweep.state import _line, read_state

RESULTS: list[str] = []  # lines for programs


@pytest.fixture(autouse=True)
def results() -> Iterator[None]:
    with patch("dlrm_tvm.sweep.run.show_result", lambda fields: RESULTS.append(result_line(fields)) is None):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of one model's libraries for batches of 4 and 8, and another model's for batches of 9."""
    folder = tmp_path_factory.mktemp("sweep")
    for batch in (4, 8):
        build_without_code(random_dlrm(), batch, folder)
    build_without_code(random_dlrm(seed=1), 9, folder)
    return folder


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> SweepSettings:
    """Four combinations on any machine, three rounds."""
    core = str(min(os.sched_getaffinity(0)))
    run = RunSettings(model=folder / "small_b4.so", cores=core)
    result = tmp_path / "state.json"
    return SweepSettings("instances=1;batch=4,8", run, duration_s=2, warmup_s=0.5, seed=3, output=result)


class Measuring:
    """A stand-in: remembers what it was asked, fails or stops where it is told to."""

    def __init__(self, stop_at: int | None = None, fail: Callable[[Combination], bool] = lambda combination: False):
        self.asked: list[Combination] = []
        self.stop_at = stop_at
        self.fail = fail

    def __call__(self, settings: SweepSettings, combination: Combination, library: Path) -> dict:
        assert open_artifact(library).manifest.batch_size == combination.batch
        if len(self.asked) == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        self.asked.append(combination)
        if self.fail(combination):
            raise UserError("Instance 0 was killed by SIGKILL.")
        return made_up_run(combination, 0, 1000 * combination.batch, 1).figures


def sweep(settings: SweepSettings, measuring: Measuring) -> tuple[int, list[str], dict]:
    """Status, what was shown, the result as stdout and as the file has it."""
    shown: list[str] = []
    status = run_sweep(settings, shown.append, measuring)
    fields = parsed(RESULTS[-1])
    assert parsed(settings.result_path.read_text()) == {"kind": "dlrm_tvm sweep", **fields}
    return status, shown, fields


def test_every_round_measures_every_combination_in_the_order_of_the_seed(settings: SweepSettings) -> None:
    first, second, other = Measuring(), Measuring(), Measuring()
    status, shown, fields = sweep(settings, first)
    assert status == 0 and fields["finished"] and not fields["interrupted"] and fields["seed"] == 3
    rounds = [first.asked[at : at + 2] for at in (0, 2, 4)]
    assert all({one.batch for one in order} == {4, 8} for order in rounds)
    sweep(settings, second)
    assert second.asked == first.asked
    sweep(replace(settings, seed=None, repeats=40), other)
    assert {tuple(other.asked[at : at + 2]) for at in range(0, 80, 2)} == {tuple(rounds[0]), tuple(rounds[0][::-1])}
    assert [entry["items_per_s"] for entry in fields["combinations"]] == [8000, 4000]
    assert any("random, seed 3" in line for line in shown)


def test_what_was_measured_before_an_interrupt_is_kept_and_only_the_rest_is_done_on_resume(settings) -> None:
    whole, first, second = Measuring(), Measuring(stop_at=3), Measuring()
    sweep(settings, whole)
    status, shown, fields = sweep(settings, first)
    assert (status, fields["interrupted"], fields["finished"], fields["runs_left"]) == (130, True, False, 3)
    assert sum(len(entry["repeats"]) for entry in fields["combinations"]) == 3
    assert "Interrupted: 3 runs are left. The same command with --resume does them." in shown
    status, shown, fields = sweep(replace(settings, resume=True, seed=None), second)
    assert status == 0 and fields["finished"]
    assert first.asked + second.asked == whole.asked
    assert len(fields["earlier_environments"]) == 1
    assert [[run["round"] for run in entry["repeats"]] for entry in fields["combinations"]] == [[0, 1, 2]] * 2
    assert "resumed: 3 runs were measured already, 3 left" in shown


def test_more_repeats_go_on_with_a_finished_sweep(settings) -> None:
    again = Measuring()
    sweep(replace(settings, repeats=1), Measuring())
    sweep(replace(settings, repeats=2, resume=True), again)
    assert len(again.asked) == 2
    nothing = Measuring()
    status, _, fields = sweep(replace(settings, repeats=2, resume=True), nothing)
    assert (status, nothing.asked, fields["finished"]) == (0, [], True)


def test_interrupt_before_anything_was_measured_leaves_nothing(settings) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_sweep(settings, lambda text: None, Measuring(stop_at=0))
    assert list(settings.state_path.parent.iterdir()) == []


def test_what_an_earlier_sweep_measured_is_not_overwritten(settings) -> None:
    sweep(settings, Measuring(stop_at=3))
    files = (settings.state_path, settings.result_path)
    unfinished = [path.read_text() for path in files]
    _, shown, _ = sweep(settings, Measuring())
    finished = settings.state_path.read_text()
    kept = [settings.state_path.with_name(name) for name in ("state.jsonl.old", "state.jsonl.old2", "state.jsonl.old3")]
    assert [path.with_name(f"{path.name}.old").read_text() for path in files] == unfinished
    assert any("an unfinished sweep's 3 runs were in" in line and f"kept as {kept[0]}" in line for line in shown)
    _, shown, _ = sweep(settings, Measuring())
    assert [path.read_text() for path in kept[:2]] == [unfinished[0], finished]
    assert any("a finished sweep's 6 runs were in" in line and line.endswith(f"kept as {kept[1]}") for line in shown)
    settings.state_path.write_text('{"kind": "dlrm_tvm sweep"}')
    sweep(settings, Measuring())
    assert kept[2].read_text() == '{"kind": "dlrm_tvm sweep"}'


def test_result_without_a_state_is_not_overwritten(settings) -> None:
    settings.result_path.write_text('{"kind": "dlrm_tvm sweep", "of": "an older program"}')
    _, shown, _ = sweep(settings, Measuring())
    kept = settings.result_path.with_name("state.json.old")
    assert "an older program" in kept.read_text()
    assert f"{settings.result_path}, which another sweep left, is kept as {kept}" in shown


def test_state_of_runs_that_all_failed_is_overwritten(settings) -> None:
    with pytest.raises(UserError, match="None of the runs succeeded"):
        run_sweep(settings, lambda text: None, Measuring(fail=lambda combination: True))
    assert len(read_state(settings.state_path).outcomes) == 2
    sweep(settings, Measuring())
    assert sorted(path.name for path in settings.state_path.parent.iterdir()) == ["state.json", "state.jsonl"]
    assert len(read_state(settings.state_path).outcomes) == 6


def test_second_sweep_with_the_same_state_is_refused(settings) -> None:
    refused = []

    def measure(own: SweepSettings, combination: Combination, library: Path) -> dict:
        with pytest.raises(UserError, match=r"Another sweep is at work on .*state\.jsonl\. .* --output FILE"):
            run_sweep(settings, lambda text: None, Measuring())
        refused.append(combination)
        return made_up_run(combination, 0, 1, 1).figures

    assert run_sweep(settings, lambda text: None, measure) == 0
    assert len(refused) == 6
    assert sorted(path.name for path in settings.state_path.parent.iterdir()) == ["state.json", "state.jsonl"]


def test_state_that_a_killed_sweep_left_empty_locks_nothing(settings) -> None:
    settings.state_path.write_bytes(b"")
    _, shown, _ = sweep(settings, Measuring())
    assert not any("kept as" in line for line in shown)
    assert sorted(path.name for path in settings.state_path.parent.iterdir()) == ["state.json", "state.jsonl"]


def test_another_engine_is_named_and_has_a_state_of_its_own(settings) -> None:
    other = replace(settings, run=replace(settings.run, engine="onnxruntime"), output=None)
    assert other.result_path.name == "small.onnxruntime.sweep.json"
    quantized = replace(other, run=replace(other.run, engine_precision="int8"))
    assert quantized.result_path.name == "small.onnxruntime.int8.sweep.json"
    assert replace(settings, output=None).result_path.name == "small.sweep.json"
    assert quantized.state_path.name == "small.onnxruntime.int8.sweep.jsonl"
    assert heading("small", ["fp32"], {"onnxruntime": "1.2"}) == "small, fp32, ONNX Runtime 1.2"
    assert heading("small", ["fp32"], {"ours": None}) == "small, fp32"
    several = {"ours": None, "onnxruntime": "1.2"}
    assert heading("small", ["fp32", "int8"], several) == "small, fp32, int8, ours, ONNX Runtime 1.2"


def test_a_failing_combination_is_recorded_and_the_sweep_goes_on(settings) -> None:
    measuring = Measuring(fail=lambda combination: combination.batch == 4)
    status, shown, fields = sweep(settings, measuring)
    assert (status, len(measuring.asked), fields["finished"]) == (3, 6, True)
    assert [len(entry["failures"]) for entry in fields["combinations"]] == [0, 3]
    assert "Failed 3 times: 1 instance × 1 thread, batch 4: Instance 0 was killed by SIGKILL." in shown[-1]
    again = Measuring()
    sweep(replace(settings, resume=True), again)
    assert [one.batch for one in again.asked] == [4, 4, 4]


def test_a_sweep_in_which_everything_fails_ends_after_one_round(settings) -> None:
    measuring = Measuring(fail=lambda combination: True)
    with pytest.raises(UserError, match=r"None of the runs succeeded\. The first: Instance 0 was killed"):
        run_sweep(settings, lambda text: None, measuring)
    assert len(measuring.asked) == 2


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError(28, "No space left on device", "/dev/shm/a"), "/dev/shm/a: No space left on device"),
        (RuntimeError("first\n  second"), "RuntimeError: first second"),
    ],
)
def test_a_run_that_the_system_fails_is_recorded_and_the_sweep_goes_on(settings, error: Exception, said: str) -> None:
    def fail(combination: Combination) -> bool:
        if combination.batch == 4:
            raise error
        return False

    status, _, fields = sweep(settings, Measuring(fail=fail))
    assert (status, fields["finished"], fields["combinations"][1]["failures"][0]["error"]) == (3, True, said)


def test_a_run_whose_figures_are_no_numbers_is_a_failed_one(settings) -> None:
    def measure(settings: SweepSettings, combination: Combination, library: Path) -> dict:
        rate = float("nan") if combination.batch == 4 else 1.0
        return made_up_run(combination, 0, rate, 1).figures

    shown: list[str] = []
    assert run_sweep(settings, shown.append, measure) == 3
    assert "Out of range float" in parsed(RESULTS[-1])["combinations"][1]["failures"][0]["error"]


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device", ".state.json.1.tmp")


def test_state_that_cannot_be_written_ends_the_sweep_with_what_was_measured(settings, monkeypatch) -> None:
    monkeypatch.setattr("dlrm_tvm.sweep.run.append", full_disk)
    monkeypatch.setattr("dlrm_tvm.machine.files.write_whole_file", full_disk)
    shown, measuring = [], Measuring()
    with pytest.raises(UserError, match=r"state\.json could not be written \(No space left on device\)\. What"):
        run_sweep(settings, shown.append, measuring)
    assert len(measuring.asked) == 1
    fields = parsed(RESULTS[-1])
    assert (fields["interrupted"], fields["runs_left"], len(fields["combinations"])) == (True, 5, 1)
    said = [line for line in shown if line.endswith("no more runs could be kept: the sweep ends here.")]
    assert len(said) == 1 and said[0].startswith(f"{settings.state_path} could not be written (No space left")


def test_state_on_a_disk_that_fills_up_is_whole_but_for_its_last_line(settings) -> None:
    """A file size limit: the write stops in the middle of a line, as on a full disk."""
    sweep(settings, whole := Measuring())
    limit = settings.state_path.stat().st_size - 100
    for path in settings.files.values():
        path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    first, shown = Measuring(), []
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match=r"state\.json could not be written \(File too large\)\. What is printed"):
            run_sweep(settings, shown.append, first)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert any("state.jsonl could not be written (File too large)" in line for line in shown)
    assert settings.state_path.stat().st_size == limit
    second = Measuring()
    status, _, fields = sweep(replace(settings, resume=True), second)
    assert (status, fields["finished"], len(first.asked), second.asked) == (0, True, 6, whole.asked[5:])


def test_json_is_printed_where_table_and_plot_cannot_be_written(settings, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("dlrm_tvm.machine.files.write_whole_file", full_disk)
    shown: list[str] = []
    files = {"csv": tmp_path / "a.csv", "plot": tmp_path / "a.svg"}
    with pytest.raises(UserError, match=r"a\.csv could not be written .*; .*a\.svg could not be written"):
        run_sweep(replace(settings, **files), shown.append, Measuring())
    assert parsed(RESULTS[-1])["finished"]


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"duration_s": 3}, "duration_s 2, now it is 3"),
        ({"spec": "instances=1;batch=4"}, "combinations [[1, 1, 4], [1, 1, 8]], now it is [[1, 1, 4]]"),
        ({"seed": 4}, "has the seed 3"),
    ],
)
def test_resume_under_other_settings_is_refused(settings, changes: dict, named: str) -> None:
    sweep(settings, Measuring(stop_at=3))
    with pytest.raises(UserError) as error:
        run_sweep(replace(settings, resume=True, **changes), lambda text: None, Measuring())
    assert named in str(error.value)


def entries(path: Path) -> list[dict]:
    """The state's lines, without their checksums."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "crc32"} for line in lines]


def test_resume_of_another_cpu_model_or_library_is_refused(settings) -> None:
    sweep(settings, Measuring(stop_at=3))
    start, *runs = entries(settings.state_path)
    for key in (
        "cpu",
        "cpu_flags",
        "l3_mb",
        "engine_version",
        "model_fingerprint",
        "library_sha256",
        "indices_per_bag",
    ):
        changed = start | {"settings": start["settings"] | {key: "another"}}
        settings.state_path.write_bytes(b"".join(map(_line, (changed, *runs))))
        with pytest.raises(UserError, match=f'was measured with {key} "another", now it is'):
            run_sweep(replace(settings, resume=True), lambda text: None, Measuring())


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"kind": "dlrm_tvm sweep"}'])
def test_resume_of_no_sweep_is_refused(settings, content: str | None) -> None:
    if content is not None:
        settings.state_path.write_text(content)
    said = "is not what a sweep of this"
    if content is None:
        said = "no such file, so there is no sweep to resume"
    elif content in ("[]", "{}"):
        said = "a file that no sweep left has that name"
    with pytest.raises(UserError, match=said):
        run_sweep(replace(settings, resume=True), lambda text: None, Measuring())
    assert (settings.state_path.read_text() if settings.state_path.exists() else "") == (content or "")


def test_state_holds_every_run_with_its_settings(settings) -> None:
    measuring = Measuring(fail=lambda combination: combination.batch == 4)
    _, _, fields = sweep(settings, measuring)
    start, *runs = entries(settings.state_path)
    assert (start["kind"], start["version"]) == ("dlrm_tvm sweep", 1)
    assert (start["seed"], start["runs"], start["settings"]) == (3, 6, fields["settings"])
    assert [Combination(run["instances"], run["threads"], run["batch_size"]) for run in runs] == measuring.asked
    assert [("figures" in run, "error" in run) for run in runs] == [
        (one.batch == 8, one.batch == 4) for one in measuring.asked
    ]
    state = read_state(settings.state_path)
    assert [outcome.planned.combination for outcome in state.outcomes] == measuring.asked
    kept = {outcome.planned.round: outcome.figures for outcome in state.measured}
    assert [{"round": number, **kept[number]} for number in range(3)] == fields["combinations"][0]["repeats"]


def test_last_line_that_was_cut_short_anywhere_is_that_run_measured_again(settings) -> None:
    sweep(settings, whole := Measuring())
    content = settings.state_path.read_bytes()
    start_of_last = content.rfind(b"\n", 0, -1) + 1
    for cut in range(start_of_last, len(content)):
        settings.state_path.write_bytes(content[:cut])
        state = read_state(settings.state_path)
        assert (len(state.measured), state.whole_bytes) == (5, start_of_last)
    again = Measuring()
    status, _, fields = sweep(replace(settings, resume=True), again)
    assert (status, again.asked, fields["finished"]) == (0, whole.asked[5:], True)
    assert len(read_state(settings.state_path).measured) == 6


def test_resume_of_a_damaged_state_is_one_line(settings) -> None:
    sweep(settings, Measuring(stop_at=3))
    whole = settings.state_path.read_text()
    figures = (1, "figures")
    damages = [
        ((*figures, "items_per_s"), None),
        ((*figures, "items_per_s"), "12"),
        ((*figures, "items_per_s"), float("nan")),
        ((*figures, "items_per_s"), 10**400),
        ((*figures, "peak_fraction"), float("inf")),
        ((*figures, "latency_ms"), {"p50": 1}),
        ((*figures, "latency_ms"), []),
        ((*figures, "warnings"), [1]),
        ((*figures, "warnings"), None),
        ((1, "round"), True),
        ((1, "figures"), None),
        ((1, "threads"), 0),
        ((1, "threads"), [1]),
        ((2,), {"a": 1}),
        ((2,), 3),
        ((0, "seed"), "3"),
        ((0, "runs"), None),
        ((0, "settings"), []),
        ((0, "environment"), {}),
        ((0, "environment"), "x"),
        ((0, "version"), 2),
    ]
    for (*where, last), value in damages:
        lines = inner = [json.loads(line) for line in whole.splitlines()]
        for key in where:
            inner = inner[key]
        inner[last] = value
        assert_not_resumed(settings, "".join(f"{json.dumps(line)}\n" for line in lines))
    lines = whole.splitlines(keepends=True)
    assert_not_resumed(settings, "".join(lines[1:]))
    assert_not_resumed(settings, whole.replace('"gflops": 0.0', '"gflops": 1e999'))
    assert_not_resumed(settings, whole.replace("\n", " ", 1))
    assert_not_resumed(settings, lines[0] + "[" * 100_000 + "\n")
    assert_not_resumed(settings, whole[: len(lines[0]) // 2])
    start, *runs = entries(settings.state_path) if settings.state_path.write_text(whole) else []
    for other in (start | {"version": 2}, {key: start[key] for key in ("kind", "version")}, {"version": 1}):
        assert_not_resumed(settings, b"".join(map(_line, (other, *runs))).decode())


def assert_not_resumed(settings: SweepSettings, content: str) -> None:
    settings.state_path.write_text(content)
    with pytest.raises(UserError, match="is not what a sweep of this version leaves"):
        read_state(settings.state_path)


def test_settings_have_whole_paths(settings, tmp_path: Path, monkeypatch) -> None:
    """So that a resumed sweep cannot mean other files in another folder."""
    monkeypatch.chdir(tmp_path)
    run = replace(settings.run, ref_data=Path("a.npz"), onnx_model=Path("a.onnx"))
    manifest, environment = open_artifact(run.model).manifest, describe_environment(read_topology())
    fixed = prepare._fixed_settings(replace(settings, run=run), manifest, environment)
    assert (fixed["ref_data"], fixed["onnx_model"]) == (str(tmp_path / "a.npz"), str(tmp_path / "a.onnx"))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"engine": "openvino"}, "OpenVINO is not installed"),
        ({"engine": "onnxruntime", "onnx_model": Path("absent.onnx")}, "absent.onnx: no such file"),
        ({"engine": "onnxruntime", "indices_per_bag": (2,)}, "no bags"),
        ({"engine": "onnxruntime"}, "does not say which ONNX file|fixed in it|no such file"),
    ],
)
def test_mistakes_with_another_engine_are_found_before_anything_is_compiled(
    settings, monkeypatch, changes: dict, said: str
) -> None:
    def version(engine: str) -> str:
        if engine == "openvino":
            raise UserError("OpenVINO is not installed.")
        return "1.2"

    monkeypatch.setattr("dlrm_tvm.sweep.prepare.engine_version", version)
    monkeypatch.setattr("dlrm_tvm.engines.graph.engine_version", version)
    monkeypatch.setattr("dlrm_tvm.sweep.prepare.ensure_libraries", lambda *_: pytest.fail("compiles"))
    run = replace(settings.run, **changes)
    with pytest.raises(UserError, match=said):
        run_sweep(replace(settings, run=run), lambda text: None, Measuring())


def test_csv_and_plot_are_written_and_nothing_else_is_left(settings, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = {"csv": tmp_path / "a.csv", "plot": tmp_path / "a.SVG"}
    sweep(replace(settings, **files), Measuring())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.SVG", "a.csv", "state.json", "state.jsonl"]
    assert files["csv"].read_text().startswith("instances,threads,batch_size,items_per_s,")
    assert ">batch 8<" in files["plot"].read_text()


@pytest.mark.parametrize("name", ["csv", "output", "plot"])
def test_files_that_cannot_be_written_are_refused_before_measuring(settings, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.svg").mkdir()
    for path in (tmp_path / "absent" / "a.svg", tmp_path / "folder.svg"):
        measuring = Measuring()
        with pytest.raises(UserError, match=f"--{name} {path}: "):
            run_sweep(replace(settings, **{name: path}), lambda text: None, measuring)
        assert measuring.asked == []


def test_one_name_for_two_files_is_refused(settings, tmp_path: Path) -> None:
    for changes in ({"csv": settings.result_path}, {"csv": settings.state_path}, {"output": settings.state_path}):
        with pytest.raises(UserError, match="or written by another option"):
            run_sweep(replace(settings, **changes), lambda text: None, Measuring())


def test_flags_of_one_run_that_the_sweep_overrules_are_refused(settings) -> None:
    run = replace(settings.run, instances=1)
    with pytest.raises(UserError, match="--sweep chooses instances, --num-instances too"):
        run_sweep(replace(settings, run=run), lambda text: None, Measuring())
    run = replace(settings.run, engine="onnxruntime", engine_precision="int8")
    for axis, flag in (("engine=ours", "--engine"), ("precision=fp32", "--engine-precision")):
        with pytest.raises(UserError, match=f"--sweep chooses {axis.split('=')[0]}, {flag} too"):
            run_sweep(replace(settings, run=run, spec=axis), lambda text: None, Measuring())


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "another"}', "[" * 100_000])
def test_file_that_no_sweep_left_is_not_overwritten(settings, content: str) -> None:
    for path in (settings.result_path, settings.state_path)[: 2 if content else 1]:  # an empty state is a sweep's
        path.write_text(content)
        with pytest.raises(UserError, match=rf"{path.name}: a file that no sweep left has that name"):
            run_sweep(settings, lambda text: None, Measuring())
        assert path.read_text() == content
        path.unlink()


@pytest.mark.parametrize("name", ["csv", "output", "plot"])
def test_files_that_the_run_reads_are_not_written(settings, folder: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    data = tmp_path / "data.svg"
    data.write_text("kept")
    run = replace(settings.run, ref_data=data)
    read = [data] if name == "plot" else [data, *(folder / f"small_b8.{kind}" for kind in ("so", "json", "params"))]
    for path in read:
        changes = {"run": run if path == data else settings.run, name: path}
        with pytest.raises(UserError, match=r"that file is read|no sweep left"):
            run_sweep(replace(settings, **changes), lambda text: None, Measuring())
    assert data.read_text() == "kept" and open_artifact(folder / "small_b8.so")


def test_files_that_the_model_lies_in_are_not_written(folder: Path, tmp_path: Path) -> None:
    manifest = replace(open_artifact(folder / "small_b4.so").manifest, onnx_model=str(tmp_path / "a.onnx"))
    read = files_of_model(manifest, tmp_path / "b.onnx")
    for path in ("a.onnx", "a.onnx.data", "b.onnx"):
        with pytest.raises(UserError, match=f"--csv .*{path}: that file is read"):
            check_not_read({"--csv": tmp_path / "." / path}, read)


# Engines and precisions


NUMERICS = asdict(NumericsCard(layers=("fp32",)))  # of libraries that only say to be quantized


@pytest.fixture
def with_engines(settings, tmp_path: Path, monkeypatch) -> SweepSettings:
    """Engines are said to be installed, but for OpenVINO; libraries in fp32 and, so they say, int8 and bf16."""

    def version(engine: str) -> str:
        if engine == "openvino":
            raise UserError("OpenVINO is not installed.")
        return "1.2"

    for room in ("sweep.prepare", "engines.graph"):
        monkeypatch.setattr(f"dlrm_tvm.{room}.engine_version", version)
    monkeypatch.setattr("dlrm_tvm.sweep.prepare.host_flags", lambda: {"avx2", "fma", "avx512bw", "avx512_bf16"})
    path = write_dlrm(tmp_path / "small.onnx", table_rows=(5, 7), dim=16)
    library = build_without_code(read_dlrm(path), 4, tmp_path)
    for precision in ("int8", "bf16"):
        (tmp_path / precision).mkdir()
        with_manifest(library, tmp_path / precision, precision=precision, numerics=NUMERICS)
        for file in (tmp_path / precision).iterdir():
            file.rename(tmp_path / f"small_{precision}_b4{file.suffix}")
    return replace(settings, run=replace(settings.run, model=library, onnx_model=path), repeats=2)


class Recording(Measuring):
    """Remembers which library was to run, too."""

    def __call__(self, settings: SweepSettings, combination: Combination, library: Path) -> dict:
        self.libraries = {**getattr(self, "libraries", {}), combination: library.name}
        return super().__call__(settings, combination, library)


def test_engines_and_precisions_are_axes_and_what_an_engine_lacks_is_said_once(with_engines) -> None:
    measuring = Recording()
    spec = "instances=1;engine=ours,onnxruntime,openvino;precision=fp32,bf16,int8"
    _, shown, fields = sweep(replace(with_engines, spec=spec), measuring)
    named = [(one.engine, one.precision) for one in measuring.asked]
    wanted = {("ours", "fp32"), ("ours", "bf16"), ("ours", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")}
    assert set(named) == wanted and len(named) == 10
    assert measuring.libraries[Combination(1, 1, 4, "onnxruntime", "int8")] == "small_int8_b4.so"
    assert measuring.libraries[Combination(1, 1, 4, "ours", "fp32")] == "small_b4.so"
    assert [line for line in shown if "left out" in line] == [
        "  left out    1: ONNX Runtime has no bf16 on CPUs.",
        "  left out    3: OpenVINO is not installed.",
    ]
    assert {each["reason"] for each in fields["left_out"]} == {
        "ONNX Runtime has no bf16 on CPUs.",
        "OpenVINO is not installed.",
    }
    assert len(fields["left_out"]) == 4
    assert (fields["engine"], fields["precision"], fields["engine_version"]) == (None, None, None)
    assert fields["engine_versions"] == {"ours": None, "onnxruntime": "1.2"}
    assert fields["libraries"].keys() == {"4", "4 bf16", "4 int8"}
    assert [(each["precision"], each["ratio"]) for each in fields["engine_comparison"]] == [
        *(("fp32", 1), ("bf16", None), ("int8", 1)),
    ]
    assert any(line.startswith("small, fp32, bf16, int8, ours, ONNX Runtime 1.2: 5 combinations") for line in shown)


def test_interrupted_sweep_of_engines_goes_on(with_engines) -> None:
    settings = replace(with_engines, spec="engine=ours,onnxruntime;precision=fp32,int8")
    sweep(settings, whole := Measuring())
    sweep(settings, first := Measuring(stop_at=3))
    sweep(replace(settings, resume=True), second := Measuring())
    assert first.asked + second.asked == whole.asked


def test_precisions_that_the_cpu_lacks_are_left_out_before_anything_is_compiled(with_engines, monkeypatch) -> None:
    monkeypatch.setattr("dlrm_tvm.sweep.prepare.host_flags", lambda: {"avx512bw"})
    settings, measuring = replace(with_engines, run=replace(with_engines.run, onnx_model=None)), Measuring()
    _, shown, _ = sweep(replace(settings, spec="batch=4;precision=fp32,bf16"), measuring)
    assert {one.precision for one in measuring.asked} == {"fp32"}
    assert "  left out    1: bf16 needs avx512_bf16, which this CPU lacks." in shown
    with pytest.raises(UserError, match=r"nothing can be measured\. int8 needs avx2 and fma, which this CPU lacks"):
        run_sweep(replace(settings, spec="batch=4,9;precision=int8"), lambda text: None, measuring)


def test_what_is_for_our_library_alone_is_refused_beside_other_engines(with_engines) -> None:
    settings = replace(with_engines, spec="engine=ours,onnxruntime")
    for changes, said in (
        ({"numa": "local"}, "--numa is for our own library, not for --engine onnxruntime"),
        ({"indices_per_bag": (2,)}, "no bags"),
    ):
        with pytest.raises(UserError, match=said):
            run_sweep(replace(settings, run=replace(settings.run, **changes)), lambda text: None, Measuring())
    with pytest.raises(UserError, match=r"--onnx-model is what another engine runs\. Name one"):
        run_sweep(replace(settings, spec="engine=ours"), lambda text: None, Measuring())


# Libraries


def test_library_that_is_deleted_meanwhile_is_named_with_what_to_type(settings, folder: Path, tmp_path: Path) -> None:
    for batch in (4, 8):
        with_manifest(folder / f"small_b{batch}.so", tmp_path)

    def measure(own: SweepSettings, combination: Combination, library: Path) -> dict:
        if combination.batch == 8:
            library.unlink(missing_ok=True)
            open_artifact(library)
        return made_up_run(combination, 0, 1, 1).figures

    shown: list[str] = []
    run = replace(settings.run, model=tmp_path / "small_b4.so")
    assert run_sweep(replace(settings, run=run), shown.append, measure) == 3
    (failure, *_) = parsed(RESULTS[-1])["combinations"][1]["failures"]
    assert "small_b8.so for batch 8 was deleted" in failure["error"]
    assert "--batch-size 8 --output-name small" in failure["error"]


def ensure(library: Path, base: Manifest, batches: list[int], precision: str = "fp32") -> None:
    kinds = [Kind(precision, batch) for batch in batches]
    ensure_libraries(library, base, name_libraries(library, base, kinds), lambda text: None)


def test_library_of_another_model_under_the_name_is_refused(folder: Path) -> None:
    library = folder / "small_b4.so"
    with pytest.raises(UserError, match=r"small_b9\.so is of another model .* Delete it"):
        ensure(library, open_artifact(library).manifest, [4, 9])


def with_manifest(library: Path, folder: Path, **changes: object) -> Path:
    """A copy of the library whose manifest says something else."""
    for path in library.parent.glob(f"{library.stem}.*"):
        shutil.copy(path, folder)
    manifest = folder / f"{library.stem}.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))
    return folder / library.name


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"target_cpu": "x86-64"}, r"was compiled for x86-64, --model for .* --tuning-log-file none"),
        ({"tuned_kernels": ["a"], "untuned_kernels": []}, "with kernels of ours, --model with TVM's default kernels"),
    ],
)
def test_library_compiled_in_another_way_is_refused(folder: Path, tmp_path: Path, changes: dict, said: str) -> None:
    library = with_manifest(folder / "small_b4.so", tmp_path)
    with_manifest(folder / "small_b8.so", tmp_path, **changes)
    with pytest.raises(UserError, match=said) as error:
        ensure(library, open_artifact(library).manifest, [4, 8])
    assert "python compile.py --onnx-model FILE --batch-size 8 --output-name small" in str(error.value)


def test_what_was_tuned_for_one_batch_only_is_said_and_in_the_json(settings, folder: Path, tmp_path: Path) -> None:
    same = {"precision": "fp32", "tuning_log_file": "/log", "calibration_data": None}
    few = {"tuned_kernels": ["a"], "untuned_kernels": ["b", "c"], "options": same | {"profile": True}}
    none = {"tuned_kernels": [], "untuned_kernels": ["a", "b"], "options": same | {"profile": False}}
    library = with_manifest(folder / "small_b4.so", tmp_path, **few)
    with_manifest(folder / "small_b8.so", tmp_path, **none)
    _, shown, fields = sweep(replace(settings, run=replace(settings.run, model=library)), Measuring())
    assert "  kernels     batch 4: 1 tuned, 2 by rule; batch 8: 0 tuned, 2 by rule" in shown
    assert "  compiled by batch 4: --profile; batch 8: none" in shown
    assert fields["kernels"] == {"4": {"tuned": 1, "by_rule": 2}, "8": {"tuned": 0, "by_rule": 2}}
    assert not any(line.startswith("  kernels") for line in sweep(settings, Measuring())[1])


@pytest.mark.parametrize(
    "options, why", [(None, "was not made by compile.py"), ({"precision": "fp32"}, "lies elsewhere")]
)
def test_missing_library_that_nobody_can_compile_is_one_line_that_tells_what_to_type(
    folder: Path, monkeypatch, options: dict | None, why: str
) -> None:
    if why != "lies elsewhere":
        monkeypatch.setattr(libraries, "PREBUILT", folder)
    library = folder / "small_b4.so"
    base = replace(open_artifact(library).manifest, options=options)
    with pytest.raises(UserError, match=f"No library for batch 7, and .*{why}") as error:
        ensure(library, base, [4, 7])
    assert "python compile.py --onnx-model FILE --batch-size 7 --output-name small" in str(error.value)
    with pytest.raises(UserError, match=f"No library for batch 7 bf16, and .*{why}") as error:
        ensure(library, base, [7], "bf16")
    assert "--batch-size 7 --output-name small_bf16 --precision bf16" in str(error.value)


def compiled(folder: Path, monkeypatch, kind: Kind, options: dict[str, object]) -> list[str]:
    """How compile.py is called for a library of this kind. It answers that it knows no such model."""
    monkeypatch.setattr(libraries, "PREBUILT", folder)
    calls: list[list[str]] = []
    monkeypatch.setattr(libraries, "_compile", lambda arguments, library, show: calls.append(arguments))
    library = folder / "small_b4.so"
    base = replace(open_artifact(library).manifest, options=options, target_cpu="znver4")
    with pytest.raises(UserError):
        ensure_libraries(library, base, name_libraries(library, base, [kind]), lambda text: None)
    return sorted(calls[0])


def test_missing_library_is_compiled_by_the_options_that_the_manifest_records(folder: Path, monkeypatch) -> None:
    options = {"onnx_model": "/a b.onnx", "precision": "int8", "calibration_data": "/c.npz", "copy_tables": True}
    options |= {"profile": False, "tuning_log_file": "none", "demo_table_rows": 10000}
    wanted = ["--copy-tables", "--demo-table-rows=10000", "--onnx-model=/a b.onnx", "--target-cpu=znver4"]
    wanted += ["--tuning-log-file=none", "--batch-size=7"]
    got = compiled(folder, monkeypatch, Kind("int8", 7), options)
    assert got == sorted([*wanted, "--precision=int8", "--output-name=small_int8", "--calibration-data=/c.npz"])
    got = compiled(folder, monkeypatch, Kind("fp32", 7), options)
    assert got == sorted([*wanted, "--precision=fp32", "--output-name=small"])


def test_compiling_ends_with_a_sweep_that_is_killed(tmp_path: Path) -> None:
    compiler = tmp_path / "compile.py"
    compiler.write_text("import os, pathlib, time; here = pathlib.Path(__file__).parent\n"
                        "(here / 'pid.new').write_text(f'{os.getpid()}'); os.rename(here / 'pid.new', here / 'pid')\n"
                        "time.sleep(60)")  # fmt: skip
    script = (
        "import pathlib, sys; from dlrm_tvm.sweep import libraries as s; here = pathlib.Path(sys.argv[1])\n"
        "s.COMPILE_SCRIPT = here / 'compile.py'; s._compile([], here / 'a.so', print)"
    )
    sweeping = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT)
    wait_until((tmp_path / "pid").exists)
    sweeping.kill()
    sweeping.wait()
    compiling = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    wait_until(lambda: not compiling.exists() or compiling.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_names_end_before_the_batch() -> None:
    assert [sweep_name(Path(name)) for name in ("p/dlrm_b100.so", "a_b2_b3.so", "plain.so")] == [
        "dlrm",
        "a_b2",
        "plain",
    ]


def test_manifest_of_an_older_program_is_read(folder: Path) -> None:
    manifest = open_artifact(folder / "small_b4.so").manifest
    fields = json.loads(manifest.to_json())
    assert (fields.pop("directory"), fields.pop("options")) == (os.getcwd(), None)
    assert type(manifest).from_json(json.dumps(fields)) == replace(manifest, directory=None)
