"""The keys of docs/json.md against the results that the real scripts leave."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from graphs import write_dlrm
from models import build_plain, random_dlrm
from scripts import parsed, read_result, run

from dlrm_tvm import load
from dlrm_tvm.bench.profile import PartTime, Profile, profile_json
from dlrm_tvm.console import SCHEMA_VERSION
from dlrm_tvm.paths import PREBUILT, ROOT
from dlrm_tvm.runtime.manifest import Part

PAGE = (ROOT / "docs" / "json.md").read_text()
FREE = ("engine_versions", "libraries", "kernels", "settings", "loadgen", "environment.versions", "left_out", "best")
FREE += ("pareto", "engine_comparison", "combinations[].repeats", "combinations[].failures", "earlier_environments")
FREE += tuple(f"baseline.{figure}" for figure in ("items_per_s", "peak_fraction", "p50_ms", "p99_ms"))
FREE += ("baseline.noise_unknown", "candidates_items_per_s", "per_instance[].latency_ms", "combinations[].rate")
PROFILE = Profile((PartTime(Part("top 1", "40 x 24", 960, 960, 1.0), 5.0, 100.0, 20.0),), 4, 1, 10, 40.0, 39.0)
BRIEF = ("--num-instances", 1, "--duration", 0.5, "--warmup", 0.1)


def documented(heading: str, table: int) -> set[str]:
    """Keys of a section's table; the first one has those that are always there."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return set(re.findall(r"`([^`]+)`", "".join(_first_cells(section.split("| key | meaning |")[table + 1]))))


def _first_cells(table: str) -> list[str]:
    return re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)


MACHINE = documented("The machine", 0) | {"environment"}


def keys(fields: dict, prefix: str = "") -> set[str]:
    """All of them, as the page writes those of objects in it; objects with keys of their own are one."""
    found = set()
    for key, value in fields.items():
        name = prefix + key
        found.add(name)
        if name in FREE:
            continue
        if isinstance(value, dict):
            found |= keys(value, f"{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found |= set().union(*(keys(each, f"{name}[].") for each in value))
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A little library, and data for it with labels and outputs."""
    folder, rng = tmp_path_factory.mktemp("json"), np.random.default_rng(0)
    library = build_plain(random_dlrm(table_rows=(50, 7, 300)), 4, folder)
    dense, indices = rng.random((600, 13), dtype=np.float32), rng.integers(0, (50, 7, 300), (600, 3))
    labels = np.arange(600, dtype=np.float32) % 2
    np.savez(folder / "data.npz", X_int=dense, X_cat=indices, torch_res=load(library)(dense, indices), target=labels)
    return library, folder / "data.npz"


def result(script: str, *options: object) -> dict:
    done = run(*options, script=script)
    assert done.stdout, done.stderr
    return read_result(done.stdout)


def test_keys_of_compile(tmp_path: Path) -> None:
    model, name = write_dlrm(tmp_path / "small.onnx", table_rows=(5, 7, 3)), f"pytest_json_{os.getpid()}"
    try:
        fields = result("compile", "--onnx-model", model, "--tuning-log-file", "none", "--output-name", name)
    finally:
        for path in PREBUILT.glob(f"{name}_b*"):
            path.unlink()
    assert keys(fields) == documented("compile.py", 0)
    assert fields["schema_version"] == SCHEMA_VERSION
    assert f"`schema_version` | of this page: {SCHEMA_VERSION} |" in PAGE


def test_keys_of_accuracy(small: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--model", small[0], "--ref-data", small[1])
    assert keys(result("accuracy", *options)) == documented("accuracy.py", 0)
    fields = result("accuracy", *options, "--predictions", tmp_path / "predicted")
    assert keys(fields) == documented("accuracy.py", 0) | documented("accuracy.py", 1)


def test_keys_of_a_run_and_of_what_flags_add(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlrm_tvm.bench.rate_search._PRECISION", 0.6)  # one rate is enough
    always, more = documented("multi_instance.py", 0) | MACHINE, documented("multi_instance.py", 1)
    options = ("--model", small[0], *BRIEF)
    fields = result("multi_instance", *options, "--output", tmp_path / "a.json")
    assert keys(fields) == always
    assert parsed((tmp_path / "a.json").read_text()) == fields
    fields = result("multi_instance", *options, "--max-latency-ms", 100_000, "--baseline", tmp_path / "a.json")
    profile = {key for key in more if key.startswith("profile")}
    assert keys(fields) == always | more - profile
    assert profile == keys(profile_json(PROFILE))


def test_keys_of_loadgen(small: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    section = "multi_instance.py --scenario"
    options = ("--model", small[0], *BRIEF, "--samples", 50, "--scenario", "offline", "--log-dir", tmp_path)
    assert keys(result("multi_instance", *options)) == documented(section, 0) | documented(section, 1) | MACHINE
    fields = result("multi_instance", *options, "--accuracy", "--ref-data", small[1])
    assert keys(fields) == documented(section, 0) | documented(section, 2) | MACHINE


def test_keys_of_a_sweep(small: tuple[Path, Path], tmp_path: Path) -> None:
    sweep = ("--sweep", "instances=1", "engine=ours", "precision=fp32", "--repeats", 1, "--output", tmp_path / "a.json")
    fields = result("multi_instance", "--model", small[0], *BRIEF[2:], *sweep)
    varying = {"combinations[].arrivals", "combinations[].rate", "warnings[].text", "warnings[].runs"}
    assert keys(fields) | varying == documented("multi_instance.py --sweep", 0) | MACHINE
    assert parsed((tmp_path / "a.json").read_text()) == {"kind": "dlrm_tvm sweep", **fields}
