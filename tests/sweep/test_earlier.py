"""Results that are shown again: runs at a rate, files of one name, engines beside rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlrm_tvm.errors import UserError
from dlrm_tvm.sweep.earlier import read_results, show_as
from dlrm_tvm.sweep.report import sweep_markdown, table_lines

LATENCY_MS = {"min": 1.0, "p50": 1.0, "p90": 1.5, "p99": 2.0, "p999": 2.0, "max": 2.0, "mean": 1.1}
FIGURES = (
    *("cores", "duration_s", "batches_per_s", "mlperf_qps_equivalent", "gflops", "peak_gflops", "peak_before_gflops"),
    *("peak_after_gflops", "streamed_fraction", "pss_mb"),
)


def result(**fields: object) -> dict[str, object]:
    """The JSON of a run, as far as it is shown again."""
    run = dict.fromkeys(FIGURES) | {"model": "m", "environment": {"cpu": "a CPU"}, "engine": "ours", "rate": None}
    run |= {"precision": "fp32", "instances": 1, "threads": 1, "batch_size": 4, "batches": 200, "warnings": []}
    return run | {"items_per_s": 400.0, "peak_fraction": 0.5, "latency_ms": LATENCY_MS} | fields


def written(path: Path, **fields: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result(**fields)))
    return path


@pytest.mark.parametrize("form", ["markdown", "csv"])
@pytest.mark.parametrize(("rate", "shown"), [(20.5, "20.5"), (50.0, "50"), (1_000_000, "1000000")])
def test_a_run_at_any_rate_is_a_table(form: str, rate: float, shown: str, capsys: pytest.CaptureFixture) -> None:
    show_as(result(rate=rate), form)
    assert shown in capsys.readouterr().out.replace(",000", "000")


def test_files_of_one_name_are_rows_of_their_own(tmp_path: Path) -> None:
    paths = [written(tmp_path / folder / "run.json", items_per_s=float(rate)) for folder, rate in (("a", 4), ("b", 8))]
    summary, _ = read_results(paths, None)
    assert [(row.combination.source, row.repeats) for row in summary.rows] == [(str(paths[1]), 1), (str(paths[0]), 1)]


def test_runs_whose_batches_arrive_in_other_ways_are_told_apart(tmp_path: Path) -> None:
    """At one rate; a closed loop has no arrivals, and an earlier version's sweep of rates did not name its own."""
    keys = ("arrivals", "rate", "burst", "trace")
    ways = [
        ("closed", None, 1, None),
        ("poisson", 50.0, 1, None),
        ("fixed", 50.0, 8, None),
        ("trace", 50.0, 1, "a.txt"),
    ]
    paths = [written(tmp_path / f"{at}.json", **dict(zip(keys, way))) for at, way in enumerate(ways)]
    summary, _ = read_results(paths, None)
    shown = ["-", "poisson", "fixed, 8 at a time", "trace of a.txt"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in sweep_markdown(summary).splitlines()]
    at = rows[0].index("arrivals")
    assert {row[0]: row[at] for row in rows[2:]} == {str(number): text for number, text in enumerate(shown)}
    assert any(row.combination.variant.endswith(", fixed, 8 at a time, 50 batches/s") for row in summary.rows)


def test_a_file_that_is_given_twice_is_no_second_run(tmp_path: Path) -> None:
    path = written(tmp_path / "run.json")
    with pytest.raises(UserError, match=r"--results .*run.json: given twice"):
        read_results([path, tmp_path / "." / "run.json"], None)


def test_engines_with_and_without_a_rate_are_in_one_table(tmp_path: Path) -> None:
    given = [("ours", None), ("ours", 50.0), ("openvino", None), ("openvino", 50.0)]
    paths = [written(tmp_path / "run.json", engine=engine, rate=rate) for engine, rate in given[:1]]
    for number, (engine, rate) in enumerate(given):
        paths.append(written(tmp_path / f"{number}.json", engine=engine, rate=rate))
    summary, _ = read_results(paths, None)
    assert len(summary.rows) == 5 and len(table_lines(summary)) == 6
    assert sweep_markdown(summary).count("| 50 |") == 2
