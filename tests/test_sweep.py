"""A sweep's story around a stand-in for measuring: rounds, failures, interrupts, resuming, libraries, files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from models import build_plain, random_dlrm
from test_sweep_results import run as made_up_run

from dlrm_tvm import sweep_libraries
from dlrm_tvm.artifact import open_artifact
from dlrm_tvm.errors import UserError
from dlrm_tvm.manifest import Manifest
from dlrm_tvm.session import RunSettings
from dlrm_tvm.sweep import run_sweep
from dlrm_tvm.sweep_files import check_not_read, files_of_model
from dlrm_tvm.sweep_libraries import ensure_libraries, name_libraries, repeatable_flags, sweep_name
from dlrm_tvm.sweep_plan import Combination
from dlrm_tvm.sweep_setup import SweepSettings, _fixed_settings, heading
from dlrm_tvm.sweep_state import read_state
from dlrm_tvm.topology import read_topology

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of one model's libraries for batches of 4 and 8, and another model's for batches of 9."""
    folder = tmp_path_factory.mktemp("sweep")
    for batch in (4, 8):
        build_plain(random_dlrm(), batch, folder)
    build_plain(random_dlrm(seed=1), 9, folder)
    return folder


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> SweepSettings:
    """Four combinations on any machine, three rounds."""
    core = str(min(os.sched_getaffinity(0)))
    run = RunSettings(model=folder / "small_b4.so", cores=core)
    state = tmp_path / "state.json"
    return SweepSettings("instances=1;batch=4,8", run, duration_s=2, warmup_s=0.5, seed=3, state=state)


class Measuring:
    """A stand-in: remembers what it was asked, fails or stops where it is told to."""

    def __init__(self, stop_at: int | None = None, fail: Callable[[Combination], bool] = lambda combination: False):
        self.asked: list[Combination] = []
        self.stop_at = stop_at
        self.fail = fail

    def __call__(self, settings: SweepSettings, combination: Combination, library: Path) -> dict:
        assert open_artifact(library).manifest.batch_size == combination.batch
        if len(self.asked) == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        self.asked.append(combination)
        if self.fail(combination):
            raise UserError("Instance 0 was killed by SIGKILL.")
        return made_up_run(combination, 0, 1000 * combination.batch, 1).figures


def parsed(text: str) -> dict:
    """Of JSON as the standard has it: NaN and Infinity are none."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def sweep(settings: SweepSettings, measuring: Measuring) -> tuple[int, list[str], dict]:
    """Status, what was shown, the JSON of the last line, which is what the state file has too."""
    shown: list[str] = []
    status = run_sweep(settings, shown.append, measuring)
    fields = parsed(shown[-1])
    assert parsed(settings.state_path.read_text()) == {"kind": "dlrm_tvm sweep", **fields}
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
    assert (status, fields["interrupted"], fields["finished"], fields["runs_left"]) == (1, True, False, 3)
    assert sum(len(entry["repeats"]) for entry in fields["combinations"]) == 3
    assert "Interrupted: 3 runs are left. The same command with --resume does them." in shown
    status, shown, fields = sweep(replace(settings, resume=True, seed=None), second)
    assert status == 0 and fields["finished"]
    assert first.asked + second.asked == whole.asked
    assert len(fields["earlier_environments"]) == 1
    assert [[run["round"] for run in entry["repeats"]] for entry in fields["combinations"]] == [[0, 1, 2]] * 2
    assert "resumed: 3 runs were measured already, 3 are left" in shown


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


def test_termination_does_what_it_did_before_once_the_sweep_is_over(settings) -> None:
    before = signal.getsignal(signal.SIGTERM)
    sweep(settings, Measuring())
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_an_earlier_sweep_measured_is_not_overwritten(settings) -> None:
    sweep(settings, Measuring(stop_at=3))
    unfinished = settings.state_path.read_text()
    _, shown, _ = sweep(settings, Measuring())
    finished = settings.state_path.read_text()
    kept = [settings.state_path.with_name(name) for name in ("state.json.old", "state.json.old2", "state.json.old3")]
    assert kept[0].read_text() == unfinished
    assert any("an unfinished sweep's 3 runs were in" in line and f"kept as {kept[0]}" in line for line in shown)
    _, shown, _ = sweep(settings, Measuring())
    assert [path.read_text() for path in kept[:2]] == [unfinished, finished]
    assert any("a finished sweep's 6 runs were in" in line and line.endswith(f"kept as {kept[1]}") for line in shown)
    settings.state_path.write_text('{"kind": "dlrm_tvm sweep"}')
    sweep(settings, Measuring())
    assert kept[2].read_text() == '{"kind": "dlrm_tvm sweep"}'


def test_second_sweep_with_the_same_state_is_refused(settings) -> None:
    refused = []

    def measure(own: SweepSettings, combination: Combination, library: Path) -> dict:
        with pytest.raises(UserError, match=r"Another sweep is at work on .*state\.json\. .* --json FILE"):
            run_sweep(settings, lambda text: None, Measuring())
        refused.append(combination)
        return made_up_run(combination, 0, 1, 1).figures

    assert run_sweep(settings, lambda text: None, measure) == 0
    assert len(refused) == 6
    assert [path.name for path in settings.state_path.parent.iterdir()] == ["state.json"]


def test_lock_that_a_killed_sweep_left_locks_nothing(settings) -> None:
    lock = settings.state_path.with_name(".state.json.lock")
    lock.write_text("")
    assert sweep(settings, Measuring())[0] == 0
    assert not lock.exists()


def test_another_engine_is_named_and_has_a_state_of_its_own(settings) -> None:
    peer = replace(settings, run=replace(settings.run, engine="onnxruntime"), state=None)
    assert peer.state_path.name == "small.onnxruntime.sweep.json"
    narrow = replace(peer, run=replace(peer.run, engine_precision="int8"))
    assert narrow.state_path.name == "small.onnxruntime.int8.sweep.json"
    assert replace(settings, state=None).state_path.name == "small.sweep.json"
    facts = {"model": "small", "precision": "fp32", "engine": "onnxruntime", "engine_version": "1.2"}
    assert heading(facts) == "small, fp32, ONNX Runtime 1.2"
    assert heading(facts | {"engine": "ours"}) == "small, fp32"


def test_a_failing_combination_is_recorded_and_the_sweep_goes_on(settings) -> None:
    measuring = Measuring(fail=lambda combination: combination.batch == 4)
    status, shown, fields = sweep(settings, measuring)
    assert (status, len(measuring.asked), fields["finished"]) == (0, 6, True)
    assert [len(entry["failures"]) for entry in fields["combinations"]] == [0, 3]
    assert "Failed 3 times: 1 instance × 1 thread, batch 4: Instance 0 was killed by SIGKILL." in shown[-2]
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
    assert (status, fields["finished"], fields["combinations"][1]["failures"][0]["error"]) == (0, True, said)


def test_a_run_whose_figures_are_no_numbers_is_a_failed_one(settings) -> None:
    def measure(settings: SweepSettings, combination: Combination, library: Path) -> dict:
        rate = float("nan") if combination.batch == 4 else 1.0
        return made_up_run(combination, 0, rate, 1).figures

    shown: list[str] = []
    assert run_sweep(settings, shown.append, measure) == 0
    assert "Out of range float" in parsed(shown[-1])["combinations"][1]["failures"][0]["error"]


def test_state_that_cannot_be_written_ends_the_sweep_with_what_was_measured(settings, monkeypatch) -> None:
    def full_disk(path: Path, fields: dict) -> None:
        raise OSError(28, "No space left on device", ".state.json.1.tmp")

    monkeypatch.setattr("dlrm_tvm.sweep.write_state", full_disk)
    shown, measuring = [], Measuring()
    with pytest.raises(UserError, match=r"state\.json could not be written \(No space left on device\)\. The line"):
        run_sweep(settings, shown.append, measuring)
    assert len(measuring.asked) == 1
    fields = parsed(shown[-1])
    assert (fields["interrupted"], fields["runs_left"], len(fields["combinations"])) == (True, 5, 1)
    assert any(line.endswith("the sweep ends here, for no more runs could be kept.") for line in shown)


def test_json_is_printed_where_table_and_plot_cannot_be_written(settings, tmp_path: Path, monkeypatch) -> None:
    def full_disk(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", ".a.tmp")

    pytest.importorskip("matplotlib")
    monkeypatch.setattr("dlrm_tvm.sweep.write_whole_file", full_disk)
    shown: list[str] = []
    files = {"csv": tmp_path / "a.csv", "plot": tmp_path / "a.svg"}
    with pytest.raises(UserError, match=r"a\.csv could not be written .*; .*a\.svg could not be written"):
        run_sweep(replace(settings, **files), shown.append, Measuring())
    assert parsed(shown[-1])["finished"]


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


def test_resume_of_another_cpu_model_or_library_is_refused(settings) -> None:
    sweep(settings, Measuring(stop_at=3))
    fields = json.loads(settings.state_path.read_text())
    for key in (
        "cpu",
        "cpu_flags",
        "l3_mb",
        "engine_version",
        "model_fingerprint",
        "library_sha256",
        "indices_per_bag",
    ):
        changed = fields | {"settings": fields["settings"] | {key: "another"}}
        settings.state_path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f'was measured with {key} "another", now it is'):
            run_sweep(replace(settings, resume=True), lambda text: None, Measuring())


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"kind": "dlrm_tvm sweep"}'])
def test_resume_of_no_sweep_is_refused(settings, content: str | None) -> None:
    if content is not None:
        settings.state_path.write_text(content)
    wanted = "no such file, so there is no sweep to resume" if content is None else "is not what a sweep of this"
    with pytest.raises(UserError, match=wanted):
        run_sweep(replace(settings, resume=True), lambda text: None, Measuring())


def test_resume_of_a_damaged_state_is_one_line(settings) -> None:
    sweep(settings, Measuring(stop_at=3))
    whole = settings.state_path.read_text()
    repeat = ("combinations", 0, "repeats", 0)
    damages = [
        ((*repeat, "items_per_s"), None),
        ((*repeat, "items_per_s"), "12"),
        ((*repeat, "items_per_s"), float("nan")),
        ((*repeat, "items_per_s"), 10**400),
        ((*repeat, "peak_fraction"), float("inf")),
        ((*repeat, "latency_ms"), {"p50": 1}),
        ((*repeat, "latency_ms"), []),
        ((*repeat, "warnings"), [1]),
        ((*repeat, "warnings"), None),
        ((*repeat, "round"), True),
        (repeat, None),
        (("combinations", 0, "threads"), 0),
        (("combinations", 0, "threads"), [1]),
        (("combinations",), {"a": 1}),
        (("combinations",), 3),
        (("seed",), "3"),
        (("finished",), None),
        (("settings",), []),
        (("environment",), {}),
        (("environment",), "x"),
        (("earlier_environments",), None),
    ]
    for (*where, last), value in damages:
        fields = inner = json.loads(whole)
        for key in where:
            inner = inner[key]
        inner[last] = value
        assert_not_resumed(settings, json.dumps(fields))
    fields = json.loads(whole)
    fields["combinations"][0]["repeats"] *= 2
    assert_not_resumed(settings, json.dumps(fields))
    assert_not_resumed(settings, whole.replace('"gflops": 0.0', '"gflops": 1e999'))
    assert_not_resumed(settings, "[" * 100_000)
    assert_not_resumed(settings, whole[: len(whole) // 2])


def assert_not_resumed(settings: SweepSettings, content: str) -> None:
    settings.state_path.write_text(content)
    with pytest.raises(UserError, match="is not what a sweep of this version leaves"):
        read_state(settings.state_path)


def test_settings_have_whole_paths(settings, tmp_path: Path, monkeypatch) -> None:
    """So that a resumed sweep cannot mean other files in another folder."""
    monkeypatch.chdir(tmp_path)
    manifest, topology = open_artifact(settings.run.model).manifest, read_topology()
    run = replace(settings.run, ref_data=Path("a.npz"), onnx_model=Path("a.onnx"))
    fixed = _fixed_settings(replace(settings, run=run), [], manifest, topology)
    assert (fixed["ref_data"], fixed["onnx_model"]) == (str(tmp_path / "a.npz"), str(tmp_path / "a.onnx"))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"engine": "openvino"}, "OpenVINO is not installed"),
        ({"engine": "onnxruntime", "onnx_model": Path("absent.onnx")}, "absent.onnx: no such file"),
        ({"engine": "onnxruntime", "indices_per_bag": 2}, "no bags"),
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

    monkeypatch.setattr("dlrm_tvm.sweep_setup.engine_version", version)
    monkeypatch.setattr("dlrm_tvm.peer_graph.engine_version", version)
    monkeypatch.setattr("dlrm_tvm.sweep_setup.ensure_libraries", lambda *_: pytest.fail("compiles"))
    run = replace(settings.run, **changes)
    with pytest.raises(UserError, match=said):
        run_sweep(replace(settings, run=run), lambda text: None, Measuring())


def test_csv_and_plot_are_written_and_nothing_else_is_left(settings, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = {"csv": tmp_path / "a.csv", "plot": tmp_path / "a.SVG"}
    sweep(replace(settings, **files), Measuring())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.SVG", "a.csv", "state.json"]
    assert files["csv"].read_text().startswith("instances,threads,batch_size,items_per_s,")
    assert ">batch 8<" in files["plot"].read_text()


@pytest.mark.parametrize("name", ["csv", "state", "plot"])
def test_files_that_cannot_be_written_are_refused_before_measuring(settings, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.svg").mkdir()
    for path in (tmp_path / "absent" / "a.svg", tmp_path / "folder.svg"):
        measuring = Measuring()
        with pytest.raises(UserError, match=f"--{'json' if name == 'state' else name} {path}: "):
            run_sweep(replace(settings, **{name: path}), lambda text: None, measuring)
        assert measuring.asked == []


def test_one_name_for_two_files_is_refused(settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name one file twice"):
        run_sweep(replace(settings, csv=settings.state), lambda text: None, Measuring())


def test_flags_of_one_run_that_the_sweep_overrules_are_refused(settings) -> None:
    run = replace(settings.run, instances=1)
    with pytest.raises(UserError, match="--sweep chooses instances, --num-instances too"):
        run_sweep(replace(settings, run=run), lambda text: None, Measuring())


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "another"}', "[" * 100_000])
def test_file_that_no_sweep_left_is_not_overwritten(settings, content: str) -> None:
    settings.state_path.write_text(content)
    with pytest.raises(UserError, match=r"state\.json: a file that no sweep left has that name"):
        run_sweep(settings, lambda text: None, Measuring())
    assert settings.state_path.read_text() == content


@pytest.mark.parametrize("name", ["csv", "state", "plot"])
def test_files_that_the_run_reads_are_not_written(settings, folder: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    data = tmp_path / "data.svg"
    data.write_text("kept")
    run = replace(settings.run, ref_data=data)
    read = [data] if name == "plot" else [data, *(folder / f"small_b8.{kind}" for kind in ("so", "json", "params"))]
    for path in read:
        changes = {"run": run if path == data else settings.run, name: path}
        with pytest.raises(UserError, match=r"the sweep reads that file|no sweep left"):
            run_sweep(replace(settings, **changes), lambda text: None, Measuring())
    assert data.read_text() == "kept" and open_artifact(folder / "small_b8.so")


def test_files_that_the_model_lies_in_are_not_written(folder: Path, tmp_path: Path) -> None:
    manifest = replace(open_artifact(folder / "small_b4.so").manifest, onnx_model=str(tmp_path / "a.onnx"))
    read = files_of_model(manifest, tmp_path / "b.onnx")
    for path in ("a.onnx", "a.onnx.data", "b.onnx"):
        with pytest.raises(UserError, match=f"--csv .*{path}: the sweep reads that file"):
            check_not_read({"--csv": tmp_path / "." / path}, read)


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
    assert run_sweep(replace(settings, run=run), shown.append, measure) == 0
    (failure, *_) = parsed(shown[-1])["combinations"][1]["failures"]
    assert "small_b8.so for batch 8 was deleted" in failure["error"]
    assert "--batch-size 8 --output-name small" in failure["error"]


def ensure(library: Path, base: Manifest, batches: list[int]) -> None:
    ensure_libraries(library, base, name_libraries(library, base, batches), lambda text: None)


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
    flags = "compile.py --profile --target-cpu znver4 --batch-size"
    few = {"tuned_kernels": ["a"], "untuned_kernels": ["b", "c"], "command": f"{flags} 4"}
    library = with_manifest(folder / "small_b4.so", tmp_path, **few)
    with_manifest(folder / "small_b8.so", tmp_path, tuned_kernels=[], untuned_kernels=["a", "b"], command="compile.py")
    _, shown, fields = sweep(replace(settings, run=replace(settings.run, model=library)), Measuring())
    assert "  kernels     batch 4: 1 tuned, 2 by rule; batch 8: 0 tuned, 2 by rule" in shown
    assert "  compiled by batch 4: --profile; batch 8: none" in shown
    assert fields["kernels"] == {"4": {"tuned": 1, "by_rule": 2}, "8": {"tuned": 0, "by_rule": 2}}
    assert not any(line.startswith("  kernels") for line in sweep(settings, Measuring())[1])


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"command": "pytest"}, "was not made by compile.py"),
        ({"command": "compile.py"}, "lies elsewhere"),
        ({"command": "compile.py --onnx-model a.onnx", "directory": None}, "did not record where"),
        ({"command": "compile.py", "directory": "/absent"}, "/absent, where .* is gone"),
    ],
)
def test_missing_library_that_nobody_can_compile_is_one_line_that_tells_what_to_type(
    folder: Path, monkeypatch, changes: dict, why: str
) -> None:
    if why != "lies elsewhere":
        monkeypatch.setattr(sweep_libraries, "_PREBUILT", folder)
    library = folder / "small_b4.so"
    base = replace(open_artifact(library).manifest, **changes)
    with pytest.raises(UserError, match=f"No library for batch 7, and .*{why}") as error:
        ensure(library, base, [4, 7])
    assert "python compile.py --onnx-model FILE --batch-size 7 --output-name small" in str(error.value)


def test_compiling_ends_with_a_sweep_that_is_killed(tmp_path: Path) -> None:
    compiler = tmp_path / "compile.py"
    compiler.write_text("import os, time; print(os.getpid(), file=open('pid.new', 'w')); os.rename('pid.new', 'pid')\n"
                        "time.sleep(60)")  # fmt: skip
    script = (
        "import pathlib, sys; from dlrm_tvm import sweep_libraries as s; here = pathlib.Path(sys.argv[1])\n"
        "s._COMPILE = here / 'compile.py'; s._compile([], here, here / 'a.so', print)"
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


def test_flags_of_one_call_are_not_repeated() -> None:
    words = "--tune --onnx-model a.onnx --batch-size=7 --tuning-log-file none --dump-ir d --output-name n --copy-tables"
    assert repeatable_flags(words.split()) == ["--onnx-model", "a.onnx", "--tuning-log-file", "none", "--copy-tables"]


def test_names_end_before_the_batch() -> None:
    assert [sweep_name(Path(name)) for name in ("p/dlrm_b100.so", "a_b2_b3.so", "plain.so")] == [
        "dlrm",
        "a_b2",
        "plain",
    ]


def test_manifest_of_an_older_program_is_read(folder: Path) -> None:
    manifest = open_artifact(folder / "small_b4.so").manifest
    fields = json.loads(manifest.to_json())
    assert fields.pop("directory") == os.getcwd()
    assert type(manifest).from_json(json.dumps(fields)) == replace(manifest, directory=None)
