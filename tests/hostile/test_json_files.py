"""Files of JSON and numbers that the toolkit reads again, with anything in them: tuning logs, earlier results, traces,
jobs and parts of predictions. Refused in one printable line, or taken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile import refused_or, spoilt

from dlrm_tvm.bench import baseline
from dlrm_tvm.console import result_line
from dlrm_tvm.data.scoring import Score
from dlrm_tvm.errors import printable
from dlrm_tvm.instances.arrivals import read_trace
from dlrm_tvm.predictions.job import Job
from dlrm_tvm.predictions.parts import read_part, write_part
from dlrm_tvm.schedules import rules
from dlrm_tvm.schedules.tuning_log import read_log
from dlrm_tvm.sweep.earlier import read_results
from dlrm_tvm.sweep.report import sweep_csv, sweep_markdown, table_lines

CHANGES = 150
RECORD = {
    "kernel": "dense_fp32_relu",
    "shape": "mr=10 k=64 n=64",
    "precision": "fp32",
    "cpu": "znver4",
    "schedule": {"nr": 32, "unroll": 1},
    "time_us": 1.5,
    "share_of_peak": 0.9,
    "tvm": "0.27.0",
    "date": "2026-11-23",
}
RESULT = {
    "model": "m", "precision": "fp32", "batch_size": 4, "instances": 1, "threads": 1, "cores": [0], "batches": 9,
    "duration_s": 1.0, "items_per_s": 400.0, "batches_per_s": 100.0, "peak_fraction": 0.5, "gflops": 1.0,
    "peak_gflops": 2.0, "peak_before_gflops": 2.0, "peak_after_gflops": 2.0, "table_copies": ["one"],
    "latency_ms": {"min": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.0, "p999": 1.0, "max": 1.0, "mean": 1.0},
    "warnings": ["disturbed"], "environment": {"cpu": "AMD", "time": "now", "git_commit": "abc", "command": "x"},
}  # fmt: skip
JOB = {"format": 1, "library": "/x", "shards": [[0, 0, 40]], "inputs": [{"path": "/a", "files": [{"path": "/a"}]}]}


def check_log(path: Path) -> None:
    """What is read is a schedule that kernels can be made of, or is passed over."""
    for record in read_log(path, must_exist=True).records:
        layer = rules.LayerShape("relu", 64, 64)
        if rules._usable(record, 100, layer):
            schedule = rules.dense_from(record.schedule)
            assert 0 < schedule.nr <= 64 and 0 < schedule.unroll <= 64


def check_baseline(path: Path) -> None:
    comparison = baseline.compare_with_baselines(RESULT, baseline.read_baselines([path]))
    text = baseline.comparison_text(comparison)
    assert all(printable(line) == line for line in text.split("\n")), text
    json.loads(result_line(baseline.comparison_json(comparison)))


def check_results(path: Path) -> None:
    (path.parent / "good.json").write_text(json.dumps(RESULT | {"engine": "ours"}))
    summary, title = read_results([path, path.parent / "good.json"], 10.0)
    assert printable(sweep_csv(summary).decode().replace("\n", "")) and sweep_markdown(summary) and title
    assert all(isinstance(line, str) for line in table_lines(summary))


SWEEP = {
    "model": "m",
    "environment": {"cpu": "AMD"},
    "engine": None,
    "precision": "fp32",
    "combinations": [{"instances": 1, "threads": 1, "batch_size": 4, "rate": 50, "repeats": [{"round": 0, **RESULT}]}],
}


FILES: dict[str, tuple[object, Callable[[Path], object]]] = {
    "tuning log": (RECORD, check_log),
    "baseline": (RESULT, check_baseline),
    "result shown again": (RESULT | {"engine": "openvino", "rate": 20.5}, check_results),
    "sweep shown again": (SWEEP, check_results),
    "job": (JOB, lambda path: Job.read(path.parent)),
}


@pytest.mark.parametrize("name", FILES)
def test_changed_values_end_in_one_line_or_an_answer(tmp_path, name) -> None:
    whole, check = FILES[name]
    path = tmp_path / "job.json"
    for seed in range(CHANGES):
        path.write_text(json.dumps(spoilt(whole, np.random.default_rng(seed))) + "\n")
        refused_or(lambda: check(path))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 99, b"\xff\xfe", b"[" * 99_999, b'{"a":' * 9_999, b"9" * 99_999, b"3", b"null", b'"a"', b"{}", b"\n"],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_such_file_is_one_line(tmp_path, name, content) -> None:
    (tmp_path / "job.json").write_bytes(content)
    if not (name == "tuning log" and not content.strip()):  # an empty log is one without records
        assert refused_or(lambda: FILES[name][1](tmp_path / "job.json") or True) is None


@pytest.mark.parametrize("name", ["tuning log", "baseline", "result shown again"])
def test_a_file_of_100_gb_is_one_line(tmp_path, name) -> None:
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 100 << 30)
    assert refused_or(lambda: FILES[name][1](tmp_path / "huge") or True) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1\n1",
        "2\n1",
        "1\nx",
        "1\nnan\n2",
        "1\ninf",
        "inf\ninf",
        "-inf\n1",
        "1\n1e400",
        "0\n1.7e308",
        "-1.7e308\n1.7e308",
        "0\n1e-320",
        "\n".join(str(each * 10**6) for each in range(0, 10**14, 10**12)),
        "\0\n1",
        ",\n,",
        "é\n1",
    ],
)
def test_what_is_no_trace_is_one_line(tmp_path, text) -> None:
    (tmp_path / "trace").write_text(text)
    assert refused_or(lambda: read_trace(str(tmp_path / "trace"))) is None


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "100 GB"])
def test_what_never_ends_is_no_trace(tmp_path, kind) -> None:
    path = tmp_path / "trace"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 100 << 30)
    assert refused_or(lambda: read_trace(str(path))) is None


def test_parts_of_predictions_with_bytes_changed_are_refused_or_whole(tmp_path) -> None:
    path, footer = tmp_path / "part-000000.npz", {"job": "h", "shard": 0, "input": "x", "first": 0, "count": 40}
    predictions = np.linspace(0, 1, 40).astype(np.float32)
    write_part(path, Score(predictions, None, np.zeros(40, np.uint8)), footer)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(1200):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), int(rng.integers(1, 4))).tolist():
            data[place] = int(rng.integers(256))
        path.write_bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.2 else data)
        score = refused_or(lambda: read_part(path, footer))
        if score is not None:
            np.testing.assert_array_equal(score.predictions, predictions)
