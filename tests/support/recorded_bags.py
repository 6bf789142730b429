"""Bags of indices: the recorded ones of tests/exports/, random ones, and both under an ONNX graph's own names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlrm_tvm.model.dlrm import GraphInputs

# dense [n, num_dense], indices [any number] and offsets [n] of each table, predictions [n]
Pattern = tuple[np.ndarray, list[np.ndarray], list[np.ndarray], np.ndarray]


def recorded_patterns(path: Path) -> dict[str, Pattern]:
    with np.load(path) as recorded:
        names = sorted({key.split(".")[0] for key in recorded})
        tables = range(sum(key.startswith(f"{names[0]}.indices_") for key in recorded))
        return {
            name: (
                recorded[f"{name}.dense"],
                [recorded[f"{name}.indices_{t}"] for t in tables],
                [recorded[f"{name}.offsets_{t}"] for t in tables],
                recorded[f"{name}.pred"],
            )
            for name in names
        }


def random_bags(
    rng: np.random.Generator, *, items: int, table_rows: list[int], total: int, empty: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(indices, offsets) of each table: `total` indices cut into `items` bags, each table's at other places.

    empty: whether some bags may be empty.
    """
    indices = [rng.integers(0, rows, total) for rows in table_rows]
    if empty:
        cuts = [np.sort(rng.integers(0, total + 1, items - 1)) for _ in table_rows]
    else:
        cuts = [np.sort(rng.choice(np.arange(1, total), items - 1, replace=False)) for _ in table_rows]
    return indices, [np.concatenate([[0], one]) for one in cuts]


def feed(
    names: GraphInputs, dense: np.ndarray, indices: list[np.ndarray], offsets: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """The inputs as the graph takes them: stacked, or one for each table."""
    given = {names.dense: dense}
    if names.indices_per_bag:
        numbers = zip(names.indices, indices, names.indices_per_bag)
        return given | {name: column.reshape(-1, number) for name, column, number in numbers}
    if names.last_offset:
        offsets = [np.append(column, len(rows)) for column, rows in zip(offsets, indices)]
    for wanted, columns in ((names.indices, indices), (names.offsets, offsets)):
        stacked = len(wanted) == 1 and len(columns) > 1
        given |= {wanted[0]: np.stack(columns)} if stacked else dict(zip(wanted, columns))
    return given
