"""The benchmark runs and keeps its schema; what it measures is not judged here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "tests" / "benchmarks" / "bench.py"


def run_bench(*options: str) -> subprocess.CompletedProcess[str]:
    name = f"pytest_bench_{os.getpid()}"
    command = [sys.executable, str(BENCH), "--rounds=2", "--seconds=0.02", f"--output-name={name}", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_bench_checks_then_times_every_installed_engine(demo_library: Path) -> None:
    done = run_bench("--precisions=fp32", "--batches=1", "--engines=ours,onnxruntime")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    installed = importlib.util.find_spec("onnxruntime") is not None
    assert [row["engine"] for row in result["results"]] == ["ours", "onnxruntime"][: 1 + installed]
    assert ("skipped: not installed" in done.stdout) is not installed
    for row in result["results"]:
        assert (row["precision"], row["batch_size"]) == ("fp32", 1)
        assert 0 < row["mean_abs_error"] <= row["max_abs_error"] <= 1e-5 and row["is_right"]
        assert 0 < row["items_per_s"] <= row["best_items_per_s"]
        assert 0 < row["peak_fraction"] <= row["best_peak_fraction"]
        has_ratio = row["engine"] == "ours" and installed
        assert (row["ratio_to_best_peer"] is not None) is has_ratio
    assert result["precisions"] == ["fp32"] and result["peak_gflops"]["fp32"] > 0
    assert 0 < result["batch_1_streaming"]["needed_share"] < result["batch_1_streaming"]["share"]
    assert not list((ROOT / "__prebuilt").glob("pytest_bench_*"))


def test_bags_are_checked_then_timed_with_every_installed_engine(require_fma: None) -> None:
    sizes = ("--tables=3", "--table-rows=50", "--dim=32", "--batch=7", "--bag=4", "--rounds=2")
    command = [sys.executable, str(BENCH.with_name("bags.py")), *sizes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["results"]
    installed = [name for name in ("torch", "onnxruntime") if importlib.util.find_spec(name) is not None]
    assert done.stdout.count("skipped: not installed") == 2 - len(installed)
    names = ["ours", *["PyTorch"] * ("torch" in installed)]
    names += ["ONNX Runtime, Loop", "ONNX Runtime, Gather"] * ("onnxruntime" in installed)
    assert [row["engine"] for row in rows] == names
    for row in rows:
        assert row["max_abs_error"] <= 1e-5
        assert 0 < row["ns_per_row_p10"] <= row["ns_per_row"] <= row["ns_per_row_p90"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--engines=onnxruntime", "--engines onnxruntime: ours and any of the others were wanted"),
        ("--core=9999", "--core 9999 is not usable here"),
        ("--precisions=fp32,fp8", "--precisions fp32,fp8: fp8 is none of fp32, bf16, int8."),
    ],
)
def test_bench_refuses_what_it_cannot_run_in_one_line(option: str, message: str) -> None:
    done = run_bench(option)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_an_engine_opens_in_the_precision_that_it_is_benched_in(precision: str) -> None:
    """OpenVINO's worker, as bench.py starts it, without a library of ours."""
    script = """
import sys, tempfile
from pathlib import Path
import numpy as np
from engine_process import EngineProcess
from engines import int8_file, why_not
from rounds import Contest, Inputs, check_outputs
from dlrm_tvm.demo import demo_dlrm, demo_model_path
from dlrm_tvm.manifest import describe
from dlrm_tvm.workload import random_items
precision, core = sys.argv[1], int(sys.argv[2])
if reason := why_not("openvino", precision):
    sys.exit(f"skip: {reason}")
model, graph = demo_dlrm(), demo_model_path()
inputs = Inputs(*random_items(describe(model), 600, instance=0))
with tempfile.TemporaryDirectory() as name:
    np.save(f"{name}/dense.npy", inputs.dense)
    np.save(f"{name}/indices.npy", inputs.indices)
    quantized = int8_file("openvino", graph, describe(model)) if precision == "int8" else None
    models, folder = {100: graph}, Path(name)
    with EngineProcess("openvino", precision, core=core, models=models, inputs=folder, quantized=quantized) as process:
        process.open()
        contest = Contest(("openvino",), (100,), 1, 0.1, core, model, graph, inputs, folder)
        (errors,) = check_outputs({"openvino": process}, contest).values()
print(errors.are_right(precision), errors.are_right("fp32"))
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{BENCH.parent}"}
    command = [sys.executable, "-c", script, precision, str(min(os.sched_getaffinity(0)))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if done.stderr.startswith("skip: "):
        pytest.skip(done.stderr.strip())
    assert done.stdout == "True False\n", done.stderr
