"""Results as pictures of the width of a page: throughput against p99, latencies of one run, the roofline of its parts.

The only importer of matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, groupby
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from ..bench.statistics import percentiles_ms
from ..errors import UserError
from ..paths import packages_command
from .results import Row, Summary

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from ..bench.profile import Profile
    from ..bench.report import RunReport

_FORMATS = (".png", ".svg", ".pdf")
_INCHES = (7.0, 4.2)
_STYLE = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "svg.fonttype": "none", "text.parse_math": False}
_BINS = 80
_MARKERS = "osD^v<>PX"  # one fewer than colours, so that 90 pairs are different
_MOST_VARIANTS = 10
_MARKED = ("p50", "p90", "p99", "p999")


def check_plot(path: Path) -> None:
    """Raises UserError for a format that is not drawn, and where matplotlib is missing."""
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"--plot {path}: a name that ends in .png, .svg or .pdf was wanted.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(f"--plot needs matplotlib ({error}). Type: {packages_command('plot')}") from None


def throughput_picture(summary: Summary, title: str, suffix: str) -> bytes:
    """All rows, their spread as bars, by variant; the Pareto front joined, instances × threads beside its points.

    With many variants those that differ in their batch have one marker, and batches are beside the front's points too.
    """
    batches_apart = len({row.combination.variant for row in summary.rows}) <= _MOST_VARIANTS

    def name(row: Row) -> str:
        return row.combination.variant if batches_apart else row.combination.series

    rows = sorted(summary.rows, key=lambda row: (batches_apart and row.combination.batch, name(row), row.p99_ms))
    groups = {key: list(group) for key, group in groupby(rows, key=name)}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(xscale="log", xlabel="p99 latency [ms per batch]", ylabel="throughput [items/s]")
        for (variant, group), marker in zip(groups.items(), cycle(_MARKERS)):
            x, y, lowest, highest = _figures(group)
            spread, label = (y - lowest, highest - y), fill(variant, 36)
            axes.errorbar(x, y, yerr=spread, fmt=marker, markersize=4, capsize=2, label=label)
        front = sorted((row for row in summary.rows if row.combination in summary.pareto), key=lambda row: row.p99_ms)
        axes.plot(*_figures(front)[:2], color="black", linewidth=1, zorder=1, label="Pareto front")
        for number, row in enumerate(front):
            text = f"{row.combination.instances}×{row.combination.threads}"
            text += "" if batches_apart else f", {row.combination.batch}"
            places = ({"xytext": (5, -10)}, {"xytext": (-4, 5), "horizontalalignment": "right"})  # in turn
            at = {"textcoords": "offset points", "fontsize": 7} | places[number % 2]
            axes.annotate(text, (row.p99_ms, row.items_per_s), **at)
        if summary.max_latency_ms is not None:
            axes.axvline(summary.max_latency_ms, color="gray", linestyle="--", label=f"{summary.max_latency_ms:g} ms")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        _log_ticks(axes.xaxis)

    beside = None if batches_apart else "front: instances × threads, batch"
    return _picture(draw, title, suffix, entries=len(groups) + 2, legend=beside)


def _figures(rows: Sequence[Row]) -> np.ndarray:
    """[4, rows]: p99; items/s, the lowest and the highest."""
    return np.array([(row.p99_ms, row.items_per_s, row.items_per_s_min, row.items_per_s_max) for row in rows]).T


def run_pictures(path: Path, report: RunReport) -> dict[Path, Callable[[], bytes]]:
    """What draws the files of one run: its latencies, and with --profile NAME.roofline beside them."""
    environment, card = report.plan.environment, report.manifest.model
    count, threads = len(report.cores), len(report.cores[0])
    what = f"{card.name}, {report.precision}, batch {report.manifest.batch_size}, {count}×{threads} threads"
    title = f"{what}: {environment['cpu']}"
    latencies_ms = np.concatenate(report.measurement.latencies_ns) / 1e6
    pictures = {path: partial(latency_picture, latencies_ms, title, path.suffix)}
    if report.profile:
        pictures[roofline_path(path)] = partial(roofline_picture, report.profile, title, path.suffix)
    return pictures


def roofline_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.roofline{path.suffix}")


def latency_picture(latencies_ms: np.ndarray, title: str, suffix: str) -> bytes:
    """latencies_ms [batches]: their histogram, and below it their distribution function with its percentiles."""

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, sharex=True)
        ordered = np.sort(latencies_ms)
        bins = np.geomspace(ordered[0] * 0.99, ordered[-1] * 1.01, _BINS)
        upper.hist(ordered, bins=bins, color="tab:blue")
        upper.set(yscale="log", xscale="log", ylabel="batches")
        lower.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", color="tab:blue")
        found = percentiles_ms(latencies_ms * 1e6)
        for name, style in zip(_MARKED, (":", "-.", "--", "-")):
            label = f"{name.replace('p999', 'p99.9')} {found[name]:.3g} ms"
            for axes in (upper, lower):
                axes.axvline(found[name], color="black", linestyle=style, linewidth=0.8)
            lower.plot([], [], color="black", linestyle=style, linewidth=0.8, label=label)
        lower.set(xlabel="latency [ms per batch]", ylabel="share of batches", ylim=(0, 1.02))
        _log_ticks(lower.xaxis)
        _log_ticks(upper.yaxis)

    return _picture(draw, title, suffix)


def roofline_picture(profile: Profile, title: str, suffix: str) -> bytes:
    """Parts with FLOPs below min(peak, intensity × stream) of one instance; the others by name."""

    def draw(figure: Figure) -> None:
        labels = {"xlabel": "intensity [FLOP/byte]", "ylabel": "performance [GFLOP/s]"}
        axes = figure.add_subplot(xscale="log", yscale="log", **labels)
        first, parts = profile.parts[0], [each for each in profile.parts if each.part.flops and each.part.nbytes]
        x = [each.part.flops / each.part.nbytes for each in parts]
        ridge = first.peak_gflops / first.stream_gbps
        span = np.array([min([*x, ridge]) / 2, ridge, max([*x, ridge]) * 2])
        roof = np.minimum(first.peak_gflops, span * first.stream_gbps)
        limits = f"{first.peak_gflops:,.0f} GFLOP/s, {first.stream_gbps:,.0f} GB/s"
        axes.plot(span, roof, color="black", linewidth=1, label=limits)
        for at, each, marker in zip(x, parts, cycle(_MARKERS)):
            label = f"{each.part.name}: {profile.share(each):.0%} of the call"
            axes.plot([at], [each.gflops], marker, markersize=5, label=label)
        for each in profile.parts:
            if each not in parts:
                axes.plot([], [], " ", label=f"{each.part.name}: {profile.share(each):.0%}, {each.gbps:.1f} GB/s")
        _log_ticks(axes.xaxis)
        _log_ticks(axes.yaxis)

    return _picture(draw, title, suffix)


def _picture(
    draw: Callable[[Figure], None], title: str, suffix: str, entries: int = 0, legend: str | None = None
) -> bytes:
    """entries: of the legend, perhaps of two lines each; many make it higher."""
    import matplotlib
    from matplotlib.figure import Figure

    width, height = _INCHES
    content = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, max(height, 1 + 0.2 * entries)), layout="constrained", dpi=200)
        figure.suptitle(fill(title, 100), x=0.02, horizontalalignment="left", fontsize=9)
        draw(figure)
        figure.legend(loc="outside right center", fontsize=8, title=legend, title_fontsize=8)
        figure.savefig(content, format=suffix.lower().removeprefix("."))
    return content.getvalue()


def _log_ticks(axis: Axis) -> None:
    """As numbers: of many decades at 1, 10, .., of a few at 1, 2, 5, 10, .., of one at 1, 2, 3, .., of less evenly."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1,) if high > 300 * low else (1, 2, 5) if high > 10 * low else range(1, 10)
    axis.set_major_locator(LogLocator(subs=subs, numticks=30) if high > 2 * low else MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())
