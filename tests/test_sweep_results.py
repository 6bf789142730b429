"""Rows, Pareto front, best, table, CSV, JSON and picture, from made-up runs."""

from __future__ import annotations

import csv
import io
import json

import pytest

from dlrm_tvm.errors import UserError
from dlrm_tvm.sweep_plan import Combination, Planned
from dlrm_tvm.sweep_plot import check_plot, draw_plot
from dlrm_tvm.sweep_report import best_sentence, outcomes_of, run_figures, sweep_csv, sweep_json, sweep_text
from dlrm_tvm.sweep_results import Outcome, Summary, count_warnings, summarise

ONE, TWO, WIDE = Combination(1, 1, 16), Combination(2, 1, 16), Combination(1, 2, 400)


def run(combination: Combination, number: int, items_per_s: float, p99_ms: float, *warnings: str) -> Outcome:
    zeros = ("duration_s", "batches_per_s", "mlperf_qps_equivalent", "gflops", "peak_gflops", "peak_before_gflops")
    result = dict.fromkeys((*zeros, "peak_after_gflops", "streamed_fraction", "pss_mb"), 0.0) | {
        "cores": [0],
        "batches": 500,
        "items_per_s": items_per_s,
        "peak_fraction": items_per_s / 10_000,
        "latency_ms": {"p50": p99_ms / 2, "p99": p99_ms},
        "warnings": list(warnings),
        "environment": "of the whole sweep, not of each run",
    }
    return Outcome(Planned(number, combination), figures=run_figures(result))


OUTCOMES = [
    *(run(ONE, number, rate, p99_ms) for number, (rate, p99_ms) in enumerate([(1000, 2), (1100, 9), (900, 3)])),
    *(run(TWO, number, rate, p99_ms) for number, (rate, p99_ms) in enumerate([(2000, 5), (2100, 5), (1900, 5)])),
    run(WIDE, 0, 1500, 8, "Core 0 was 12.5% busy."),
    run(WIDE, 1, 1500, 8, "Core 1 was 30% busy.", "The peak went from 4 to 5 (+25%)."),
    Outcome(Planned(2, WIDE), error="Instance 0 was killed by SIGKILL."),
]


@pytest.fixture
def summary() -> Summary:
    return summarise(OUTCOMES, max_latency_ms=4)


def front(*points: tuple[float, float]) -> set[int]:
    """Of (items/s, p99 ms), the numbers of those on the Pareto front."""
    outcomes = [run(Combination(1, 1, number + 1), 0, *point) for number, point in enumerate(points)]
    return {combination.batch - 1 for combination in summarise(outcomes, None).pareto}


def test_rows_are_medians_with_their_spread_by_throughput(summary: Summary) -> None:
    assert [row.combination for row in summary.rows] == [TWO, WIDE, ONE]
    row = summary.rows[2]
    assert (row.items_per_s, row.items_per_s_min, row.items_per_s_max, row.peak_fraction) == (1000, 900, 1100, 0.1)
    assert (row.p50_ms, row.p99_ms, row.p99_worst_ms, row.repeats) == (1.5, 3, 9, 3)
    assert summary.rows[1].repeats == 2


def test_pareto_front_holds_what_nothing_beats_in_both() -> None:
    assert front((10, 1)) == {0}
    assert front((10, 1), (20, 2), (15, 3)) == {0, 1}
    assert front((10, 1), (10, 2), (9, 1)) == {0}
    assert front((10, 1), (10, 1)) == {0, 1}
    assert front((10, 5), (20, 4), (30, 3)) == {2}


def test_best_is_the_fastest_within_the_bound() -> None:
    bests = [summarise(OUTCOMES, bound).best for bound in (None, 5, 4.99, 3, 2.99)]
    assert [best and best.combination for best in bests] == [TWO, TWO, ONE, ONE, None]


def test_best_is_a_sentence_that_is_honest_about_none() -> None:
    sentences = [best_sentence(summarise(OUTCOMES, bound)) for bound in (None, 4, 1.5)]
    assert sentences == [
        "Fastest: 2 instances × 1 thread, batch 16: 2,000 items/s, p99 5.000 ms (worst of 3: 5.000).",
        "Best with p99 of at most 4 ms: 1 instance × 1 thread, batch 16: 1,000 items/s, p99 3.000 ms (worst of 3: "
        "9.000; at most 4 in 2 of 3 rounds).",
        "Best: none of the 3 combinations kept p99 within 1.5 ms; the lowest was 3.000 ms (1 instance × 1 thread, "
        "batch 16).",
    ]


def test_table_marks_the_front_and_the_best_and_names_what_failed(summary: Summary) -> None:
    lines = sweep_text(summary, 3).splitlines()
    assert lines[0].split()[:5] == ["instances", "threads", "batch", "items/s", "lowest"]
    assert [" ".join(line.split()) for line in lines[1:4]] == [
        "2 1 16 2,000 1,900 2,100 0.200 2.500 5.000 5.000 3 of 3 Pareto",
        "1 2 400 1,500 1,500 1,500 0.150 4.000 8.000 8.000 2 of 3",
        "1 1 16 1,000 900 1,100 0.100 1.500 3.000 9.000 3 of 3 Pareto, best",
    ]
    assert "Failed 1 time: 1 instance × 2 threads, batch 400: Instance 0 was killed by SIGKILL." in lines
    assert "Warning (2 of 8 runs): Core 0 was 12.5% busy." in lines


def test_p99_of_few_batches_is_warned_of() -> None:
    outcome = run(ONE, 0, 10, 1)
    outcome.figures["batches"] = 99
    assert "1 of 1 combinations did fewer than 100 batches in a window" in sweep_text(summarise([outcome], None), 1)


def test_warnings_that_differ_in_numbers_only_are_counted_together() -> None:
    warnings = ["Core 0 was 12.5% busy.", "Core 11 was 3% busy.", "It went down (-3.1%).", "It went down (+1,000%)."]
    assert count_warnings([*warnings, "Core 7 was 1% busy."]) == ((warnings[0], 3), (warnings[2], 2))


def test_csv_has_the_rows_of_the_table(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(sweep_csv(summary).decode())))
    assert [(row["instances"], row["threads"], row["batch_size"]) for row in rows] == [
        ("2", "1", "16"),
        ("1", "2", "400"),
        ("1", "1", "16"),
    ]
    assert [(row["pareto"], row["best"], row["repeats"]) for row in rows] == [
        ("1", "0", "3"),
        ("0", "0", "2"),
        ("1", "1", "3"),
    ]
    assert [float(row["p99_worst_ms"]) for row in rows] == [5, 8, 9]


def test_json_has_every_run_and_gives_them_back(summary: Summary) -> None:
    fields = json.loads(json.dumps(sweep_json(summary, OUTCOMES, {"seed": 7}), allow_nan=False))
    assert (fields["seed"], fields["max_latency_ms"]) == (7, 4)
    assert fields["best"] == {"instances": 1, "threads": 1, "batch_size": 16}
    assert [entry["batch_size"] for entry in fields["pareto"]] == [16, 16]
    wide = fields["combinations"][1]
    assert (wide["items_per_s"], wide["pareto"], len(wide["repeats"])) == (1500, False, 2)
    assert wide["failures"] == [{"round": 2, "error": "Instance 0 was killed by SIGKILL."}]
    assert fields["warnings"][0] == {"text": "Core 0 was 12.5% busy.", "runs": 2}
    assert "environment" not in wide["repeats"][0]
    back = {(outcome.planned, json.dumps(outcome.figures), outcome.error) for outcome in outcomes_of(fields)}
    assert back == {(outcome.planned, json.dumps(outcome.figures), outcome.error) for outcome in OUTCOMES}


def test_a_combination_that_only_failed_is_in_the_json_without_figures() -> None:
    outcomes = [run(ONE, 0, 10, 1), Outcome(Planned(0, TWO), error="no")]
    entry = sweep_json(summarise(outcomes, None), outcomes, {})["combinations"][1]
    assert (entry["instances"], entry["items_per_s"], entry["p99_ms"], entry["repeats"]) == (2, None, None, [])


def test_picture_has_a_line_per_batch_and_rings_around_the_front(summary: Summary) -> None:
    pytest.importorskip("matplotlib")
    svg = draw_plot(summary, title="demo, fp32", file_format="svg").decode()
    for text in ("batch 16", "batch 400", "Pareto front", "4 ms", "2×1", "1×2", "demo, fp32", "items/s", "p99 latency"):
        assert f">{text}" in svg
    assert draw_plot(summary, title="demo", file_format="png").startswith(b"\x89PNG")


def test_other_formats_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"a\.pdf: a name that ends in \.png or \.svg was wanted"):
        check_plot(tmp_path / "a.pdf")
