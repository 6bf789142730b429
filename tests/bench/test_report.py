"""Figures, warnings and environment of a report, from made-up results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scripts import read_result

from dlrm_tvm.bench.card import describe_placement, static_card
from dlrm_tvm.bench.report import RunReport, results_json, results_text
from dlrm_tvm.bench.session import Placement, RunPlan, RunSettings
from dlrm_tvm.bench.warnings import load_warnings, peak_warnings, spread_warnings, window_warnings
from dlrm_tvm.console import SCHEMA_VERSION, result_line
from dlrm_tvm.engines.interface import EngineGraph
from dlrm_tvm.instances.window import Measurement
from dlrm_tvm.machine.environment import describe_environment
from dlrm_tvm.machine.memory import MemoryUse
from dlrm_tvm.machine.os_counters import Snapshot
from dlrm_tvm.machine.topology import read_topology
from dlrm_tvm.runtime.manifest import Peak
from dlrm_tvm.runtime.residency import TableMemory
from dlrm_tvm.runtime.weight_copies import TableSetup

MS = 1_000_000
CARD = SimpleNamespace(
    name="demo",
    fingerprint="f",
    flops_per_item=4_820_224,
    gather_bytes_per_item=13_312,
    mlp_bytes=9_500_000,
    table_bytes=80_000_000,
    table_rows=(10_000,) * 26,
)
DESIGN_KEYS = {
    *("model", "precision", "batch_size", "instances", "threads", "cores", "duration_s", "batches", "batches_per_s"),
    *("items_per_s", "mlperf_qps_equivalent", "latency_ms", "gflops", "peak_gflops", "peak_fraction", "pss_mb"),
    *("weights_mb", "per_instance", "warnings", "environment"),
}


@pytest.fixture
def report() -> RunReport:
    """Two instances of 200 batches/s each, 100 items a batch, on cores whose peak is 250 GFLOP/s together."""
    manifest = SimpleNamespace(
        model=CARD, batch_size=100, precision="fp32", family="avx512", target_cpu="x", tvm_version="0.27.0"
    )
    manifest.peak_of = lambda precision: Peak("fp32", "avx512", 1)
    plan = RunPlan(
        settings=RunSettings(Path("demo.so")),
        placement=Placement(None, ((0,), (1,)), frozenset()),
        artifact=SimpleNamespace(manifest=manifest),
        indices_per_bag=1,
        memory=None,
        other_engine=None,
        environment={"cpu": "any"},
        busiest=(0, 0.0),
    )
    return RunReport(
        plan=plan,
        tables=TableSetup(TableMemory(77_000_000, 70_000_000, 8_000_000_000), None, ()),
        measurement=Measurement(2.0, (200.0, 200.0), (np.full(400, 5 * MS), np.full(399, 5 * MS))),
        memory=(MemoryUse(100_000_000, 60_000_000), MemoryUse(100_000_000, 60_000_000)),
        peak_before_gflops=(120.0, 120.0),
        peak_after_gflops=(125.0, 125.0),
        stream_gbps=(),
        warnings=("Core 0 was busy.",),
        interrupted=False,
    )


def planned(report: RunReport, **changes: object) -> RunReport:
    return replace(report, plan=replace(report.plan, **changes))


def test_bags_multiply_the_bytes_per_item_and_not_the_flops(report: RunReport) -> None:
    one, bags = results_json(report), results_json(planned(report, indices_per_bag=20))
    assert (one["indices_per_bag"], bags["indices_per_bag"]) == (1, 20)
    assert (one["gather_bytes_per_item"], bags["gather_bytes_per_item"]) == (13_312, 266_240)
    assert one["gflops"] == bags["gflops"]
    card = static_card(report.manifest, "demo.so", ((0,),), indices_per_bag=20)
    assert "4.820 MFLOP, 266.2 KB of rows (20 indices per bag)" in card


def test_json_has_the_contracts_keys_and_is_one_line(report: RunReport) -> None:
    fields = results_json(report)
    assert set(fields) >= DESIGN_KEYS
    assert set(fields["latency_ms"]) == {"min", "p50", "p90", "p99", "p999", "max", "mean"}
    assert "\n" not in json.dumps(fields)


def test_tables_of_another_users_files_are_in_memory_to_an_unknown_part(report: RunReport) -> None:
    unknown = TableSetup(TableMemory(77_000_000, None, 8_000_000_000), None, ())
    assert results_json(replace(report, tables=unknown))["tables_in_memory_mb"] is None
    assert results_json(report)["tables_in_memory_mb"] == 70


def test_the_precision_is_that_of_the_engine_that_ran(report: RunReport) -> None:
    other_engine = EngineGraph("openvino", "1.0", "a.onnx", 100, (), {}, "int8", "a.xml", "items of a.npz")
    for shown, precision, calibration in (
        (report, "fp32", None),
        (planned(report, other_engine=other_engine), "int8", "items of a.npz"),
    ):
        fields = results_json(shown)
        assert (fields["precision"], fields["library_precision"]) == (precision, "fp32")
        assert fields["engine_calibration"] == calibration


def test_share_of_peak_uses_the_larger_peak(report: RunReport) -> None:
    fields = results_json(report)
    assert fields["items_per_s"] == 40_000
    assert fields["gflops"] == pytest.approx(40_000 * 4_820_224 / 1e9)
    assert fields["peak_gflops"] == 250
    assert fields["peak_fraction"] == pytest.approx(192.80896 / 250)
    assert fields["mlperf_qps_equivalent"] == pytest.approx(40_000 / 270.06)
    assert fields["batches"] == 799


def test_memory_is_split_into_shared_and_private(report: RunReport) -> None:
    fields = results_json(report)
    assert (fields["pss_mb"], fields["private_mb"], fields["shared_mb"]) == (200, 120, 80)
    assert fields["weights_mb"] == 89.5


def test_streamed_share_is_weights_per_call_over_bandwidth(report: RunReport) -> None:
    assert results_json(report)["streamed_fraction"] is None
    streamed = replace(report, stream_gbps=(5.0, 5.0))
    assert results_json(streamed)["streamed_fraction"] == pytest.approx(400 * 9.5e6 / 10e9)
    assert "weights streamed  0.380: 3.8 of 10.0 GB/s" in results_text(streamed)


def test_text_says_what_json_says(report: RunReport) -> None:
    text = results_text(report)
    for part in ("40,000 items/s", "0.771: 192.8 of 250.0 GFLOP/s", "148.1 samples/s", "p99.9 5.000", "270.06"):
        assert part in text
    assert "instance 1" in text and "Warning: Core 0 was busy." in text


def test_clock_is_shown_where_the_kernel_tells_it(report: RunReport) -> None:
    unknown = results_json(report)
    assert unknown["clocks_mhz"] == []
    assert "clock" not in results_text(report)
    told = replace(report, clocks_mhz=(3700.4, 3551.6))
    assert results_json(told)["clocks_mhz"] == [3700.4, 3551.6]
    assert "clock             3,626 MHz in the window (3,552 to 3,700)" in results_text(told)


def test_interrupted_run_has_a_report_without_the_second_peak(report: RunReport) -> None:
    cut = replace(report, peak_after_gflops=(), interrupted=True)
    fields = results_json(cut)
    assert fields["interrupted"] and fields["peak_after_gflops"] is None and fields["peak_gflops"] == 240
    assert "after not measured" in results_text(cut)


def test_instance_without_a_whole_batch_is_reported(report: RunReport) -> None:
    starved = replace(
        report, measurement=Measurement(2.0, (200.0, 0.3), (np.full(400, 5 * MS), np.array([], np.int64)))
    )
    assert results_json(starved)["per_instance"][1]["latency_ms"] is None
    assert "no whole batch" in results_text(starved)


def test_static_card_names_cost_and_cores(report: RunReport) -> None:
    card = static_card(report.manifest, "demo.so", ((0, 1), (2, 3)))
    assert "4.820 MFLOP, 13.3 KB" in card
    assert "2 instances × 2 threads on cores 0-1 | 2-3" in card
    assert describe_placement(tuple((core,) for core in range(64))) == "64 instances × 1 thread on cores 0-63"


# Warnings: what was seen, the likely cause, what to try

QUIET = Snapshot(0.0, (0, 0), (0, 0), (0, 0), {0: 0, 1: 0})


def test_quiet_run_warns_of_nothing() -> None:
    after = Snapshot(10.0, (10 * MS, 0), (1000, 1000), (0, 0), {0: 0.05, 1: 0})
    assert window_warnings(QUIET, after) == []
    assert load_warnings((0, 0.01)) == peak_warnings(100, 104) == spread_warnings([100, 96]) == []


@pytest.mark.parametrize(
    "after, seen",
    [
        (Snapshot(10.0, (0, 500 * MS), (0, 0), (0, 0), {0: 0, 1: 0}), "Instance 1 waited 5.0% of the window"),
        (Snapshot(10.0, (0, 0), (0, 0), (0, 0), {0: 0, 1: 1.0}), "took core 1 away for 10.0%"),
        (Snapshot(10.0, (0, 0), (0, 0), (300, 0), {0: 0, 1: 0}), "300 page faults read from disk"),
        (Snapshot(10.0, (0, 0), (100_000, 0), (0, 0), {0: 0, 1: 0}), "10,000 page faults per second"),
    ],
)
def test_disturbed_window_is_named_with_cause_and_remedy(after: Snapshot, seen: str) -> None:
    (warning,) = window_warnings(QUIET, after)
    assert seen in warning and "Probably" in warning and ":" in warning


def test_load_peak_change_and_spread_are_named() -> None:
    assert "Core 3 was 40% busy before the start" in load_warnings((3, 0.4))[0]
    assert "from 100.0 to 90.0 GFLOP/s (-10.0%)" in peak_warnings(100, 90)[0]
    assert "Instance 1 ran at 80%" in spread_warnings([100, 80])[0]


# Environment


def test_environment_is_recorded_as_json() -> None:
    environment = describe_environment(read_topology())
    assert {"cpu", "cpu_mhz", "governor", "load_average", "kernel", "transparent_huge_pages", "usable_cpus"} <= set(
        environment
    )
    assert environment["versions"]["numpy"] == np.__version__
    json.dumps(environment)


def test_a_result_is_json_of_the_standard_whatever_is_undefined_in_it() -> None:
    fields = {"auc": float("nan"), "rates": (1.5, float("inf")), "inner": {"x": [-float("inf"), 2]}, "none": None}
    assert read_result("text\n" + result_line(fields)) == {
        "schema_version": SCHEMA_VERSION,
        "auc": None,
        "rates": [1.5, None],
        "inner": {"x": [None, 2]},
        "none": None,
    }
    with pytest.raises(ValueError, match="NaN is no JSON"):
        read_result('{"auc": NaN}')
