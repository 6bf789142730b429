"""compile.py --torch-weights: a library of PyTorch's own file, held to PyTorch's outputs on bags."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scripts import read_result, run

from dlrm_tvm import load
from dlrm_tvm.paths import PREBUILT, ROOT

WEIGHTS = ROOT / "tests" / "weights"
TABLES = 11
NAME = f"pytest_torch_{os.getpid()}"


@pytest.fixture(scope="module", params=["dlrm_dot.pt", "torchrec_dcn.pt"])
def compiled(request, require_fma: None, tmp_path_factory) -> Iterator[tuple[Path, Path, str]]:
    """(weights, library, what was printed)"""
    weights = Path(shutil.copyfile(WEIGHTS / request.param, tmp_path_factory.mktemp("torch") / request.param))
    # Names of their own: a process opens one library by a path, whatever becomes of the file.
    done = run(
        *("--torch-weights", weights, "--batch-size", 4, "--output-name", f"{NAME}_{weights.stem}"), script="compile"
    )
    assert done.returncode == 0, done.stderr
    library = ROOT / read_result(done.stdout)["library"]
    yield weights, library, " ".join(done.stdout.split())  # lines that were broken are one again
    for suffix in (".so", ".params", ".json"):
        library.with_suffix(suffix).unlink(missing_ok=True)


def test_a_library_of_a_state_dict_predicts_what_pytorch_did(compiled):
    weights, library, printed = compiled
    recorded = np.load(WEIGHTS / f"{weights.stem}.npz")
    bags = [[recorded[f"{kind}_{t}"] for t in range(TABLES)] for kind in ("bags", "offsets")]
    one = np.stack([recorded[f"one_{t}"] for t in range(TABLES)], axis=1)
    model = load(library)
    np.testing.assert_allclose(model(recorded["dense"], one), recorded["pred_one"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(model(recorded["dense"], *bags), recorded["pred_bags"], rtol=0, atol=1e-6)
    assert np.abs(recorded["pred_bags"] - recorded["pred_one"]).max() > 0.01
    assert f"graph {weights}.onnx, which points into the weights" in printed


def test_weights_that_are_not_finite_are_one_line_and_leave_no_graph(tmp_path):
    weights = shutil.copyfile(WEIGHTS / "torchrec_dcn.safetensors", tmp_path / "w.safetensors")
    content = bytearray(weights.read_bytes())
    length = int.from_bytes(content[:8], "little")
    first, _ = json.loads(content[8 : 8 + length])["over_arch.model._mlp.0.bias"]["data_offsets"]
    content[8 + length + first : 8 + length + first + 4] = np.float32(np.nan).tobytes()
    weights.write_bytes(content)
    done = run("--torch-weights", weights, "--output-name", f"{NAME}_refused", script="compile")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith(f"{weights}: over_arch.model._mlp.0.bias [20] holds nan at [0]; finite weights")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_its_tables_stay_in_pytorchs_file(compiled):
    weights, library, printed = compiled
    assert f"used in place in {os.path.relpath(weights)}: keep that file" in printed
    manifest = load(library).artifact.manifest
    assert manifest.onnx_model == f"{weights}.onnx" and manifest.options["torch_weights"] == str(weights)


def test_weights_that_form_no_dlrm_are_one_line_and_leave_nothing(tmp_path):
    weights = Path(shutil.copyfile(WEIGHTS / "refused_module.pt", tmp_path / "w.pt"))
    done = run("--torch-weights", weights, "--output-name", NAME, script="compile")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"{weights}: pickles 'torch.nn.modules.linear.Linear'")
    assert list(tmp_path.iterdir()) == [weights] and not list(PREBUILT.glob(f"{NAME}_b100*"))
