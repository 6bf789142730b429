"""The benchmarks run and keep their schema; what they measure is not judged here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from graphs import write_dlrm
from models import build_plain
from scripts import run

from dlrm_tvm.engines.interface import OURS
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.precision import PRECISIONS
from dlrm_tvm.paths import ROOT
from dlrm_tvm.sweep.plan import SweepSpec, parse_spec

BENCHMARKS = ROOT / "tests" / "benchmarks"
PEERS = ("onnxruntime", "openvino")  # that requirements-dev.txt brings; the others are given by ENGINES=


def bench_command(*settings: str, target: str = "bench") -> list[str]:
    """What `make bench` would run of multi_instance.py."""
    done = subprocess.run(["make", "-n", target, *settings], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if "multi_instance.py" in line)
    return shlex.split(line)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_bench_is_a_sweep_of_all_engines_and_precisions_or_of_those_named() -> None:
    words = bench_command()
    spec = SweepSpec((1,), (1,), (1, 16, 100, 2048), (OURS, *PEERS), PRECISIONS)
    assert parse_spec(words[words.index("--sweep") + 1]) == spec
    words = bench_command("PRECISIONS=int8", "BATCHES=100", "ENGINES=ours,openvino", "BENCH_ARGS=--repeats 5 --cores 1")
    spec = SweepSpec((1,), (1,), (100,), (OURS, "openvino"), ("int8",))
    assert parse_spec(words[words.index("--sweep") + 1]) == spec
    assert words[-4:] == ["--repeats", "5", "--cores", "1"]
    words = bench_command(target="bench-v2")
    spec = SweepSpec((1,), (1,), (1, 100, 512, 2048), (OURS, *PEERS), PRECISIONS)
    assert parse_spec(words[words.index("--sweep") + 1]) == spec
    assert words[words.index("--model") + 1] == "__prebuilt/bench_v2_b100.so"
    words = bench_command("BATCHES=7", target="bench-v2")
    assert parse_spec(words[words.index("--sweep") + 1]).batch == (7,)
    flags = {word for word in words if word.startswith("--")}
    assert flags <= set(re.findall(r"--[a-z-]+", run("--help").stdout))


def test_bench_times_every_installed_engine_beside_ours(demo_library: Path, tmp_path: Path) -> None:
    """That outputs are compared before they are timed is tests/engines' matter."""
    spec = "instances=1;threads=1;engine=ours,onnxruntime;precision=fp32"
    options = ("--repeats", 2, "--duration", 0.2, "--warmup", 0.05, "--output", tmp_path / "a.json")
    done = run("--model", demo_library, "--sweep", spec, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    installed = importlib.util.find_spec("onnxruntime") is not None
    assert {row["engine"] for row in result["combinations"]} == {OURS, *["onnxruntime"] * installed}
    assert ("ONNX Runtime is not installed" in done.stdout) is not installed
    for row in result["combinations"]:
        assert (row["precision"], row["batch_size"], len(row["repeats"])) == ("fp32", 100, 2)
        assert 0 < row["items_per_s"] <= row["items_per_s_max"]
        assert row["peak_fraction"] > 0 and row["repeats"][0]["peak_gflops"] > 0
    assert ("Engines side by side" in done.stdout) is installed
    for each in result["engine_comparison"]:
        assert (each["precision"], each["batch_size"], each["best_other"]) == ("fp32", 100, "onnxruntime")
        assert 0 < each["ratio_min"] <= each["ratio"] <= each["ratio_max"]
    assert len(result["engine_comparison"]) == installed


def test_batch_1_streams_all_weights_or_those_that_are_needed(tmp_path: Path) -> None:
    path = write_dlrm(tmp_path / "small.onnx", table_rows=(50, 7), dim=32)
    library = build_plain(read_dlrm(path), 1, tmp_path)
    manifest = library.with_suffix(".json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"onnx_model": str(path)}))
    command = [sys.executable, str(BENCHMARKS / "streaming.py"), str(library), "--duration=0.1", "--warmup=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert 0 < result["needed_share"] < result["share"] and result["stream_gbps"] > 0
    assert 0 < result["needed_bytes"] < read_dlrm(path).mlp_bytes


def test_bags_are_checked_then_timed_with_every_installed_engine(require_fma: None) -> None:
    sizes = ("--tables=3", "--table-rows=50", "--dim=32", "--batch=7", "--bag=4", "--rounds=2")
    command = [sys.executable, str(BENCHMARKS / "bags.py"), *sizes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
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
