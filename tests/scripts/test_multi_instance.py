"""multi_instance.py through its real command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from models import build_plain, random_dlrm
from scripts import CORES, TWO_CORES, assert_gone, assert_one_line, children, command, read_result, run, start

from dlrm_tvm.model.dlrm import GraphInputs
from dlrm_tvm.paths import ROOT
from dlrm_tvm.runtime.artifact import open_artifact


def allowed_cores(pid: int) -> list[str]:
    """Of every thread of a process, as anyone outside of it sees."""
    statuses = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sorted(re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE).group(1) for status in statuses)


def wait_for_peak_line(script: subprocess.Popen) -> None:
    """All workers are placed, and the warm-up has begun, once the peak is printed."""
    for line in script.stdout:
        if line.startswith("  peak"):
            return
    pytest.fail(script.stderr.read())


def test_report_ends_in_one_json_line(demo_library: Path) -> None:
    done = run("--model", demo_library, "--num-instances", 1, "--duration", 1, "--warmup", 0.3)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    labels = [line.split()[0] for line in lines[1:-1]]
    order = ["per", "weights", "placement", "peak", "throughput", "latency", "MLPerf", "memory"]
    assert [label for label in dict.fromkeys(labels) if label in order] == order
    assert result["instances"] == result["threads"] == 1
    assert result["cores"] == [CORES[0]]
    assert result["peak_fraction"] == pytest.approx(result["gflops"] / result["peak_gflops"])
    assert result["items_per_s"] == pytest.approx(result["batches_per_s"] * result["batch_size"])
    assert result["duration_s"] == pytest.approx(1)
    assert result["environment"]["command"].startswith("multi_instance.py --model")


def test_workers_take_no_more_than_weights_once_and_150_mb_each(demo_library: Path) -> None:
    count = min(len(CORES), 2)
    done = run("--model", demo_library, "--num-instances", count, "--duration", 1, "--warmup", 0.3)
    result = read_result(done.stdout)
    assert result["pss_mb"] <= result["weights_mb"] + 150 * count


@TWO_CORES
def test_every_thread_of_every_instance_is_where_the_report_says(demo_library: Path) -> None:
    script = start("--model", demo_library, "--num-instances", 2, "--duration", 1, "--warmup", 1)
    wait_for_peak_line(script)
    seen = [set(allowed_cores(pid)) for pid in children(script.pid)]
    result = read_result(script.communicate(timeout=600)[0])
    assert seen == [{str(core) for core in instance["cores"]} for instance in result["per_instance"]]
    assert [instance["cores"] for instance in result["per_instance"]] == [[CORES[0]], [CORES[1]]]


@TWO_CORES
def test_threads_of_one_instance_have_a_core_each_in_the_order_of_the_list(demo_library: Path) -> None:
    listed = f"{CORES[1]},{CORES[0]}"
    script = start(
        "--model", demo_library, "--num-threads", 2, "--cores", listed, "--num-instances", 1, "--duration", 1
    )
    wait_for_peak_line(script)
    (worker,) = children(script.pid)
    assert allowed_cores(worker) == sorted(str(core) for core in CORES[:2])
    main = (Path(f"/proc/{worker}/task/{worker}/status")).read_text()
    assert f"Cpus_allowed_list:\t{CORES[1]}\n" in main
    script.kill()
    script.communicate()
    assert_gone([worker])


def test_affinity_mask_of_the_caller_is_respected(demo_library: Path) -> None:
    core = CORES[-1]
    options = command("--model", demo_library, "--duration", 0.5, "--warmup", 0.1)
    done = subprocess.run(
        options, capture_output=True, text=True, timeout=600, preexec_fn=lambda: os.sched_setaffinity(0, [core])
    )
    assert read_result(done.stdout)["cores"] == [core]


def test_killed_worker_ends_the_run_with_its_signal_named(demo_library: Path) -> None:
    shared_memory = set(os.listdir("/dev/shm"))
    script = start("--model", demo_library, "--num-instances", 1, "--duration", 60)
    wait_for_peak_line(script)
    workers = children(script.pid)
    began = time.monotonic()
    os.kill(workers[0], signal.SIGKILL)
    _, errors = script.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert script.returncode == 1
    assert len(errors.splitlines()) == 1 and "SIGKILL" in errors and str(workers[0]) in errors
    assert_gone(workers)
    assert set(os.listdir("/dev/shm")) <= shared_memory


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_print_what_was_measured(demo_library: Path, number: int, status: int) -> None:
    script = start("--model", demo_library, "--num-instances", 1, "--duration", 3600, "--warmup", 0.2)
    wait_for_peak_line(script)
    (worker,) = workers = children(script.pid)
    before_s = sum(psutil.Process(worker).cpu_times()[:2])
    while sum(psutil.Process(worker).cpu_times()[:2]) < before_s + 1:  # it computes no longer than the time that passes
        time.sleep(0.01)
    for pid in (worker, script.pid):  # as Slurm does, to all processes of a job
        os.kill(pid, number)
    output, errors = script.communicate(timeout=30)
    result = read_result(output)
    assert (script.returncode, errors) == (status, "")
    assert result["interrupted"] and 0.5 < result["duration_s"] < 600 and result["batches"] > 0
    assert_gone(workers)


def test_ctrl_c_before_anything_was_measured_leaves_nothing(demo_library: Path) -> None:
    script = start("--model", demo_library, "--num-instances", 1, "--duration", 60)
    while not (workers := children(script.pid)):
        assert script.poll() is None, script.stderr.read()
        time.sleep(0.01)
    script.send_signal(signal.SIGINT)
    _, errors = script.communicate(timeout=30)
    assert script.returncode == 130 and errors == "Interrupted.\n"
    assert_gone(workers)


def test_reference_data_serves_as_inputs(demo_library: Path) -> None:
    data = ROOT / "__data" / "demo_data_small.npz"
    options = ("--model", demo_library, "--num-instances", 1, "--duration", 0.5, "--warmup", 0.1)
    done = run(*options, "--ref-data", data)
    assert done.returncode == 0, done.stderr
    assert str(data) in done.stdout


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_every_batchs_latency_is_in_the_file_that_was_asked_for(
    small_library: Path, tmp_path: Path, suffix: str
) -> None:
    file, count = tmp_path / f"l.{suffix}", min(len(CORES), 2)
    options = ("--model", small_library, "--num-instances", count, "--duration", 0.3, "--warmup", 0)
    done = run(*options, "--latencies", file)
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    found = np.load(file) if suffix == "npz" else np.genfromtxt(file, delimiter=",", names=True)
    per_instance = [each["batches"] for each in result["per_instance"]]
    assert np.bincount(found["instance"].astype(int)).tolist() == per_instance
    assert np.sort(found["latency_ms"])[[0, -1]] == pytest.approx([result["latency_ms"][end] for end in ("min", "max")])
    assert found["latency_ms"].mean() == pytest.approx(result["latency_ms"]["mean"], rel=1e-4)
    assert len(result["clocks_mhz"]) in (0, 1) and all(mhz > 100 for mhz in result["clocks_mhz"])


def test_random_bags_are_measured(demo_library: Path) -> None:
    options = ("--model", demo_library, "--num-instances", 1, "--duration", 0.3, "--warmup", 0)
    done = run(*options, "--indices-per-bag", 3)
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    assert (result["indices_per_bag"], result["gather_bytes_per_item"]) == (3, 3 * 26 * 512)
    assert "39.9 KB of rows (3 indices per bag)" in done.stdout


def test_reference_data_with_bags_serves_as_inputs_and_brings_its_own_lengths(tmp_path: Path) -> None:
    model = random_dlrm(table_rows=(7, 30))
    names = GraphInputs("dense_x", ("indices",), ("offsets",), "pred")
    library = build_plain(replace(model, graph_inputs=names), 10, tmp_path)
    arrays = {"dense_x": np.zeros((30, 13), np.float32), "pred": np.zeros(30, np.float32)}
    arrays |= {"indices": np.zeros((2, 60), np.int64), "offsets": np.tile(2 * np.arange(30), (2, 1))}
    np.savez(tmp_path / "bags.npz", **arrays)
    options = ("--model", library, "--num-instances", 1, "--duration", 0.3, "--warmup", 0)
    done = run(*options, "--ref-data", tmp_path / "bags.npz")
    assert done.returncode == 0, done.stderr
    assert read_result(done.stdout)["indices_per_bag"] == 2
    done = run(*options, "--ref-data", tmp_path / "bags.npz", "--indices-per-bag", 2)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "bags.npz has its own: give one of the two" in done.stderr


def test_bags_that_no_memory_holds_are_one_line(demo_library: Path) -> None:
    done = run("--model", demo_library, "--num-instances", 1, "--indices-per-bag", 1_000_000)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "Try fewer indices or a library of a smaller batch" in done.stderr


def test_more_instances_than_cores_is_one_line() -> None:
    usable = len(CORES)
    done = run("--num-instances", usable * 3, "--num-threads", 2)
    assert_one_line(done, f"{usable * 3} instances × 2 threads need {usable * 6} cores", "usable here", "Try --num-")


def test_unknown_core_is_one_line() -> None:
    assert_one_line(run("--cores", "9999"), "Core 9999 of --cores is unknown; this machine has")


def test_missing_library_is_one_line(tmp_path: Path) -> None:
    assert_one_line(run("--model", tmp_path / "absent.so"), "absent.so")


def test_missing_reference_data_is_one_line(demo_library: Path, tmp_path: Path) -> None:
    assert_one_line(run("--model", demo_library, "--ref-data", tmp_path / "absent.npz"), "absent.npz")


def test_reference_data_without_its_keys_is_one_line(demo_library: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", X_int=np.zeros((4, 13), np.float32))
    done = run("--model", demo_library, "--ref-data", tmp_path / "odd.npz")
    assert_one_line(done, "odd.npz", "X_cat")


@pytest.mark.parametrize("option", ["--duration", "--warmup"])
@pytest.mark.parametrize("value", ["86401", "1e8", "1e300", "inf", "nan", "-1"])
def test_seconds_that_are_no_day_are_one_line(option: str, value: str) -> None:
    shown = f"{float(value):g}"
    assert_one_line(run(f"{option}={value}"), f"{option} {shown}: 0 to 86400 seconds (a day) were wanted.")


def test_duration_of_nothing_is_one_line() -> None:
    assert_one_line(run("--duration", "0"), "--duration 0: more than 0 seconds were wanted.")


def test_poisson_arrivals_are_reported_with_their_rate(demo_library: Path) -> None:
    options = ("--model", demo_library, "--num-instances", 1, "--duration", 1, "--warmup", 0.1)
    done = run(*options, "--arrivals", "poisson", "--rate", 20)
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    assert (result["arrivals"], result["rate"]) == ("poisson", 20)
    assert result["batches"] == pytest.approx(result["offered_batches_per_s"] * result["duration_s"])
    assert "poisson, 20 batches/s wanted" in done.stdout


@pytest.mark.slow
def test_the_highest_rate_within_a_bound_is_found_and_measured(small_library: Path) -> None:
    """Half of the batches within 2 s: any rate a busy machine keeps up with will do."""
    options = ("--model", small_library, "--num-instances", 1, "--duration", 0.3, "--warmup", 0.1)
    done = run(*options, "--max-latency-ms", 1900, "--percentile", 50)
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    search = result["rate_search"]
    assert search["target"] == {"max_latency_ms": 1900, "percentile": 50}
    assert (result["arrivals"], result["rate"]) == ("poisson", search["rate"])
    assert search["rate"] in [probe["rate"] for probe in search["probes"] if probe["holds"]]
    assert search["rate"] < search["not_held"] <= search["closed_loop_rate"]
    assert "keeps p50 within 1900 ms" in done.stdout


def test_a_recorded_trace_and_bursts_are_asked_for(small_library: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("0\n0.01\n0.2\n")
    options = ("--model", small_library, "--num-instances", 1, "--duration", 1, "--warmup", 0)
    result = read_result(run(*options, "--arrivals", "trace", "--trace", tmp_path / "t.csv").stdout)
    assert 8 <= result["batches"] <= 11 and result["rate"] is None  # 0.3 s a round
    done = run(*options, "--arrivals", "fixed", "--rate", 40, "--burst", 8)
    assert (
        read_result(done.stdout)["batches"] in (32, 40) and "fixed in bursts of 8, 40 batches/s wanted" in done.stdout
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--arrivals", "poisson"), "--arrivals poisson needs a rate. Give --rate R, in batches per second."),
        (("--rate", "5"), "--rate goes with --arrivals fixed, poisson or trace"),
        (("--burst", "5"), "--burst 5 goes with --arrivals fixed or poisson, not with closed."),
        (("--arrivals", "trace"), "--arrivals trace and --trace FILE go together"),
        (("--arrivals", "poisson", "--rate", "5", "--trace", "x"), "--arrivals trace and --trace FILE go together"),
        (("--arrivals", "trace", "--trace", "absent.csv"), "absent.csv"),
        (("--max-latency-ms", "0"), "--max-latency-ms 0: milliseconds above 0 were wanted."),
        (("--latencies", "a.txt"), "--latencies a.txt: a name in .npz or .csv"),
        (("--latencies", "/absent/a.csv"), "--latencies /absent/a.csv: No such file or directory"),
        (
            ("--latencies", "a.csv", "--sweep", "auto"),
            "--latencies a.csv: a name in .npz or .csv, for a run",
        ),
        (("--percentile", "99"), "--percentile 99: above 0, below 100, with --max-latency-ms"),
        (("--max-latency-ms", "5", "--percentile", "100"), "--percentile 100: above 0, below 100"),
        (("--max-latency-ms", "5", "--arrivals", "fixed", "--rate", "5"), "--max-latency-ms searches a rate: leave"),
        (("--arrivals", "fixed", "--rate", "0"), "--rate 0: more than 0 and at most"),
        (("--arrivals", "fixed", "--rate", "nan"), "--rate nan: more than 0 and at most"),
        (("--arrivals", "fixed", "--rate", "1e6", "--duration", "80000"), "Give a lower rate, or a shorter --durat"),
        (
            ("--until-stable", "--duration", "2.9"),
            "--until-stable --duration 2.9: three windows of a second must be ali",
        ),
        (("--arrivals", "fixed", "--rate", "5", "--profile"), "--profile times calls back to back, not --arrivals f"),
        (("--scenario", "offline", "--until-stable"), "--scenario leaves arrivals and the length of the run"),
        (("--scenario", "Server", "--max-latency-ms", "5"), "--scenario leaves arrivals and the length of the run"),
    ],
)
def test_rates_that_no_run_can_be_made_of_are_one_line(options: tuple[str, ...], message: str) -> None:
    assert_one_line(run(*options), message)


def test_core_ids_that_would_fill_the_memory_are_one_line() -> None:
    assert_one_line(run("--cores", "0-99999999999"), "goes beyond 65535")


def test_damaged_reference_data_is_one_line_of_the_worker(demo_library: Path, tmp_path: Path) -> None:
    names = open_artifact(demo_library).manifest.model.graph_inputs
    columns = np.zeros((26, 40), np.int64)
    indices = {names.indices[0]: columns} if len(names.indices) == 1 else dict(zip(names.indices, columns))
    dense = np.random.default_rng(0).random((40, 13), dtype=np.float32)
    path = tmp_path / "bad.npz"
    np.savez(path, **{names.dense: dense}, **indices, pred=np.zeros(40, np.float32))
    path.write_bytes(path.read_bytes().replace(dense.tobytes(), bytes(dense.nbytes)))
    done = run("--model", demo_library, "--num-instances", 1, "--ref-data", path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "bad.npz: damaged" in done.stderr


@pytest.mark.parametrize("options", [("--num-instances", "0"), ("--duration", "long"), ("--warmup", "")])
def test_wrong_usage_exits_2(options: tuple[str, str]) -> None:
    assert run(*options).returncode == 2


def test_tables_are_preloaded_and_copied_into_huge_pages_on_request(demo_library: Path) -> None:
    short = ("--model", demo_library, "--num-instances", 1, "--duration", 0.3, "--warmup", 0.1)
    done = run(*short, "--preload")
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    assert result["tables_in_memory_mb"] == result["tables_mb"] == pytest.approx(76.6, abs=0.1)
    assert result["table_copies"] == []
    assert "100% in memory now" in done.stdout
    done = run(*short, "--huge-pages")
    assert done.returncode == 0, done.stderr
    (copy,) = read_result(done.stdout)["table_copies"]
    assert "GB of tables copied into shared memory" in copy and copy in done.stdout


@pytest.mark.skipif(len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) > 1, reason="several NUMA nodes")
def test_a_numa_policy_on_a_machine_of_one_node_is_said_to_change_nothing(demo_library: Path) -> None:
    done = run("--model", demo_library, "--num-instances", 1, "--duration", 0.3, "--warmup", 0.1, "--numa", "replicate")
    assert done.returncode == 0, done.stderr
    assert "one NUMA node with memory, so --numa changes nothing" in done.stdout
    assert read_result(done.stdout)["numa_policy"] is None


def test_copies_that_memory_cannot_take_are_one_line(demo_library: Path) -> None:
    """As in a container with little memory, which is pretended here."""
    script = (
        "import sys; from dlrm_tvm.runtime import weight_copies; weight_copies.available_bytes = lambda: 1_000_000\n"
        "import multi_instance; from dlrm_tvm.errors import run_script; run_script(multi_instance.main)"
    )
    options = ["--model", str(demo_library), "--num-instances", "1", "--huge-pages"]
    done = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert done.returncode == 1
    assert done.stderr.startswith("--huge-pages: 0.1 GB of copies of the tables do not fit")
    assert len(done.stderr.splitlines()) == 1
