"""MLPerf's models at their full size, 96 and 104.5 GB of tables in sparse files: compiled in place, right, and run; the
second one converted to int8 too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from official_model import known_rows, row_values, write_official_model, write_reference

from dlrm_tvm.data.demo_weights import DEMOS, DemoModel
from dlrm_tvm.kernels.words import column_order
from dlrm_tvm.paths import ROOT

TWO_GB = 2_000
PARAMETERS_MB = {"v1": 20, "v2": 100}  # MLPs, on tiles six bytes a weight
ROWS = {"v1": 187_767_399, "v2": 204_184_588}
TABLES_MB = {"v1": 96_136.9, "v2": 104_542.5}


@dataclass(frozen=True)
class Official:
    """name: "v1" or "v2"; path: of its ONNX file; reference: items of rows that are known."""

    name: str
    path: Path
    reference: Path

    @property
    def kind(self) -> DemoModel:
        return DEMOS[self.name]


@pytest.fixture(scope="module", params=DEMOS)
def model(request, tmp_path_factory) -> Official:
    kind = DEMOS[request.param]
    path = write_official_model(tmp_path_factory.mktemp("official"), kind)
    yield Official(request.param, path, write_reference(path, kind))
    path.with_name(path.name + ".data").unlink()  # pytest keeps folders: not with files of 96 GB, holes or not


@pytest.fixture(scope="module")
def compiled(model, require_fma) -> tuple[Path, dict]:
    name = f"pytest_official_{os.getpid()}"
    done = script("compile.py", "--onnx-model", model.path, "--output-name", name)
    assert done.returncode == 0, done.stderr
    result = last_json(done)
    library = ROOT / result["library"]
    yield library, result
    for suffix in (".so", ".params", ".json"):
        library.with_suffix(suffix).unlink(missing_ok=True)


def script(name: str, *options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / name), *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)


def last_json(done: subprocess.CompletedProcess) -> dict:
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_official_model_compiles_in_place_within_two_gigabytes_of_memory(model, compiled):
    library, result = compiled
    assert result["peak_rss_mb"] <= TWO_GB
    assert library.with_suffix(".params").stat().st_size < PARAMETERS_MB[model.name] << 20
    manifest = json.loads(library.with_suffix(".json").read_text())
    assert sum(manifest["model"]["table_rows"]) == ROWS[model.name]
    assert max(manifest["model"]["table_rows"]) == max(model.kind.table_rows)
    assert [piece["file"] for piece in manifest["table_range"]["pieces"]] == [str(model.path) + ".data"]


@pytest.mark.slow
def test_official_model_gives_the_right_outputs_on_its_known_rows(model, compiled):
    done = script("accuracy.py", "--model", compiled[0], "--ref-data", model.reference)
    assert done.returncode == 0, done.stdout + done.stderr
    result = last_json(done)
    assert (result["items"], result["mismatches"]) == (500, 0)
    assert result["max_abs_error"] <= 1e-5


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_official_model_runs_as_two_instances_and_says_what_of_it_fits(model, compiled):
    options = ("--model", compiled[0], "--num-instances", 2, "--duration", 2, "--warmup", 1)
    for inputs in (("--ref-data", model.reference), ()):
        done = script("multi_instance.py", *options, *inputs)
        assert done.returncode == 0, done.stderr
        result = last_json(done)
        assert result["instances"] == 2 and result["items_per_s"] > 0
        assert result["indices_per_bag"] == sum(model.kind.lengths) / 26
        assert result["tables_mb"] == pytest.approx(TABLES_MB[model.name], abs=0.1)
        assert f"{result['tables_mb'] / 1000:,.2f} GB of tables" in done.stdout
        fits = result["memory_available_mb"] >= result["tables_mb"]
        assert any("will dominate" in warning for warning in result["warnings"]) or fits


@pytest.mark.slow
def test_preloading_the_official_model_where_it_does_not_fit_is_refused_in_one_line(model, compiled):
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 110_000_000_000:
        pytest.skip("this machine has memory for the whole model")
    done = script("multi_instance.py", "--model", compiled[0], "--num-instances", 1, "--preload")
    assert done.returncode == 1
    assert done.stderr.startswith(f"--preload: {TABLES_MB[model.name] / 1000:.1f} GB of tables do not fit")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", ["v2"], indirect=True)
def test_the_second_official_model_becomes_int8_within_two_gigabytes_of_memory(model):
    """26 GB, every byte of them: those of the written rows by the formula, zeros between. For a CPU by name, so that
    any machine can."""
    if shutil.disk_usage(ROOT).free < 30_000_000_000:
        pytest.skip("26 GB of tables have no room on this disk")
    name = f"pytest_official_int8_{os.getpid()}"
    options = ("--onnx-model", model.path, "--output-name", name, "--precision", "int8", "--target-cpu", "znver4")
    try:
        done = script("compile.py", *options)
        assert done.returncode == 0, done.stderr
        result = last_json(done)
        assert result["peak_rss_mb"] <= TWO_GB
        manifest = json.loads((ROOT / result["library"]).with_suffix(".json").read_text())
        (tables,) = (entry for entry in manifest["parameters"] if entry["name"] == "tables")
        with (ROOT / result["library"]).with_suffix(".params").open("rb") as file:
            file.seek(tables["offset"])
            for table, rows in enumerate(model.kind.table_rows):
                _check_table(file, table, rows, manifest["numerics"]["table_scales"][table])
    finally:
        for path in (ROOT / "__prebuilt").glob(f"{name}_b100.*"):
            path.unlink()


def _check_table(file, table: int, rows: int, recorded_scale: float) -> None:
    known = known_rows(rows, table)
    values = row_values(known, table)
    scale = np.float32(np.abs(values).max()) / np.float32(127)
    assert scale == np.float32(recorded_scale)
    stored = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)[:, column_order("int8", 128)]
    for first in range(0, rows, 1 << 16):
        found = np.fromfile(file, np.int8, min(rows - first, 1 << 16) * 128).reshape(-1, 128)
        here = (known >= first) & (known < first + len(found))
        wanted = np.zeros_like(found)
        wanted[known[here] - first] = stored[here]
        np.testing.assert_array_equal(found, wanted)
