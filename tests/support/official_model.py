"""MLPerf's model at its full size on any disk: 187,767,399 rows, 96 GB, as sparse files; for tests and by hand.

    python tests/support/official_model.py FOLDER          writes FOLDER/official.onnx, official.onnx.data, official.npz

The MLPs are the demo model's. Of each table the first and the last rows and some hundred others are written, the rest
are holes: zeros that take no disk. official.npz is MLPerf-style reference data that uses the written rows only; its
outputs are computed here from the written values, by the paper's formulas in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from models import numpy_predictions

from dlrm_tvm.data.demo_weights import CRITEO_TABLE_ROWS, DIM, DemoTensor, demo_network, demo_tensors
from dlrm_tvm.data.dlrm_graph import dlrm_graph
from dlrm_tvm.model.dlrm import Dense, Dlrm, GraphInputs, Table
from dlrm_tvm.model.interactions import Dot

KNOWN_ROWS = 120  # of each table at most
_SEED = 40_000_000


def write_official_model(folder: Path, name: str = "official") -> Path:
    """Write the model as FOLDER/NAME.onnx with NAME.onnx.data (96 GB long, some 20 MB on disk); returns its path."""
    tensors = demo_tensors(max(CRITEO_TABLE_ROWS))
    path = folder / f"{name}.onnx"
    data = folder / f"{name}.onnx.data"
    with data.open("wb") as file:
        file.truncate(tensors[-1].end)
        for tensor in tensors:
            if tensor.is_table:
                _write_rows(file, tensor)
            else:
                file.seek(tensor.offset)
                file.writelines(tensor.values())
    graph = dlrm_graph(demo_network(tensors), name="demo_dlrm", data_name=data.name, marker="sparse")
    path.write_bytes(graph.SerializeToString())
    return path


def known_rows(num_rows: int, seed: int) -> np.ndarray:
    """Which rows of a table are written: the first two, the last two, and others evenly at random."""
    others = np.random.default_rng([_SEED, seed]).integers(0, num_rows, KNOWN_ROWS)
    ends = [0, 1, num_rows - 2, num_rows - 1]
    return np.unique(np.concatenate([np.array(ends) % num_rows, others]))


def row_values(rows: np.ndarray, seed: int) -> np.ndarray:
    """The values [rows, 128] float32 of those rows, which depend on the row's number alone."""
    values = [np.random.default_rng([seed, row]).uniform(-0.5, 0.5, DIM) for row in rows.tolist()]
    return np.array(values, "<f4")


def official_model_of(path: Path) -> Dlrm:
    """The same model without its ONNX graph: tables as memory maps of the data file, no reader involved."""
    tensors = {tensor.name: tensor for tensor in demo_tensors(max(CRITEO_TABLE_ROWS))}
    data = path.with_name(path.name + ".data")

    def array(name: str) -> np.ndarray:
        return np.memmap(data, "<f4", "r", tensors[name].offset, tensors[name].shape)

    def mlp(prefix: str, activations: Sequence[str]) -> tuple[Dense, ...]:
        layers = enumerate(activations)
        return tuple(Dense(array(f"{prefix}.{i}.weight"), array(f"{prefix}.{i}.bias"), kind) for i, kind in layers)

    return Dlrm(
        name=path.stem,
        bottom=mlp("bottom", ["relu"] * 3),
        tables=tuple(Table(name, array(name)) for name, tensor in tensors.items() if tensor.is_table),
        interaction=Dot(),
        top=mlp("top", ["relu"] * 4 + ["sigmoid"]),
        graph_inputs=GraphInputs("dense_x", ("indices",), (), "pred"),
    )


def write_reference(path: Path, items: int = 500) -> Path:
    """MLPerf-style data for the model at `path`, every item's indices among the written rows -> path of the npz."""
    rng = np.random.default_rng(_SEED)
    dense = rng.uniform(0, 5, (items, 13)).astype(np.float32)
    indices = np.stack(
        [rng.choice(known_rows(rows, table), items) for table, rows in enumerate(CRITEO_TABLE_ROWS)], axis=1
    )
    indices[0] = np.array(CRITEO_TABLE_ROWS) - 1  # the very last row of every table
    predictions = numpy_predictions(official_model_of(path), dense, indices).astype(np.float32)
    clicks = (rng.random(items) < predictions).astype(np.float32)
    reference = path.with_suffix(".npz")
    np.savez(reference, X_int=dense, X_cat=indices, torch_res=predictions, target=clicks)
    return reference


def _write_rows(file, tensor: DemoTensor) -> None:
    table = int(tensor.name.removeprefix("table."))
    rows = known_rows(tensor.shape[0], table)
    for row, values in zip(rows.tolist(), row_values(rows, table)):
        file.seek(tensor.offset + row * DIM * 4)
        file.write(values)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("One folder to write to was wanted. Try: python tests/support/official_model.py /tmp/official")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    print(write_official_model(folder), write_reference(folder / "official.onnx"))
