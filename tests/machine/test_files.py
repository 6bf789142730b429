"""Results on disks that fill up, under names as long as they may be: written, or shown and said."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from dlrm_tvm.errors import UserError
from dlrm_tvm.machine import files
from dlrm_tvm.machine.files import check_writable, leave_result, write_whole_file

FIELDS = {"items": 3, "auc": float("nan")}


def test_a_result_is_in_its_file_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    leave_result(FIELDS, tmp_path / "a.json", {tmp_path / "a.csv": lambda: b"1,2\n"})
    assert (tmp_path / "a.json").read_text() == capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["auc"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


def test_a_file_that_cannot_be_written_costs_neither_the_others_nor_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    replace = os.replace

    def full(source: Path, path: Path) -> None:
        if path.suffix == ".json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, path)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match=r"a\.json could not be written \(No space left on device\)\. What is printed"):
        leave_result(FIELDS, tmp_path / "a.json", {tmp_path / "a.csv": lambda: b"1,2\n"})
    assert json.loads(capsys.readouterr().out)["items"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(("bad", "is_whole"), [("a.json", False), ("a.csv", True)])
def test_all_figures_are_said_to_be_printed_only_where_they_are(tmp_path: Path, bad: str, is_whole: bool) -> None:
    """A table is not all of them, and a file besides the result has others."""
    (tmp_path / bad).mkdir()
    with pytest.raises(UserError, match=rf"{bad} could not be written \(Is a directory\)\.$"):
        leave_result(FIELDS, tmp_path / "a.json", {tmp_path / "a.csv": lambda: b"1"}, lambda fields: is_whole)


def test_an_interrupt_while_a_picture_is_drawn_costs_that_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def drawn() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave_result(FIELDS, tmp_path / "a.json", {tmp_path / "a.csv": lambda: b"1", tmp_path / "a.svg": drawn})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]
    assert json.loads(capsys.readouterr().out)["items"] == 3


def test_a_reader_of_stdout_that_is_gone_costs_no_file(tmp_path: Path) -> None:
    def gone(fields: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        leave_result(FIELDS, tmp_path / "a.json", show_fields=gone)
    assert json.loads((tmp_path / "a.json").read_text())["items"] == 3


def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120 + "a" * 15)  # 255 bytes
    check_writable("--output", path)
    write_whole_file(path, b"content")
    assert path.read_bytes() == b"content" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match="File name too long"):
        check_writable("--output", path.with_name(f"{path.name}b"))
