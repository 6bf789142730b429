"""What people see of the real scripts on a terminal, what is left of it elsewhere, and exit statuses."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from graphs import write_dlrm
from scripts import changed, parsed, run
from terminal import on_terminal

from dlrm_tvm.console import WIDTH, Bar, folded, ms_text, show
from dlrm_tvm.paths import PREBUILT, ROOT

SCRIPTS = ("compile", "accuracy", "multi_instance")


@pytest.fixture
def library(small_library: Path) -> Path:
    return small_library


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0.003807, "0.003807"),
        (0.08712, "0.08712"),
        (1.2344, "1.234"),
        (10.526, "10.53"),
        (123.44, "123.4"),
        (0, "0.000"),
    ],
)
def test_latencies_have_four_digits_and_none_below_a_nanosecond(ms: float, text: str) -> None:
    assert ms_text(ms) == text
    assert ms_text(2e-6) == "0.000002"


def test_compile_draws_its_phases_on_a_terminal_and_leaves_the_summary_alone(tmp_path: Path) -> None:
    name, output = f"pytest_terminal_{os.getpid()}", tmp_path / "result.json"
    model = write_dlrm(tmp_path / "small.onnx", table_rows=(5, 7, 3))
    options = ("--onnx-model", str(model), "--tuning-log-file", "none", "--output-name", name, "--output", str(output))
    often = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom dlrm_tvm import console\n"
    often += "console._DRAWN_EVERY_S = 0.01\nimport compile; compile.command()"
    try:
        done = on_terminal([sys.executable, "-c", often, *options])
    finally:
        for path in PREBUILT.glob(f"{name}_b*"):
            path.unlink()
    assert done.status == 0, done.text
    assert done.drawn[0] == "starting: 00:00"
    assert any(text.startswith("build (12 of 16): ") for text in done.drawn), done.drawn
    labels = [line.split()[0] for line in done.lines if line[:1].strip()]
    assert labels == ["model", "target", "tables", "schedules", "verified", "wrote"]
    assert parsed(output.read_text())["library"].endswith(f"{name}_b100.so")


def test_a_run_draws_the_time_that_is_left_and_prints_no_json(library: Path) -> None:
    options = ("--model", library, "--num-instances", 1, "--duration", 2.5, "--warmup", 0.1)
    done = on_terminal(changed(*options), columns=60)
    assert done.status == 0, done.text
    measuring = [text for text in done.drawn if text.startswith("measuring: ")]
    assert measuring and all("%|" in text and "<" in text and len(text) < 60 for text in measuring)
    assert not any(text.startswith("{") for text in done.lines)
    assert all(len(text) <= WIDTH for text in done.lines if str(library) not in text)
    assert any(text.startswith("  throughput") for text in done.lines)


def test_quiet_draws_nothing(library: Path) -> None:
    options = ("--model", library, "--num-instances", 1, "--duration", 1.2, "--warmup", 0)
    assert on_terminal(changed("--quiet", *options)).drawn == []


def test_a_terminal_whose_run_is_ended_by_sigterm_shows_what_was_measured(library: Path, tmp_path: Path) -> None:
    options = ("--model", library, "--num-instances", 1, "--duration", 60, "--warmup", 0, "--output", tmp_path / "a")
    done = on_terminal(changed(*options), end_after=(r"measuring: +([3-9]|\d\d)%", signal.SIGTERM))
    assert done.status == 143, done.text
    assert any(text.startswith("  throughput") for text in done.lines)
    assert parsed((tmp_path / "a").read_text())["interrupted"]


def test_a_search_that_is_ended_by_ctrl_c_keeps_the_rates_that_it_has_judged(library: Path, tmp_path: Path) -> None:
    options = ("--model", library, "--num-instances", 1, "--duration", 1, "--warmup", 0, "--output", tmp_path / "a")
    done = on_terminal(
        changed(*options, "--max-latency-ms", 10_000),
        end_after=(r"  rate +[\d,.]+ batches", signal.SIGINT),
    )
    assert done.status == 130, done.text
    result = parsed((tmp_path / "a").read_text())
    assert result["interrupted"] and result["rate_search"]["interrupted"] and result["rate_search"]["probes"]
    assert any(text.startswith("  highest rate") for text in done.lines)


def test_where_stderr_is_no_terminal_progress_is_plain_lines_and_json_comes_last(library: Path) -> None:
    setup = "from dlrm_tvm import console; console._PRINTED_EVERY_S = 0.3\n"
    options = changed("--model", library, "--num-instances", 1, "--duration", 2, "--warmup", 0, setup=setup)
    done = subprocess.run(options, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr and "\r" not in done.stderr
    assert [text for text in done.stderr.splitlines() if text.startswith("measuring: ") and text.endswith(" left")]
    assert json.loads(done.stdout.splitlines()[-1])["items_per_s"] > 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_usage_is_one_line_that_points_to_help(script: str) -> None:
    done = run("--nonsense", script=script)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"unrecognized arguments: --nonsense. All flags: {script}.py --help\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(script: str) -> None:
    done = run("--output", "/absent/a.json", script=script)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("--output /absent/a.json: No such file or directory") and done.stderr.count("\n") == 1


def test_a_long_line_is_folded_beside_its_label() -> None:
    words = "word " * 30
    first, *others = folded(f"  label             {words}").split("\n")
    assert first.startswith("  label             word") and others
    assert all(text.startswith(" " * 20 + "word") and len(text) <= WIDTH for text in others)
    path = "/x" * 80
    assert folded(f"model       {path} and {words}").startswith(f"model       {path}\n{' ' * 12}and word")
    assert folded(f"Warning: {words}").split("\n")[1].startswith("  word")


def test_a_line_and_its_end_are_one_write_which_no_interrupt_parts() -> None:
    with patch("sys.stdout", Mock()) as stream:
        show("a line")
    assert [call.args for call in stream.write.call_args_list] == [("a line\n",)]


def test_a_bar_tells_what_is_left_by_what_is_done() -> None:
    with Bar("scoring", 4, "items") as bar:
        bar.update(1)
        bar._began_s -= 10
        assert bar.text(None) == "scoring: 25% after 00:10, about 00:30 left"
        bar.update(9)  # more than was foretold
        assert bar.text(None) == "scoring: 00:10"
    with Bar("copying", 0, "B") as bar:
        assert bar.text(None) == "copying: 00:00"
    with Bar("peak", 20.0) as bar:
        bar._began_s -= 5
        assert re.fullmatch(r"peak: 25% after 00:05, about 00:1[45] left", bar.text(None))
        bar._began_s -= 60
        assert bar.text(None) == "peak: 100% after 01:05, about 00:00 left"
    with Bar("reading") as bar:
        bar._began_s -= 5
        assert bar.text(None) == bar.text(80) == "reading: 00:05"


def test_format_leaves_a_table_alone_on_stdout_and_results_are_one_table_and_one_picture(
    library: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    brief = ("--model", library, "--duration", 1, "--warmup", 0)
    one, two, picture = tmp_path / "one.json", tmp_path / "two.json", tmp_path / "a.svg"
    done = run(*brief, "--num-instances", 1, "--output", one, "--format", "markdown", "--plot", picture)
    assert done.returncode == 0, done.stderr
    heading, rule, row = done.stdout.splitlines()
    assert (
        heading.startswith("| engine | prec. | inst. |") and set(rule) == set("| -:") and "| ours | fp32 | 1 |" in row
    )
    assert "  throughput " in done.stderr
    assert ">latency [ms per batch]<" in picture.read_text() and ">p99.9 " in picture.read_text()
    done = run(*brief, "--sweep", "instances=1", "--repeats", 2, "--output", two, "--format", "csv")
    assert done.returncode == 0, done.stderr
    (measured,) = csv.DictReader(done.stdout.splitlines())
    assert (measured["instances"], measured["repeats"]) == ("1", "2")
    done = run("--results", one, two, "--plot", picture, "--format", "csv")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert {row["source"]: row["repeats"] for row in rows} == {"one": "1", "two": "2"}
    assert {row["items_per_s"] for row in rows} == {
        str(parsed(one.read_text())["items_per_s"]),
        measured["items_per_s"],
    }
    drawn = picture.read_text()
    assert ">one, batch 4, fp32, ours<" in drawn and ">two, batch 4, fp32, ours<" in drawn
    assert ">throughput [items/s]<" in drawn and ">Pareto front<" in drawn
    done = run("--results", one, ROOT / "README.md")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "README.md: no result of multi" in done.stderr


def test_json_format_is_the_object_alone(library: Path) -> None:
    done = run("--model", library, "--num-instances", 1, "--duration", 0.3, "--warmup", 0, "--format", "json")
    assert json.loads(done.stdout)["instances"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plot", "a.gif"), "--plot a.gif: a name that ends in .png, .svg or .pdf was wanted"),
        (("--plot", "/absent/a.png"), "--plot /absent/a.png: No such file or directory"),
        (("--results", "absent.json"), "absent.json: "),
        (("--results", "a.json", "--sweep", "auto"), "--results shows what was measured earlier"),
        (("--results", "a.json", "--format", "json"), "--results is of JSON files and makes none"),
        (("--results", "a.json", "--output", "x.json"), "--results is of JSON files and makes none"),
        (("--scenario", "offline", "--format", "csv"), "are of runs and sweeps without LoadGen"),
        (("--fail-on-regression",), "--fail-on-regression takes 0 to 100 percent"),
    ],
)
def test_what_cannot_be_shown_is_one_line(options: tuple[str, ...], message: str) -> None:
    pytest.importorskip("matplotlib")
    done = run(*options)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert message in done.stderr
