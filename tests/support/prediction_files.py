"""The same items as files of every kind that predictions are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from models import numpy_predictions, random_dlrm

from dlrm_tvm.model.dlrm import Dlrm

SHARD_ITEMS = 256
_GROUP = 100  # rows of a parquet file's row group
# Of 1000 items, by kind: in how many shards they are scored.
KINDS = {
    "mlperf npz": 4,
    "compressed npz": 1,
    "criteo npz": 4,
    "criteo binary": 4,
    "graph inputs": 1,
    "multi-hot day": 4,
    "parquet of lists": 5,  # two row groups each
    "parquet of scalars": 5,
}


def model_of_items() -> Dlrm:
    return random_dlrm(table_rows=[11] * 25 + [400], last_activation="sigmoid")


def prediction_words(library: Path, files: Sequence[Path], output: Path, *options: object) -> list[str]:
    """accuracy.py's arguments."""
    named = ("--model", library, "--ref-data", *files, "--predictions", output, "--shard-items", SHARD_ITEMS)
    return list(map(str, (*named, *options)))


@dataclass(frozen=True)
class Items:
    """counts [n, 13] and what the model takes of them, indices [n, 26], labels [n], reference outputs [n]."""

    counts: np.ndarray
    indices: np.ndarray
    labels: np.ndarray
    reference: np.ndarray

    @property
    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        return np.log1p(self.counts).astype(np.float32), self.indices


def items_of(model: Dlrm, count: int, seed: int = 0) -> Items:
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.integers(0, table.num_rows, count) for table in model.tables], axis=1)
    counts = rng.integers(0, 50, (count, 13))
    reference = numpy_predictions(model, np.log1p(counts).astype(np.float32), indices).astype(np.float32)
    return Items(counts, indices, rng.integers(0, 2, count), reference)


def save(kind: str, folder: Path, items: Items) -> tuple[Path, int]:
    """(the file, in how many shards of SHARD_ITEMS it is scored)."""
    dense, indices = items.inputs
    counts, labels = items.counts, items.labels
    path = folder / {"criteo binary": "day.bin", "criteo npz": "days.npz"}.get(kind, f"{kind.replace(' ', '_')}.npz")
    if kind in ("mlperf npz", "compressed npz"):
        write = np.savez if kind == "mlperf npz" else np.savez_compressed
        write(path, X_int=dense, X_cat=indices, torch_res=items.reference, target=labels)
    elif kind == "criteo npz":  # counts of clicks make it a week of Kaggle's, which is cut in no halves
        np.savez(path, X_int=counts.astype(float), X_cat=indices.astype(float), y=labels, counts=np.ones(7))
    elif kind == "criteo binary":
        np.hstack([labels[:, None], counts, indices]).astype("<i4").tofile(path)
    elif kind == "graph inputs":
        np.savez(path, dense_x=dense, indices=indices.T, pred=items.reference)
    elif kind == "multi-hot day":
        path = folder / "day_5_sparse_multi_hot.npz"
        np.save(folder / "day_5_dense.npy", np.tile(dense, (2, 1)))
        np.save(folder / "day_5_labels.npy", np.tile(labels, 2)[:, None].astype(np.int32))
        twice = np.tile(indices, (2, 1)).astype(np.int32)
        np.savez(path, **{str(table): each[:, None] for table, each in enumerate(twice.T)})
    else:
        path = save_parquet(folder / "items.parquet", items, lists=kind == "parquet of lists")
    return path, KINDS[kind]


def save_parquet(path: Path, items: Items, *, lists: bool) -> Path:
    """As fixed-size lists of logarithms, or as scalars of counts; skips without pyarrow."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-ray.txt)")
    from pyarrow import parquet

    dense, indices = items.inputs
    if lists:
        columns = {
            "X_int": pa.FixedSizeListArray.from_arrays(pa.array(dense.ravel()), 13),
            "X_cat": pa.FixedSizeListArray.from_arrays(pa.array(indices.ravel()), 26),
            "target": pa.array(items.labels),
        }
    else:
        columns = {f"I{number + 1}": each.astype(np.int32) for number, each in enumerate(items.counts.T)}
        columns |= {f"C{number + 1}": each.astype(np.int32) for number, each in enumerate(items.indices.T)}
        columns |= {"label": items.labels.astype(bool)}
    parquet.write_table(pa.table(columns), path, row_group_size=_GROUP)
    return path
