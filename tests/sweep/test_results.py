"""Rows, Pareto front, best, table, CSV, JSON and picture, from made-up runs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from outcomes import made_up_run

from dlrm_tvm.bench.profile import PartTime, Profile
from dlrm_tvm.console import WIDTH
from dlrm_tvm.errors import UserError
from dlrm_tvm.runtime.manifest import Part
from dlrm_tvm.sweep.plan import Combination, Planned
from dlrm_tvm.sweep.plot import check_plot, latency_picture, roofline_picture, throughput_picture
from dlrm_tvm.sweep.report import best_sentence, sweep_csv, sweep_json, sweep_markdown, sweep_text, table_lines
from dlrm_tvm.sweep.results import Outcome, Summary, count_warnings, summarise

ONE, TWO, WIDE = Combination(1, 1, 16), Combination(2, 1, 16), Combination(1, 2, 400)


OUTCOMES = [
    *(made_up_run(ONE, number, rate, p99_ms) for number, (rate, p99_ms) in enumerate([(1000, 2), (1100, 9), (900, 3)])),
    *(
        made_up_run(TWO, number, rate, p99_ms)
        for number, (rate, p99_ms) in enumerate([(2000, 5), (2100, 5), (1900, 5)])
    ),
    made_up_run(WIDE, 0, 1500, 8, "Core 0 was 12.5% busy."),
    made_up_run(WIDE, 1, 1500, 8, "Core 1 was 30% busy.", "The peak went from 4 to 5 (+25%)."),
    Outcome(Planned(2, WIDE), error="Instance 0 was killed by SIGKILL."),
]


@pytest.fixture
def summary() -> Summary:
    return summarise(OUTCOMES, max_latency_ms=4)


def front(*points: tuple[float, float]) -> set[int]:
    """Of (items/s, p99 ms), the numbers of those on the Pareto front."""
    outcomes = [made_up_run(Combination(1, 1, number + 1), 0, *point) for number, point in enumerate(points)]
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
    assert lines[0].split()[:5] == ["inst.", "thr.", "batch", "items/s", "lowest"]
    assert [" ".join(line.split()) for line in lines[1:4]] == [
        "2 1 16 2,000 1,900 2,100 0.200 2.500 5.000 5.000 3 of 3 Pareto",
        "1 2 400 1,500 1,500 1,500 0.150 4.000 8.000 8.000 2 of 3",
        "1 1 16 1,000 900 1,100 0.100 1.500 3.000 9.000 3 of 3 Pareto, best",
    ]
    assert "Failed 1 time: 1 instance × 2 threads, batch 400: Instance 0 was killed by SIGKILL." in lines
    assert "Warning (2 of 8 runs): Core 0 was 12.5% busy." in lines


def test_p99_of_few_batches_is_warned_of() -> None:
    outcome = made_up_run(ONE, 0, 10, 1)
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


def test_json_has_every_run(summary: Summary) -> None:
    fields = json.loads(json.dumps(sweep_json(summary, OUTCOMES, {"seed": 7}), allow_nan=False))
    assert (fields["seed"], fields["max_latency_ms"]) == (7, 4)
    assert fields["best"] == {"instances": 1, "threads": 1, "batch_size": 16}
    assert [entry["batch_size"] for entry in fields["pareto"]] == [16, 16]
    wide = fields["combinations"][1]
    assert (wide["items_per_s"], wide["pareto"], len(wide["repeats"])) == (1500, False, 2)
    assert wide["failures"] == [{"round": 2, "error": "Instance 0 was killed by SIGKILL."}]
    assert fields["warnings"][0] == {"text": "Core 0 was 12.5% busy.", "runs": 2}
    assert "environment" not in wide["repeats"][0]
    runs = {
        (entry["instances"], entry["batch_size"]): [
            *({"round": run["round"], "figures": without_round(run)} for run in entry["repeats"]),
            *entry["failures"],
        ]
        for entry in fields["combinations"]
    }
    for outcome in OUTCOMES:
        result = {"error": outcome.error} if outcome.error else {"figures": outcome.figures}
        combination, number = outcome.planned.combination, outcome.planned.round
        assert {"round": number, **result} in runs[combination.instances, combination.batch]
    assert sum(map(len, runs.values())) == len(OUTCOMES)


def without_round(run: dict) -> dict:
    return {key: value for key, value in run.items() if key != "round"}


def test_a_combination_that_only_failed_is_in_the_json_without_figures() -> None:
    outcomes = [made_up_run(ONE, 0, 10, 1), Outcome(Planned(0, TWO), error="no")]
    entry = sweep_json(summarise(outcomes, None), outcomes, {})["combinations"][1]
    assert (entry["instances"], entry["items_per_s"], entry["p99_ms"], entry["repeats"]) == (2, None, None, [])


def test_picture_has_a_marker_per_variant_and_names_the_points_of_the_front(summary: Summary) -> None:
    pytest.importorskip("matplotlib")
    svg = throughput_picture(summary, "demo, fp32", ".svg").decode()
    for text in (
        "batch 16",
        "batch 400",
        "Pareto front",
        "4 ms",
        "demo, fp32",
        "throughput [items/s]",
        "p99 latency [ms",
    ):
        assert f">{text}" in svg
    assert [f">{row.combination.instances}×{row.combination.threads}<" in svg for row in summary.rows] == [
        row.combination in summary.pareto for row in summary.rows
    ]
    assert throughput_picture(summary, "demo", ".PNG").startswith(b"\x89PNG")
    assert throughput_picture(summary, "demo", ".pdf").startswith(b"%PDF")


def test_other_formats_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"a\.gif: a name that ends in \.png, \.svg or \.pdf was wanted"):
        check_plot(tmp_path / "a.gif")


ENGINE_RUNS = [
    *(
        made_up_run(Combination(1, 1, 16, "ours", "fp32"), number, rate, 1)
        for number, rate in enumerate([100, 120, 90])
    ),
    *(made_up_run(Combination(1, 1, 16, "openvino", "fp32"), number, rate, 1) for number, rate in ((0, 50), (2, 60))),
    *(made_up_run(Combination(1, 1, 16, "onnxruntime", "fp32"), number, 40, 1) for number in range(3)),
    made_up_run(Combination(1, 1, 16, "ours", "int8"), 0, 300, 1),
    made_up_run(Combination(1, 1, 16, "openvino", "int8"), 1, 200, 1),
    made_up_run(Combination(1, 1, 400, "onnxruntime", "fp32"), 0, 70, 1),
    Outcome(Planned(1, Combination(1, 1, 16, "openvino", "fp32")), error="no"),
]


def test_engines_are_compared_round_by_round_with_the_fastest_other_one() -> None:
    first, large, int8 = summarise(ENGINE_RUNS, None).comparisons
    assert (first.setting, first.best_other) == (Combination(1, 1, 16, None, "fp32"), "openvino")
    assert first.ratio == (1.75, 1.5, 2.0)  # rounds 0 and 2: 100 / 50 and 90 / 60
    assert (large.best_other, large.ratio) == ("onnxruntime", None)  # ours was not measured
    assert (int8.best_other, int8.ratio) == ("openvino", None)  # in no round both were


def test_one_engine_is_compared_with_nothing() -> None:
    runs = [outcome for outcome in ENGINE_RUNS if outcome.planned.combination.engine == "ours"]
    assert summarise(runs, None).comparisons == summarise(OUTCOMES, None).comparisons == ()
    assert "side by side" not in sweep_text(summarise(runs, None), 3)


def test_engines_side_by_side_are_a_table_and_in_the_json() -> None:
    summary = summarise(ENGINE_RUNS, None)
    lines = [" ".join(line.split()) for line in sweep_text(summary, 3).splitlines()]
    at = lines.index("Engines side by side, items/s. ratio: ours / the fastest other one, round by round")
    assert lines[at + 1 : at + 5] == [
        "prec. inst. thr. batch ours of peak ONNX Runtime OpenVINO ratio spread",
        "fp32 1 1 16 100 0.010 40 55 1.75 1.50 to 2.00",
        "fp32 1 1 400 - - 70 - - -",
        "int8 1 1 16 300 0.030 - 200 - -",
    ]
    assert lines[0].startswith("engine prec. inst. thr. batch items/s")
    assert lines[1].startswith("ours int8 1 1 16 300")
    fields = json.loads(json.dumps(sweep_json(summary, ENGINE_RUNS, {}), allow_nan=False))
    first, large, _ = fields["engine_comparison"]
    assert first["items_per_s"] == {"ours": 100, "openvino": 55, "onnxruntime": 40}
    assert [first[key] for key in ("precision", "best_other", "ratio", "ratio_min", "ratio_max")] == [
        *("fp32", "openvino"),
        *(1.75, 1.5, 2.0),
    ]
    assert (large["batch_size"], large["ratio"]) == (400, None)
    assert fields["best"] == {"engine": "ours", "precision": "int8", "instances": 1, "threads": 1, "batch_size": 16}


def test_csv_names_engine_and_precision_where_they_are_swept() -> None:
    rows = list(csv.DictReader(io.StringIO(sweep_csv(summarise(ENGINE_RUNS, None)).decode())))
    assert [(row["engine"], row["precision"]) for row in rows[:2]] == [("ours", "int8"), ("openvino", "int8")]
    assert not sweep_csv(summarise(OUTCOMES, None)).startswith(b"engine")


def test_picture_has_a_line_per_engine_and_precision() -> None:
    pytest.importorskip("matplotlib")
    svg = throughput_picture(summarise(ENGINE_RUNS, None), "demo", ".svg").decode()
    for text in ("batch 16, fp32, OpenVINO", "batch 16, int8, ours", "batch 400, fp32, ONNX Runtime"):
        assert f">{text}<" in svg


def test_a_picture_of_many_variants_has_a_marker_for_all_batches_of_one_and_batches_beside_the_front() -> None:
    pytest.importorskip("matplotlib")
    batches = range(1, 9)
    runs = [
        made_up_run(Combination(1, 1, batch, engine, "int8"), 0, rate * batch, batch)
        for batch in batches
        for engine, rate in (("ours", 30), ("openvino", 20))
    ]
    svg = throughput_picture(summarise(runs, None), "demo", ".svg").decode()
    assert svg.count(">int8, ours<") == svg.count(">int8, OpenVINO<") == 1 and ">batch " not in svg
    assert all(f">1×1, {batch}<" in svg for batch in batches)


def test_a_table_that_is_too_wide_leaves_out_what_is_wanted_least() -> None:
    runs = [made_up_run(replace(ONE, engine="onnxruntime", precision="bf16", source="machine"), 0, 1e6, 1.0)]
    summary = summarise(runs, None)
    first, *_ = lines = table_lines(summary)
    assert max(map(len, lines)) <= WIDTH
    assert "items/s" in first and "p99 ms" in first and "lowest" not in first
    assert "lowest" in sweep_markdown(summary)


def test_latencies_are_drawn_with_their_percentiles() -> None:
    pytest.importorskip("matplotlib")
    svg = latency_picture(np.linspace(1, 9.99, 1000), "demo", ".svg").decode()
    for text in ("p50 5.49 ms", "p90 9.09 ms", "p99 9.9 ms", "p99.9 9.98 ms", "share of batches", "batches"):
        assert f">{text}<" in svg
    assert "mathdefault" not in svg


def test_the_roofline_has_every_part() -> None:
    pytest.importorskip("matplotlib")
    parts = (Part("gather", "rows located", 0, 100.0), Part("top 1", "40-24", 960, 96.0))
    profile = Profile(tuple(PartTime(part, 10.0, 200.0, 20.0) for part in parts), 10, 1, 5, 400.0, 400.0)
    svg = roofline_picture(profile, "demo", ".svg").decode()
    for text in ("gather: 25%, 10.0 GB/s", "top 1: 25% of the call", "200 GFLOP/s, 20 GB/s", "intensity [FLOP/byte]"):
        assert f">{text}<" in svg
