"""The tuning log: lines in, records out, later ones first, and a bad line named by its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlrm_tvm.errors import UserError
from dlrm_tvm.schedules.tuning_log import Record, TuningLog, append, read_log

PASTED = (
    '{"kernel": "dense_fp32_relu", "shape": "mr=10 k=1024 n=1024", "precision": "fp32", "cpu": "znver4", '
    '"schedule": {"nr": 32, "unroll": 1}, "time_us": 18.1, "share_of_peak": 0.98, "tvm": "0.27.0", '
    '"date": "2026-11-23"}\n'
)


def record(nr: int, *, cpu: str = "znver4", kernel: str = "dense_fp32_relu", shape: str = "mr=10 k=16 n=16") -> Record:
    return Record(kernel, shape, "fp32", cpu, {"nr": nr, "unroll": 1}, 1.5, 0.9, "0.27.0", "2026-11-23")


def read_text(tmp_path: Path, text: str) -> TuningLog:
    path = tmp_path / "some.tune_log"
    path.write_text(text)
    return read_log(path, must_exist=True)


def test_a_pasted_line_is_read_and_written_back_as_it_was(tmp_path):
    log = read_text(tmp_path, PASTED)
    assert len(log.records) == 1
    assert log.records[0].schedule == {"nr": 32, "unroll": 1}
    assert (log.records[0].time_us, log.records[0].share_of_peak) == (18.1, 0.98)
    assert log.records[0].to_line() == PASTED


def test_appended_records_are_read_back_in_order(tmp_path):
    path = tmp_path / "new" / "log"
    for nr in (16, 32, 48):
        append(path, record(nr))
    assert [r.schedule["nr"] for r in read_log(path, must_exist=True).records] == [16, 32, 48]
    assert path.read_text().count("\n") == 3


def test_empty_lines_are_passed_over(tmp_path):
    assert len(read_text(tmp_path, "\n" + PASTED + "   \n\n" + PASTED).records) == 2


def test_later_lines_win():
    log = TuningLog(Path("log"), (record(16), record(32), record(48, shape="mr=10 k=16 n=32")))
    assert log.find("dense_fp32_relu", "mr=10 k=16 n=16", "znver4").schedule["nr"] == 32


def test_records_of_another_cpu_are_not_found():
    log = TuningLog(Path("log"), (record(16), record(32, cpu="sapphirerapids"), record(64, cpu="icelake-server")))
    assert log.find("dense_fp32_relu", "mr=10 k=16 n=16", "znver4").schedule["nr"] == 16
    assert log.find("dense_fp32_relu", "mr=10 k=16 n=16", "znver5") is None


@pytest.mark.parametrize(
    "kernel, shape", [("dense_fp32_none", "mr=10 k=16 n=16"), ("dense_fp32_relu", "mr=9 k=16 n=16")]
)
def test_another_kernel_or_shape_is_not_found(kernel, shape):
    assert TuningLog(Path("log"), (record(16),)).find(kernel, shape, "znver4") is None


def test_a_log_that_is_not_there_is_empty_or_refused(tmp_path):
    path = tmp_path / "nowhere"
    assert read_log(path, must_exist=False).records == ()
    with pytest.raises(UserError, match=r"nowhere: no such tuning log.*--tune.*--tuning-log-file none"):
        read_log(path, must_exist=True)


def changed(**fields: object) -> str:
    return json.dumps(json.loads(PASTED) | fields)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "17",
        '"text"',
        "{}",
        PASTED[:100],
        changed(more=1),
        changed(schedule={"nr": 1.5}),
        changed(schedule={"nr": "32"}),
        changed(schedule={"nr": None}),
        changed(schedule=[32, 1]),
        changed(schedule=None),
    ],
)
def test_a_line_that_is_no_record_is_named_by_its_number(tmp_path, line):
    with pytest.raises(UserError) as error:
        read_text(tmp_path, PASTED + "\n" + line + "\n" + PASTED)
    assert "some.tune_log: line 3 is not a tuning record" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "model.so"
    path.write_bytes(b"\x7fELF\xff\xfe\x00")
    with pytest.raises(UserError, match=r"model.so"):
        read_log(path, must_exist=True)
