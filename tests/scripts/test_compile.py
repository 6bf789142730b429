"""compile.py: what it leaves and prints, and one line with status 1 for each mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from graphs import onnxruntime_predictions, random_items, write_dlrm
from models import without_code, without_linking
from scripts import read_result

import compile as script
from dlrm_tvm import load
from dlrm_tvm.compiler import library_writer, pipeline
from dlrm_tvm.compiler.plan import layer_shapes
from dlrm_tvm.errors import run_script
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.machine.cpu import host_flags, host_model
from dlrm_tvm.paths import ROOT
from dlrm_tvm.schedules.rules import network_shape
from dlrm_tvm.schedules.tuning_log import Record, append

EXPORTS = ROOT.parent / "shared" / "exports"
KEYS = {
    "library", "batch_size", "precision", "target_cpu", "tuned_kernels", "untuned_kernels", "compile_s", "peak_rss_mb",
}  # fmt: skip
ROWS = (5, 7, 3)


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory) -> Path:
    return write_dlrm(tmp_path_factory.mktemp("onnx") / "small.onnx", table_rows=ROWS)


@pytest.fixture
def name() -> Iterator[str]:
    """An output name of our own; what was left under it is removed."""
    name = f"pytest_compile_{os.getpid()}"
    yield name
    for path in script.PREBUILT.glob(f"{name}_b*"):
        path.unlink()


def command_line(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(script.__file__)), *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=600)


def compiled(*arguments: str | Path) -> tuple[dict, str]:
    """The JSON of a real command line that succeeds, and all that it printed."""
    finished = command_line(*arguments)
    assert finished.returncode == 0, finished.stderr
    result = read_result(finished.stdout)
    assert result.keys() >= KEYS
    return result, finished.stdout


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """f(*arguments) -> status, stdout, stderr of the script's main in this process, __prebuilt in tmp_path."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(script, "PREBUILT", tmp_path / "prebuilt")
        monkeypatch.setattr(sys, "argv", ["compile.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            run_script(script.main)
        printed = capsys.readouterr()
        return exit_.value.code, printed.out, printed.err

    return run


@pytest.fixture
def no_code(monkeypatch) -> Iterator[None]:
    """For what is decided before: main makes no machine code."""
    whole = pipeline.compile_model
    monkeypatch.setattr(pipeline, "compile_model", lambda job: whole(without_code(job)))
    with without_linking():
        yield


@pytest.fixture
def refusal(main, tmp_path):
    """f(*arguments) -> the one line on stderr; nothing may be left in __prebuilt."""

    def run(*arguments: str | Path) -> str:
        status, _, error = main(*arguments)
        assert status == 1
        assert (error.count("\n"), error[-1]) == (1, "\n")
        assert not list((tmp_path / "prebuilt").glob("**/*"))
        return error

    return run


def test_a_small_model_is_compiled_with_our_kernels_and_dumped(require_fma, onnx_model, name, tmp_path):
    dump = tmp_path / "ir"
    result, printed = compiled(
        "--onnx-model", onnx_model, "--batch-size", "7", "--output-name", name, "--dump-ir", dump, "--profile"
    )
    library = script.PREBUILT / f"{name}_b7.so"
    assert (Path(result["library"]).resolve(), result["batch_size"], result["precision"]) == (library, 7, "fp32")
    assert result["tuned_kernels"] + result["untuned_kernels"] > 0
    assert 0 < result["max_abs_error"] < 1e-6
    assert "verified    21 random items" in printed
    if not result["tuned_kernels"]:
        assert re.search(r" schedules by rule [^;]*; --tune may find better ", " ".join(printed.split()))
    assert {path.name for path in dump.iterdir()} == {
        "1_model.json", "2_numerics.json", "3_tables.json", "4_schedules.json", "5_plan.txt", "6_tir.py", "7_relax.py",
        "8_assembly.s", "9_verification.json",
    }  # fmt: skip
    assert "vfmadd" in (dump / "8_assembly.s").read_text()
    dense, indices = random_items(9, table_rows=ROWS)
    pytest.importorskip("onnxruntime")
    wanted = onnxruntime_predictions(onnx_model, dense, indices)
    np.testing.assert_allclose(load(str(library))(dense, indices), wanted, atol=1e-6)
    manifest = json.loads(library.with_suffix(".json").read_text())
    assert manifest["command"].endswith(f"--dump-ir {dump} --profile") and manifest["profile"]


@pytest.mark.parametrize(
    "export, log",
    [
        pytest.param("t171_stacked", None, marks=pytest.mark.slow),
        ("t213_legacy_onehot", None),
        pytest.param("t171_stacked", "none", marks=pytest.mark.slow),
    ],
)
def test_an_export_gives_the_outputs_that_pytorch_recorded(require_fma, main, export, log):
    path = EXPORTS / f"{export}.onnx"
    if not path.is_file():
        pytest.skip("the real exports are not here")
    arguments = ["--onnx-model", path, "--batch-size", "3", *(["--tuning-log-file", log] if log else [])]
    status, printed, error = main(*arguments)
    assert status == 0, error
    with np.load(path.with_suffix(".npz")) as recorded:
        stacked = "indices" in recorded
        indices = recorded["indices"].T if stacked else np.stack([recorded[f"indices_{t}"] for t in range(26)], axis=1)
        got = load(read_result(printed)["library"])(recorded["dense_x"], indices)
        np.testing.assert_allclose(got, recorded["pred"][:, 0], atol=1e-5)


@pytest.mark.parametrize("copy", [False, True])
def test_external_tables_are_used_in_place_unless_a_copy_is_asked_for(main, tmp_path, copy):
    model = write_dlrm(tmp_path / "small.onnx", table_rows=ROWS, external="one_file")
    data = tmp_path / "small.onnx.data"
    options = ("--batch-size", "4", "--tuning-log-file", "none", *(["--copy-tables"] if copy else []))
    status, printed, error = main("--onnx-model", model, *options)
    assert status == 0, error
    library = read_result(printed)["library"]
    assert ("used in place" in printed, "copied beside the library" in printed) == (not copy, copy)
    dense, indices = random_items(4, table_rows=ROWS)
    wanted = load(library)(dense, indices)
    model.unlink()
    np.testing.assert_array_equal(load(library)(dense, indices), wanted)
    data.unlink()
    if copy:
        np.testing.assert_array_equal(load(library)(dense, indices), wanted)
    else:
        with pytest.raises(ValueError, match=r"small.onnx.data: no such file.*--copy-tables"):
            load(library)


def test_a_disk_that_cannot_take_the_tables_is_refused_before_anything_is_compiled(refusal, tmp_path, monkeypatch):
    model = write_dlrm(tmp_path / "small.onnx", table_rows=ROWS, external="one_file")
    monkeypatch.setattr(library_writer, "LINK_BYTES", 1 << 60)
    for later in ("choose_schedules", "plan_network"):
        monkeypatch.setattr(pipeline, later, lambda *_, **__: pytest.fail("compiled"))
    assert "MiB needed. Free some space." in refusal("--onnx-model", model, "--copy-tables")


def test_no_tuning_log_leaves_everything_to_tvm(main, onnx_model, tmp_path):
    status, printed, error = main("--onnx-model", onnx_model, "--batch-size", "4", "--tuning-log-file", "none")
    assert status == 0, error
    result = read_result(printed)
    assert result["tuned_kernels"] == 0
    assert "schedules   none: TVM's default code generation" in printed
    assert sorted(path.name for path in (tmp_path / "prebuilt").iterdir()) == [
        f"dlrm_avx512_b4{suffix}" for suffix in (".json", ".params", ".so")
    ]
    dense, indices = random_items(9, table_rows=ROWS)
    assert load(result["library"])(dense, indices).shape == (9,)


def shape_in_log(model_file, batch: int) -> str:
    return network_shape(batch, layer_shapes(read_dlrm(model_file)))


@pytest.mark.parametrize(
    "cpu, batch, tuned",
    [("skylake-avx512", 4, True), ("cascadelake", 4, False), ("skylake-avx512", 3, False)],
)
def test_schedules_of_a_log_are_used_for_their_own_cpu_and_batch_alone(
    main, no_code, onnx_model, tmp_path, cpu, batch, tuned
):
    shape = shape_in_log(onnx_model, 4)
    record = {
        "kernel": "network_fp32", "shape": shape, "precision": "fp32", "cpu": "skylake-avx512",
        "time_us": 1.0,
        "schedule": {"mr": 3, "block_tiles": 1, "fetch_every": 1, "fetch_locality": 3}, "share_of_peak": 0.5,
        "tvm": "0.27.0", "date": "2026-11-23",
    }  # fmt: skip
    log = tmp_path / "tune_log"
    log.write_text(json.dumps(record) + "\n")
    options = ("--batch-size", str(batch), "--tuning-log-file", log, "--target-cpu", cpu)
    status, printed, error = main("--onnx-model", onnx_model, *options)
    assert status == 0, error
    assert ("schedules   1 kernels tuned, " in printed) is tuned
    by_rule = f" schedules by rule (no records of these kernels on {cpu} in {os.path.relpath(log)})"
    assert (f"{by_rule}; --tune on such a CPU may find better " in " ".join(printed.split())) is not tuned
    manifest = json.loads((tmp_path / "prebuilt" / f"dlrm_avx512_b{batch}.json").read_text())
    assert manifest["tuned_kernels"] == ([f"network_fp32 {shape}"] if tuned else [])


def test_tune_searches_first_and_its_schedules_are_used(require_fma, main, no_code, onnx_model, tmp_path, monkeypatch):
    from dlrm_tvm.tuning import search

    def tune(model, batch, cpu, log, numerics, seconds) -> None:
        assert seconds == 120
        assert (len(model.tables), batch, numerics.precision, cpu.is_host) == (len(ROWS), 4, "fp32", True)
        numbers = {"mr": 2, "block_tiles": 1, "fetch_every": 1, "fetch_locality": 3}
        shape = shape_in_log(onnx_model, 4)
        append(log, Record("network_fp32", shape, "fp32", cpu.cpu, numbers, 1.0, 0.5, "0.27.0", "2026-11-23"))

    monkeypatch.setattr(search, "tune", tune)
    options = ("--batch-size", "4", "--tuning-log-file", tmp_path / "new" / "log", "--tune")
    status, printed, error = main("--onnx-model", onnx_model, *options)
    assert status == 0, error
    assert read_result(printed)["tuned_kernels"] == 1
    assert [line.split()[0] for line in printed.splitlines()[:-1] if line[0] != " "] == [
        "model", "target", "tables", "machine", "schedules", "verified", "wrote",
    ]  # fmt: skip


def test_code_for_a_cpu_with_other_instructions_is_written_but_not_claimed_to_be_verified(main, onnx_model, tmp_path):
    if "avx512_fp16" in host_flags():
        pytest.skip(f"{host_model()} runs code for Sapphire Rapids")
    arguments = ("--onnx-model", onnx_model, "--batch-size", "4", "--target-cpu", "sapphirerapids")
    status, printed, error = main(*arguments)
    assert status == 0, error
    result = read_result(printed)
    assert (result["target_cpu"], result["max_abs_error"]) == ("sapphirerapids", None)
    assert "verified    no: this CPU cannot run code for sapphirerapids" in printed
    with pytest.raises(ValueError, match=r"needs .*avx512_fp16.*, which this CPU lacks"):
        load(result["library"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--batch-size", "0"], "--batch-size 0: at least 1 was wanted."),
        (["--batch-size", "-3"], "--batch-size -3: at least 1 was wanted."),
        (["--demo-table-rows", "0"], "--demo-table-rows 0: at least 1 was wanted."),
        (["--output-name", "a/b"], "--output-name a/b: a plain name was wanted, without a directory."),
        (["--output-name", "../up"], "--output-name ../up: a plain name was wanted"),
        (["--output-name", ""], "--output-name : a plain name was wanted"),
        (["--precision", "bf16", "--target-cpu", "znver2"], "bf16 needs avx512bw, avx512_bf16, which znver2 lacks."),
        (["--precision", "bf16", "--target-cpu", "haswell"], "bf16 needs avx512bw, avx512_bf16, which haswell lacks."),
        (["--precision", "bf16", "--target-cpu", "icelake-server"], "needs avx512_bf16, which icelake-server lacks."),
        (["--precision", "int8", "--tuning-log-file", "none"], "--tuning-log-file none compiles in fp32 alone"),
        (["--precision", "bf16", "--calibration-data", "a.npz"], "--calibration-data is for int8, not for"),
        (["--precision", "int8", "--calibration-data", "nowhere.npz"], "nowhere.npz: no such file."),
        (["--ref-data", "a.npz"], "--ref-data is what --precision auto judges by."),
        (["--min-auc-ratio", "0.9"], "--min-auc-ratio is what --precision auto judges by."),
        (["--precision", "auto", "--onnx-model", "a.onnx"], "--precision auto judges accuracy on reference data."),
        (["--precision", "auto", "--target-cpu", "znver2"], "which is not a znver2. Leave out --target-cpu."),
        (["--precision", "auto", "--ref-data", "nowhere.npz"], "nowhere.npz: no such file."),
        (["--precision", "auto", "--min-auc-ratio", "2"], "--min-auc-ratio 2.0: more than 0 and at most 1"),
        (["--precision", "auto", "--tune"], "--tune searches for one precision."),
        (["--tune", "--tuning-log-file", "none"], "--tune needs a log to append to."),
        (["--tune-seconds", "60"], "--tune-seconds limits the search of --tune. Give both, or neither."),
        (["--tune", "--tune-seconds", "0"], "--tune-seconds 0: a number of seconds above 0 was wanted."),
        (["--tune", "--tune-seconds", "-1"], "--tune-seconds -1: a number of seconds above 0 was wanted."),
        (["--tune", "--tune-seconds", "nan"], "--tune-seconds nan: a number of seconds above 0 was wanted."),
        (["--tune", "--tune-seconds", "inf"], "--tune-seconds inf: a number of seconds above 0 was wanted."),
        (["--target-cpu", "znver44"], "--target-cpu znver44 is not a CPU that LLVM knows. Try znver4"),
        (["--onnx-model", "nowhere.onnx"], "nowhere.onnx: no such file"),
        (["--onnx-model", "."], ".: not a file; an ONNX model was wanted. Name the .onnx file inside it."),
    ],
)
def test_a_bad_flag_is_one_line(refusal, arguments, message):
    assert message in refusal(*arguments)


@pytest.mark.parametrize("arguments", [["--batch-size", "many"], ["--precision", "fp64"], ["--no-such-flag"]])
def test_wrong_usage_is_status_2(main, arguments):
    status, _, error = main(*arguments)
    assert status == 2
    assert error.endswith(". All flags: compile.py --help\n") and error.count("\n") == 1


@pytest.mark.parametrize("size", [0, 10, 1000, -1])
def test_a_truncated_onnx_file_is_one_line(refusal, onnx_model, tmp_path, size):
    path = tmp_path / "cut.onnx"
    path.write_bytes(onnx_model.read_bytes()[:size])
    assert "cut.onnx" in refusal("--onnx-model", path)


def test_a_file_that_is_no_onnx_is_one_line(refusal, tmp_path):
    path = tmp_path / "text.onnx"
    path.write_text("this is no model\n" * 100)
    assert "text.onnx" in refusal("--onnx-model", path)


def test_a_graph_that_is_no_dlrm_is_one_line_that_says_why(refusal, tmp_path):
    from onnx import TensorProto, helper, save_model

    x, y = (helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", 13]) for value in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="Relu_0")], "other", [x], [y])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "r.onnx")
    assert "r.onnx" in refusal("--onnx-model", tmp_path / "r.onnx")


def test_weights_that_are_not_finite_are_one_line(refusal, onnx_model, tmp_path):
    from onnx import load_model, numpy_helper, save_model

    model = load_model(onnx_model)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "top.0.weight")
    weight = numpy_helper.to_array(tensor).copy()
    weight[0, 0] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    save_model(model, tmp_path / "inf.onnx")
    assert "has a weight or bias that is not finite" in refusal("--onnx-model", tmp_path / "inf.onnx")


def test_a_cpu_without_fma_is_pointed_to_the_default_code_generation(refusal, onnx_model):
    message = refusal("--onnx-model", onnx_model, "--target-cpu", "sandybridge")
    assert "sandybridge has neither AVX-512 nor AVX2 with FMA" in message
    assert "--tuning-log-file none" in message


def test_a_missing_tuning_log_is_one_line(refusal, onnx_model, tmp_path):
    message = refusal("--onnx-model", onnx_model, "--tuning-log-file", tmp_path / "nowhere")
    assert "nowhere: no such tuning log. Make one with --tune" in message


def test_a_broken_line_in_the_tuning_log_is_named(refusal, onnx_model, tmp_path):
    (tmp_path / "log").write_text('\n{"kernel": 1}\n')
    message = refusal("--onnx-model", onnx_model, "--tuning-log-file", tmp_path / "log")
    assert "log: line 2 is not a tuning record" in message


def test_a_dump_directory_that_is_a_file_is_one_line(refusal, onnx_model, tmp_path):
    (tmp_path / "file").write_text("")
    assert "File exists" in refusal("--onnx-model", onnx_model, "--dump-ir", tmp_path / "file")


def test_an_output_directory_that_is_a_file_is_one_line(main, onnx_model, tmp_path):
    (tmp_path / "prebuilt").write_text("")
    status, _, error = main("--onnx-model", onnx_model, "--tuning-log-file", "none", "--batch-size", "2")
    assert (status, error.count("\n")) == (1, 1)
    assert "dlrm_avx512_b2.so: File exists" in error


def test_no_c_compiler_is_one_line_of_the_real_command(onnx_model, tmp_path):
    before = set(script.PREBUILT.glob("**/*"))
    empty = {"PATH": str(tmp_path), "CC": "", "CXX": ""}
    finished = command_line("--onnx-model", onnx_model, "--output-name", "pytest_never", **empty)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith("no C compiler found: looked for g++")
    assert finished.stderr.count("\n") == 1
    assert not {path for path in set(script.PREBUILT.glob("**/*")) - before if "pytest_never" in path.name}


def test_a_missing_model_is_one_line_of_the_real_command():
    finished = command_line("--onnx-model", "nowhere.onnx", "--quiet")  # a busy machine has the time for progress
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith("nowhere.onnx: no such file")
    assert finished.stderr.count("\n") == 1


def test_a_library_that_was_compiled_before_is_replaced_whole(main, onnx_model, tmp_path):
    arguments = ("--onnx-model", onnx_model, "--tuning-log-file", "none", "--batch-size", "2")
    builds = []
    for _ in range(2):
        status, printed, error = main(*arguments)
        assert status == 0, error
        library = Path(read_result(printed)["library"])
        builds.append(load(str(library)).artifact.manifest.build)
    assert builds[0] != builds[1]
    assert len(list((tmp_path / "prebuilt").iterdir())) == 3
