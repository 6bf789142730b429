"""A run held against an earlier one: by how much it differs, and whether by more than the noise.

    difference of a figure     (now - baseline) / baseline
    noise                      Welch's 95 % interval, from the throughput in 10 equal parts of each run's timed window

What it does not know: how runs differ from each other (placement of pages, neighbours on the host, clock frequency),
and how exact the peaks are. Only runs repeated in turn show that, and the text says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import UserError
from .report import line
from .welch import welch_interval

_MOST_BYTES = 64 << 20  # a result has some KB; the run's whole output hardly more
_BATCHES_PER_PART = 2  # of each instance, at least: a batch that spans parts makes them look alike
_NUMBERS = ("batch_size", "instances", "threads", "batches", "items_per_s", "peak_fraction")
_LATENCIES = ("p50", "p99")
_SAME_WANTED = {
    "model": "model",
    "precision": "precision",
    "batch_size": "batch size",
    "instances": "number of instances",
    "threads": "threads per instance",
    "indices_per_bag": "indices per bag",
    "engine": "engine",
    "arrivals": "arrivals",
}


@dataclass(frozen=True)
class Baseline:
    """An earlier run's JSON object, and the file that it came from."""

    path: Path
    fields: Mapping[str, object]


@dataclass(frozen=True)
class Change:
    """One figure, then and now. interval_percent: the 95 % interval of the difference; None: the noise is unknown."""

    baseline: float
    now: float
    percent: float
    interval_percent: tuple[float, float] | None = None

    @property
    def beyond_noise(self) -> bool | None:
        if self.interval_percent is None:
            return None
        low, high = self.interval_percent
        return low > 0 or high < 0


@dataclass(frozen=True)
class Comparison:
    """changes: items_per_s, peak_fraction, p50_ms, p99_ms; no_noise: why the noise is unknown, or None."""

    baseline: Baseline
    changes: Mapping[str, Change]
    no_noise: str | None
    warnings: tuple[str, ...]
    disturbed: tuple[int, int]  # how many warnings the baseline's run had, and this one


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


def compare_with_baseline(fields: Mapping[str, object], baseline: Baseline) -> Comparison:
    """fields: this run's JSON object."""
    then = baseline.fields
    no_noise = _why_no_noise(then, "the baseline") or _why_no_noise(fields, "this run")
    changes = {}
    for key in ("items_per_s", "peak_fraction"):
        interval = None if no_noise else welch_interval(_parts(then, key), _parts(fields, key))
        changes[key] = _change(then[key], fields[key], interval)
    for key in _LATENCIES:
        changes[f"{key}_ms"] = _change(then["latency_ms"][key], fields["latency_ms"][key])
    return Comparison(
        baseline=baseline,
        changes=changes,
        no_noise=no_noise,
        warnings=tuple(_differences(then, fields, baseline.path)),
        disturbed=(_count_warnings(then), _count_warnings(fields)),
    )


def comparison_text(comparison: Comparison) -> str:
    """Lines below the report's table."""
    environment = comparison.baseline.fields["environment"]
    commit = environment.get("git_commit")
    made = f", of {environment.get('time')}" + (f", commit {commit}" if commit else "")
    changes = comparison.changes
    latencies = ((key, f"{changes[key].baseline:.3f} -> {changes[key].now:.3f} ms") for key in ("p50_ms", "p99_ms"))
    shown = {
        "items_per_s": f"{changes['items_per_s'].baseline:,.0f} -> {changes['items_per_s'].now:,.0f}",
        "peak_fraction": f"{changes['peak_fraction'].baseline:.3f} -> {changes['peak_fraction'].now:.3f}",
        **dict(latencies),
    }
    labels = {"items_per_s": "items/s", "peak_fraction": "peak share", "p50_ms": "p50", "p99_ms": "p99"}
    return "\n".join(
        [
            line("baseline", f"{comparison.baseline.path}{made}"),
            *(
                line(f"  {labels[key]}", f"{changes[key].percent:+.1f}%: {shown[key]}{_verdict(key, comparison)}")
                for key in labels
            ),
            *(line("  noise", text) for text in _noise_texts(comparison)),
            *(f"Warning: {warning}" for warning in comparison.warnings),
        ]
    )


def _noise_texts(comparison: Comparison) -> list[str]:
    if comparison.no_noise:
        texts = [f"unknown: {comparison.no_noise}"]
    else:
        texts = ["as within each run; noise between runs is not in it: repeat both in turn before you rely on it"]
    if any(comparison.disturbed):
        then, now = comparison.disturbed
        texts.append(f"the baseline's run had {then} warnings, this one {now}: what they name may be the difference")
    return texts


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """The value of the result's key "baseline"."""
    environment = comparison.baseline.fields["environment"]
    return {
        "file": str(comparison.baseline.path),
        **{key: environment.get(key) for key in ("time", "git_commit", "command")},
        **{key: {**asdict(change), "beyond_noise": change.beyond_noise} for key, change in comparison.changes.items()},
        "noise_unknown": comparison.no_noise,
        "warnings": list(comparison.warnings),
        "warnings_of_runs": list(comparison.disturbed),
    }


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
        if not _is_positive(fields.get(key)):
            return f'no number above 0 under "{key}"'
    latency = fields.get("latency_ms")
    if not isinstance(latency, dict) or not all(_is_positive(latency.get(key)) for key in _LATENCIES):
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


def _is_positive(value: object) -> bool:
    return _is_rate(value) and value > 1e-100


def _why_no_noise(fields: Mapping[str, object], whose: str) -> str | None:
    parts = fields.get("window_items_per_s")
    if not parts:
        return f"{whose} has no throughput of parts of its window; run it again with this version"
    if fields["batches"] < _BATCHES_PER_PART * len(parts) * fields["instances"]:
        return f"{whose} has fewer than {_BATCHES_PER_PART} batches per instance in a part of its window; run longer"
    return None


def _parts(fields: Mapping[str, object], key: str) -> list[float]:
    """The figure in each part of the window: each of the two is proportional to the throughput."""
    return [rate * (fields[key] / fields["items_per_s"]) for rate in fields["window_items_per_s"]]


def _change(then: float, now: float, interval: tuple[float, float] | None = None) -> Change:
    in_percent = None if interval is None else tuple(100 * border / then for border in interval)
    return Change(float(then), float(now), 100 * (now / then - 1), in_percent)


def _count_warnings(fields: Mapping[str, object]) -> int:
    warnings = fields.get("warnings")
    return len(warnings) if isinstance(warnings, list) else 0


def _verdict(key: str, comparison: Comparison) -> str:
    change = comparison.changes[key]
    if change.interval_percent is None:
        return ""
    verdict = "larger than" if change.beyond_noise else "within"
    low, high = change.interval_percent
    return f"; {verdict} the noise (95% interval {low:+.1f}% to {high:+.1f}%)"


def _differences(then: Mapping[str, object], now: Mapping[str, object], path: Path) -> list[str]:
    """What makes the two something else than one thing measured twice. A key that one of them lacks is not held
    against it: versions differ in what they record."""
    pairs = [(name, then.get(key), now.get(key)) for key, name in _SAME_WANTED.items()]
    pairs.append(("CPU", then["environment"].get("cpu"), now["environment"].get("cpu")))
    warnings = [
        f"The {name} of {path} was {old}, that of this run is {new}. Probably they are different measurements: "
        "compare runs that differ in one thing only."
        for name, old, new in pairs
        if old is not None and new is not None and old != new
    ]
    if then.get("interrupted"):
        warnings.append(f"{path} is of a run that was interrupted. Probably it is too short: run it again to its end.")
    return warnings
