"""A run held against earlier ones: by how much it differs, and whether by more than the noise.

    difference of a figure    (now - baseline) / baseline, the baseline being the mean of the earlier runs
    one earlier run           the scatter within the two runs: Welch's 95 % interval, from the throughput in 10 equal
                              parts of each timed window, widened for neighbouring parts that go together
    two or more               the noise between runs: the 95 % interval in which one more of the earlier runs would lie,
                              and the scatter within this run, as the root of their squares' sum
    share of the peak         wider by what a peak changed between before and after: in both runs, or with several
                              earlier ones, whose differences hold theirs, in this one

What it does not know, with one earlier run: how runs differ from each other (placement of pages, neighbours on the
host, clock frequency). They do so by more than the parts of one; the text says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .baseline import LATENCIES, Baseline, differences, is_positive
from .report import line
from .welch import effective_size, mean_half_width, prediction_half_width, welch_interval

_BATCHES_PER_PART = 2  # of each instance, at least: a batch that spans parts makes them look alike
_RATES = ("items_per_s", "peak_fraction")
_NO_SECOND_PEAK = "a peak was not measured both before and after the window"


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
    """changes: items_per_s, peak_fraction, p50_ms, p99_ms; unknown: figure -> why its noise is.

    disturbed: how many warnings each of the earlier runs had, and this one.
    """

    baselines: tuple[Baseline, ...]
    changes: Mapping[str, Change]
    unknown: Mapping[str, str]
    warnings: tuple[str, ...]
    disturbed: tuple[int, ...]

    @property
    def noise(self) -> str:
        """What a difference is held against: noise, between runs, or scatter, within them."""
        return "noise" if len(self.baselines) > 1 else "scatter"


def compare_with_baselines(fields: Mapping[str, object], baselines: Sequence[Baseline]) -> Comparison:
    """fields: this run's JSON object; baselines: one or more."""
    earlier = [baseline.fields for baseline in baselines]
    compare = _with_one if len(earlier) == 1 else _with_several
    changes, unknown = compare(fields, earlier)
    return Comparison(
        baselines=tuple(baselines),
        changes=changes,
        unknown=unknown,
        warnings=tuple(
            warning for baseline in baselines for warning in differences(baseline.fields, fields, baseline.path)
        ),
        disturbed=tuple(_count_warnings(each) for each in (*earlier, fields)),
    )


def _with_one(now: Mapping[str, object], earlier: Sequence[Mapping[str, object]]) -> tuple[dict, dict]:
    """(changes, unknown), by the scatter within the two runs."""
    (then,) = earlier
    changes, unknown = {}, {}
    no_scatter = _why_no_scatter(then, "the baseline") or _why_no_scatter(now, "this run")
    for key in _RATES:
        half = None
        if no_scatter:
            unknown[key] = no_scatter
        else:
            parts = _parts(then, key), _parts(now, key)
            low, high = welch_interval(*parts, sizes=tuple(effective_size(each) for each in parts))
            half = (high - low) / 2
        changes[key] = _change(then[key], now[key], _with_peaks(key, half, now, (then, now), unknown))
    for key in LATENCIES:
        changes[f"{key}_ms"] = _change(then["latency_ms"][key], now["latency_ms"][key])
    return changes, unknown


def _with_several(now: Mapping[str, object], earlier: Sequence[Mapping[str, object]]) -> tuple[dict, dict]:
    """(changes, unknown), by the noise between runs."""
    changes, unknown = {}, {}
    for key in _RATES:
        values = [each[key] for each in earlier]
        within = 0.0 if _why_no_scatter(now, "this run") else mean_half_width(_parts(now, key))
        half = math.hypot(prediction_half_width(values), within)
        changes[key] = _change(np.mean(values), now[key], _with_peaks(key, half, now, (now,), unknown))
    for key in LATENCIES:
        values = [each["latency_ms"][key] for each in earlier]
        changes[f"{key}_ms"] = _change(np.mean(values), now["latency_ms"][key], prediction_half_width(values))
    return changes, unknown


def _with_peaks(
    key: str,
    half: float | None,
    now: Mapping[str, object],
    uncertain: Sequence[Mapping[str, object]],
    unknown: dict[str, str],
) -> float | None:
    """Half an interval's width, for the share of the peak with what the peaks are uncertain by."""
    if half is None or key != "peak_fraction":
        return half
    peaks = [(each.get("peak_before_gflops"), each.get("peak_after_gflops")) for each in uncertain]
    if not all(is_positive(peak) for pair in peaks for peak in pair):
        unknown[key] = _NO_SECOND_PEAK
        return None
    return half + now[key] * sum(abs(after / before - 1) for before, after in peaks)


def comparison_text(comparison: Comparison) -> str:
    """Lines below the report's table."""
    labels = {"items_per_s": "items/s", "peak_fraction": "peak share", "p50_ms": "p50", "p99_ms": "p99"}
    made = [f"{baseline.path}{_made(baseline)}" for baseline in comparison.baselines]
    if len(made) > 1:
        made[0] = f"mean of {len(made)} runs: {made[0]}"
    return "\n".join(
        [
            *(line("" if at else "baseline", text) for at, text in enumerate(made)),
            *(line(f"  {label}", _figure(key, comparison)) for key, label in labels.items()),
            *(line("  noise", text) for text in _noise_texts(comparison)),
            *(f"Warning: {warning}" for warning in comparison.warnings),
        ]
    )


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """The value of the result's key "baseline"."""
    runs = []
    for baseline in comparison.baselines:
        environment = baseline.fields["environment"]
        runs.append(
            {"file": str(baseline.path), **{key: environment.get(key) for key in ("time", "git_commit", "command")}}
        )
    return {
        "runs": runs,
        **{
            key: {**asdict(change), f"beyond_{comparison.noise}": change.beyond}
            for key, change in comparison.changes.items()
        },
        f"{comparison.noise}_unknown": dict(comparison.unknown),
        "warnings": list(comparison.warnings),
        "warnings_of_runs": list(comparison.disturbed),
    }


def _made(baseline: Baseline) -> str:
    environment = baseline.fields["environment"]
    commit = environment.get("git_commit")
    return f", of {environment.get('time')}" + (f", commit {commit}" if commit else "")


def _figure(key: str, comparison: Comparison) -> str:
    change = comparison.changes[key]
    form = {"items_per_s": "{:,.0f} -> {:,.0f}", "peak_fraction": "{:.3f} -> {:.3f}"}.get(key, "{:.3f} -> {:.3f} ms")
    return f"{change.percent:+.1f}%: {form.format(change.baseline, change.now)}{_verdict(change, comparison)}"


def _verdict(change: Change, comparison: Comparison) -> str:
    if change.interval_percent is None:
        return ""
    low, high = change.interval_percent
    text = f"; {'larger than' if change.beyond else 'within'} the "
    if comparison.noise == "noise":
        text += "noise between runs"
    else:
        text += "scatter within the two runs (noise between runs is not known; give several earlier runs)"
    text += f", 95% interval {low:+.1f}% to {high:+.1f}%"
    return text + ("; disturbed, see below" if any(comparison.disturbed) else "")


def _noise_texts(comparison: Comparison) -> list[str]:
    reasons = {reason: None for reason in comparison.unknown.values()}  # each once, in their order
    texts = [f"unknown{' of the peak share' * (reason == _NO_SECOND_PEAK)}: {reason}" for reason in reasons]
    if any(comparison.disturbed):
        *then, now = comparison.disturbed
        had = ", ".join(map(str, then))
        runs = "baseline's run" if len(then) == 1 else "baseline's runs"
        texts.append(f"the {runs} had {had} warnings, this one {now}: what they name may be the difference")
    return texts


def _why_no_scatter(fields: Mapping[str, object], whose: str) -> str | None:
    parts = fields.get("window_items_per_s")
    if not parts:
        return f"{whose} has no throughput of parts of its window; run it again with this version"
    if fields["batches"] < _BATCHES_PER_PART * len(parts) * fields["instances"]:
        return f"{whose} has fewer than {_BATCHES_PER_PART} batches per instance in a part of its window; run longer"
    return None


def _parts(fields: Mapping[str, object], key: str) -> list[float]:
    """The figure in each part of the window: each of the two is proportional to the throughput."""
    return [rate * (fields[key] / fields["items_per_s"]) for rate in fields["window_items_per_s"]]


def _change(then: float, now: float, half: float | None = None) -> Change:
    """half: half the width of the difference's interval, None where that is unknown."""
    then, now = float(then), float(now)
    interval = None if half is None else (100 * (now - half - then) / then, 100 * (now + half - then) / then)
    return Change(then, now, 100 * (now / then - 1), interval)


def _count_warnings(fields: Mapping[str, object]) -> int:
    warnings = fields.get("warnings")
    return len(warnings) if isinstance(warnings, list) else 0
