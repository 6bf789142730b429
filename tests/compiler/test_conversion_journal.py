"""Large tables whose conversion was killed: the same command goes on, and nothing takes a half for a whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import write_dlrm
from models import random_dlrm
from sparse_tables import on_disk

from dlrm_tvm.compiler import conversion_journal as journals
from dlrm_tvm.compiler.conversion_journal import NoRoomError, conversion_journal
from dlrm_tvm.compiler.table_layout import lay_out_tables
from dlrm_tvm.errors import UserError
from dlrm_tvm.model.precision import numerics_of
from dlrm_tvm.paths import ROOT
from dlrm_tvm.runtime.parameters import Kept, ParameterSource, lay_out, write_parameters

MODEL = random_dlrm(table_rows=(200, 300, 50), dim=32)
ROWS = (40_000, 200, 60_000)
FILES = {f"big_b4{suffix}" for suffix in (".json", ".params", ".so")}

# compile.py with every model as large and every 2 MiB kept; `ends` names what it is killed after, a number of times;
# in small letters, interrupted
COMPILE = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
ends, after, directory = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)
from pathlib import Path
import compile as script
from dlrm_tvm.compiler import conversion_journal, table_conversion
from dlrm_tvm.runtime import parameters
script.PREBUILT = Path(directory)
conversion_journal.LEAST_BYTES, parameters._KEPT_EVERY, table_conversion._CHUNK_BYTES = 0, 2 << 20, 1 << 19
calls = [0]

def counted(work):
    def call(self, *arguments):
        work(self, *arguments)
        calls[0] += 1
        if calls[0] == after:
            os.kill(os.getpid(), signal.SIGKILL if ends.isupper() else signal.SIGINT)
    return call

if ends != "none":
    name = {"scales": "add_largest", "rows": "keep", "link": "hand_over"}[ends.lower()]
    journal = conversion_journal.ConversionJournal
    setattr(journal, name, counted(getattr(journal, name)))
script.command()
"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "big.onnx"
    return write_dlrm(path, table_rows=ROWS, dim=64, bottom=(), top=(8,), external="one_file")


@pytest.fixture(scope="module")
def whole(graph, tmp_path_factory) -> Path:
    """What a run without a kill leaves."""
    directory = tmp_path_factory.mktemp("whole")
    assert compiled(graph, directory).returncode == 0
    return directory


def compiled(graph: Path, directory: Path, ends: str = "none", after: int = 0) -> subprocess.CompletedProcess:
    """For a CPU by name: nothing is measured or run, so any machine can."""
    flags = ["--onnx-model", graph, "--output-name", "big", "--batch-size", 4, "--precision", "int8"]
    flags += ["--target-cpu", "znver4"]
    command = [sys.executable, "-c", COMPILE, ROOT, ends, after, directory, *flags]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("ends", "after", "left"),
    [
        pytest.param("SCALES", 2, "2 of 3 tables' scales:", marks=pytest.mark.slow),
        ("ROWS", 2, "3 of 3 tables' scales and 4.2 MB of rows:"),
        ("LINK", 1, "3 of 3 tables' scales and 6.3 MB of rows:"),
    ],
)
def test_a_conversion_that_was_killed_goes_on_and_leaves_what_a_whole_one_does(
    graph, whole, tmp_path, ends, after, left
):
    killed = compiled(graph, tmp_path, ends, after)
    assert killed.returncode == -signal.SIGKILL
    assert not FILES & names(tmp_path), "nothing looks like a library"
    again = compiled(graph, tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"an earlier run left {left} going on from there" in again.stdout
    assert {name for name in names(tmp_path) if not name.startswith(".building-")} == FILES
    (ours, theirs) = (tables_of(directory) for directory in (tmp_path, whole))
    np.testing.assert_array_equal(ours, theirs)


def tables_of(directory: Path) -> np.ndarray:
    manifest = json.loads((directory / "big_b4.json").read_text())
    (tables,) = (entry for entry in manifest["parameters"] if entry["name"] == "tables")
    content = (directory / "big_b4.params").read_bytes()[tables["offset"] :]
    assert json.loads((directory / "big_b4.params").read_bytes()[:4096].rstrip(b"\0"))["build"] == manifest["build"]
    return np.frombuffer(content, np.uint8)[: sum(ROWS) * 64]


def test_an_interrupted_conversion_says_where_its_rows_stay_and_files_of_another_model_begin_anew(tmp_path):
    graph = write_dlrm(tmp_path / "a.onnx", table_rows=ROWS, dim=64, bottom=(), top=(8,), external="one_file")
    stopped = compiled(graph, tmp_path / "out", "rows", 2)
    assert (stopped.returncode, names(tmp_path / "out")) == (130, {".converting-big_b4-int8"})
    assert "GB of converted tables stay in " in stopped.stderr
    assert ".converting-big_b4-int8: the same command goes on from there.\nInterrupted.\n" in stopped.stderr
    with (tmp_path / "a.onnx.data").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(0.125).tobytes())
    other = compiled(graph, tmp_path / "out")
    assert other.returncode == 0, other.stderr
    assert "an earlier run left" not in other.stdout
    assert names(tmp_path / "out") == FILES


@pytest.fixture
def everything_is_large(monkeypatch) -> None:
    monkeypatch.setattr(journals, "LEAST_BYTES", 0)


def test_one_process_at_a_time_has_the_journal_and_a_failure_removes_it(everything_is_large, tmp_path):
    with conversion_journal(tmp_path, "a_b1", MODEL, "int8") as mine:
        mine.add_largest(0.5)
        with conversion_journal(tmp_path, "a_b1", MODEL, "int8") as second:
            assert second is None
        assert mine.folder.is_dir()
    assert not mine.folder.exists()
    with pytest.raises(UserError), conversion_journal(tmp_path, "a_b1", MODEL, "int8") as mine:
        mine.add_largest(0.5)
        raise UserError("the disk is full")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_is_converted(everything_is_large, tmp_path, capsys):
    with pytest.raises(NoRoomError), conversion_journal(tmp_path, "a_b1", MODEL, "int8") as journal:
        journal.add_largest(0.5)
        raise NoRoomError("No space left on device")
    assert "GB of converted tables stay in " in capsys.readouterr().err
    with conversion_journal(tmp_path, "a_b1", MODEL, "int8") as journal:
        assert journal.largest == [0.5]
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_another_process_removes_right_now_is_made_anew(everything_is_large, tmp_path, monkeypatch):
    """Between its being made, or found, and its being opened."""
    open_, removed = os.open, []

    def open_and_remove(path, *options, **more):
        if str(path).endswith("-int8") and len(removed) < 2:
            removed.append(path.rmdir())
        return open_(path, *options, **more)

    monkeypatch.setattr(journals.os, "open", open_and_remove)
    with conversion_journal(tmp_path, "a_b1", MODEL, "int8") as journal:
        assert journal.folder.is_dir()
    assert len(removed) == 2 and list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_has_no_journal_and_no_folder_of_one(everything_is_large, tmp_path, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(journals.fcntl, "flock", unsupported)
    with conversion_journal(tmp_path, "a_b1", MODEL, "int8") as journal:
        assert journal is None
        assert list(tmp_path.iterdir()) == []


def test_small_tables_have_no_journal(tmp_path):
    with conversion_journal(tmp_path / "new", "a_b1", MODEL, "int8") as journal:
        assert journal is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", ["version", "rows", "precision", "nothing", "damaged"])
def test_a_journal_of_anything_else_is_begun_anew(everything_is_large, tmp_path, monkeypatch, changed):
    model, other = (
        on_disk(random_dlrm(table_rows=(200, 300), dim=32, seed=seed), tmp_path / "data") for seed in (0, 0)
    )
    with pytest.raises(KeyboardInterrupt), conversion_journal(tmp_path, "a_b1", model, "int8") as journal:
        journal.add_largest(0.25)
        journal.keep(Kept(1 << 21, "digest"))
        raise KeyboardInterrupt
    if changed == "version":
        monkeypatch.setattr(journals, "VERSION", "99")
    elif changed == "rows":
        other = on_disk(random_dlrm(table_rows=(200, 300), dim=32, seed=1), tmp_path / "data")
    elif changed == "precision":
        (tmp_path / ".converting-a_b1-int8").rename(tmp_path / ".converting-a_b1-bf16")
    elif changed == "damaged":
        (tmp_path / ".converting-a_b1-int8" / "progress.json").write_text('{"key": ')
    precision = "bf16" if changed == "precision" else "int8"
    with conversion_journal(tmp_path, "a_b1", other, precision) as journal:
        assert journal.found == (changed == "nothing")
        assert journal.largest == ([0.25] if changed == "nothing" else [])


@pytest.mark.parametrize("damage", [None, "content", "cut off", "gone"])
def test_kept_rows_are_read_again_and_written_again_where_they_are_not_the_same(tmp_path, monkeypatch, damage):
    monkeypatch.setattr("dlrm_tvm.runtime.parameters._KEPT_EVERY", 2 << 20)
    values, asked, kept = np.random.default_rng(0).random(1_700_000, np.float32), [], []

    def chunks(first: int):
        asked.append(first)
        return iter([values[first // 4 :]])

    sources = [ParameterSource("tables", "float32", values.shape, chunks)]
    entries, _ = lay_out(sources)
    wanted = write_parameters(tmp_path / "a", "build", sources, entries, keep=kept.append)
    assert [each.nbytes for each in kept] == [2 << 20, 4 << 20, 6 << 20]
    with (tmp_path / "a").open("r+b") as file:
        file.truncate(entries[0].offset + (5 << 20))
        if damage == "content":
            file.seek(entries[0].offset + 1_000_000)
            file.write(b"damage")
        elif damage == "cut off":
            file.truncate(entries[0].offset + (3 << 20))
    if damage == "gone":
        (tmp_path / "a").unlink()
    assert write_parameters(tmp_path / "a", "build", sources, entries, kept=kept[1]) == wanted
    assert asked == [0, 0 if damage else 4 << 20]
    content = np.frombuffer((tmp_path / "a").read_bytes()[entries[0].offset :], np.float32)
    np.testing.assert_array_equal(content, values)


@pytest.mark.parametrize("precision", ["fp32", "int8", "bf16"])
def test_a_layouts_rows_go_on_from_any_word(precision):
    scales = np.float32([0.01, 0.02, 0.03]) if precision == "int8" else None
    layout = lay_out_tables(MODEL, copy=True, numerics=numerics_of(MODEL, precision, scales))
    flat = np.concatenate([chunk.reshape(-1) for chunk in layout.copied.chunks(0)])
    table_ends = np.cumsum([table.num_rows for table in MODEL.tables]) * len(flat) // 550
    for first in {0, 1, 16, 37, len(flat) - 1, len(flat), *table_ends.tolist(), *(table_ends - 1).tolist()}:
        rest = [chunk.reshape(-1) for chunk in layout.copied.chunks(4 * first)]
        np.testing.assert_array_equal(np.concatenate([np.zeros(0, np.float32), *rest]), flat[first:])
