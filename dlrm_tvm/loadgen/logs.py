"""LoadGen's logs: the verdict and the figures, and in accuracy mode every sample's response.

mlperf_log_detail.txt     one line ":::MLLOG {key, value, ..}" per fact
mlperf_log_accuracy.json  [{qsl_idx, data}, ..]: data is the hex of float32 pairs, prediction and label
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError

_MARK = ":::MLLOG "


@dataclass(frozen=True)
class Verdict:
    """As LoadGen logged it; a run with errors does not count as valid.

    latency_ms: empty where the scenario has none; all_results: every result_* key.
    """

    is_valid: bool
    reasons: tuple[str, ...]
    latency_ms: dict[str, float]
    all_results: dict[str, object]
    version: str


def read_verdict(folder: Path) -> Verdict:
    """Of a performance run. Raises UserError where LoadGen wrote none."""
    path = folder / "mlperf_log_detail.txt"
    facts, errors = _facts(path)
    if "result_validity" not in facts:
        raise UserError(f"{path}: LoadGen gave no verdict; its messages are in that file.")
    checks = {
        "result_min_duration_met": "it did not last long enough (a higher --target-qps makes it longer)",
        "result_min_queries_met": "it had too few queries",
        "result_perf_constraints_met": "its latency is beyond the bound",
        "early_stopping_met": "too many of its queries are beyond the bound",
    }
    names = {"min": "min", "50.00_percentile": "p50", "90.00_percentile": "p90", "99.00_percentile": "p99"}
    names |= {"99.90_percentile": "p999", "max": "max", "mean": "mean"}
    latencies = {short: facts.get(f"result_{name}_latency_ns") for name, short in names.items()}
    return Verdict(
        is_valid=facts["result_validity"] == "VALID" and not errors,
        reasons=(*(text for key, text in checks.items() if facts.get(key) is False), *errors[:1]),
        latency_ms={name: value / 1e6 for name, value in latencies.items() if value is not None},
        all_results={key: value for key, value in facts.items() if key.startswith("result_")},
        version=str(facts.get("loadgen_version", "")),
    )


def read_accuracy(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(predictions [n] float32, labels [n] float32) of all samples in the library's order.

    A sample that was sent twice counts once, as in MLPerf's accuracy-dlrm.py.
    """
    path = folder / "mlperf_log_accuracy.json"
    responses = {entry["qsl_idx"]: entry["data"] for entry in json.loads(path.read_text())}
    if not responses:
        raise UserError(f"{path}: LoadGen logged no responses; its messages are in mlperf_log_detail.txt beside it.")
    data = bytes.fromhex("".join(responses[sample] for sample in sorted(responses)))
    pairs = np.frombuffer(data, np.float32).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _facts(path: Path) -> tuple[dict[str, object], tuple[str, ...]]:
    """(key -> value, the last one of a key; LoadGen's errors, which its verdict leaves out)"""
    facts, errors = {}, []
    with path.open() as lines:
        for line in lines:
            if line.startswith(_MARK):
                fact = json.loads(line[len(_MARK) :])
                facts[fact["key"]] = fact["value"]
                if fact.get("metadata", {}).get("is_error"):
                    errors.append(f"LoadGen's error {fact['key']}: {fact['value']}")
    return facts, tuple(errors)
