"""compile.py in bf16, int8 and auto through its command line: what it prints, leaves, and refuses."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import write_dlrm
from quantized import QUANTIZED, needs_library
from scripts import read_result

import compile as script
from dlrm_tvm import load
from dlrm_tvm.errors import run_script
from dlrm_tvm.machine.cpu import PRECISION_FLAGS, host_flags

ROWS = (50, 7, 30)


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory) -> Path:
    return write_dlrm(tmp_path_factory.mktemp("onnx") / "small.onnx", table_rows=ROWS)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """f(*arguments) -> status, result, stdout, stderr of the script in this process; __prebuilt is tmp_path's."""

    def run(*arguments) -> tuple[int, dict | None, str, str]:
        monkeypatch.setattr(script, "PREBUILT", tmp_path / "prebuilt")
        monkeypatch.setattr(sys, "argv", ["compile.py", "--batch-size=4", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            run_script(script.main)
        out, err = capsys.readouterr()
        return exit_.value.code, read_result(out) if exit_.value.code == 0 else None, out, err

    return run


def inputs(items: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    dense = rng.random((items, 13), dtype=np.float32) * 3
    return dense, np.stack([rng.integers(0, rows, items) for rows in ROWS], axis=1)


def reference_file(path: Path, onnx_model: Path, *, spoiled: bool = False) -> Path:
    """An MLPerf-style npz whose labels follow the model's own predictions, or are turned round."""
    from dlrm_tvm.frontend.reader import read_dlrm
    from dlrm_tvm.model import reference

    dense, indices = inputs(400)
    wanted = reference.predict(read_dlrm(onnx_model), dense, indices).astype(np.float32)
    target = (wanted > np.median(wanted)).astype(np.int32)
    given = 1 - wanted if spoiled else wanted
    np.savez(path, X_int=dense, X_cat=indices, torch_res=given, target=1 - target if spoiled else target)
    return path


@pytest.mark.parametrize("precision", [pytest.param(each, marks=needs_library(each)) for each in QUANTIZED])
def test_a_quantized_library_says_what_it_computes_in_and_predicts_nearly_as_fp32_does(run, onnx_model, precision):
    _, wide, _, _ = run("--onnx-model", onnx_model, "--output-name=wide")
    flags = ("--output-name=narrow", "--precision", precision, "--isa=avx512")  # tiles keep one layer more in words
    status, result, out, _ = run("--onnx-model", onnx_model, *flags)
    assert (status, result["precision"]) == (0, precision)
    assert "stay fp32" in out and "become" in out and f"MB in {precision}" in out
    dense, indices = inputs(37)
    error = np.abs(load(result["library"])(dense, indices) - load(wide["library"])(dense, indices))
    assert 0 < error.max() < 0.02

    manifest = json.loads(Path(result["library"]).with_suffix(".json").read_text())
    layers = manifest["numerics"]["layers"]
    assert (layers[0], layers[-1], set(layers[1:-1])) == ("fp32", "fp32", {precision})
    assert set(PRECISION_FLAGS[precision]) <= set(manifest["cpu_features"])
    assert manifest["model"]["table_bytes"] * {"bf16": 2, "int8": 4}[precision] == 4 * sum(ROWS) * 16
    if precision == "int8":
        assert manifest["numerics"]["activation_scales"] == result["activation_scales"] == "dynamic"
        assert len(manifest["numerics"]["table_scales"]) == len(ROWS)


@needs_library("int8")
def test_int8_with_calibration_data_has_static_scales_and_records_their_source(run, onnx_model, tmp_path):
    data = reference_file(tmp_path / "sample.npz", onnx_model)
    arguments = ("--onnx-model", onnx_model, "--precision=int8", "--calibration-data", data)
    status, result, out, _ = run(*arguments)
    assert (status, result["activation_scales"]) == (0, "static")
    assert f"static, found on {data} (400 items)" in " ".join(out.split())
    numerics = json.loads(Path(result["library"]).with_suffix(".json").read_text())["numerics"]
    assert numerics["calibration"] == f"{data} (400 items)" and numerics["x_scale"] > 0
    assert [scales is None for scales in numerics["layer_scales"]] == [each == "fp32" for each in numerics["layers"]]


@pytest.mark.parametrize("precision", [pytest.param(each, marks=needs_library(each)) for each in ("bf16", "int8")])
def test_a_library_for_one_item_is_verified_on_enough_of_them_to_tell_a_share(run, onnx_model, precision):
    """One item whose rounding differs somewhere is no wrong library."""
    status, _, out, error = run("--onnx-model", onnx_model, f"--precision={precision}", "--batch-size", "1")
    assert status == 0, error
    assert int(re.search(r"^verified +(\d+) random items", out, re.MULTILINE).group(1)) >= 24


@needs_library("int8")
def test_calibration_data_of_another_model_is_refused_and_nothing_is_left(run, onnx_model, tmp_path):
    np.savez(tmp_path / "other.npz", X_int=np.ones((4, 5), np.float32), X_cat=np.zeros((4, 3), np.int64),
             torch_res=np.ones(4, np.float32), target=np.ones(4, np.int32))  # fmt: skip
    status, _, _, error = run(
        "--onnx-model", onnx_model, "--precision=int8", "--calibration-data", tmp_path / "other.npz"
    )
    assert status == 1 and len(error.splitlines()) == 1 and "X_int" in error
    assert not any((tmp_path / "prebuilt").iterdir())


@pytest.mark.parametrize("ratio", ["0.9", pytest.param("1", marks=pytest.mark.slow)])
def test_auto_takes_the_fastest_of_those_that_keep_to_the_ratio(run, onnx_model, tmp_path, ratio):
    # Labels are the model's own ranking cut at its median: AUC is exactly 1, and any swap across the cut lowers it.
    data = reference_file(tmp_path / "reference.npz", onnx_model)
    arguments = ("--onnx-model", onnx_model, "--precision=auto", "--ref-data", data, "--min-auc-ratio", ratio)
    status, result, out, error = run(*arguments)
    assert status == 0, error
    rates = {label: rate for label, rate in result["candidates_items_per_s"].items() if rate is not None}
    fastest = max(rates, key=rates.get)
    assert fastest.startswith(f"{result['precision']} on ")
    assert f"auto        {fastest} is taken, with {rates[fastest]:,.0f} items/s here" in out
    assert out.count("400 items, passed") == len(rates)
    tried = {label.split()[0] for label in result["candidates_items_per_s"]}
    assert tried == {"fp32", *(each for each in QUANTIZED if set(PRECISION_FLAGS[each]) <= host_flags())}
    manifest = json.loads(Path(result["library"]).with_suffix(".json").read_text())
    assert fastest == f"{manifest['precision']} on {manifest['family']}"
    assert len(list((tmp_path / "prebuilt").iterdir())) == 3


def test_auto_that_finds_none_leaves_nothing(run, onnx_model, tmp_path):
    data = reference_file(tmp_path / "spoiled.npz", onnx_model, spoiled=True)
    # Reference and labels are turned round: its AUC is 1, the library's 0.
    arguments = ("--onnx-model", onnx_model, "--precision=auto", "--isa=avx512", "--ref-data", data)
    status, _, out, error = run(*arguments)
    assert status == 3 and error.startswith("no precision keeps to the AUC ratio")
    assert re.search("fp32 on .*: AUC ratio .* refused", out)
    assert not any((tmp_path / "prebuilt").iterdir())


def test_auto_wants_labels(run, onnx_model, tmp_path):
    dense, indices = inputs(4)
    path = tmp_path / "unlabelled.npz"
    np.savez(path, dense_x=dense, indices=indices.T, offsets=np.zeros((3, 4), np.int64), pred=np.ones(4, np.float32))
    status, _, _, error = run("--onnx-model", onnx_model, "--precision=auto", "--ref-data", path)
    assert status == 1 and len(error.splitlines()) == 1, error
    assert os.path.exists(path)


@needs_library("int8")
def test_int8_takes_concatenated_vectors(run, tmp_path):
    model = write_dlrm(tmp_path / "cat.onnx", table_rows=ROWS, interaction="cat")
    status, result, _, error = run("--onnx-model", model, "--precision=int8")
    assert (status, error, result["precision"]) == (0, "", "int8")
