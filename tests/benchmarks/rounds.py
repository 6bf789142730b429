"""Engines of one precision in turns: outputs checked first, then in each round and at each batch size a slice each.

round 0, batch 1:  peak | ours | peak | ONNX Runtime | peak | OpenVINO | peak      round 1: another one begins
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from engine_process import EngineProcess
from results import Errors, Slice

from dlrm_tvm import reference
from dlrm_tvm.model import Dlrm

_CHECKED_ITEMS = 512  # at least; whole batches


@dataclass(frozen=True)
class Inputs:
    """dense [N, 13] float32, indices [N, 26] int64: every batch size cuts its batches from the same N items."""

    dense: np.ndarray
    indices: np.ndarray


@dataclass(frozen=True)
class Contest:
    """Who takes part, and in what, whatever the precision. seconds: of a slice; folder: of the inputs as files."""

    engines: tuple[str, ...]
    batches: tuple[int, ...]
    rounds: int
    seconds: float
    core: int
    model: Dlrm
    graph: Path
    inputs: Inputs
    folder: Path


@dataclass(frozen=True)
class Measured:
    slices: list[Slice]
    stream_gbps: list[float]  # one per round; empty without batch 1


def check_outputs(processes: dict[str, EngineProcess], contest: Contest) -> dict[tuple[int, str], Errors]:
    """Of every (batch, engine) against the NumPy reference, which is fp32's whatever the precision."""
    counts = {batch: -(-_CHECKED_ITEMS // batch) for batch in contest.batches}
    items = max(batch * count for batch, count in counts.items())
    wanted = reference.predict(contest.model, contest.inputs.dense[:items], contest.inputs.indices[:items])
    errors = {}
    for batch, count in counts.items():
        for engine, process in processes.items():
            each = np.abs(process.predict(batch, count) - wanted[: batch * count])
            each[~np.isfinite(each)] = np.inf
            errors[batch, engine] = Errors(float(each.max()), float(each.mean()))
    return errors


def measure(processes: dict[str, EngineProcess], right: set[tuple[int, str]], contest: Contest) -> Measured:
    """All rounds; right: the (batch, engine) whose outputs were, which alone take part.

    The peak is that of our library's precision, by its own loop.
    """
    slices: list[Slice] = []
    streams: list[float] = []
    peak_seconds = min(contest.seconds / 4, 0.1)
    ours = processes["ours"]
    peak_before = ours.peak_gflops(peak_seconds)
    for number in range(contest.rounds):
        for batch in contest.batches:
            for engine in turns(list(processes), number):
                if (batch, engine) not in right:
                    continue
                items_per_s = processes[engine].items_per_s(batch, contest.seconds)
                peak_after = ours.peak_gflops(peak_seconds)
                slices.append(Slice(engine, batch, items_per_s, max(peak_before, peak_after)))
                peak_before = peak_after
        if 1 in contest.batches:
            streams.append(ours.stream_gbps(peak_seconds))
    return Measured(slices, streams)


def turns(engines: list[str], number: int) -> list[str]:
    """Another one begins in every round: none always follows the same one."""
    first = number % len(engines)
    order = engines[first:] + engines[:first]
    return order if number // len(engines) % 2 == 0 else order[::-1]
