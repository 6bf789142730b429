"""Earlier runs as the baseline of one: read from files, checked, compared.

    difference of a figure    (now - baseline) / baseline, the baseline being the mean of the earlier runs
    one earlier run           figures side by side: how much runs differ by themselves is unknown
    two or more               larger than the noise where this run lies outside their 95 % prediction interval
    share of the peak         the interval is wider by what the peak changed during this run

Runs differ by the placement of pages, by neighbours on the host, by clock frequency: what happens within one run does
not tell by how much. A key that a result lacks is not compared: versions differ in what they record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..console import line, ms_text
from ..errors import UserError, printable
from ..runtime.typed_json import parse
from .statistics import prediction_half_width

_MOST_BYTES = 64 << 20  # a result has some KB; the run's whole output hardly more
_NUMBERS = ("batch_size", "instances", "threads", "batches", "items_per_s", "peak_fraction")
_LATENCIES = ("p50", "p99")
_FIGURES = {  # key -> (label, how a value is written, unit)
    "items_per_s": ("items/s", "{:,.0f}".format, ""),
    "peak_fraction": ("peak share", "{:.3f}".format, ""),
    "p50_ms": ("p50", ms_text, " ms"),
    "p99_ms": ("p99", ms_text, " ms"),
}
_SAME_WANTED = {
    "model": "model",
    "fingerprint": "model's fingerprint",
    "precision": "precision",
    "family": "family of instructions, whose peak the share is of",
    "library_precision": "precision of the library, whose peak the share is of,",
    "target_cpu": "CPU compiled for",
    "batch_size": "batch size",
    "instances": "number of instances",
    "threads": "threads per instance",
    "cores": "choice of cores",
    "ref_data": "file of inputs",
    "max_ind_range": "range of its indices",
    "indices_per_bag": "indices per bag",
    "arrivals": "arrivals",
    "rate": "rate of arrivals",
    "burst": "number of batches that arrive at a time",
    "trace": "trace of arrivals",
    "numa_policy": "NUMA policy",
    "table_copies": "copies of the tables",
    "engine": "engine",
    "engine_version": "version of the engine",
    "cpu": "CPU",
}
# One difference, told once: what else it changes.
_FOLLOWS = (("engine", "engine_version"), ("precision", "library_precision"), ("precision", "family"))
_FAR_DURATION = 2  # times as long: warmer or colder caches and clocks
_ONE_RUN = "one earlier run does not tell how much runs differ; give two or more"
_NO_SECOND_PEAK = "a peak was not measured both before and after the window"


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
    def beyond(self) -> bool | None:
        if self.interval_percent is None:
            return None
        low, high = self.interval_percent
        return low > 0 or high < 0


@dataclass(frozen=True)
class Comparison:
    """changes: of each of the figures; unknown: figure -> why its noise is; warnings: why these may be different
    measurements; disturbed: how many warnings each of the earlier runs had, and this one."""

    baselines: tuple[Baseline, ...]
    changes: Mapping[str, Change]
    unknown: Mapping[str, str]
    warnings: tuple[str, ...]
    disturbed: tuple[int, ...]

    def is_slower(self, percent: float) -> bool:
        """Items/s are lower by more than that, and by more than the noise where it is known."""
        change = self.changes["items_per_s"]
        return change.percent < -percent and change.beyond is not False


def read_baselines(paths: Sequence[Path]) -> tuple[Baseline, ...]:
    """Runs' JSON objects, alone or as the last line of their output. Raises UserError for other content, OSError."""
    baselines = tuple(map(Baseline, paths, read_files("--baseline", paths)))
    for each in baselines:
        if problem := _problem(each.fields):
            raise _no_result("--baseline", each.path, problem)
    return baselines


def read_files(option: str, paths: Sequence[Path]) -> list[object]:
    """Each one's JSON. Raises UserError for a file that is given twice: runs are wanted, not copies."""
    resolved = [path.resolve() for path in paths]
    for at, path in enumerate(paths):
        if problem := "given twice" if resolved[at] in resolved[:at] else _file_problem(path):
            raise _no_result(option, path, problem)
    return list(map(json_object, paths))


def _no_result(option: str, path: Path, problem: str) -> UserError:
    wanted = "Results of multi_instance.py were wanted, each in a file: the JSON object that it prints last"
    return UserError(f"{option} {path}: {problem}. {wanted}, or its whole output.")


def _file_problem(path: Path) -> str | None:
    """Why it need not be read."""
    if not path.is_file():
        return "no such file"
    if path.stat().st_size > _MOST_BYTES:
        return "larger than any result"
    if not path.stat().st_size:
        return "empty; writing this run's output into the same file with > empties it first"
    return None


def json_object(path: Path) -> object:
    """Of the whole text, else of its last line; None where neither is JSON."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        return None
    for candidate in (text, text.rpartition("\n")[2]):
        try:
            return parse(candidate)
        except ValueError:
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
    if not isinstance(latency, dict) or not all(is_positive(latency.get(key)) for key in _LATENCIES):
        return 'no p50 and p99 under "latency_ms"'
    if not isinstance(fields.get("environment"), dict):
        return 'no object under "environment"'
    return None


def is_positive(value: object) -> bool:
    """A number above 0 whose square is one too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-100 < value < 1e100


def compare_with_baselines(fields: Mapping[str, object], baselines: Sequence[Baseline]) -> Comparison:
    """fields: this run's JSON object; baselines: one or more."""
    earlier = [baseline.fields for baseline in baselines]
    unknown = _unknown(fields, len(earlier))
    return Comparison(
        baselines=tuple(baselines),
        changes={key: _change(key, fields, earlier, noise_known=key not in unknown) for key in _FIGURES},
        unknown=unknown,
        warnings=tuple(text for baseline in baselines for text in _differences(baseline, fields)),
        disturbed=tuple(_count_warnings(each) for each in (*earlier, fields)),
    )


def _unknown(now: Mapping[str, object], runs: int) -> dict[str, str]:
    if runs == 1:
        return dict.fromkeys(_FIGURES, _ONE_RUN)
    has_peaks = all(is_positive(now.get(key)) for key in ("peak_before_gflops", "peak_after_gflops"))
    return {} if has_peaks else {"peak_fraction": _NO_SECOND_PEAK}


def _change(
    key: str, now: Mapping[str, object], earlier: Sequence[Mapping[str, object]], *, noise_known: bool
) -> Change:
    values, value = [_value(key, each) for each in earlier], _value(key, now)
    then = float(np.mean(values))
    percent = 100 * (value / then - 1)
    if not noise_known:
        return Change(then, value, percent)
    half = prediction_half_width(values)
    if key == "peak_fraction":
        half += value * abs(now["peak_after_gflops"] / now["peak_before_gflops"] - 1)
    return Change(then, value, percent, (percent - 100 * half / then, percent + 100 * half / then))


def _value(key: str, fields: Mapping[str, object]) -> float:
    return float(fields["latency_ms"][key.removesuffix("_ms")] if key.endswith("_ms") else fields[key])


def _count_warnings(fields: Mapping[str, object]) -> int:
    return len(fields["warnings"]) if isinstance(fields.get("warnings"), list) else 0


def _differences(baseline: Baseline, now: Mapping[str, object]) -> list[str]:
    """What makes the two something else than one thing measured twice."""
    then, path = baseline.fields, baseline.path
    recorded = [key for key in _SAME_WANTED if key in then and key in now]
    pairs = {key: (_comparable(key, then[key]), _comparable(key, now[key])) for key in recorded}
    cpus = then["environment"].get("cpu"), now["environment"].get("cpu")
    if None not in cpus:
        pairs["cpu"] = cpus
    changed = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    for key, follows in _FOLLOWS:
        if key in changed:
            changed.pop(follows, None)
    durations = then.get("duration_s"), now.get("duration_s")
    if all(map(is_positive, durations)) and max(durations) > _FAR_DURATION * min(durations):
        changed["duration"] = tuple(f"{duration:.3g} s" for duration in durations)
    warnings = _difference_warnings(changed, path)
    if then.get("interrupted"):
        warnings.append(f"{path} is of a run that was interrupted. Probably it is too short: run it again to its end.")
    return warnings


def _difference_warnings(changed: Mapping[str, tuple[object, object]], path: Path) -> list[str]:
    if changed.keys() == {"engine"}:
        then, now = changed["engine"]
        return [f"The engine of {path} was {then}, that of this run is {now}: the difference is one between engines."]
    return [
        f"The {_SAME_WANTED.get(key, key)} of {path} was {then}, that of this run is {now}. Probably they are "
        "different measurements: compare runs that differ in one thing only."
        for key, (then, now) in changed.items()
    ]


def _comparable(key: str, value: object) -> object:
    """Of copies of the tables: without the share of huge pages that the kernel happened to have."""
    if key == "table_copies" and isinstance(value, list):
        return [re.sub(r"\d+% |;.*", "", str(text)) for text in value] or "none"
    return value


def comparison_text(comparison: Comparison) -> str:
    """Lines below the report's table."""
    made = [f"{baseline.path}{_made(baseline)}" for baseline in comparison.baselines]
    if len(made) > 1:
        made[0] = f"mean of {len(made)} runs: {made[0]}"
    return "\n".join(
        [
            *(line("" if at else "baseline", text) for at, text in enumerate(made)),
            *(line(f"  {label}", _figure(key, comparison)) for key, (label, *_) in _FIGURES.items()),
            *(line("  noise", text) for text in _noise_texts(comparison)),
            *(printable(f"Warning: {warning}") for warning in comparison.warnings),
        ]
    )


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """The value of the result's key "baseline"."""
    kept = ("time", "git_commit", "command")
    return {
        "runs": [
            {"file": str(baseline.path), **{key: baseline.fields["environment"].get(key) for key in kept}}
            for baseline in comparison.baselines
        ],
        **{key: {**asdict(change), "beyond_noise": change.beyond} for key, change in comparison.changes.items()},
        "noise_unknown": dict(comparison.unknown),
        "warnings": list(comparison.warnings),
        "warnings_of_runs": list(comparison.disturbed),
    }


def _made(baseline: Baseline) -> str:
    environment = baseline.fields["environment"]
    commit = environment.get("git_commit")
    return f", of {environment.get('time')}" + (f", commit {commit}" if commit else "")


def _figure(key: str, comparison: Comparison) -> str:
    change, (_, written, unit) = comparison.changes[key], _FIGURES[key]
    text = f"{change.percent:+.1f}%: {written(change.baseline)} -> {written(change.now)}{unit}"
    if change.interval_percent is None:
        return text
    low, high = change.interval_percent
    text += f"; {'larger than' if change.beyond else 'within'} the noise between runs"
    return f"{text}, 95% interval {low:+.1f}% to {high:+.1f}%" + "; disturbed, see below" * any(comparison.disturbed)


def _noise_texts(comparison: Comparison) -> list[str]:
    reasons = dict.fromkeys(comparison.unknown.values())  # each once
    texts = [f"unknown{' of the peak share' * (reason == _NO_SECOND_PEAK)}: {reason}" for reason in reasons]
    if any(comparison.disturbed):
        *then, now = comparison.disturbed
        runs = f"run{'s' * (len(then) > 1)} had {', '.join(map(str, then))}"
        texts.append(f"the baseline's {runs} warnings, this one {now}: what they name may be the difference")
    return texts
