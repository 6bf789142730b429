"""--engine: other engines get the same inputs and placement, and what cannot be compared gets no number."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from graph_surgery import EXPORTS, changed, read_export
from graphs import write_dlrm
from models import assert_close, build_plain, numpy_predictions, random_batch
from scripts import children, read_result, run, start

from dlrm_tvm.engines.executor import open_engine
from dlrm_tvm.engines.graph import engine_graph
from dlrm_tvm.engines.interface import ENGINES, TITLES, EngineGraph, Feed, OpenEngine
from dlrm_tvm.engines.openvino import open_openvino
from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.card import describe
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.paths import ROOT
from dlrm_tvm.runtime.artifact import open_artifact
from dlrm_tvm.runtime.manifest import Manifest
from dlrm_tvm.runtime.typed_json import read_as

CORES = sorted(os.sched_getaffinity(0))
EACH_ENGINE = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}"))
    for name in ENGINES
    if name not in ("torch", "zentorch")  # which do not run the file: test_pytorch.py
]
NEEDS_ONNXRUNTIME = EACH_ENGINE[0].marks[0]
# No engine has ATen operators, OpenVINO no sequences, and bags of a fixed length other than one are not measured.
NOT_RUN = {
    "onnxruntime": {"op9_aten", "op9_aten_clamped"},
    "openvino": {"op9_aten", "op9_aten_clamped"}
    | {path.stem for path in EXPORTS.glob("dynamo*.onnx") if "gather" not in path.stem},
}
FIXED_BAGS = {
    *("dynamo18_mean_fixed_bags", "op10_unrolled_mean", "op11_fixed_bags", "op9_aten_mean_self"),
    *("op11_cross_last_fixed", "dynamo18_cross_last_fixed", "dynamo18_padding_last_fixed"),
}


def graph_for(engine: str, path: Path, model: Dlrm, batch: int) -> EngineGraph:
    manifest = SimpleNamespace(model=describe(model), batch_size=batch, onnx_model=None, precision="fp32")
    return engine_graph(engine, path, manifest, "small.so")


def graph_of_export(engine: str, name: str) -> tuple[EngineGraph, Dlrm]:
    """For batches of six items, or of as many as the file fixes."""
    path, model = EXPORTS / f"{name}.onnx", read_export(name)
    inputs = {each.name: each.type.tensor_type.shape.dim for each in onnx.load(path).graph.input}
    fixed = inputs[model.graph_inputs.dense][0].dim_value
    if fixed not in (0, 6):
        with pytest.raises(UserError, match=f"has a batch size of {fixed} fixed in it, the library has 6."):
            graph_for(engine, path, model, 6)
    return graph_for(engine, path, model, fixed or 6), model


@pytest.mark.parametrize("engine", EACH_ENGINE)
@pytest.mark.parametrize("name", sorted(path.stem for path in EXPORTS.glob("*.onnx")))
def test_every_form_of_export_is_fed_as_it_wants_or_refused_in_one_line(engine: str, name: str) -> None:
    if name in FIXED_BAGS:
        with pytest.raises(UserError, match=r"takes \d+ indices for \d items .*Export the model for bags of one"):
            graph_of_export(engine, name)
        return
    graph, model = graph_of_export(engine, name)
    try:
        opened = open_engine(graph, threads=1, cores=CORES[:1])
    except UserError as error:
        assert name in NOT_RUN[engine], error
        reason = f"{TITLES[engine]} {graph.version} cannot run {EXPORTS / name}.onnx: "
        assert reason in str(error) and "\n" not in str(error)
        return
    for seed in (1, 2):
        dense, *lookups = items_for(model, graph.batch_size, seed)
        opened.run(opened.prepare(dense, lookups[0]))
        assert_close(opened.predictions(), numpy_predictions(model, dense, *lookups))
    assert read_as(EngineGraph, json.loads(json.dumps(asdict(graph))), "graph") == graph


def items_for(model: Dlrm, batch: int, seed: int) -> tuple:
    """dense, then indices [batch, T]; or indices and offsets of each table where the graph fixes indices per bag."""
    dense, indices = random_batch(model, batch, seed=seed)
    numbers, rng = model.graph_inputs.indices_per_bag, np.random.default_rng(seed)
    if not numbers:
        return dense, indices
    bags = [rng.integers(0, table.num_rows, batch * number) for table, number in zip(model.tables, numbers)]
    return dense, bags, [np.arange(batch) * number for number in numbers]


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_prepared_batches_keep_their_inputs_whatever_runs_between_them(engine: str) -> None:
    graph, model = graph_of_export(engine, "op17_no_sigmoid")
    assert_predicts_each(open_engine(graph, threads=1, cores=CORES[:1]), graph, model)


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_float_inputs_that_the_graph_ignores_are_fed_too(engine: str, tmp_path: Path) -> None:
    """torch.export keeps all arguments."""

    def ignore(graph: onnx.GraphProto) -> None:
        for name, dims in {"labels": ["batch"], "weights": ["batch", 4], "scale": [1], "rate": []}.items():
            graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))

    path = changed(tmp_path, ignore)
    model = read_dlrm(path)
    graph = graph_for(engine, path, model, 6)
    assert_predicts_each(open_engine(graph, threads=1, cores=CORES[:1]), graph, model)


@EACH_ENGINE[1].marks[0]
def test_beyond_a_number_of_requests_openvino_binds_at_every_call_and_says_so(capsys: pytest.CaptureFixture) -> None:
    graph, model = graph_of_export("openvino", "op17_no_sigmoid")
    assert_predicts_each(open_openvino(graph, 1, CORES[:1], most_requests=2), graph, model)
    assert capsys.readouterr().err.count("batches after the first 2 bind their inputs at every call.\n") == 1


def assert_predicts_each(engine: OpenEngine, graph: EngineGraph, model: Dlrm) -> None:
    """Five batches are prepared first, then run twice in turn."""
    items = [random_batch(model, graph.batch_size, seed=seed) for seed in range(5)]
    batches = [engine.prepare(*each) for each in items]
    for (dense, indices), batch in [*zip(items, batches)] * 2:
        engine.run(batch)
        assert np.abs(engine.predictions() - numpy_predictions(model, dense, indices)).max() <= 1e-5


@NEEDS_ONNXRUNTIME
def test_every_input_has_its_role_its_shape_and_its_table() -> None:
    graph, model = graph_of_export("onnxruntime", "op17_no_sigmoid")  # stacked offsets, indices per table
    assert graph.feeds[0].role == "dense"
    tables = len(model.tables)
    assert [feed.table for feed in graph.feeds if feed.role == "indices"] == list(range(tables))
    (offsets,) = [feed for feed in graph.feeds if feed.role == "offsets"]
    dense, indices = random_batch(model, 6)
    assert np.array_equal(offsets.array(dense, indices), np.tile(np.arange(6), (tables, 1)))
    assert all(size == 6 for size in graph.sizes.values()) and graph.sizes


def test_stacked_indices_are_turned_and_copied() -> None:
    indices = np.arange(6).reshape(3, 2)
    array = Feed("indices", "indices", "int32", (2, 3)).array(np.zeros((3, 1)), indices)
    assert array.tolist() == [[0, 2, 4], [1, 3, 5]] and array.dtype == np.int32 and not np.shares_memory(array, indices)


def assert_one_line(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    for part in parts:
        assert part in done.stderr


SMALL = {"table_rows": (500, 7), "dim": 16}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A library for batches of 10, and the file it is made of."""
    path = write_dlrm(tmp_path_factory.mktemp("small") / "small.onnx", **SMALL)
    return build_plain(read_dlrm(path), 10, path.parent), path


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_the_demo_is_measured_with_another_engine_on_all_cores(engine: str, demo_library: Path) -> None:
    count = min(len(CORES), 2)
    window = ("--duration", 0.4, "--warmup", 0.1)
    done = run("--model", demo_library, "--engine", engine, "--num-instances", count, *window)
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    assert result["engine"] == engine and re.match(r"\d+\.\d+", result["engine_version"])
    assert f"{TITLES[engine]} {result['engine_version']} on " in done.stdout
    assert [each["cores"] for each in result["per_instance"]] == [[core] for core in CORES[:count]]
    assert result["peak_fraction"] > 0 and result["batches"] > 0


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
@pytest.mark.parametrize(
    ("engine", "threads"),
    [
        pytest.param("onnxruntime", 1, marks=NEEDS_ONNXRUNTIME),
        *(pytest.param(*each.values, 2, marks=each.marks) for each in EACH_ENGINE),
    ],
)
def test_another_engines_threads_stay_on_the_cores_of_their_instance(
    engine: str, threads: int, small: tuple[Path, Path]
) -> None:
    library, path = small
    options = ("--model", library, "--engine", engine, "--onnx-model", path, "--num-instances", 1)
    cores = CORES[1:] if threads == 1 else CORES[:2]
    listed = ",".join(map(str, cores[:threads]))
    script = start(*options, "--num-threads", threads, "--cores", listed, "--duration", 1)
    for line in script.stdout:
        if line.startswith("  peak"):
            break
    else:
        pytest.fail(script.stderr.read())
    (worker,) = children(script.pid)
    allowed = [os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{worker}/task").iterdir()]
    output, errors = script.communicate(timeout=600)
    assert script.returncode == 0, errors
    assert set().union(*allowed) == set(cores[:threads])
    assert read_result(output)["threads"] == threads


@NEEDS_ONNXRUNTIME
def test_a_library_of_any_file_is_measured_with_the_file_given(small: tuple[Path, Path], tmp_path: Path) -> None:
    library, path = small
    options = ("--model", library, "--engine", "onnxruntime", "--num-instances", 1, "--duration", 0.2, "--warmup", 0)
    assert_one_line(run(*options), "does not say which ONNX file it was compiled from. Give it by --onnx-model.")
    assert_one_line(run(*options, "--onnx-model", tmp_path / "absent.onnx"), "absent.onnx: no such file")
    done = run(*options, "--onnx-model", path)
    assert done.returncode == 0, done.stderr
    other = write_dlrm(tmp_path / "other.onnx", **SMALL, seed=1)
    assert_one_line(run(*options, "--onnx-model", other), "other.onnx is not the model of", "--onnx-model")
    fixed = write_dlrm(tmp_path / "fixed.onnx", **SMALL, batch=4)
    assert_one_line(run(*options, "--onnx-model", fixed), "has a batch size of 4 fixed in it, the library has 10.")
    assert_one_line(run(*options, "--onnx-model", path, "--indices-per-bag", 3), "no bags")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table of the library differs in rows that the fingerprint does not see."""
    path = write_dlrm(tmp_path_factory.mktemp("other") / "small.onnx", **SMALL)
    model = read_dlrm(path)
    rows = model.tables[0].rows + np.float32(1)
    seen = np.unique(np.linspace(0, 499, 64).astype(np.int64))
    rows[seen] = model.tables[0].rows[seen]
    other = replace(model, tables=(replace(model.tables[0], rows=rows), model.tables[1]))
    assert other.fingerprint == model.fingerprint
    return build_plain(other, 10, path.parent), path


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_an_engine_that_predicts_something_else_gets_no_number(engine: str, other: tuple[Path, Path]) -> None:
    library, path = other
    done = run("--model", library, "--engine", engine, "--onnx-model", path, "--num-instances", 1)
    assert_one_line(done, f"{TITLES[engine]} ", "differs from the library's predictions by ", "it gets no number")
    assert '"items_per_s"' not in done.stdout


@NEEDS_ONNXRUNTIME
def test_a_graph_that_the_engine_refuses_is_one_line(tmp_path: Path) -> None:
    path = EXPORTS / "op9_aten.onnx"
    library = build_plain(read_dlrm(path), 4, tmp_path)
    options = ("--engine", "onnxruntime", "--onnx-model", path, "--num-instances", 1)
    assert_one_line(run("--model", library, *options), f"cannot run {path}: ", "ONNX Runtime ")


def test_an_engine_that_is_not_installed_is_one_line(small: tuple[Path, Path], monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = run("--model", small[0], "--num-instances", 1, "--engine", "onnxruntime")
    assert_one_line(done, "ONNX Runtime is not installed. Type: pip install -r requirements-dev.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--onnx-model", "x.onnx"),
            "--onnx-model is what another engine runs. Give --engine onnxruntime or openvino or",
        ),
        (("--engine", "openvino", "--profile"), "--profile is for our own library, not for --engine openvino"),
        (("--engine", "openvino", "--huge-pages"), "--huge-pages is for our own library, not for --engine openvino"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(options: tuple[str, ...], message: str) -> None:
    assert_one_line(run(*options), message)


def test_the_manifest_names_the_file_and_opens_without_it(demo_library: Path) -> None:
    manifest = open_artifact(demo_library).manifest
    assert manifest.onnx_model == str(ROOT / "__data" / "demo_dlrm_10000.onnx")
    fields = json.loads(manifest.to_json())
    del fields["onnx_model"]
    assert Manifest.from_json(json.dumps(fields)).onnx_model is None
