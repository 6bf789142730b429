"""Models of any shape through the scripts: predictions are ONNX Runtime's, whatever the widths, tables and bags."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from graphs import onnxruntime_outputs, onnxruntime_session, write_dlrm
from scripts import read_result, run, score

from dlrm_tvm.machine.cpu import PRECISION_FLAGS, host_flags
from dlrm_tvm.model.precision import PRECISIONS
from dlrm_tvm.paths import PREBUILT

ITEMS = 150
# Of the mean difference to fp32; these small random models have logits of about unit spread.
MEAN_ERROR = {"fp32": 1e-6, "bf16": 0.01, "int8": 0.03}


def random_shape(seed: int) -> dict:
    """Arguments of write_dlrm. Every third seed has cross layers; half of the graphs fix the number of indices."""
    rng = np.random.default_rng(seed)

    def widths(most_layers: int, least: int = 0) -> list[int]:
        return rng.integers(1, 90, rng.integers(least, most_layers + 1)).tolist()

    tables, kind = int(rng.integers(1, 10)), ("cross", "dot", "cat", "cross", "dot_self", "dot")[seed % 6]
    return {
        "num_dense": int(rng.integers(1, 25)),
        "table_rows": rng.integers(1, 60, tables).tolist(),
        "dim": int(rng.choice([rng.integers(1, 20), rng.integers(20, 140)])),
        "bottom": widths(2),
        "top": widths(3, 1),
        "interaction": kind,
        "ranks": [None if rank > 40 else rank for rank in rng.integers(1, 60, rng.integers(1, 4)).tolist()],
        "hot": rng.integers(1, 14, tables).tolist() if seed % 2 or kind == "cross" else (),
        "seed": seed,
    }


def precision_of(seed: int) -> str:
    """In turn, where the CPU has it."""
    precision = PRECISIONS[seed // 2 % 3]
    return precision if set(PRECISION_FLAGS[precision]) <= host_flags() else "fp32"


def write_items(path: Path, model: Path, shape: dict, seed: int) -> Path:
    """Random items with ONNX Runtime's predictions, and labels that follow them."""
    rng = np.random.default_rng(seed)
    dense = rng.uniform(-1.7, 1.7, (ITEMS, shape["num_dense"])).astype(np.float32)
    numbers = shape["hot"] or [1] * len(shape["table_rows"])
    indices = [rng.integers(0, rows, (ITEMS, number)) for rows, number in zip(shape["table_rows"], numbers)]
    for each, rows in zip(indices, shape["table_rows"]):
        each[0] = rows - 1
    if shape["hot"]:
        arrays = {"dense_x": dense, **{f"indices_{t}": each for t, each in enumerate(indices)}}
    else:
        arrays = {"dense_x": dense, "indices": np.concatenate(indices, axis=1).T.copy()}
    pred = onnxruntime_outputs(onnxruntime_session(model), arrays)
    np.savez(path, **arrays, pred=pred, target=pred > np.median(pred))
    return path


def check(seed: int, folder: Path) -> None:
    shape = random_shape(seed)
    model = write_dlrm(folder / "any.onnx", **shape)
    data = write_items(folder / "any.npz", model, shape, seed)
    precision, name, batch = precision_of(seed), f"pytest_any_{os.getpid()}", seed % 40 + 1
    flags = ["--onnx-model", model, "--output-name", name, "--batch-size", batch, "--precision", precision]
    done = run(*flags, script="compile")
    try:
        assert done.returncode == 0, (shape, done.stderr)
        library = PREBUILT / f"{name}_b{batch}.so"
        status, result, printed = score(library, data)
        assert result["items"] == ITEMS and result["mean_abs_error"] <= MEAN_ERROR[precision], (shape, printed)
        assert status == 0 or precision != "fp32", (shape, printed)
        brief = ("--num-instances", 1, "--duration", 0.1, "--warmup", 0)
        done = run("--model", library, *brief)
        assert done.returncode == 0, (shape, done.stderr)
        wanted = np.mean(shape["hot"]) if shape["hot"] else 1
        assert read_result(done.stdout)["indices_per_bag"] == pytest.approx(wanted)
    finally:
        for suffix in (".so", ".params", ".json"):
            (PREBUILT / f"{name}_b{batch}{suffix}").unlink(missing_ok=True)


@pytest.mark.parametrize("seed", [3, 4, 6])
def test_a_model_of_any_shape_is_compiled_scored_and_measured(seed: int, require_fma: None, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 136))
def test_many_more(seed: int, require_fma: None, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    check(seed, tmp_path)
