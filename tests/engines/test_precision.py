"""Other engines at bf16 and int8: right within a stated bound, in that precision or refused in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from graph_surgery import EXPORTS
from graphs import write_dlrm
from models import build_plain, numpy_predictions, random_batch
from scripts import read_result, run

from dlrm_tvm.data.demo import demo_dlrm, demo_model_path
from dlrm_tvm.data.workload import random_items
from dlrm_tvm.engines import openvino
from dlrm_tvm.engines.executor import EngineExecutor, open_engine
from dlrm_tvm.engines.graph import engine_graph
from dlrm_tvm.engines.interface import MEAN_ERROR, TITLES, EngineGraph, check_precision, mean_error_limit, refusal
from dlrm_tvm.engines.quantization import with_int8
from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.kernels.isa import family_for
from dlrm_tvm.machine.cpu import host_flags
from dlrm_tvm.model import reference
from dlrm_tvm.model.card import describe
from dlrm_tvm.runtime.typed_json import read_as

BATCH, BATCHES = 40, 5
CORES = [min(os.sched_getaffinity(0))]
MODEL = {"table_rows": (500, 7, 60), "dim": 32, "bottom": (64, 48), "top": (96, 40)}
QUANTIZED = [("onnxruntime", "int8"), ("openvino", "bf16"), ("openvino", "int8")]


def missing(engine: str, precision: str) -> str | None:
    if importlib.util.find_spec(engine) is None:
        return f"needs {engine}"
    return refusal(engine, precision)


EACH_QUANTIZED = [
    pytest.param(*each, marks=pytest.mark.skipif(missing(*each) is not None, reason=str(missing(*each))))
    for each in QUANTIZED
]
NEEDS_OPENVINO_INT8 = EACH_QUANTIZED[2].marks[0]
NEEDS_ONNXRUNTIME = EACH_QUANTIZED[0].marks[0]


def graph_for(engine: str, path: Path, precision: str, batch: int = BATCH) -> EngineGraph:
    manifest = SimpleNamespace(model=describe(read_dlrm(path)), batch_size=batch, onnx_model=None, precision=precision)
    return engine_graph(engine, path, manifest, "small.so")


def write_sample(path: Path, model_file: Path) -> Path:
    """Items for calibration, under the names that the graph has for them."""
    dense, indices = random_batch(read_dlrm(model_file), 300, seed=99)
    np.savez(path, dense_x=dense, indices=indices.T, pred=np.zeros(300, np.float32))
    return path


def errors_of(graph: EngineGraph, path: Path) -> np.ndarray:
    """Absolute errors [BATCHES * BATCH] against the paper's formulas."""
    model, engine, found = read_dlrm(path), open_engine(graph, threads=1, cores=CORES), []
    for seed in range(BATCHES):
        dense, indices = random_batch(model, graph.batch_size, seed=seed)
        engine.run(engine.prepare(dense, indices))
        found.append(np.abs(engine.predictions() - numpy_predictions(model, dense, indices)))
    return np.concatenate(found)


@pytest.mark.parametrize(("engine", "precision"), EACH_QUANTIZED)
@pytest.mark.parametrize(
    ("layers", "external"), [("gemm", None), pytest.param("matmul", "one_file", marks=pytest.mark.slow)]
)
def test_predictions_are_within_the_precisions_bound_and_not_those_of_fp32(
    engine: str, precision: str, layers: str, external: str | None, tmp_path: Path
) -> None:
    path = write_dlrm(tmp_path / "small.onnx", **MODEL, layers=layers, external=external)
    sample = write_sample(tmp_path / "sample.npz", path)
    graph = with_int8(graph_for(engine, path, precision), describe(read_dlrm(path)), sample)
    errors = errors_of(graph, path)
    assert 1e-4 < errors.mean() <= MEAN_ERROR[precision] and errors.max() > 1e-3
    assert graph.title == f"{TITLES[engine]} {graph.version} at {precision}"
    assert read_as(EngineGraph, json.loads(json.dumps(asdict(graph))), "graph") == graph


@pytest.mark.parametrize("precision", [pytest.param(each.values[1], marks=each.marks) for each in EACH_QUANTIZED[1:]])
def test_openvino_runs_the_demo_in_the_precision_asked_for(precision: str) -> None:
    """As `make bench` measures it."""
    model, batch = demo_dlrm(), 100
    path = demo_model_path()
    graph = with_int8(graph_for("openvino", path, precision, batch), describe(model))
    engine, found = open_engine(graph, threads=1, cores=CORES), []
    dense, indices = random_items(describe(model), 600, instance=0)
    for at in range(0, 600, batch):
        engine.run(engine.prepare(dense[at : at + batch], indices[at : at + batch]))
        found.append(engine.predictions().copy())
    errors = np.abs(np.concatenate(found) - reference.predict(model, dense, indices))
    assert errors.mean() <= MEAN_ERROR[precision] and errors.max() > 1e-5


@pytest.mark.parametrize("engine", [pytest.param(*each.values[:1], marks=each.marks) for each in EACH_QUANTIZED[::2]])
def test_int8_files_hold_no_table_and_are_made_once(engine: str, tmp_path: Path) -> None:
    path = write_dlrm(tmp_path / "small.onnx", **{**MODEL, "table_rows": (30_000, 7, 60)}, external="one_file")
    card = describe(read_dlrm(path))
    graph = with_int8(graph_for(engine, path, "int8"), card)
    files = list(Path(graph.quantized).parent.iterdir())
    assert sum(file.stat().st_size for file in files) < card.table_bytes / 2
    assert with_int8(graph_for(engine, path, "int8"), card) == graph
    assert with_int8(graph_for(engine, path, "fp32"), card).quantized is None


@NEEDS_ONNXRUNTIME
def test_onnxruntime_quantizes_every_layer_and_not_the_dots(tmp_path: Path) -> None:
    path = write_dlrm(tmp_path / "small.onnx", **MODEL)
    made = onnx.load(with_int8(graph_for("onnxruntime", path, "int8"), describe(read_dlrm(path))).quantized)
    kinds = [node.op_type for node in made.graph.node]
    layers = len(MODEL["bottom"]) + len(MODEL["top"]) + 2
    assert (kinds.count("MatMulInteger"), kinds.count("MatMul"), kinds.count("Gemm")) == (layers, 1, 0)
    assert sum(tensor.data_type == onnx.TensorProto.FLOAT for tensor in made.graph.initializer) >= 3  # the tables


@NEEDS_OPENVINO_INT8
def test_a_graph_that_nncf_cannot_quantize_is_refused_in_one_line() -> None:
    path = EXPORTS / "op17_no_sigmoid.onnx"  # a Loop per table
    with pytest.raises(UserError, match=rf"^OpenVINO .* at int8 cannot quantize {path}: [^\n]*$"):
        with_int8(graph_for("openvino", path, "int8", 6), describe(read_dlrm(path)))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_openvino_that_falls_back_to_another_precision_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_hint", lambda _: "f32")
    monkeypatch.setattr("dlrm_tvm.engines.graph.check_precision", lambda *_: None)
    path = write_dlrm(tmp_path / "small.onnx", **MODEL)
    with pytest.raises(UserError, match=r"at bf16 cannot run .*: asked for bf16, it runs in [^\n]*f32"):
        open_engine(graph_for("openvino", path, "bf16"), threads=1, cores=CORES)


def test_precisions_that_an_engine_lacks_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"ONNX Runtime has no bf16 on CPUs\. Give --engine-precision fp32 or int8, or"):
        check_precision("onnxruntime", "bf16", {"avx512_bf16"})
    with pytest.raises(UserError, match=r"needs avx512_bf16, which this CPU lacks: it would run at fp32 and not say"):
        check_precision("openvino", "bf16", {"avx512f"})
    check_precision("openvino", "bf16", {"avx512_bf16"})
    with pytest.raises(UserError, match=r"zentorch at int8 takes models quantized by AMD's Quark"):
        check_precision("zentorch", "int8", {"avx512_bf16"})
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"int8 needs NNCF, which is not installed\. Type: pip install -r req"):
        check_precision("openvino", "int8")
    with pytest.raises(
        UserError, match=r"int8 needs torchao, which is not installed\. Type: pip install -r requirements-t"
    ):
        check_precision("torch", "int8")


def test_the_limit_of_the_mean_error_is_wider_for_few_items() -> None:
    assert mean_error_limit(10_000, "int8", "fp32") == pytest.approx(MEAN_ERROR["int8"], rel=0.05)
    assert mean_error_limit(1, "int8", "bf16") == pytest.approx(4 * (MEAN_ERROR["int8"] + MEAN_ERROR["bf16"]))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    path = write_dlrm(tmp_path_factory.mktemp("small") / "small.onnx", **MODEL)
    return build_plain(read_dlrm(path), BATCH, path.parent), path


@pytest.mark.parametrize(("engine", "precision"), EACH_QUANTIZED)
def test_a_run_says_and_records_the_engines_precision(engine: str, precision: str, small: tuple[Path, Path]) -> None:
    library, path = small
    options = ("--model", library, "--engine", engine, "--engine-precision", precision, "--onnx-model", path)
    done = run(*options, "--num-instances", 1, "--duration", 0.5, "--warmup", 0)
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    assert (result["precision"], result["library_precision"]) == (precision, "fp32")
    assert f"{TITLES[engine]} {result['engine_version']} at {precision} on " in " ".join(done.stdout.split())
    is_calibrated = (engine, precision) == ("openvino", "int8")
    assert ("calibrated with 2,000 random items like the workload's\n" in done.stdout) is is_calibrated
    assert (result["engine_calibration"] is not None) is is_calibrated
    family = family_for(host_flags(), precision, tiles=False)
    if family:  # the peak is that of the engine's precision, whatever the library's
        assert result["family"] == family.name and f"GFLOP/s of {family.name} (" in done.stdout
    of_another = any(
        f"ran at {precision}, the peak is that of the library's fp32" in each for each in result["warnings"]
    )
    assert of_another == (family is None)


@NEEDS_OPENVINO_INT8
def test_an_int8_engine_that_predicts_something_else_gets_no_number(small: tuple[Path, Path]) -> None:
    """It was calibrated with dense values that are all at least 0, and is given some below 0."""
    library, path = small
    model = read_dlrm(path)
    graph = with_int8(graph_for("openvino", path, "int8"), describe(model))
    engine = EngineExecutor(graph, str(library), CORES)
    with pytest.raises(UserError, match=r"on average; 0\.0\d+ is allowed: .* like those it will serve\."):
        engine.prepare(*random_batch(model, BATCH))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine-precision", "int8"), "--engine-precision is what another engine runs at"),
        (("--engine", "onnxruntime", "--engine-precision", "bf16"), "ONNX Runtime has no bf16 on CPUs."),
        (("--sweep", "batch=1", "--engine", "onnxruntime", "--engine-precision", "bf16"), "ONNX Runtime has no bf16"),
    ],
)
def test_flags_are_checked_before_anything_is_opened(options: tuple[str, ...], message: str) -> None:
    done = run("--model", "absent.so", *options)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr and "absent" not in done.stderr
