"""accuracy.py --predictions: each item exactly once, whatever the file's kind, and after any kind of end."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import build_plain, numpy_predictions
from prediction_files import KINDS, SHARD_ITEMS, items_of, model_of_items, prediction_words, save
from scripts import assert_one_line, read_result, run

from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.paths import ROOT
from dlrm_tvm.predictions.job import Job, held_folder
from dlrm_tvm.predictions.run import _write_one_file


@pytest.fixture(scope="module")
def model() -> Dlrm:
    return model_of_items()


@pytest.fixture(scope="module")
def library(model, tmp_path_factory) -> Path:
    return build_plain(model, 32, tmp_path_factory.mktemp("library"))


def predict(library: Path, files: Path | list[Path], output: Path, *options: object) -> subprocess.CompletedProcess:
    files = [files] if isinstance(files, Path) else files
    return run(*prediction_words(library, files, output, *options), script="accuracy")


def joined(folder: Path, key: str = "pred") -> np.ndarray:
    return np.concatenate([np.load(path)[key] for path in sorted(folder.glob("part-*.npz"))])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "job.lock"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_of_every_kind_of_file_is_predicted_once_and_in_order(model, library, tmp_path, kind):
    items = items_of(model, 1000)
    path, shards = save(kind, tmp_path, items)
    done = predict(library, path, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    np.testing.assert_allclose(joined(tmp_path / "out"), numpy_predictions(model, *items.inputs), atol=2e-6)
    assert (result["items"], result["shards"], result["shards_of_this_run"]) == (1000, shards, shards)
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert [count for _, _, count in job["shards"]] == [len(np.load(p)["pred"]) for p in parts(tmp_path / "out")]
    assert ("cannot be entered midway" in done.stdout) == (shards == 1)


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.npz"))


def test_figures_are_those_of_the_same_items_scored_at_once(model, library, tmp_path):
    path, _ = save("mlperf npz", tmp_path, items_of(model, 1000))
    whole = read_result(run("--model", library, "--ref-data", path, script="accuracy").stdout)
    done = predict(library, path, tmp_path / "out")
    result = read_result(done.stdout)
    assert {key: result[key] for key in whole} == pytest.approx(whole, rel=1e-9)
    assert result["auc_error_bound"] == 0 and 0 < result["auc"] < 1


def test_one_file_holds_what_the_parts_would(model, library, tmp_path):
    items = items_of(model, 1000)
    files = [save("mlperf npz", tmp_path, items)[0], save("criteo binary", tmp_path, items)[0]]
    predict(library, files, tmp_path / "out")
    assert predict(library, files, tmp_path / "all.npz").returncode == 0
    assert sorted(path.name for path in tmp_path.glob("all*")) == ["all.npz"]
    with np.load(tmp_path / "all.npz") as whole:
        assert sorted(whole.files) == ["pred", "target"]  # the binary has no reference
        np.testing.assert_array_equal(whole["pred"], joined(tmp_path / "out"))
        np.testing.assert_array_equal(whole["target"], np.tile(items.labels, 2))
    assert_one_line(predict(library, files, tmp_path / "all.npz"), "is there already")


def test_files_of_two_jobs_whose_names_begin_alike_are_made_under_two_names(monkeypatch, tmp_path):
    """Two drivers in one folder; the name is as seen where the file is renamed."""
    taken = []
    monkeypatch.setattr("dlrm_tvm.predictions.run.os.replace", lambda source, path: taken.append((source, path)))
    monkeypatch.setattr("dlrm_tvm.predictions.run._Parts", lambda job: iter(()))
    monkeypatch.setattr("dlrm_tvm.predictions.run._write_column", lambda member, job, name: None)
    for end in "ab":
        _write_one_file(tmp_path / ("p" * 40 + f"{end}.npz"), None)
    (one, _), (other, _) = taken
    assert one != other and max(len(one.name), len(other.name)) < 100


def test_files_without_outputs_and_labels_are_predicted_and_not_judged(model, library, tmp_path):
    items = items_of(model, 300)
    dense, indices = items.inputs
    np.savez(tmp_path / "inputs.npz", X_int=dense, X_cat=indices)
    done = predict(library, tmp_path / "inputs.npz", tmp_path / "out")
    result = read_result(done.stdout)
    assert (done.returncode, result["auc"], result["max_abs_error"], result["items"]) == (0, None, None, 300)
    np.testing.assert_allclose(joined(tmp_path / "out"), numpy_predictions(model, dense, indices), atol=2e-6)


KILLING = """
import os, signal, sys
from pathlib import Path
from dlrm_tvm.predictions import parts
replace = os.replace
def replaced(source, target):
    if "part-000002" in str(target):
        os.kill(os.getpid(), signal.{signal})
    replace(source, target)
parts.os.replace = replaced
import accuracy
accuracy.command()
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_driver_ended_while_it_writes_a_part_is_gone_on_with(model, library, tmp_path, how):
    path, shards = save("criteo binary", tmp_path, items_of(model, 1000))
    assert predict(library, path, tmp_path / "whole").returncode == 0
    out = tmp_path / "out"
    words = ["--model", library, "--ref-data", path, "--predictions", out, "--shard-items", SHARD_ITEMS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLING.format(signal=how), *map(str, words)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode != 0 and "Traceback" not in ended.stderr
    assert [each.name for each in parts(out)] == ["part-000000.npz", "part-000001.npz"]
    assert bool(list(out.glob(".*.tmp"))) == (how == "SIGKILL")
    before = {each: each.stat().st_mtime_ns for each in parts(out)}
    assert_one_line(predict(library, path, out), "is not empty. Give --resume")
    done = predict(library, path, out, "--resume")
    assert done.returncode == 0, done.stderr
    assert {each: each.stat().st_mtime_ns for each in before} == before
    assert read_result(done.stdout)["shards_of_this_run"] == shards - 2
    assert content(out) == content(tmp_path / "whole")


KILLED_AT = """
import os, shutil, signal
from dlrm_tvm.predictions import run
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def killed_amid(folder, **_):
    if folder.exists():
        os.remove(folder / "job.json")
        killed()
{setup}
import accuracy
accuracy.command()
"""


@pytest.mark.parametrize(
    ("setup", "is_whole"),
    [
        ("run.sync_folder = killed", False),  # the one file has its name
        ("shutil.rmtree = killed_amid", True),
    ],
)
def test_a_driver_killed_after_its_one_file_is_whole_is_gone_on_with(library, model, tmp_path, setup, is_whole):
    path, _ = save("criteo binary", tmp_path, items_of(model, 1000))
    predict(library, path, tmp_path / "whole.npz")
    out = tmp_path / "out.npz"
    given = prediction_words(library, [path], out)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED_AT.format(setup=setup), *given]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(list(tmp_path.glob(".out.npz.parts.tmp"))) == is_whole
    done = predict(library, path, out, "--resume")
    if is_whole:
        assert_one_line(done, "out.npz is there already")
    else:
        assert done.returncode == 0, done.stderr
    assert sorted(each.name for each in tmp_path.glob("*out*")) == ["out.npz"]
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize("resume", [False, True])
def test_a_driver_ended_while_it_writes_its_job_leaves_a_folder_to_begin_in(tmp_path, resume):
    (tmp_path / ".job.json.host.1.tmp").write_text('{"format": 1, ')
    (tmp_path / "job.lock").write_text("1 of host")
    job = Job(tmp_path, {"format": 1, "shards": []})
    with held_folder(job, resume=resume):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json", "job.lock"]
        assert Job.read(tmp_path) == job


@pytest.fixture
def begun(model, library, tmp_path) -> tuple[Path, Path]:
    """(the input, a folder that lacks its last part)."""
    path, shards = save("criteo binary", tmp_path, items_of(model, 1000))
    predict(library, path, tmp_path / "out")
    (tmp_path / "out" / f"part-{shards - 1:06}.npz").unlink()
    return path, tmp_path / "out"


def test_a_folder_of_another_job_is_refused(model, library, begun, tmp_path):
    path, out = begun
    before = content(out)
    other, _ = save("criteo npz", tmp_path, items_of(model, 1000))
    words = ("--model", library, "--predictions", out, "--resume", "--ref-data")
    for words_of_another, what in (
        ((other, "--shard-items", SHARD_ITEMS), "inputs (other files"),
        ((path, "--shard-items", 77), "shard_items (there 256; now 77)"),
        ((path, "--shard-items", SHARD_ITEMS, "--max-ind-range", 5), "max_ind_range (there None; now 5)"),
    ):
        assert_no_change(run(*words, *words_of_another, script="accuracy"), what, out, before)
    again = build_plain(model, 32, tmp_path)  # the same model and another build of it
    assert_no_change(predict(again, path, out, "--resume"), "library", out, before)
    shutil.copytree(library.parent, tmp_path / "copy")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    assert_no_change(predict(library, path, tmp_path / "foreign", "--resume"), "holds no predictions", out, before)
    assert [each.name for each in (tmp_path / "foreign").iterdir()] == ["notes.txt"]


def assert_no_change(done: subprocess.CompletedProcess, said: str, folder: Path, before: dict) -> None:
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert content(folder) == before


def test_an_input_that_was_changed_since_is_refused(library, begun):
    path, out = begun
    before = content(out)
    os.utime(path, ns=(1, 1))
    assert_no_change(predict(library, path, out, "--resume"), "inputs (other files", out, before)


def test_a_second_driver_is_refused(library, begun):
    path, out = begun
    with (out / "job.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = predict(library, path, out, "--resume")
    assert done.returncode == 1 and "is at work in it" in done.stderr and str(os.getpid()) in done.stderr
    assert predict(library, path, out, "--resume").returncode == 0


def test_a_part_that_is_not_what_its_footer_says_is_scored_again(library, begun):
    path, out = begun
    (predictions := np.load(out / "part-000000.npz")["pred"]).sort()
    np.savez(out / "part-000000.npz", pred=predictions)  # whole, and somebody else's
    part = out / "part-000001.npz"
    whole = part.read_bytes()
    part.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    done = predict(library, path, out, "--resume")
    assert done.returncode == 0
    assert sorted(line.split()[1] for line in done.stderr.splitlines() if "Warning" in line) == [
        str(out / "part-000000.npz"),
        str(part),
    ]
    assert done.stderr.count("With --resume it is scored again.") == 2 and "Give --resume" not in done.stderr
    assert read_result(done.stdout)["shards_of_this_run"] == 3
    assert part.read_bytes() == whole


def test_a_part_too_many_is_refused(library, begun):
    path, out = begun
    shutil.copy(out / "part-000000.npz", out / "part-000077.npz")
    assert_one_line_at_the_end(predict(library, path, out, "--resume"), "part-000077.npz belongs to no shard of it")


def assert_one_line_at_the_end(done: subprocess.CompletedProcess, said: str) -> None:
    assert done.returncode == 1 and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_bad_index_is_named_and_the_parts_before_it_stay(model, library, tmp_path):
    path, _ = save("criteo binary", tmp_path, items_of(model, 1000))
    records = np.memmap(path, "<i4", "r+", shape=(1000, 40))
    records[700, 14 + 3] = 11
    records.flush()
    done = predict(library, path, tmp_path / "out")
    assert_one_line_at_the_end(done, "item 700 takes row 11 of table 3 (emb_3), which has 11 rows")
    assert len(parts(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--resume",), "--resume is for predictions that are kept. Give --predictions DIR"),
        (("--shard-items", 0), "--shard-items is for predictions that are kept"),
        (("--ray", ""), "--ray is for predictions that are kept"),
        (("--shard-items", 5), "--shard-items is for predictions that are kept"),
        (("--predictions", "x", "--shard-items", 0), "--shard-items 0: give at least 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(run(*words, script="accuracy"), said)


def test_several_files_need_predictions(library, begun):
    path, _ = begun
    done = run("--model", library, "--ref-data", path, path, script="accuracy")
    assert_one_line(done, "--ref-data has several files: give one, or --predictions DIR")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_beyond_its_limit_the_auc_is_counted_with_its_bound(model, library, tmp_path, monkeypatch):
    path, _ = save("mlperf npz", tmp_path, items_of(model, 1000))
    exact = read_result(predict(library, path, tmp_path / "exact").stdout)
    monkeypatch.setattr("dlrm_tvm.predictions.run.EXACT_ITEMS", 999)
    done = predict(library, path, tmp_path / "counted")
    counted = read_result(done.stdout)
    assert abs(counted["auc"] - exact["auc"]) <= counted["auc_error_bound"] < 1e-3
    assert counted["log_loss"] == exact["log_loss"]
    assert (f"± {counted['auc_error_bound']:.1g}" in done.stdout) == (counted["auc_error_bound"] > 0)
