"""LoadGen's logs: the verdict and the figures, and in accuracy mode every sample's response.

mlperf_log_detail.txt     one line ":::MLLOG {key, value, ..}" per fact
mlperf_log_accuracy.json  [{qsl_idx, data}, ..]: data is the hex of float32 pairs, prediction and label
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError, one_line

_MARK = ":::MLLOG "


@dataclass(frozen=True)
class Verdict:
    """As LoadGen logged it; a run with errors does not count as valid.

    latency_ms: of a sample, in MultiStream of a query; samples_per_s: done, in the streams by the mean latency.
    more_queries: how many LoadGen wants before it believes a latency whose bound was kept; 0 where that is not the
    matter. estimate_ms: LoadGen's own result in the streams, a percentile by early stopping. all_results: every
    result_* key.
    """

    is_valid: bool
    reasons: tuple[str, ...]
    latency_ms: dict[str, float]
    samples_per_s: float
    queries: int
    more_queries: int
    estimate_ms: float | None
    all_results: dict[str, object]
    version: str


def read_verdict(folder: Path) -> Verdict:
    """Of a performance run. Raises UserError where LoadGen wrote none."""
    path = folder / "mlperf_log_detail.txt"
    with _whole(path):
        facts, errors = _facts(path)
        if "result_validity" not in facts:
            raise UserError(f"{path}: LoadGen gave no verdict; its messages are in that file.")
        return _verdict(facts, errors)


def _verdict(facts: dict, errors: tuple[str, ...]) -> Verdict:
    """Raises whatever comes of facts that are missing."""
    checks = {
        "result_min_duration_met": "it did not last long enough (a higher --target-qps makes it longer)",
        "result_min_queries_met": "it had too few queries",
        "result_perf_constraints_met": "its latency is beyond the bound",
    }
    more_queries = _more_queries(facts)
    if more_queries:
        wants = f"it kept the bound, but LoadGen wants {more_queries:,} queries more to be sure (a longer --duration)"
        checks["early_stopping_met"] = wants
    names = {"min": "min", "50.00_percentile": "p50", "90.00_percentile": "p90", "99.00_percentile": "p99"}
    names |= {"99.90_percentile": "p999", "max": "max", "mean": "mean"}
    latencies = {short: _latency_ns(facts, name) for name, short in names.items()}
    rates = (facts.get(f"result_{name}") for name in ("samples_per_second", "completed_samples_per_sec"))
    by_latency = facts["effective_samples_per_query"] / max(latencies["mean"] / 1e9, 1e-9)
    estimate_ns = facts.get("early_stopping_latency_ss") or facts.get("early_stopping_latency_ms")
    return Verdict(
        is_valid=facts["result_validity"] == "VALID" and not errors,
        reasons=(*(text for key, text in checks.items() if facts.get(key) is False), *errors[:1]),
        latency_ms={name: value / 1e6 for name, value in latencies.items()},
        samples_per_s=float(next((rate for rate in rates if rate is not None), by_latency)),
        queries=facts["result_query_count"],
        more_queries=more_queries,
        estimate_ms=estimate_ns / 1e6 if estimate_ns else None,
        all_results={key: value for key, value in facts.items() if key.startswith("result_")},
        version=str(facts.get("loadgen_version", "")),
    )


def _latency_ns(facts: dict, name: str) -> int:
    """name: min, max, mean or a percentile; of a query where LoadGen logged queries' own."""
    queries = (f"result_{name}_per_query_latency_ns", f"result_{name}_query_latency_ns")
    return next(facts[key] for key in (*queries, f"result_{name}_latency_ns") if key in facts)


def _more_queries(facts: dict) -> int:
    if facts.get("early_stopping_met", True) or facts.get("result_perf_constraints_met") is False:
        return 0
    text = str(facts["early_stopping_result"])
    if more := re.search(r"at least (\d+) more queries", text):
        return int(more[1])
    wanted = re.search(r"process at least (\d+) queries", text)
    return int(wanted[1]) - facts["result_query_count"] if wanted else 1


def read_accuracy(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(predictions [n] float32, labels [n] float32) of all samples in the library's order.

    A sample that was sent twice counts once, as in MLPerf's accuracy-dlrm.py.
    """
    path = folder / "mlperf_log_accuracy.json"
    with _whole(path):
        responses = {entry["qsl_idx"]: entry["data"] for entry in json.loads(path.read_text())}
        data = bytes.fromhex("".join(responses[sample] for sample in sorted(responses)))
        pairs = np.frombuffer(data, np.float32).reshape(-1, 2)
    if not responses:
        raise UserError(f"{path}: LoadGen logged no responses; its messages are in mlperf_log_detail.txt beside it.")
    return pairs[:, 0], pairs[:, 1]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """LoadGen goes on where the disk is full, and its logs end anywhere."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise UserError(f"{path} is no whole log of LoadGen ({one_line(error)}). Is the disk full?") from None


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
