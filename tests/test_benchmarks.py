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
    done = run_bench("--batches=1", "--engines=ours,onnxruntime")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    installed = importlib.util.find_spec("onnxruntime") is not None
    assert [row["engine"] for row in result["results"]] == ["ours", "onnxruntime"][: 1 + installed]
    assert ("skipped: not installed" in done.stdout) is not installed
    for row in result["results"]:
        assert row["batch_size"] == 1
        assert row["max_abs_error"] <= 1e-5
        assert 0 < row["items_per_s"] <= row["best_items_per_s"]
        assert 0 < row["peak_fraction"] <= row["best_peak_fraction"]
        has_ratio = row["engine"] == "ours" and installed
        assert (row["ratio_to_best_peer"] is not None) is has_ratio
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
    ],
)
def test_bench_refuses_what_it_cannot_run_in_one_line(option: str, message: str) -> None:
    done = run_bench(option)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
