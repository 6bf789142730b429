"""multi_instance.py --scenario through its real command line, with MLPerf's own LoadGen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import build, build_plain, random_dlrm
from scripts import changed, children, read_result, run, start

from dlrm_tvm import load
from dlrm_tvm.data.query_samples import sample_lengths
from dlrm_tvm.data.reference_data import open_reference
from dlrm_tvm.loadgen import process
from dlrm_tvm.model.dlrm import GraphInputs
from dlrm_tvm.paths import ROOT

pytest.importorskip("mlperf_loadgen", reason="LoadGen is not installed (requirements-loadgen.txt)")

CORES = sorted(os.sched_getaffinity(0))
COUNT = min(len(CORES), 2)


def result_of(done: subprocess.CompletedProcess) -> dict:
    assert done.stdout.strip(), done.stderr
    return read_result(done.stdout)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A library of a little model for batches of 256, and labelled data for it: 2,000 items. LoadGen believes no p99 of
    less than 1.4 million items, so it is an optimized one."""
    folder = tmp_path_factory.mktemp("small")
    rows = (50, 7, 300)
    library = build(random_dlrm(table_rows=rows), 256, None, folder)
    rng = np.random.default_rng(0)
    dense, indices = rng.random((2000, 13), dtype=np.float32), rng.integers(0, rows, (2000, 3))
    pred = load(library)(dense, indices)
    labels = (rng.random(2000) < pred).astype(np.float32)
    np.savez(folder / "data.npz", X_int=dense, X_cat=indices, torch_res=pred, target=labels)
    return library, folder / "data.npz"


def short(library: Path, folder: Path, *options: object, count: int = 1) -> tuple[object, ...]:
    common = ("--model", library, "--num-instances", count, "--samples", 300, "--duration", 0.5, "--warmup", 0.1)
    return (*common, "--log-dir", folder, *options)


def assert_counts_agree(result: dict) -> None:
    """What LoadGen was told of is what the instances say that they did. A test may have been run again, longer."""
    tests = result.get("tests", [result])
    assert sum(result["items_per_instance"]) == result["items"] == tests[-1]["items"]
    assert sum(each["items"] for each in result["served"]) == sum(test["items"] for test in tests)
    if len(tests) == 1:
        assert [each["items"] for each in result["served"]] == result["items_per_instance"]


def test_offline_run_reports_loadgens_verdict_and_its_counts_agree(demo_library: Path, tmp_path: Path) -> None:
    done = run(*short(demo_library, tmp_path, "--scenario", "offline", count=COUNT))
    result = result_of(done)
    assert_counts_agree(result)
    assert result["loadgen"]["result_validity"] == ("VALID" if result["valid"] else "INVALID")
    assert done.returncode == (0 if result["valid"] else 3)
    # LoadGen's rate, from the number of samples and the time of the last: not taken from us.
    seconds = result["latency_ms"]["max"] / 1e3
    assert result["samples_per_s"] == pytest.approx(result["samples"] / seconds, rel=0.01)
    assert result["items_per_s"] == pytest.approx(result["items"] / seconds, rel=0.01)
    assert "LoadGen says" in done.stdout and "Offline" in (tmp_path / "mlperf_log_summary.txt").read_text()
    # Packed across samples, all batches but the last are full.
    batches = sum(each["batches"] for each in result["served"])
    assert batches == -(-result["items"] // result["batch_size"])


def test_server_run_reports_loadgens_latency_against_the_bound(small: tuple[Path, Path], tmp_path: Path) -> None:
    result = result_of(run(*short(small[0], tmp_path, "--scenario", "server", "--target-qps", 1000)))
    assert_counts_agree(result)
    assert result["latency_bound_ms"] == 30 and result["target_qps"] == 1000
    assert result["samples"] >= 459, "LoadGen believes no p99 of fewer"
    summary = (tmp_path / "mlperf_log_summary.txt").read_text()
    assert f"99.00 percentile latency (ns)   : {round(result['latency_ms']['p99'] * 1e6)}" in summary
    assert "target_latency (ns): 30000000" in summary and "Scenario : Server" in summary


@pytest.mark.parametrize(("scenario", "percentile"), [("singlestream", "90.00"), ("MultiStream", "99.00")])
def test_streams_report_loadgens_latency_and_its_own_estimate(
    small: tuple[Path, Path], tmp_path: Path, scenario: str, percentile: str
) -> None:
    done = run(*short(small[0], tmp_path, "--scenario", scenario))
    result = result_of(done)
    assert_counts_agree(result)
    name = f"p{percentile[:2]}"
    summary = (tmp_path / "mlperf_log_summary.txt").read_text()
    assert f"{percentile} percentile latency (ns)   : {round(result['latency_ms'][name] * 1e6)}" in summary
    assert f"percentile estimate: {round(result['early_stopping_ms'] * 1e6)}" in summary
    per_query = 8 if scenario == "MultiStream" else 1
    assert result["samples_per_s"] == pytest.approx(per_query / (result["latency_ms"]["mean"] / 1e3))
    assert result["valid"] and done.returncode == 0 and result["samples"] % per_query == 0


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A little DLRM with cross layers whose graph fixes 3, 1 and 20 indices per bag, and labelled data for it."""
    folder, rows, numbers = tmp_path_factory.mktemp("v2"), (11, 2, 300), (3, 1, 20)
    inputs = GraphInputs("dense_x", ("i_0", "i_1", "i_2"), (), "pred", indices_per_bag=numbers)
    model = replace(random_dlrm(table_rows=rows, dim=8, interaction="cross"), graph_inputs=inputs)
    library = build_plain(model, 16, folder)
    rng = np.random.default_rng(0)
    dense = rng.random((1500, 13), dtype=np.float32)
    indices = [rng.integers(0, count, (1500, number)) for count, number in zip(rows, numbers)]
    pred = load(library)(dense, indices)
    arrays = {"dense_x": dense, "pred": pred, "target": (rng.random(1500) < pred).astype(np.float32)}
    np.savez(folder / "data.npz", **arrays, **{f"i_{table}": each for table, each in enumerate(indices)})
    return library, folder / "data.npz"


def test_a_model_with_cross_layers_is_dlrm_v2_with_bags_and_bound(v2: tuple[Path, Path], tmp_path: Path) -> None:
    conf = tmp_path / "user.conf"
    conf.write_text("dlrm-v2.Server.target_qps = 300\ndlrm.Server.target_qps = 1\n")
    done = run(*short(v2[0], tmp_path, "--scenario", "Server", "--user-conf", conf))
    result = result_of(done)
    assert_counts_agree(result)
    assert (result["latency_bound_ms"], result["target_qps"]) == (60, 300)
    assert "Server of dlrm-v2, 2 s at least: 459 samples at 300 per second" in done.stdout


def test_dlrm_v2_offline_takes_as_many_samples_as_its_conf_wants(v2: tuple[Path, Path], tmp_path: Path) -> None:
    """24,576 in LoadGen's own mlperf.conf, fewer where a user.conf says so."""
    conf = tmp_path / "user.conf"
    conf.write_text("dlrm-v2.Offline.min_query_count = 700\n")
    done = run(*short(v2[0], tmp_path, "--scenario", "offline", "--target-qps", 1, "--user-conf", conf))
    assert result_of(done)["samples"] >= 700
    assert "Offline of dlrm-v2, 700 s at least: 700 samples at 1 per second" in done.stdout


def test_random_bags_are_as_long_as_was_asked_for(small: tuple[Path, Path], tmp_path: Path) -> None:
    """300 samples of 13 dense values, a label, and 3 + 1 + 20 indices an item."""
    done = run(*short(small[0], tmp_path, "--scenario", "offline", "--indices-per-bag", "3,1,20"))
    result = result_of(done)
    assert_counts_agree(result)
    assert (tmp_path / "mlperf_log_summary.txt").is_file()
    items = sum(sample_lengths(300))
    assert f"{items * (13 * 4 + 24 * 4 + 1) / 1e9:.2f} GB" in done.stdout


def test_accuracy_log_of_bags_holds_every_prediction_beside_its_label(v2: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--model", v2[0], "--scenario", "offline", "--accuracy", "--ref-data", v2[1], "--log-dir", tmp_path)
    result = result_of(run(*options, "--num-instances", 1))
    entries = sorted(json.loads((tmp_path / "mlperf_log_accuracy.json").read_text()), key=lambda each: each["qsl_idx"])
    pairs = np.frombuffer(bytes.fromhex("".join(each["data"] for each in entries)), np.float32).reshape(-1, 2)
    with np.load(v2[1]) as arrays:
        np.testing.assert_allclose(pairs[:, 0], arrays["pred"], atol=1e-6)
        assert (pairs[:, 1] == arrays["target"]).all() and result["items"] == 1500


@pytest.mark.parametrize("scenario", ["offline", "server"])
def test_accuracy_log_gives_the_auc_that_accuracy_py_gives(small: tuple, tmp_path: Path, scenario: str) -> None:
    library, data = small
    options = ("--model", library, "--scenario", scenario, "--accuracy", "--ref-data", data)
    result = result_of(run(*options, "--num-instances", COUNT, "--log-dir", tmp_path))
    accuracy = result_of(run("--model", library, "--ref-data", data, script="accuracy"))
    assert result["auc"] == accuracy["auc"]
    assert result["log_loss"] == pytest.approx(accuracy["log_loss"], rel=1e-12)
    assert result["items"] == accuracy["items"] == 2000
    assert_counts_agree(result)


def test_accuracy_log_holds_every_prediction_beside_its_label(small: tuple[Path, Path], tmp_path: Path) -> None:
    """Read as MLPerf's accuracy-dlrm.py reads it: hex of float32 pairs per sample, prediction first."""
    library, data = small
    options = ("--model", library, "--scenario", "offline", "--accuracy", "--ref-data", data, "--log-dir", tmp_path)
    result = result_of(run(*options, "--num-instances", COUNT))
    entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    by_sample = {entry["qsl_idx"]: np.frombuffer(bytes.fromhex(entry["data"]), np.float32) for entry in entries}
    pairs = np.concatenate([by_sample[sample] for sample in sorted(by_sample)]).reshape(-1, 2)
    chunks = list(open_reference(data, load(library).artifact.manifest.model))
    assert (pairs[:, 0] == np.concatenate([chunk.reference for chunk in chunks])).all()
    assert (pairs[:, 1] == np.concatenate([chunk.labels for chunk in chunks])).all()
    wins = [(pairs[pairs[:, 1] == 0, 0] < score).sum() for score in pairs[pairs[:, 1] == 1, 0]]
    ties = [(pairs[pairs[:, 1] == 0, 0] == score).sum() for score in pairs[pairs[:, 1] == 1, 0]]
    positives = int(pairs[:, 1].sum())
    assert result["auc"] == pytest.approx((sum(wins) + sum(ties) / 2) / positives / (len(pairs) - positives))


def test_files_of_settings_are_honoured_and_flags_go_before_them(small: tuple[Path, Path], tmp_path: Path) -> None:
    conf = tmp_path / "user.conf"
    conf.write_text("*.Server.target_qps = 900\n*.Server.target_latency = 45\ndlrm.Server.min_duration = 700\n")
    options = ("--model", small[0], "--num-instances", 1, "--samples", 300, "--warmup", 0.1, "--scenario", "server")
    result = result_of(run(*options, "--user-conf", conf, "--log-dir", tmp_path / "a"))
    assert (result["target_qps"], result["latency_bound_ms"]) == (900, 45)
    assert "min_duration (ms): 700" in (tmp_path / "a" / "mlperf_log_summary.txt").read_text()
    flags = ("--target-qps", 800, "--duration", 0.5)
    result = result_of(run(*options, "--mlperf-conf", conf, *flags, "--log-dir", tmp_path / "b"))
    assert (result["target_qps"], result["latency_bound_ms"]) == (800, 45)
    assert "min_duration (ms): 500" in (tmp_path / "b" / "mlperf_log_summary.txt").read_text()


@pytest.mark.slow
def test_search_ends_with_a_full_test_at_a_valid_rate(demo_library: Path, tmp_path: Path) -> None:
    """Half the samples within two seconds, in tests of one: a machine several times slower for a while passes too."""
    conf = tmp_path / "user.conf"
    conf.write_text("*.Server.target_latency = 2000\n*.Server.target_latency_percentile = 50\n")
    options = ("--scenario", "server", "--find-peak-qps", "--user-conf", conf, "--duration", 1)
    done = run(*short(demo_library, tmp_path, *options, count=COUNT))
    result = result_of(done)
    assert result["valid"] and done.returncode == 0, done.stdout
    assert Path(result["log_dir"]).name.startswith("full_")
    assert sum(each["items"] for each in result["served"]) > result["items"]


def start_long_test(library: Path, folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A running test, and its processes: the instance first, LoadGen's last."""
    options = ("--model", library, "--num-instances", 1, "--samples", 200, "--duration", 12, "--warmup", 0)
    script = start(*options, "--scenario", "server", "--target-qps", 20, "--log-dir", folder)
    for text in script.stdout:
        if text.startswith("  LoadGen"):
            break
    else:
        pytest.fail(script.stderr.read())
    while not (folder / "mlperf_log_detail.txt").exists():  # LoadGen makes it when it begins
        assert script.poll() is None, script.stderr.read()
        time.sleep(0.01)
    return script, children(script.pid)


@pytest.mark.parametrize(("victim", "name"), [(0, "Instance 0"), (-1, "LoadGen")])
def test_killed_process_ends_the_run_in_one_line(small: tuple, tmp_path: Path, victim: int, name: str) -> None:
    script, processes = start_long_test(small[0], tmp_path)
    os.kill(processes[victim], signal.SIGKILL)
    _, errors = script.communicate(timeout=30)
    assert script.returncode == 1
    assert len(errors.splitlines()) == 1 and name in errors and "SIGKILL" in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


INTERRUPTED = """
import os, pathlib, signal, threading, time
from dlrm_tvm.instances.work_queue import WorkQueue
create = WorkQueue.create
def watched():
    queue = create()
    threading.Thread(target=interrupt, args=(queue,), daemon=True).start()
    return queue
def interrupt(queue):
    while queue.done[0] < 5:
        time.sleep(0.01)
    children = pathlib.Path(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children").read_text()
    pathlib.Path({folder!r}, "children").write_text(children)
    signal.pthread_kill(threading.main_thread().ident, {number})
WorkQueue.create = staticmethod(watched)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_loadgen_too_and_tells_what_was_done(
    small: tuple[Path, Path], tmp_path: Path, number: int, status: int
) -> None:
    options = ("--model", small[0], "--num-instances", 1, "--samples", 200, "--duration", 600, "--warmup", 0, "--quiet")
    options += ("--scenario", "server", "--target-qps", 20, "--log-dir", tmp_path)
    script = changed(*options, setup=INTERRUPTED.format(folder=str(tmp_path), number=int(number)))
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (status, "")
    assert not any(Path(f"/proc/{pid}").exists() for pid in (tmp_path / "children").read_text().split())
    result = read_result(done.stdout)
    assert result["interrupted"] and (result["valid"], result["latency_ms"], result["tests"]) == (None, None, [])
    assert 5 <= result["samples"] < 200 and 100 <= result["items"] / result["samples"] <= 700
    assert result["served"][0]["items"] >= result["items"], "what LoadGen has read was done before"
    assert f"with {result['samples']:,} samples, {result['items']:,} items done" in done.stdout
    assert result["items_per_s"] == pytest.approx(result["samples_per_s"] * result["items"] / result["samples"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scenario", "server", "--samples", "5"), "--scenario server needs a rate: give --target-qps Q, --find-pe"),
        (("--scenario", "server", "--samples", "5", "--target-qps", "0.001"), "take more than a day"),
        (("--scenario", "server", "--samples", "5", "--target-qps", "0.005"), "459 samples, at 0.005 per second"),
        (("--scenario", "offline", "--samples", "5", "--target-qps", "1e6"), "more than the 16,000,000 of one test"),
        (
            ("--scenario", "offline", "--log-dir", str(ROOT / "README.md")),
            "Give a name in a folder that can be written",
        ),
        (("--scenario", "offline", "--find-peak-qps"), "--find-peak-qps goes with --scenario server"),
        (("--scenario", "offline", "--accuracy"), "--accuracy needs labels. Give --ref-data"),
        (("--scenario", "offline", "--target-qps", "-3"), "--target-qps -3: more than 0"),
        (("--scenario", "offline", "--target-qps", "nan"), "--target-qps nan: more than 0"),
        (("--scenario", "offline", "--user-conf", "absent.conf"), "absent.conf: no such file"),
        (("--scenario", "Offline", "--samples", "10000001"), "at most 10,000,000"),
        (("--samples", "5"), "--samples is for LoadGen: add --scenario"),
        (("--target-qps", "0"), "--target-qps is for LoadGen: add --scenario"),
        (("--scenario", "server", "--find-peak-qps", "--target-qps", "0"), "--find-peak-qps goes with --scenario serv"),
    ],
)
def test_what_loadgen_cannot_be_asked_for_is_one_line(
    small: tuple[Path, Path], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = run("--model", small[0], "--num-instances", 1, *options)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr, done.stderr


def test_file_that_is_no_settings_is_one_line(small: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "odd.conf").write_text("*.Offline.target_qps is ten\n")
    done = run(*short(small[0], tmp_path, "--scenario", "offline", "--user-conf", tmp_path / "odd.conf"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "odd.conf, line 1: '*.Offline.target_qps is ten' is no setting" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*.Server.target_qps = nan", "*.Server.target_qps is 'nan'"),
        ("*.Server.target_latency = 0\n*.Server.target_qps = 5", "nothing would ever be valid"),
    ],
)
def test_settings_that_would_never_end_are_one_line(
    small: tuple[Path, Path], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "user.conf").write_text(text + "\n")
    done = run(*short(small[0], tmp_path, "--scenario", "server", "--user-conf", tmp_path / "user.conf"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert message in done.stderr


def test_samples_that_memory_cannot_take_are_one_line(small: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(process, "available_bytes", lambda: 2_000_000_000)
    done = run(*short(small[0], tmp_path, "--scenario", "offline", "--samples", 200_000))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "200,000 samples take 3.5 GB of memory; 2.0 GB are available" in done.stderr


def test_stopped_instance_ends_the_run_after_a_while(small: tuple[Path, Path], tmp_path: Path) -> None:
    setup = (
        "import os, signal, threading; from dlrm_tvm.loadgen import process, run\n"
        "run._SILENCE_S = run._SILENCE_BATCHES = 1.5\n"
        "test = process.LoadgenProcess.test\n"
        "def stopped(self, *given, **named):\n"
        "    children = open(f'/proc/self/task/{os.getpid()}/children').read().split()\n"
        "    threading.Timer(0.5, os.kill, (int(children[0]), signal.SIGSTOP)).start()\n"
        "    return test(self, *given, **named)\n"
        "process.LoadgenProcess.test = stopped\n"
    )
    options = ("--scenario", "server", "--target-qps", 50, "--duration", 30, "--num-instances", 1)
    command = changed("--quiet", *short(small[0], tmp_path), *options, setup=setup)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "No instance finished anything for 1.5 s, though there was work" in done.stderr


def test_logs_of_an_earlier_run_are_never_taken_for_this_ones(small: tuple[Path, Path], tmp_path: Path) -> None:
    library, data = small
    (tmp_path / "mlperf_log_accuracy.json").write_text("[]")
    (tmp_path / "mlperf_log_detail.txt").mkdir()  # so that LoadGen cannot write it
    options = ("--model", library, "--scenario", "offline", "--accuracy", "--ref-data", data, "--log-dir", tmp_path)
    done = run(*options, "--num-instances", 1)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    (tmp_path / "mlperf_log_detail.txt").rmdir()
    assert result_of(run(*options, "--num-instances", 1))["items"] == 2000


def test_labels_that_are_all_the_same_have_no_auc(small: tuple[Path, Path], tmp_path: Path) -> None:
    arrays = dict(np.load(small[1]))
    np.savez(tmp_path / "zeros.npz", **arrays | {"target": np.zeros(2000, np.float32)})
    options = ("--model", small[0], "--scenario", "offline", "--accuracy", "--ref-data", tmp_path / "zeros.npz")
    done = run(*options, "--num-instances", 1, "--log-dir", tmp_path / "logs")
    assert result_of(done)["auc"] is None and "AUC" in done.stdout and "NaN" not in done.stdout


def test_missing_loadgen_is_one_line_that_says_how_to_get_it(small: tuple[Path, Path], monkeypatch) -> None:
    monkeypatch.setattr(process, "find_spec", lambda name: None)
    done = run("--model", small[0], "--scenario", "offline")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "-m pip install -r requirements-loadgen.txt" in done.stderr
    assert (ROOT / "requirements-loadgen.txt").is_file()
