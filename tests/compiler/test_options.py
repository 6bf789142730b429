"""compile.py's flags as the manifest records them, for the same library of another batch size."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from dlrm_tvm.compiler.options import (
    CompileSettings,
    add_compile_options,
    compile_settings,
    repeatable_options,
)
from dlrm_tvm.errors import UserError
from dlrm_tvm.paths import DEFAULT_LOG


def test_options_are_those_of_the_model_and_its_numbers_with_whole_paths(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = CompileSettings(
        onnx_model=Path("a.onnx"),
        batch_size=7,
        precision="auto",
        calibration_data=Path("c.npz"),
        ref_data=Path("r.npz"),
        min_auc_ratio=0.9,
        tuning_log_file=Path("log"),
        tune=True,
        tune_seconds=9.0,
        output_name="mine",
        copy_tables=True,
        target_cpu="znver4",
        dump_ir=Path("ir"),
    )
    assert repeatable_options(settings, "int8") == {
        "torch_weights": None,
        "onnx_model": str(tmp_path / "a.onnx"),
        "demo": None,
        "demo_table_rows": 10_000,
        "precision": "int8",
        "calibration_data": str(tmp_path / "c.npz"),
        "max_ind_range": None,
        "tuning_log_file": str(tmp_path / "log"),
        "copy_tables": True,
        "profile": False,
        "isa": "auto",
    }
    assert repeatable_options(settings, "fp32")["calibration_data"] is None


def test_a_demo_and_a_model_of_ones_own_are_not_both_taken() -> None:
    parser = argparse.ArgumentParser()
    add_compile_options(parser)
    for flags in (["--demo", "v2", "--onnx-model", "a"], ["--onnx-model", "a", "--torch-weights", "w.pt"]):
        with pytest.raises(UserError, match=rf"^{flags[0]} {flags[1]} and {flags[2]} {flags[3]} name 2 models"):
            compile_settings(parser.parse_args(flags), Path())
    assert compile_settings(parser.parse_args(["--demo", "v2"]), Path()).demo == "v2"


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--tuning-log-file", "nowhere"], "nowhere: no such tuning log"),
        (["--tuning-log-file", "text"], "text: line 1 is not a tuning record"),
        (["--tune", "--tuning-log-file", "text"], "text: line 1 is not a tuning record"),
        (["--tune", "--tuning-log-file", "folder"], "folder: Is a directory; a file to append to was wanted"),
        (["--dump-ir", "text"], "--dump-ir text/1_model.json: File exists"),
        (["--output-name", "taken"], "--output-name taken_b100.so: something else than a file has that name"),
    ],
)
def test_files_that_cannot_be_used_are_refused_with_the_flags(flags, said, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("no record\n")
    for folder in ("folder", "taken_b100.so"):
        Path(folder).mkdir()
    parser = argparse.ArgumentParser()
    add_compile_options(parser)
    with pytest.raises(UserError, match=f"^{said}"):
        compile_settings(parser.parse_args(flags), Path())


@pytest.mark.parametrize("log, recorded", [(DEFAULT_LOG, None), (None, "none")])
def test_log_that_compile_py_takes_by_itself_is_not_recorded(log: Path | None, recorded: str | None) -> None:
    assert repeatable_options(CompileSettings(tuning_log_file=log), "fp32")["tuning_log_file"] == recorded
