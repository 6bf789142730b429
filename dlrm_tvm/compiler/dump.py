"""--dump-ir: a file for each phase that has something to show."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ..model.card import describe, describe_numerics
from ..schedules.rules import dense_kernel, dense_numbers, dense_shape, network_numbers
from .job import Job


def write(directory: Path, name: str, text: str | None) -> None:
    """Nothing where the phase has nothing to show."""
    if text is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)


def model(job: Job) -> str:
    return _json(asdict(describe(job.model)))


def numerics(job: Job) -> str:
    card = describe_numerics(job.numerics)
    return _json({"precision": job.numerics.precision} | ({} if card is None else asdict(card)))


def tables(job: Job) -> str:
    layout = job.tables
    return _json(
        {
            "range_bytes": layout.nbytes,
            "copied_bytes": 0 if layout.copied is None else layout.copied.nbytes,
            "first_elements": layout.starts.tolist(),
            "pieces": [asdict(piece) for piece in layout.pieces],
            "reasons_for_copies": dict(layout.reasons),
        }
    )


def schedules(job: Job) -> str | None:
    chosen = job.schedules
    if chosen.is_default:
        return None
    dense = {}
    for layer, schedule in chosen.dense.items():
        shape = dense_shape(chosen.network.mr, layer.inputs, layer.outputs)
        dense[f"{dense_kernel(layer.precision, layer.activation)} {shape}"] = dense_numbers(schedule)
    return _json(
        {
            "network": network_numbers(chosen.network),
            "dense": dense,
            "tuned": chosen.tuned,
            "by_rule": chosen.untuned,
        }
    )


def plan(job: Job) -> str | None:
    return None if job.planned is None else f"{job.planned.plan}\n"


def tir(job: Job) -> str | None:
    return "\n".join(function.script() for function in job.functions.values()) or None


def relax(job: Job) -> str:
    return job.module.script()


def assembly(job: Job) -> str:
    return job.executable.mod.imports[0].inspect_source("asm")


def verification(job: Job) -> str | None:
    return None if job.verification is None else _json(asdict(job.verification))


def _json(fields: dict) -> str:
    return json.dumps(fields, indent=1) + "\n"
