"""What a reader of reference data knows of a model, and data files for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlrm_tvm.model.dlrm import GraphInputs

TABLE_ROWS = tuple(range(100, 126))
_GRAPH_INPUTS = GraphInputs("dense_x", ("indices",), ("offsets",), "pred")


@dataclass(frozen=True)
class Card:
    """What reference_data reads of an artifact's ModelCard."""

    name: str = "test_model"
    num_dense: int = 13
    table_rows: tuple[int, ...] = TABLE_ROWS
    table_names: tuple[str, ...] = tuple(f"emb_{t}" for t in range(26))
    fingerprint: str = "a" * 64
    graph_inputs: GraphInputs = _GRAPH_INPUTS


def save(tmp_path: Path, arrays: dict[str, np.ndarray], *, compressed: bool = True) -> Path:
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path
