"""Earlier runs that one is held against: read from files, checked, and what makes them another measurement.

What the figures say is comparison.py's. A key that a result lacks is not held against it: versions differ in what they
record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError

LATENCIES = ("p50", "p99")
_MOST_BYTES = 64 << 20  # a result has some KB; the run's whole output hardly more
_NUMBERS = ("batch_size", "instances", "threads", "batches", "items_per_s", "peak_fraction")
_SAME_WANTED = {
    "model": "model",
    "fingerprint": "model's fingerprint",
    "precision": "precision",
    "library_precision": "precision of the library, whose peak the share is of,",
    "target_cpu": "CPU compiled for",
    "batch_size": "batch size",
    "instances": "number of instances",
    "threads": "threads per instance",
    "cores": "choice of cores",
    "ref_data": "file of inputs",
    "indices_per_bag": "indices per bag",
    "arrivals": "arrivals",
    "rate": "rate of arrivals",
    "numa_policy": "NUMA policy",
    "table_copies": "copies of the tables",
    "engine": "engine",
    "engine_version": "version of the engine",
}
_FAR_DURATION = 2  # times as long: warmer or colder caches and clocks


@dataclass(frozen=True)
class Baseline:
    """An earlier run's JSON object, and the file that it came from."""

    path: Path
    fields: Mapping[str, object]


def read_baselines(paths: Iterable[Path]) -> tuple[Baseline, ...]:
    """Raises as read_baseline does, and UserError for a file that is given twice: runs are wanted, not copies."""
    paths = list(paths)
    resolved = [path.resolve() for path in paths]
    for at, path in enumerate(resolved):
        if path in resolved[:at]:
            raise UserError(f"--baseline {paths[at]}: given twice. Give a file per earlier run.")
    return tuple(read_baseline(path) for path in paths)


def read_baseline(path: Path) -> Baseline:
    """A file with a run's JSON object, alone or as the last line of its output.

    Raises UserError for any other content, OSError where it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"--baseline {path}: no such file. A result of multi_instance.py was wanted: its output.")
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"--baseline {path}: larger than any result of multi_instance.py, whose output was wanted.")
    if not path.stat().st_size:
        raise UserError(
            f"--baseline {path}: empty. A result of multi_instance.py was wanted; writing this run's output into the "
            "same file with > empties it first."
        )
    problem = _problem(fields := _json_object(path))
    if problem:
        raise UserError(
            f"--baseline {path}: {problem}. A result of multi_instance.py was wanted: the JSON object that it prints "
            "last, or its whole output."
        )
    return Baseline(path, fields)


def _json_object(path: Path) -> object:
    """Of the whole text, else of its last line; None where neither is JSON."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        return None
    for candidate in (text, text.rpartition("\n")[2]):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):  # a number of thousands of digits, a list in a list in a list ..
            continue
    return None


def _problem(fields: object) -> str | None:
    """Why this is no result."""
    if not isinstance(fields, dict):
        return "no JSON object"
    for key in _NUMBERS:
        if not is_positive(fields.get(key)):
            return f'no number above 0 under "{key}"'
    latency = fields.get("latency_ms")
    if not isinstance(latency, dict) or not all(is_positive(latency.get(key)) for key in LATENCIES):
        return 'no p50 and p99 under "latency_ms"'
    if not isinstance(fields.get("environment"), dict):
        return 'no object under "environment"'
    parts = fields.get("window_items_per_s")
    if parts is not None and not (isinstance(parts, list) and len(parts) > 1 and all(map(_is_rate, parts))):
        return 'no list of rates under "window_items_per_s"'
    return None


def _is_rate(value: object) -> bool:
    """From 0 to a number whose square is still one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e100


def is_positive(value: object) -> bool:
    return _is_rate(value) and value > 1e-100


def differences(then: Mapping[str, object], now: Mapping[str, object], path: Path) -> list[str]:
    """What makes the two something else than one thing measured twice."""
    pairs = {
        key: (_comparable(key, then[key]), _comparable(key, now[key]))
        for key in _SAME_WANTED
        if key in then and key in now
    }
    changed = {_SAME_WANTED[key]: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    if _SAME_WANTED["engine"] in changed:
        changed.pop(_SAME_WANTED["engine_version"], None)
    if _SAME_WANTED["precision"] in changed:
        changed.pop(_SAME_WANTED["library_precision"], None)  # ours: one fact
    cpus = then["environment"].get("cpu"), now["environment"].get("cpu")
    if None not in cpus and cpus[0] != cpus[1]:
        changed["CPU"] = cpus
    durations = then.get("duration_s"), now.get("duration_s")
    if all(map(is_positive, durations)) and max(durations) > _FAR_DURATION * min(durations):
        changed["duration"] = tuple(f"{duration:.3g} s" for duration in durations)
    warnings = _warnings(changed, path)
    if then.get("interrupted"):
        warnings.append(f"{path} is of a run that was interrupted. Probably it is too short: run it again to its end.")
    return warnings


def _warnings(changed: Mapping[str, tuple[object, object]], path: Path) -> list[str]:
    if changed.keys() == {"engine"}:
        then, now = changed["engine"]
        return [f"The engine of {path} was {then}, that of this run is {now}: the difference is one between engines."]
    return [
        f"The {name} of {path} was {then}, that of this run is {now}. Probably they are different measurements: "
        "compare runs that differ in one thing only."
        for name, (then, now) in changed.items()
    ]


def _comparable(key: str, value: object) -> object:
    """Of copies of the tables: without the share of huge pages that the kernel happened to have."""
    if key == "table_copies" and isinstance(value, list):
        return [re.sub(r"\d+% |;.*", "", str(text)) for text in value] or "none"
    return value
