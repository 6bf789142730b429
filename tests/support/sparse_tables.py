"""Models whose tables lie in files of their own, of any size: holes take no disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from models import random_dlrm

from dlrm_tvm.model.dlrm import Dlrm, Table

_SEED = 77


def on_disk(model: Dlrm, file: Path, *, offset: int = 4096, gap: int = 0) -> Dlrm:
    """The same model with its tables one after another in `file`, from byte `offset` on, as read-only memory maps."""
    places, at = [], offset
    for table in model.tables:
        places.append(at)
        at += table.rows.nbytes + gap
    with file.open("wb") as stream:
        for table, place in zip(model.tables, places):
            stream.seek(place)
            stream.write(np.ascontiguousarray(table.rows))
    tables = [
        replace(table, rows=np.memmap(file, "<f4", "r", place, table.rows.shape))
        for table, place in zip(model.tables, places)
    ]
    return replace(model, tables=tuple(tables))


def sparse_model(file: Path, table_rows: Sequence[int], *, dim: int = 128) -> tuple[Dlrm, list[np.ndarray]]:
    """A model with holes for tables, of which the first and last rows and some between are written -> model, rows
    written per table."""
    nbytes = [rows * dim * 4 for rows in table_rows]
    starts = np.cumsum([0, *nbytes[:-1]])
    with file.open("wb") as stream:
        stream.truncate(sum(nbytes))
    known, tables = [], []
    for t, (rows, start) in enumerate(zip(table_rows, starts.tolist())):
        rng = np.random.default_rng([_SEED, t])
        written = np.unique([0, rows // 2, rows - 2, rows - 1, *rng.integers(0, rows, 6)])
        with file.open("r+b") as stream:
            for row in written.tolist():
                stream.seek(start + row * dim * 4)
                stream.write(rng.uniform(-0.3, 0.3, dim).astype("<f4"))
        known.append(written)
        tables.append(Table(f"emb_{t}", np.memmap(file, "<f4", "r", start, (rows, dim))))
    small = random_dlrm(table_rows=[1] * len(table_rows), dim=dim, bottom=(16,), top=(16,))
    return replace(small, tables=tuple(tables)), known
