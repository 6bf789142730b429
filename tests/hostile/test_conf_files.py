"""LoadGen's files of settings with anything in them: one line where LoadGen would take it in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import refused_or

from dlrm_tvm.errors import UserError
from dlrm_tvm.loadgen.conf_files import check_conf_file

QPS, DURATION = "*.Server.target_qps", "dlrm.*.min_duration"
REFUSED: dict[str, str | bytes] = {
    "nothing": "",
    "comments alone": "# mine\n\n",
    "binary": bytes(range(256)) * 9,
    "NUL": b"\0" * 99,
    "another encoding": f"# für mich\n{QPS} = 5\n".encode("latin1"),
    "UTF-16": f"{QPS} = 5\n".encode("utf-16"),
    "a byte order mark": f"\ufeff{QPS} = 5\n",
    "a megabyte": "a" * (1 << 20) + "\n",
    "a long line": "a" * 5000,
    "prose": "set the rate to 5\n",
    "no key": "= 5",
    "no value": f"{QPS} =",
    "no sign": f"{QPS} 5",
    "no spaces": f"{QPS}=5",
    "two values": f"{QPS} = 5 6",
    "a comment behind it": f"{QPS} = 5 # at least",
    "a key of two parts": "Server.target_qps = 5",
    "a key of dots": "... = 5",
    "a key that steers a terminal": "\x1b[2J\x07 = 5",
    "another model": "resnet50.Server.target_qps = 5",
    "another scenario": "*.Offline.target_qps = 5",
    "a scenario in small letters": "*.server.target_qps = 5",
    "an unknown key": "*.Server.colour = 5",
    "a misspelt key": "*.Server.target_qqs = 5",
    "a word": f"{QPS} = fast",
    "quotes": f'{QPS} = "5"',
    "a comma": f"{QPS} = 1,000",
    "NaN": f"{QPS} = nan",
    "infinity": f"{QPS} = inf",
    "beyond float64": f"{QPS} = 1e999",
    "a negative rate": f"{QPS} = -5",
    "other digits": f"{QPS} = ５",
    "hexadecimal": f"{DURATION} = 0x10",
    "a negative duration": f"{DURATION} = -1",
    "a fraction of a millisecond": f"{DURATION} = 600.5",
    "scientific": f"{DURATION} = 6e5",
    "beyond 64 bits": f"{DURATION} = {1 << 64}",
    "5,000 digits": f"{DURATION} = {'9' * 5000}",
    "a latency of NaN": "*.Server.target_latency = nan",
    "a latency of half milliseconds": "*.Server.target_latency = 2.5",
    "a negative count": "*.*.min_query_count = -1",
    "a count of 1e30": "*.*.min_query_count = 1e30",
    "samples below 0": "*.*.performance_sample_count_override = -1",
    "a seed beyond 64 bits": f"*.*.qsl_rng_seed = {1 << 64}",
    "two values of one key": f"{QPS} = 5\n*.*.min_duration = 1\n{QPS} = 7",
}
ACCEPTED = {
    "one": f"{QPS} = 5",
    "a fraction": f"{QPS} = 5.5e1",
    "tabs, spaces and another system's line ends": f"  {QPS}\t=  5 \r\n",
    "comments": f"# for us\n{QPS} = 5\n#{QPS} = 6\n",
    "the same twice": f"{QPS} = 5\n{QPS} = 5\n",
    "all models, as mlperf.conf": f"3d-unet-99.9.*.nonsense = x\nllama2-70b.Server.ttft_latency = 2000\n{QPS} = 5",
    "the seeds": f"*.*.qsl_rng_seed = {(1 << 64) - 1}",
    "what mlperf.conf has and LoadGen leaves": "*.Server.target_duration = 0",
}


def read(tmp_path: Path, content: str | bytes) -> bool | None:
    path = tmp_path / "user.conf"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return refused_or(lambda: check_conf_file(path, "dlrm", "Server") or True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_loadgen_would_take_in_silence_is_refused_in_one_line(tmp_path, name) -> None:
    assert read(tmp_path, REFUSED[name]) is None


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_means_what_it_says_is_taken(tmp_path, name) -> None:
    assert read(tmp_path, ACCEPTED[name])


def test_a_file_that_cannot_be_read_is_one_line(tmp_path) -> None:
    for path in (Path("/proc/self/mem"), tmp_path, tmp_path / "nowhere"):
        assert refused_or(lambda path=path: check_conf_file(path, "dlrm", "Server") or True) is None


def test_a_misspelt_key_is_told_from_the_one_that_is_meant(tmp_path) -> None:
    (tmp_path / "user.conf").write_text(REFUSED["a misspelt key"])
    with pytest.raises(UserError, match=r"line 1: \*\.Server\.target_qqs: LoadGen knows no target_qqs\. Is target_qps"):
        check_conf_file(tmp_path / "user.conf", "dlrm", "Server")
