"""The static card: what is about to be measured, told before it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import line
from ..engines.interface import EngineGraph
from ..machine.topology import format_cpu_list

if TYPE_CHECKING:
    from ..model.card import ModelCard
    from ..runtime.manifest import Manifest

_LONGEST_LIST = 60  # characters of cores per instance


def static_card(
    manifest: Manifest,
    library: str,
    cores: tuple[tuple[int, ...], ...],
    ref_data: Path | None = None,
    max_ind_range: int | None = None,
    indices_per_bag: float = 1,
) -> str:
    """ref_data: the file of the inputs, None for random ones; max_ind_range: its indices are taken modulo it."""
    card = manifest.model
    bags = "" if indices_per_bag == 1 else f" ({indices_per_bag:.3g} indices per bag)"
    rows_kb = card.gather_bytes_per_item * indices_per_bag / 1e3
    capped = f", indices modulo {max_ind_range:,}" if max_ind_range else ""
    inputs = f"items of {ref_data}{capped}" if ref_data else "random rows of whole tables, different in every batch"
    lines = [
        f"{card.name}, {manifest.precision}, batch {manifest.batch_size}  ({library})",
        line("per item", f"{card.flops_per_item / 1e6:.3f} MFLOP, {rows_kb:.1f} KB of rows{bags}"),
        line("weights", _weights(card)),
        line("inputs", inputs),
        line("placement", describe_placement(cores)),
    ]
    return "\n".join(lines)


def engine_card(engine: EngineGraph) -> str:
    bags = "bags as it fixes them" if engine.fixes_bags else "one index per table and item"
    where = line("engine", f"{engine.title} on {os.path.relpath(engine.path)}, {bags}")
    return where + (f"\n{line('', f'calibrated with {engine.calibration}')}" if engine.calibration else "")


def peak_line(peak_gflops: Sequence[float]) -> str:
    return line("peak", f"{sum(peak_gflops):,.1f} GFLOP/s, measured on these cores, all at once")


def describe_placement(cores: tuple[tuple[int, ...], ...]) -> str:
    """ "2 instances × 1 thread on cores 0 | 1", shortened where the list is long."""
    count, threads = len(cores), len(cores[0])
    shown = " | ".join(format_cpu_list(each) for each in cores)
    if len(shown) > _LONGEST_LIST:
        shown = format_cpu_list(core for each in cores for core in each)
    instances = "instance" if count == 1 else "instances"
    return f"{count} {instances} × {threads} thread{'s' * (threads > 1)} on cores {shown}"


def _weights(card: ModelCard) -> str:
    tables = len(card.table_rows)
    return f"{card.mlp_bytes / 1e6:.1f} MB MLPs, {card.table_bytes / 1e6:,.1f} MB in {tables} tables"
