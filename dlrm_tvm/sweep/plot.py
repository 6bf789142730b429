"""Throughput against p99 as a picture: one line per batch, precision and engine; the Pareto front ringed.

The only importer of matplotlib.
"""

from __future__ import annotations

import io
from itertools import groupby
from pathlib import Path

from ..errors import UserError
from ..paths import packages_command
from .results import Row, Summary

_FORMATS = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Raises UserError for a format that is not drawn, and where matplotlib is missing."""
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"--plot {path}: a name that ends in {' or '.join(_FORMATS)} was wanted.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(f"--plot needs matplotlib ({error}). Type: {packages_command('plot')}") from None


def draw_plot(summary: Summary, *, title: str, file_format: str) -> bytes:
    """The picture's bytes; file_format: "png" or "svg"."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    by_variant = sorted(summary.rows, key=lambda row: (row.combination.batch, row.combination.variant, row.p99_ms))
    for variant, group in groupby(by_variant, key=lambda row: row.combination.variant):
        _draw_variant(axes, variant, list(group))
    front = [row for row in summary.rows if row.combination in summary.pareto]
    axes.scatter(
        [row.p99_ms for row in front],
        [row.items_per_s for row in front],
        s=160,
        facecolors="none",
        edgecolors="black",
        label="Pareto front",
    )
    if summary.max_latency_ms is not None:
        axes.axvline(summary.max_latency_ms, color="gray", linestyle="--", label=f"{summary.max_latency_ms:g} ms")
    axes.set(xscale="log", xlabel="p99 latency, ms per batch", ylabel="items/s", title=title)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(LogFormatter(minor_thresholds=(2, 0.5)))  # 20, not 2 × 10¹
    axes.grid(alpha=0.3)
    axes.legend()
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(content, format=file_format, dpi=150)
    return content.getvalue()


def _draw_variant(axes, variant: str, rows: list[Row]) -> None:
    """Its placements by p99, the spread of the throughput as bars, instances × threads beside each."""
    spread = [
        [row.items_per_s - row.items_per_s_min for row in rows],
        [row.items_per_s_max - row.items_per_s for row in rows],
    ]
    p99s_ms, throughputs = [row.p99_ms for row in rows], [row.items_per_s for row in rows]
    axes.errorbar(p99s_ms, throughputs, yerr=spread, marker="o", capsize=3, label=variant)
    for row in rows:
        text = f"{row.combination.instances}×{row.combination.threads}"
        axes.annotate(text, (row.p99_ms, row.items_per_s), xytext=(8, 6), textcoords="offset points", fontsize=8)
