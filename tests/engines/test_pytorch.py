"""PyTorch in the library's place: the module that it compiles, what is quantized of it, and whole runs of each."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import write_dlrm
from models import build_plain, numpy_predictions, random_batch, random_dlrm
from scripts import read_result, run

from dlrm_tvm.engines.interface import MEAN_ERROR, refusal
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.dlrm import Dlrm

torch = pytest.importorskip("torch", reason="needs torch (requirements-torch.txt)")

from dlrm_tvm.engines import pytorch  # noqa: E402

NUMBERS = (3, 1, 20)


def inputs_of(model: Dlrm, items: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dense, indices [all of an item's, items], predictions by the paper's formulas."""
    dense, _ = random_batch(model, items)
    numbers, rng = model.graph_inputs.indices_per_bag or (1,) * len(model.tables), np.random.default_rng(5)
    bags = [rng.integers(0, table.num_rows, (items, each)) for table, each in zip(model.tables, numbers)]
    flat, offsets = [bag.reshape(-1) for bag in bags], [np.arange(items) * each for each in numbers]
    return dense, np.concatenate(bags, axis=1).T.copy(), numpy_predictions(model, dense, flat, offsets)


def with_bags(model: Dlrm) -> Dlrm:
    first, *others = model.tables
    weights = np.linspace(0.5, 2, first.num_rows, dtype=np.float32)
    tables = (replace(first, row_weights=weights), *(replace(each, pooling="mean") for each in others))
    return replace(model, tables=tables, graph_inputs=replace(model.graph_inputs, indices_per_bag=NUMBERS))


@pytest.mark.parametrize("bags", [False, True])
@pytest.mark.parametrize("interaction", ["dot", "dot_self", "cat", "cross"])
def test_the_module_computes_the_models_formulas(interaction: str, bags: bool) -> None:
    model = random_dlrm(interaction=interaction, ranks=(6, None))
    model = replace(with_bags(model) if bags else model, clamp=(0.3, 0.6))
    dense, indices, wanted = inputs_of(model)
    with torch.no_grad():
        found = pytorch.DlrmModule(model)(torch.tensor(dense), torch.tensor(indices)).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert (wanted == 0.3).any() or (wanted == 0.6).any() or wanted.std() > 0.01


def test_hashed_indices_are_taken_modulo_the_rows() -> None:
    model = random_dlrm(table_rows=(5, 7, 3))
    dense, indices, wanted = inputs_of(model)
    hashed = replace(model, tables=tuple(replace(table, wraps=1000) for table in model.tables))
    with torch.no_grad():
        found = pytorch.DlrmModule(hashed)(torch.tensor(dense), torch.tensor(indices + 10 * np.array([[5], [7], [3]])))
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-6)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
def test_layers_are_quantized_and_nothing_else() -> None:
    model = random_dlrm(dim=32, bottom=(64, 48), top=(96, 40), table_rows=(500, 7, 60))
    dense, indices, wanted = inputs_of(model, 400)
    torch.set_grad_enabled(False)
    module = pytorch._quantized(pytorch.DlrmModule(model).eval(), torch.tensor(dense), torch.tensor(indices), 40)
    found = np.concatenate(
        [module(*map(torch.tensor, (dense[at : at + 40], indices[:, at : at + 40]))) for at in range(0, 400, 40)]
    )
    assert 1e-4 < np.abs(found - wanted).mean() <= MEAN_ERROR["int8"]
    taken = [node for node in module.graph.nodes if "dequantize" in str(node.target)]
    users = {str(user.target) for node in taken for user in node.users}
    assert users and all("linear" in user for user in users)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "precision"),
    [("torch", "fp32"), ("torch", "bf16"), ("torch", "int8"), ("zentorch", "fp32"), ("zentorch", "bf16")],
)
def test_a_run_is_compiled_checked_and_measured(engine: str, precision: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(engine) is None or refusal(engine, precision):
        pytest.skip(refusal(engine, precision) or f"needs {engine}")
    path = write_dlrm(tmp_path / "small.onnx", table_rows=(500, 7, 60), dim=32, bottom=(64, 48), top=(96, 40))
    library = build_plain(read_dlrm(path), 40, tmp_path)
    options = ("--model", library, "--engine", engine, "--engine-precision", precision, "--onnx-model", path)
    done = run(*options, "--num-instances", 1, "--duration", 0.5, "--warmup", 0)
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    assert (result["engine"], result["precision"]) == (engine, precision) and result["items_per_s"] > 0
    assert (result["engine_calibration"] is not None) == (precision == "int8")
