"""Compiled libraries of a model that learnt something: held to the AUC of PyTorch's own outputs on a day held out.

The slow tests train it first (train_click_model.py: MLPerf's first model for two minutes, the second for nine) and need
torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click_data import TABLE_ROWS, draw_day, multi_hot
from quantized import needs_library
from scripts import read_result

from dlrm_tvm.data.demo_weights import DEMOS, V2_INDICES_PER_BAG
from dlrm_tvm.data.metrics import auc
from dlrm_tvm.paths import ROOT

MIN_AUC_RATIO = {
    "v1": {"fp32": 0.99999, "bf16": 0.9999, "int8": 0.9997},
    "v2": {"fp32": 0.99999, "bf16": 0.9999, "int8": 0.9995},
}
LIBRARIES = [pytest.param(each, id=" ".join(each), marks=needs_library(each[0])) for each in (
    ("fp32",), ("bf16",), ("int8",), ("int8", "static"),
)]  # fmt: skip


def script(path: Path, *arguments: object) -> tuple[subprocess.CompletedProcess[str], dict]:
    """What a script of ours left, and its JSON line."""
    command = [sys.executable, str(path), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.stdout, done.stderr
    return done, read_result(done.stdout)


@pytest.fixture(scope="session", params=DEMOS)
def trained(request, tmp_path_factory) -> tuple[Path, dict, str]:
    """The folder with click.onnx, heldout.npz and calibration.npz, what training said, and which model it is."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("click")
    done, result = script(ROOT / "tests" / "support" / "train_click_model.py", folder, "--model", request.param)
    assert done.returncode == 0, done.stderr
    return folder, result, request.param


@pytest.fixture(scope="session", params=LIBRARIES)
def library(request, trained, require_fma) -> Iterator[tuple[str, Path]]:
    """(precision, the click model compiled in it); int8 with steps of each row's own, or of the days trained on."""
    precision, *static = request.param
    name = f"pytest_click_{precision}_{os.getpid()}"
    arguments = ["--onnx-model", trained[0] / "click.onnx", "--output-name", name, "--precision", precision]
    if static:
        arguments += ["--calibration-data", trained[0] / "calibration.npz"]
    done, result = script(ROOT / "compile.py", *arguments)
    assert done.returncode == 0, done.stderr
    path = ROOT / result["library"]
    yield precision, path
    for suffix in (".so", ".params", ".json"):
        path.with_suffix(suffix).unlink(missing_ok=True)


@pytest.mark.slow
def test_the_model_has_learnt_and_does_not_know_the_truth(trained):
    _, result, _ = trained
    assert result["items"] == 65_536
    assert 0.75 < result["auc"] < 0.80
    assert result["truth_auc"] > result["auc"] + 0.02


@pytest.mark.slow
def test_a_compiled_library_ranks_the_day_held_out_as_pytorch_does(library, trained):
    precision, path = library
    bound = MIN_AUC_RATIO[trained[2]][precision]
    arguments = ("--model", path, "--ref-data", trained[0] / "heldout.npz", "--min-auc-ratio", bound)
    done, result = script(ROOT / "accuracy.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (result["items"], result["passed"]) == (65_536, True)
    assert result["reference_auc"] == pytest.approx(trained[1]["auc"], abs=1e-12)
    assert result["auc_ratio"] >= bound


@pytest.mark.slow
def test_calibration_items_are_of_the_days_trained_on(trained):
    calibration, heldout = (np.load(trained[0] / name) for name in ("calibration.npz", "heldout.npz"))
    assert len(calibration["target"]) == 16_384
    first = draw_day(0, 65_536)
    dense = "dense_x" if trained[2] == "v2" else "X_int"
    np.testing.assert_array_equal(calibration[dense][0], first.dense[0])
    np.testing.assert_array_equal(heldout[dense], draw_day(8, 65_536).dense)


def test_a_day_is_the_same_whenever_it_is_drawn_and_days_differ():
    first, again, other = draw_day(3, 500), draw_day(3, 500), draw_day(4, 500)
    for name in ("dense", "categories", "labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert (getattr(first, name) != getattr(other, name)).any()


def test_items_have_the_shapes_and_values_of_criteos():
    items = draw_day(0, 5_000)
    assert (items.dense.shape, items.dense.dtype) == ((5_000, 13), np.float32)
    counts = np.expm1(items.dense.astype(np.float64))
    assert counts == pytest.approx(counts.round(), rel=1e-5, abs=1e-5)
    assert (items.categories.min(axis=0) >= 0).all()
    assert (items.categories.max(axis=0) < TABLE_ROWS).all()
    top = np.sort(np.bincount(items.categories[:, 0], minlength=1000))[::-1]
    assert top[:10].sum() > 20 * top[490:500].sum(), "a few categories take most of the items"
    assert 0.1 < items.labels.mean() < 0.3


def test_a_category_brings_always_the_same_others_and_popular_ones_several_times():
    categories = draw_day(0, 5_000).categories
    bags = multi_hot(categories)
    assert [bag.shape for bag in bags] == [(5_000, number) for number in V2_INDICES_PER_BAG]
    for bag, column, rows in zip(bags, categories.T, TABLE_ROWS):
        np.testing.assert_array_equal(bag[:, 0], column)
        assert bag.min() >= 0 and bag.max() < rows
        _, first = np.unique(column, return_index=True)
        assert len(np.unique(bag, axis=0)) == len(first)
    longest = bags[V2_INDICES_PER_BAG.index(100)]
    assert 20 < np.mean([len(np.unique(bag)) for bag in longest]) < 90
    for whole, part in zip(bags, multi_hot(categories[40:50])):
        np.testing.assert_array_equal(whole[40:50], part)


def test_clicks_can_be_ranked_and_popularity_drifts_from_day_to_day():
    day = draw_day(8, 50_000)
    best = auc(day.labels, day.logits)
    assert 0.80 < best < 0.86
    popular = [np.bincount(draw_day(d, 50_000).categories[:, 1], minlength=1000) for d in (0, 1, 8)]
    near, far = (np.corrcoef(popular[0], each)[0, 1] for each in popular[1:])
    assert far < near < 1
