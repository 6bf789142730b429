"""What people and programs see: labelled lines, progress bars, the result as JSON on the last line."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping

from tqdm import tqdm as Bar

from .errors import printable

VERSION = "1.0.0"

TAIL = ("p50", "p90", "p99", "p999", "max")  # of latencies, as people are shown them


def result_line(fields: Mapping[str, object]) -> str:
    """JSON has no NaN and no infinity: what is undefined is null."""
    return json.dumps(_defined(fields), allow_nan=False)


def _defined(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _defined(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_defined(each) for each in value]
    return value


def percentiles_text(latency_ms: Mapping[str, float], *names: str) -> str:
    """ "p50 1.234  p99.9 5.678": those that are named, as bench.statistics.percentiles_ms names them."""
    return "  ".join(f"{name.replace('p999', 'p99.9')} {latency_ms[name]:.3f}" for name in names)


def line(label: str, text: str) -> str:
    """One labelled line of the table, whatever names are in it."""
    return f"  {label:<18}{printable(text)}"


def progress_bar(what: str, total: int, unit: str) -> Bar:
    """Shown on a terminal, and only while what takes longer than a moment is under way. unit: "B" for bytes."""
    return Bar(total=total, desc=what, unit=unit, unit_scale=unit == "B", delay=1, leave=False, disable=None)


def summary(doc: str | None) -> str | None:
    """The first line of a script's docstring, which python -OO takes away."""
    return doc and doc.split("\n", 1)[0]


def add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action="version", version=f"dlrm_tvm {VERSION}")
