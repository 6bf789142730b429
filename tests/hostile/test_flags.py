"""Flags with wrong values: one line, status 1 or 2, and nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hostile import LONGEST, content, run_in_process
from models import build, random_dlrm

from dlrm_tvm.compiler import pipeline
from dlrm_tvm.paths import PREBUILT

LIBRARY = "--model=LIBRARY"
LONG = "9" * 30
NUMBERS = ("x", "", "1.5", "-1", "0", "1e400", "nan", "0x10", "٣x", "9" * 5000)
SECONDS = ("x", "-1", "nan", "inf")
TOLERANCES = ("inf", "-inf", "nan", "-1e-9", "1.1", "1e300", "x", "")
CORES = ("x", "", "-1", "99999", "0-", "0,0", "3-1", "0-99999999999")

VALUES = {  # script and flags before -> values, each a case
    ("compile", "--batch-size"): NUMBERS,
    ("compile", "--demo-table-rows"): ("x", "-1", "0", "1.5"),
    ("compile", "--precision"): ("fp8", "FP32"),
    ("compile", "--isa"): ("sse",),
    ("compile", "--target-cpu"): ("z80", "", "znver4 -mattr=+x"),
    ("compile", "--onnx-model"): ("nowhere.onnx", ".", "/dev/null", "", "a\nb.onnx"),
    ("compile", "--tuning-log-file"): ("nowhere.log", "."),
    ("compile", "--tune", "--tuning-log-file"): (".",),
    ("compile", "--tune", "--target-cpu"): ("core2",),
    ("compile", "--isa", "amx", "--target-cpu"): ("znver4",),
    ("compile", "--output-name"): ("", ".", "../up", "a/b", "a" * 300),
    ("compile", "--dump-ir"): ("/dev/null/x",),
    ("compile", "--calibration-data"): ("nowhere.npz",),
    ("compile", "--precision", "int8", "--calibration-data"): ("nowhere.npz",),
    ("compile", "--precision", "auto", "--min-auc-ratio"): ("2", "nan"),
    ("compile", "--precision", "auto", "--ref-data"): ("nowhere.npz",),
    ("compile", "--tune", "--tune-seconds"): ("-1", "nan", "x"),
    ("compile", "--torch-weights"): ("nowhere.pt", ".", "/dev/null"),
    ("compile", "--max-ind-range"): ("5",),
    ("compile", "--output"): (".", "nowhere/x"),
    ("compile",): ("--unknown", "surplus"),
    ("accuracy", LIBRARY, "--rtol"): TOLERANCES,
    ("accuracy", LIBRARY, "--atol"): TOLERANCES,
    ("accuracy", LIBRARY, "--min-auc-ratio"): ("0", "-1", "1.1", "nan", "inf", "x"),
    ("accuracy", LIBRARY, "--max-items"): ("0", "-5", "1.5", "x", "nan"),
    ("accuracy", LIBRARY, "--first-item"): ("-1", "x", "99999999999999999999"),
    ("accuracy", LIBRARY, "--split"): ("train",),
    ("accuracy", LIBRARY, "--ref-data"): ("nowhere.npz", "/dev/null", "a\x1b[2Jb"),
    ("accuracy", LIBRARY, "--max-ind-range"): ("0", "-1", "x", LONG),
    ("accuracy", LIBRARY, "--shard-items"): ("0", "5"),
    ("accuracy", LIBRARY, "--predictions=p", "--shard-items"): ("0", "-1", "1.5", LONG),
    ("accuracy", LIBRARY, "--predictions"): ("manifest.json", "/dev/null"),
    ("accuracy", LIBRARY, "--output"): ("small_b4.so", "./small_b4.params", "small_b4.json"),
    ("accuracy", LIBRARY, "--output", "a", "--output"): (".", "nowhere/x", "/dev/full", "a" * 300),
    ("accuracy", "--model"): ("nowhere.so", "a\nb.so", ".", ""),
    ("multi_instance", LIBRARY, "--num-instances"): (*NUMBERS[:6], "100000", "9" * 30),
    ("multi_instance", LIBRARY, "--num-threads"): ("x", "0", "-1", "100000", "1.5"),
    ("multi_instance", LIBRARY, "--duration"): (*SECONDS, "0", "1e9"),
    ("multi_instance", LIBRARY, "--warmup"): SECONDS,
    ("multi_instance", LIBRARY, "--cores"): CORES,
    ("multi_instance", LIBRARY, "--indices-per-bag"): (*SECONDS, "1e30", LONG, "1" * 400),
    ("multi_instance", LIBRARY, "--numa"): ("far",),
    ("multi_instance", LIBRARY, "--engine"): ("caffe",),
    ("multi_instance", LIBRARY, "--arrivals"): ("poisson",),
    ("multi_instance", LIBRARY, "--rate"): ("5",),
    ("multi_instance", LIBRARY, "--arrivals", "fixed", "--rate"): ("0", *SECONDS),
    ("multi_instance", LIBRARY, "--ref-data"): ("nowhere.npz",),
    ("multi_instance", LIBRARY, "--baseline"): ("nowhere.json", "/dev/null"),
    ("multi_instance", LIBRARY, "--repeats"): ("3",),
    ("multi_instance", LIBRARY, "--sweep-seed"): ("0",),
    ("multi_instance", LIBRARY, "--samples"): ("5",),
    ("multi_instance", LIBRARY, "--scenario"): ("single", "server"),
    ("multi_instance", LIBRARY, "--scenario", "server", "--target-qps"): ("-1", "0", "nan", "1e7"),
    ("multi_instance", LIBRARY, "--scenario", "offline", "--samples"): ("0",),
    ("multi_instance", LIBRARY, "--scenario", "offline", "--user-conf"): ("nowhere.conf",),
    ("multi_instance", LIBRARY, "--sweep"): (
        "", "batch", "batch=x", "batch=0", "batch=" + ",".join(map(str, range(1, 5000))), "colour=1", "batch=4;batch=4",
        "instances=1000000",
    ),
    ("multi_instance", LIBRARY, "--sweep", "instances=1", "--repeats"): ("0", "1001", LONG),
    ("multi_instance", LIBRARY, "--sweep", "instances=1", "--csv"): ("/nowhere/x.csv",),
    ("multi_instance", LIBRARY, "--sweep", "instances=1", "--max-latency-ms"): ("nan",),
    ("multi_instance", LIBRARY, "--sweep", "instances=1", "--sweep-seed"): ("x", LONG),
    ("multi_instance", LIBRARY, "--arrivals", "fixed", "--rate", "5", "--burst"): ("0", "-1", "2000000", LONG),
    ("multi_instance", LIBRARY, "--arrivals", "trace", "--trace"): ("nowhere", "/dev/zero", "."),
    ("multi_instance", LIBRARY, "--max-latency-ms"): ("0", "-1", "nan", "inf"),
    ("multi_instance", LIBRARY, "--max-latency-ms", "5", "--percentile"): ("0", "100", "nan", "-5"),
    ("multi_instance", LIBRARY, "--fail-on-regression"): ("5", "nan", "-1"),
    ("multi_instance", LIBRARY, "--latencies"): ("a.txt", ".csv/x.csv", "nowhere/a.npz"),
    ("multi_instance", LIBRARY, "--latencies=a.csv", "--output"): ("a.csv", "small_b4.json"),
    ("multi_instance", LIBRARY, "--output"): (".", "nowhere/x", "/dev/full"),
    ("multi_instance", LIBRARY, "--plot"): ("a.gif", "nowhere/a.svg"),
    ("multi_instance", LIBRARY, "--ray-nodes"): ("0", "2", "x"),
    ("multi_instance", "--results"): ("nowhere.json", "/dev/null", "/dev/zero", ".", "manifest.json"),
    ("multi_instance", LIBRARY): ("--profile",),
    ("multi_instance", "--model"): ("nowhere.so", "a\x1b[2J\nb.so"),
    ("multi_instance",): ("surplus",),
}  # fmt: skip
CASES = [(*before, value) for before, values in VALUES.items() for value in values]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An optimized one: of others TVM warns on stderr when a process opens copies."""
    return build(random_dlrm(), 4, None, tmp_path_factory.mktemp("library"))


def no_model(*_: object) -> Path:
    raise AssertionError("a wrong flag shows before the demo model is generated")


@pytest.mark.parametrize("words", CASES, ids=lambda words: " ".join(words)[:60].encode("unicode_escape").decode())
def test_a_wrong_flag_is_one_line(library, tmp_path, monkeypatch, capfd, words) -> None:
    for suffix in (".so", ".json", ".params"):
        shutil.copy(library.with_suffix(suffix), tmp_path)
    shutil.copy(library.with_suffix(".json"), tmp_path / "manifest.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "demo_model_path", no_model)
    before = content(tmp_path)
    name, *arguments = [f"--model={library.name}" if word == LIBRARY else word for word in words]
    status = run_in_process(name, arguments, monkeypatch)
    printed = capfd.readouterr()
    lines = printed.err.splitlines()
    assert status in (1, 2), printed
    assert len(lines) == 1, printed.err
    assert (status == 2) == lines[0].endswith(f". All flags: {name}.py --help")
    assert lines[0].isprintable() and len(lines[0]) < LONGEST
    assert "Traceback" not in printed.err and "Traceback" not in printed.out
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "words", "output"),
    [
        ("accuracy", [LIBRARY, "--predictions=p.npz"], "./p.npz"),
        ("accuracy", [LIBRARY, "--predictions=p"], "p/part-0.npz"),
        ("accuracy", [LIBRARY, "--predictions=p"], "p/job.json"),
        ("accuracy", [LIBRARY, "--predictions=p.npz"], "p.npz.parts/job.json"),
        ("accuracy", [LIBRARY], "graph.onnx.data"),
        ("compile", ["--output-name=nobodys"], PREBUILT / "nobodys_b100.json"),
        ("compile", ["--output-name=nobodys"], PREBUILT / "nobodys_b100.params"),
        ("compile", ["--torch-weights=w.pt"], "w.pt.onnx"),
        ("compile", ["--onnx-model=graph.onnx"], "graph.onnx.data"),
        ("multi_instance", [LIBRARY, "--plot=a.svg"], "a.svg"),
        ("multi_instance", [LIBRARY, "--plot=a.svg", "--profile"], "a.roofline.svg"),
        ("multi_instance", [LIBRARY, "--scenario=offline", "--user-conf=u.conf"], "u.conf"),
        ("multi_instance", [LIBRARY, "--scenario=offline", "--mlperf-conf=u.conf"], "u.conf"),
        ("multi_instance", [LIBRARY, "--baseline=u.conf"], "./u.conf"),
        ("multi_instance", [LIBRARY], "graph.onnx"),
    ],
)
def test_a_result_goes_into_no_file_that_is_read_or_written_besides(
    library, tmp_path, monkeypatch, capfd, name, words, output
) -> None:
    for suffix in (".so", ".params"):
        shutil.copy(library.with_suffix(suffix), tmp_path)
    manifest = json.loads(library.with_suffix(".json").read_text()) | {"onnx_model": str(tmp_path / "graph.onnx")}
    (tmp_path / library.with_suffix(".json").name).write_text(json.dumps(manifest))
    for made in ("p", "p.npz.parts"):
        (tmp_path / made).mkdir()
    for made in ("w.pt", "u.conf", "graph.onnx"):
        (tmp_path / made).write_text("kept")
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    arguments = [f"--model={library.name}" if word == LIBRARY else word for word in words]
    assert run_in_process(name, [*arguments, f"--output={output}"], monkeypatch) == 1
    assert re.search(r"that file is read, or written|that is in \S+, which holds the predict", capfd.readouterr().err)
    assert content(tmp_path) == before
