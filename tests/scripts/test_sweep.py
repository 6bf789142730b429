"""multi_instance.py --sweep through its real command line."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from graphs import write_dlrm
from models import build_plain, random_dlrm
from scripts import TWO_CORES, assert_gone, assert_one_line, children, parsed, run, start

from dlrm_tvm.paths import ROOT
from dlrm_tvm.runtime.artifact import open_artifact

PREBUILT = ROOT / "__prebuilt"
SHORT = ("--duration", 0.3, "--warmup", 0.1)


@pytest.fixture(scope="module")
def small_library(tmp_path_factory) -> Path:
    """Of a little model, alone in its folder. Wide rows make a worker's inputs, which touch all caches, few."""
    model = random_dlrm(table_rows=(50,) * 26, dim=128, interaction="cat")
    return build_plain(model, 16, tmp_path_factory.mktemp("small"))


@pytest.fixture
def name() -> Iterator[str]:
    """An output name of our own; what was left under it is removed."""
    name = f"pytest_sweep_{os.getpid()}"
    yield name
    for path in PREBUILT.glob(f"{name}*"):
        path.unlink()


@TWO_CORES
def test_sweep_measures_the_demo_and_ends_in_one_json_line(demo_library: Path, tmp_path: Path) -> None:
    files = ("--output", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    spec = "instances=1,2;threads=1,2"
    done = run("--model", demo_library, "--sweep", spec, "--repeats", 1, "--max-latency-ms", 10_000, *SHORT, *files)
    assert done.returncode == 0, done.stderr
    fields = parsed(done.stdout.splitlines()[-1])
    measured = {(entry["instances"], entry["threads"]): entry for entry in fields["combinations"]}
    usable = len(os.sched_getaffinity(0))
    assert measured.keys() >= {(1, 1), (2, 1), (1, 2)}
    assert len(measured) + len(fields["left_out"]) == 4
    assert ("left out" in done.stdout) == (usable < 4)
    assert all(entry["batch_size"] == 100 and entry["items_per_s"] > 0 for entry in fields["combinations"])
    assert sorted(measured[1, 2]["repeats"][0]["cores"]) == sorted(measured[2, 1]["repeats"][0]["cores"])
    rates = [entry["items_per_s"] for entry in fields["combinations"]]
    assert rates == sorted(rates, reverse=True)
    assert fields["combinations"][0]["best"] and fields["combinations"][0]["pareto"]
    assert "Best with p99 of at most 10000 ms: " in done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["combinations"] == fields["combinations"]
    assert len((tmp_path / "a.csv").read_text().splitlines()) == len(rates) + 1
    assert f"{len(rates)}/{len(rates)} " in done.stdout


def test_axes_need_no_quoting_and_rates_and_cores_are_axes(small_library: Path, tmp_path: Path) -> None:
    axes = ("cores=1-2*2" if len(os.sched_getaffinity(0)) > 1 else "cores=1", "rate=20-40*2", "batch=16")
    options = ("--repeats", 1, "--output", tmp_path / "a.json", "--duration", 1, "--warmup", 0.1)
    done = run("--model", small_library, "--sweep", *axes, *options)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "a.json").read_text())["combinations"]
    assert {(each["instances"], each["rate"]) for each in entries} >= {(1, 20), (1, 40)}
    for entry in entries:
        (repeat,) = entry["repeats"]
        assert len(repeat["cores"]) == entry["instances"] * entry["threads"] == entry["instances"]
        assert 0.3 * entry["rate"] < repeat["batches"] < 2 * entry["rate"]  # Poisson's, in a second
    assert "20 batches/s" in done.stdout and " rate " in done.stdout


def interrupted(number: signal.Signals, *options: object) -> dict:
    """The JSON of a sweep that gets the signal once its first run is done."""
    script = start(*options)
    for line in script.stdout:
        if line.startswith("  1/"):
            break
    workers = children(script.pid)
    script.send_signal(number)
    output, errors = script.communicate(timeout=30)
    assert (script.returncode, errors) == (128 + number, "")
    assert_gone(workers)
    return parsed(output.splitlines()[-1])


def test_interrupted_sweep_prints_what_was_measured_and_goes_on_from_there(small_library: Path, tmp_path: Path) -> None:
    options = ("--model", small_library, "--sweep", "instances=1", "--output", tmp_path / "a.json", *SHORT)
    options = (*options, "--repeats", 100)
    first = interrupted(signal.SIGINT, *options)
    assert (first["interrupted"], first["finished"], first["runs_left"]) == (True, False, 99)
    assert json.loads((tmp_path / "a.json").read_text())["runs_left"] == 99
    assert [("figures" in json.loads(line)) for line in (tmp_path / "a.jsonl").open()] == [False, True]
    second = interrupted(signal.SIGTERM, *options, "--resume")
    assert (second["seed"], second["interrupted"], second["runs_left"]) == (first["seed"], True, 98)
    (entry,) = second["combinations"]
    assert [each["round"] for each in entry["repeats"]] == [0, 1]
    assert entry["repeats"][0] == first["combinations"][0]["repeats"][0]


def test_missing_library_is_compiled_from_the_same_model_by_the_same_flags(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dlrm(tmp_path / "small.onnx", table_rows=(20,) * 8, dim=128)
    flags = ("--onnx-model", "small.onnx", "--tuning-log-file", "none", "--copy-tables", "--output-name", name)
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(tmp_path)
        assert run(*flags, "--batch-size", 16, script="compile").returncode == 0
    library = PREBUILT / f"{name}_b16.so"
    options = ("--model", library, "--sweep", "instances=1;batch=8,16", "--repeats", 1, *SHORT)
    done = run(*options)
    assert done.returncode == 0, done.stderr
    manifests = [open_artifact(PREBUILT / f"{name}_b{batch}.so").manifest for batch in (8, 16)]
    assert [manifest.batch_size for manifest in manifests] == [8, 16]
    assert manifests[0].model == manifests[1].model
    assert manifests[0].untuned_kernels == ("default code generation",)
    assert f"{name}_b8.so (1 of 1)" in done.stdout
    assert {entry["batch_size"] for entry in parsed(done.stdout.splitlines()[-1])["combinations"]} == {8, 16}
    assert (PREBUILT / f"{name}.sweep.json").is_file() and (PREBUILT / f"{name}.sweep.jsonl").is_file()

    script = start("--model", library, "--sweep", "instances=1;batch=6")
    assert f"compiling {os.path.relpath(PREBUILT)}/{name}_b6.so" in script.stdout.readline()
    deadline = time.monotonic() + 10
    while not (compiling := children(script.pid)) and time.monotonic() < deadline:
        time.sleep(0.005)
    script.send_signal(signal.SIGTERM)
    assert script.communicate(timeout=600) == ("", "Ended by SIGTERM.\n")
    assert_gone(compiling)
    assert compiling and not list(PREBUILT.glob(f"{name}_b6*"))

    (tmp_path / "small.onnx").write_bytes(b"no model")
    done = run("--model", library, "--sweep", "instances=1;batch=5")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"{name}_b5.so could not be compiled: " in done.stderr and "small.onnx" in done.stderr


@pytest.mark.parametrize(
    "options, parts",
    [
        (("--sweep", "batch=none"), ("'none' of batch", "Write it like")),
        (("--sweep", "instances=60000"), ("every combination needs more than", "Try --sweep")),
        (("--sweep", "auto", "--num-threads", 2), ("--sweep chooses threads",)),
        (("--sweep", "auto", "--cores", 9999), ("Core 9999 of --cores is unknown",)),
        (("--sweep", "auto", "--plot", "a.gif"), (".png, .svg or .pdf",)),
        (("--sweep", "auto", "--csv", "/absent/a.csv"), ("--csv /absent/a.csv: No such file or directory",)),
        (("--sweep", "auto", "--max-latency-ms", 0), ("--max-latency-ms 0", "above 0")),
        (("--sweep", "auto", "--max-latency-ms", "nan"), ("--max-latency-ms nan", "above 0")),
        (("--sweep", "auto", "--resume", "--output", "/tmp/absent.json"), ("there is no sweep to resume",)),
        (("--resume",), ("--resume is of a sweep: add --sweep auto",)),
        (("--sweep", "cores=1", "--num-instances", 1), ("--sweep chooses cores, --num-instances too",)),
        (("--sweep", "auto", "--percentile", 95), ("--percentile 95: above 0, below 100", "not in a sweep")),
    ],
)
def test_mistakes_are_one_line(small_library: Path, options: tuple, parts: tuple[str, ...]) -> None:
    assert_one_line(run("--model", small_library, *options), *parts)


def test_plot_without_matplotlib_is_one_line_that_tells_how_to_get_it(small_library: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("--model", small_library, "--sweep", "instances=1", "--plot", "a.png")
    assert_one_line(done, "--plot needs matplotlib", "pip install -r requirements-plot.txt")
