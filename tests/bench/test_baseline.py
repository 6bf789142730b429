"""A run compared with earlier ones: the interval, the verdicts, refusals, and the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts import read_result, run

from dlrm_tvm.bench.baseline import (
    Baseline,
    Comparison,
    compare_with_baselines,
    comparison_json,
    comparison_text,
    read_baselines,
)
from dlrm_tvm.errors import UserError


def result(items_per_s: float = 1000.0, **fields: object) -> dict[str, object]:
    """A result's fields, as far as a comparison reads them."""
    shape = {"model": "demo", "precision": "fp32", "batch_size": 100, "instances": 2, "threads": 1, "batches": 400}
    rates = {"items_per_s": items_per_s, "peak_fraction": items_per_s / 2000, "latency_ms": {"p50": 4.0, "p99": 5.0}}
    made = {"cpu": "EPYC", "time": "2026-11-24T10:00:00+00:00", "git_commit": "abc", "command": "x.py"}
    peaks = {"peak_before_gflops": 250.0, "peak_after_gflops": 250.0}
    return shape | rates | peaks | {"environment": made} | fields


def against(now: dict[str, object], *then: dict[str, object]) -> Comparison:
    paths = (Path(f"old{at or ''}.json") for at in range(len(then)))
    return compare_with_baselines(now, [Baseline(path, each) for path, each in zip(paths, then)])


# The comparison


def test_one_earlier_run_gives_differences_and_no_verdict() -> None:
    fields = comparison_json(against(result(1050, latency_ms={"p50": 3.0, "p99": 6.0}), result(1000)))
    percents = {"items_per_s": 5, "peak_fraction": 5, "p50_ms": -25, "p99_ms": 20}
    for key, percent in percents.items():
        assert fields[key]["percent"] == pytest.approx(percent)
        assert fields[key]["interval_percent"] is fields[key]["beyond_noise"] is None
    assert fields["noise_unknown"].keys() == percents.keys()
    json.dumps(fields)


def test_the_text_of_one_earlier_run_says_that_the_noise_is_unknown() -> None:
    text = comparison_text(against(result(1050), result(1000)))
    assert "old.json, of 2026-11-24T10:00:00+00:00, commit abc" in text
    assert "+5.0%: 1,000 -> 1,050\n" in text and "+5.0%: 0.500 -> 0.525\n" in text
    assert "+0.0%: 4.000 -> 4.000 ms\n" in text
    assert (
        text.count("    noise           unknown: one earlier run does not tell how much runs differ; give two or") == 1
    )
    assert "Warning" not in text and "disturbed" not in text and "interval" not in text


EARLIER = [result(990), result(1000, latency_ms={"p50": 4.1, "p99": 5.0}), result(1010)]


@pytest.mark.parametrize(
    ("items_per_s", "earlier", "percent", "slower"),
    [
        (990, 1, 0, True), (990, 1, 2, False), (1010, 1, 0, False),  # of one run the noise is unknown
        (960, 3, 0, False), (940, 3, 0, True), (940, 3, 10, False), (1100, 3, 0, False),  # within 5 % it is noise
    ],
)  # fmt: skip
def test_a_regression_is_slower_by_more_than_the_noise_and_by_more_than_was_allowed(
    items_per_s: float, earlier: int, percent: float, slower: bool
) -> None:
    then = EARLIER if earlier > 1 else [result(1000)]
    assert against(result(items_per_s), *then).is_slower(percent) is slower


def test_several_earlier_runs_show_the_noise_between_runs() -> None:
    comparison = against(result(1030), *EARLIER)
    fields = comparison_json(comparison)
    assert (fields["items_per_s"]["baseline"], fields["items_per_s"]["percent"]) == (1000, pytest.approx(3))
    low, high = fields["items_per_s"]["interval_percent"]
    # t(0.975, 2) s sqrt(1 + 1/3) of the three, s being 1 %
    assert (low, high) == (pytest.approx(3 - 4.303 * (4 / 3) ** 0.5), pytest.approx(3 + 4.303 * (4 / 3) ** 0.5))
    assert fields["peak_fraction"]["interval_percent"] == pytest.approx((low, high))
    assert fields["items_per_s"]["beyond_noise"] is False
    assert (fields["p50_ms"]["beyond_noise"], fields["p50_ms"]["percent"]) == (False, pytest.approx(-0.826, abs=1e-3))
    assert fields["noise_unknown"] == {}
    assert [each["file"] for each in fields["runs"]] == ["old.json", "old1.json", "old2.json"]
    text = comparison_text(comparison)
    assert "mean of 3 runs: old.json, of 2026" in text and "\n                    old2.json, of" in text
    assert "+3.0%: 1,000 -> 1,030; within the noise between runs, 95% interval -2.0% to +8.0%\n" in text


def test_a_difference_far_beyond_the_noise_is_larger_than_it() -> None:
    faster = against(result(1080), *EARLIER)
    for key in ("items_per_s", "peak_fraction"):
        assert faster.changes[key].beyond is True
    text = comparison_text(faster)
    assert "+8.0%: 1,000 -> 1,080; larger than the noise between runs, 95% interval +3.0% to +13.0%\n" in text
    assert against(result(930), *EARLIER).changes["items_per_s"].beyond is True
    assert against(result(1000, latency_ms={"p50": 4.0, "p99": 5.1}), *EARLIER).changes["p99_ms"].beyond is True


def test_what_the_peak_changed_is_in_the_interval_of_its_share() -> None:
    calm, unsure = (against(result(1050, **peak), *EARLIER) for peak in ({}, {"peak_after_gflops": 255.0}))
    assert unsure.changes["items_per_s"] == calm.changes["items_per_s"]
    (calm_low, calm_high), (low, high) = (each.changes["peak_fraction"].interval_percent for each in (calm, unsure))
    assert (high - calm_high, calm_low - low) == (pytest.approx(2 * 1.05), pytest.approx(2 * 1.05))
    once = against(result(1080, peak_after_gflops=None), *EARLIER)
    assert once.changes["peak_fraction"].beyond is None and once.changes["items_per_s"].beyond is True
    assert "unknown of the peak share: a peak was not measured both before" in comparison_text(once)
    assert comparison_json(once)["noise_unknown"].keys() == {"peak_fraction"}


def test_warnings_of_the_runs_are_pointed_at() -> None:
    comparison = against(result(1050, warnings=["Core 0 was busy."]), result(1000, warnings=[]))
    assert "the baseline's run had 0 warnings, this one 1: what they name may be" in comparison_text(comparison)
    assert comparison_json(comparison)["warnings_of_runs"] == [0, 1]
    several = against(result(1050), *EARLIER[:2], result(1010, warnings=["Core 0 was busy."]))
    text = comparison_text(several)
    assert "the baseline's runs had 0, 0, 1 warnings, this one 0: what they name may be" in text
    assert text.count("%; disturbed, see below\n") == 4


USUAL = {
    "engine": "ours",
    "engine_version": "TVM 0.27",
    "arrivals": "closed",
    "rate": None,
    "indices_per_bag": 1,
    "cores": [0, 1],
    "numa_policy": None,
    "table_copies": [],
    "fingerprint": "f",
    "ref_data": None,
    "target_cpu": "znver4",
    "duration_s": 10.0,
}


@pytest.mark.parametrize(
    "key, value",
    [
        ("model", "other"),
        ("precision", "int8"),
        ("batch_size", 16),
        ("instances", 1),
        ("threads", 2),
        ("indices_per_bag", 20),
        ("arrivals", "poisson"),
        ("rate", 5.0),
        ("cores", [2, 3]),
        ("engine_version", "TVM 0.28"),
        ("numa_policy", "local"),
        ("table_copies", ["8.00 GB of tables copied into shared memory: huge pages of hugetlb, 2 MB each"]),
        ("fingerprint", "g"),
        ("ref_data", "items.npz"),
        ("target_cpu", "znver3"),
    ],
)
def test_what_makes_it_another_measurement_is_warned_of(key: str, value: object) -> None:
    assert against(result(**USUAL), result(**USUAL)).warnings == ()
    (warning,) = against(result(**USUAL), result(**USUAL | {key: value})).warnings
    assert (
        str(value) in warning and "\n" not in warning and "Probably they are different measurements: compare" in warning
    )


def test_a_comparison_of_engines_alone_is_said_to_be_one() -> None:
    other = USUAL | {"engine": "openvino", "engine_version": "2026.1"}
    (warning,) = against(result(**other), result(**USUAL)).warnings
    assert (
        warning
        == "The engine of old.json was ours, that of this run is openvino: the difference is one between engines."
    )
    assert len(against(result(**other | {"threads": 2}), result(**USUAL)).warnings) == 2


def test_engines_of_one_precision_held_against_peaks_of_two_are_warned_of() -> None:
    ours = USUAL | {"precision": "int8", "library_precision": "int8"}
    other = ours | {"engine": "openvino", "engine_version": "2026.1"}
    (engines,) = against(result(**other), result(**ours)).warnings
    assert "one between engines" in engines
    warnings = against(result(**other | {"library_precision": "fp32"}), result(**ours)).warnings
    assert "The precision of the library, whose peak the share is of, of old.json was int8" in "\n".join(warnings)
    fp32 = USUAL | {"precision": "fp32", "library_precision": "fp32"}
    assert len(against(result(**ours), result(**fp32)).warnings) == 1


def test_a_much_longer_window_and_the_share_of_huge_pages_are_told_apart() -> None:
    assert against(result(duration_s=19.0), result(duration_s=10.0)).warnings == ()
    (warning,) = against(result(duration_s=60.0), result(duration_s=10.0)).warnings
    assert "The duration of old.json was 10 s, that of this run is 60 s" in warning
    copies = [{"table_copies": [f"8 GB copied: {share}% in transparent huge pages of 2 MB"]} for share in (97, 99)]
    assert against(result(**copies[0]), result(**copies[1])).warnings == ()


def test_another_cpu_and_an_interrupted_run_are_warned_of() -> None:
    then = result(environment={"cpu": "Xeon"}, interrupted=True)
    cpu, interrupted = against(result(), then).warnings
    assert "The CPU of old.json was Xeon, that of this run is EPYC" in cpu
    assert "interrupted" in interrupted


def test_what_an_older_version_did_not_record_is_not_held_against_it() -> None:
    assert against(result(engine="ours", arrivals="closed"), result()).warnings == ()


# Files


def test_the_object_alone_and_the_whole_output_are_read(tmp_path: Path) -> None:
    for text in (
        json.dumps(result()),
        json.dumps(result(), indent=2),
        f"demo, fp32\n  peak 1\n{json.dumps(result())}\n",
    ):
        (tmp_path / "run").write_text(text)
        assert read_baselines([tmp_path / "run"])[0].fields == result()


BAD = {
    "empty": "",
    "text": "  throughput   5 items/s",
    "number": "5",
    "list": "[1, 2]",
    "object": "{}",
    "cut": json.dumps(result())[:-9],
    "nothing done": json.dumps(result(items_per_s=0.0) | {"items_per_s": 0}),
    "not a number": json.dumps(result() | {"items_per_s": float("nan")}),
    "endless": json.dumps(result() | {"items_per_s": float("inf")}),
    "text for a number": json.dumps(result(batches="many")),
    "truth for a number": json.dumps(result(threads=True)),
    "no latencies": json.dumps(result(latency_ms=None)),
    "latencies without p99": json.dumps(result(latency_ms={"p50": 1.0})),
    "environment": json.dumps(result(environment="EPYC")),
    "deep": "[" * 100_000,
    "long number": json.dumps(result()).replace("400", "4" * 5000),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_result_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(BAD[name])
    with pytest.raises(UserError, match=r"Results of multi_instance\.py were wanted") as error:
        read_baselines([tmp_path / "bad.json"])
    assert "\n" not in str(error.value) and "bad.json" in str(error.value)


def test_a_file_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(json.dumps(result()))
    (tmp_path / "b").write_text(json.dumps(result(1010)))
    assert [each.fields["items_per_s"] for each in read_baselines([tmp_path / "a", tmp_path / "b"])] == [1000, 1010]
    with pytest.raises(UserError, match=r"a: given twice\. Results of multi_instance\.py were wanted, each in a file"):
        read_baselines([tmp_path / "a", tmp_path / "b", tmp_path / "." / "a"])


def test_bytes_folders_and_absent_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    for name in ("bytes", "absent", "."):
        with pytest.raises(UserError, match=r"of multi_instance\.py were wanted"):
            read_baselines([tmp_path / name])


# The command line


def test_a_run_is_compared_with_an_earlier_runs_output(demo_library: Path, tmp_path: Path) -> None:
    options = ("--model", demo_library, "--num-instances", 1, "--duration", 1, "--warmup", 0.1)
    first = run(*options)
    assert first.returncode == 0, first.stderr
    then = read_result(first.stdout)
    assert len(then["window_items_per_s"]) == 10
    assert sum(then["window_items_per_s"]) / 10 == pytest.approx(then["items_per_s"])
    assert "baseline" not in then
    (tmp_path / "first.txt").write_text(first.stdout)
    second = run(*options, "--baseline", tmp_path / "first.txt")
    assert second.returncode == 0, second.stderr
    now = read_result(second.stdout)
    compared = now["baseline"]["items_per_s"]
    assert (compared["baseline"], compared["now"]) == (then["items_per_s"], now["items_per_s"])
    assert compared["percent"] == pytest.approx(100 * (now["items_per_s"] / then["items_per_s"] - 1))
    assert now["baseline"]["runs"][0]["command"] == then["environment"]["command"]
    assert then["engine"] == "ours" and then["engine_version"].startswith("TVM 0.")
    assert then["fingerprint"] and then["target_cpu"] and then["ref_data"] is None
    assert now["baseline"]["warnings"] == []
    for label in ("items/s", "peak share", "p50", "p99"):
        assert f"\n    {label} " in second.stdout


@pytest.mark.parametrize("text", ["", "{}", '{"items_per_s": 5}', None])
def test_a_bad_baseline_is_one_line_before_anything_is_measured(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "old.json").write_text(text)
    done = run("--baseline", tmp_path / "old.json")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert f"--baseline {tmp_path / 'old.json'}: " in done.stderr


def test_a_baseline_is_not_for_loadgen() -> None:
    done = run("--baseline", "x", "--scenario", "offline")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "--baseline compares runs without LoadGen" in done.stderr
