"""MLPerf's models at their full size on any disk, as sparse files; for tests and by hand.

    python tests/support/official_model.py FOLDER [v2]   writes FOLDER/official.onnx, .onnx.data and .npz

The first has 187,767,399 rows (96 GB), the second 204,184,588 (104.5 GB). Layers are the demo models'. Of each table
the first and the last rows and some hundred others are written, the rest are holes: zeros that take no disk.
official.npz is reference data that uses the written rows only; its outputs are computed here from the written values,
by the papers' formulas in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from models import numpy_predictions

from dlrm_tvm.data.demo_weights import DEMOS, DIM, V1, DemoModel, DemoTensor, demo_network, demo_tensors, index_names
from dlrm_tvm.data.dlrm_graph import dlrm_graph
from dlrm_tvm.model.dlrm import Dense, Dlrm, GraphInputs, Table
from dlrm_tvm.model.interactions import Cross, Dot

KNOWN_ROWS = 120  # of each table at most
_SEED = 40_000_000


def write_official_model(folder: Path, kind: DemoModel = V1, name: str = "official") -> Path:
    """Write the model as FOLDER/NAME.onnx with NAME.onnx.data (96 GB long, v2 104.5 GB; some 20 MB on disk, v2 80);
    returns its path."""
    tensors = demo_tensors(max(kind.table_rows), kind)
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
    graph = dlrm_graph(demo_network(tensors, kind), name=kind.name, data_name=data.name, marker="sparse")
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


def official_model_of(path: Path, kind: DemoModel = V1) -> Dlrm:
    """The same model without its ONNX graph: tables as memory maps of the data file, no reader involved."""
    tensors = {tensor.name: tensor for tensor in demo_tensors(max(kind.table_rows), kind)}
    data = path.with_name(path.name + ".data")

    def array(name: str) -> np.ndarray:
        return np.memmap(data, "<f4", "r", tensors[name].offset, tensors[name].shape)

    def dense(name: str, activation: str) -> Dense:
        weight = array(f"{name}.weight")
        bias = array(f"{name}.bias") if f"{name}.bias" in tensors else np.zeros(len(weight), np.float32)
        return Dense(weight, bias, activation)

    def mlp(prefix: str, activations: Sequence[str]) -> tuple[Dense, ...]:
        return tuple(dense(f"{prefix}.{i}", activation) for i, activation in enumerate(activations))

    crossings = tuple(tuple(dense(f"cross.{i}.{each}", "none") for each in "vw") for i in range(len(kind.ranks)))
    return Dlrm(
        name=path.stem,
        bottom=mlp("bottom", ["relu"] * 3),
        tables=tuple(Table(name, array(name)) for name, tensor in tensors.items() if tensor.is_table),
        interaction=Cross(crossings) if crossings else Dot(),
        top=mlp("top", ["relu"] * 4 + ["sigmoid"]),
        graph_inputs=GraphInputs("dense_x", index_names(kind), (), "pred", kind.indices_per_bag),
    )


def write_reference(path: Path, kind: DemoModel = V1, items: int = 500) -> Path:
    """Data for the model at `path`, every item's indices among the written rows, the last of each table in its first
    item -> path of the npz, of MLPerf's style or, with bags, with the graph's own inputs."""
    rng = np.random.default_rng(_SEED)
    dense = rng.uniform(0, 5, (items, 13)).astype(np.float32)
    sizes = [items if hot == 1 else (items, hot) for hot in kind.lengths]
    known = [known_rows(rows, table) for table, rows in enumerate(kind.table_rows)]
    bags = [rng.choice(rows, size) for rows, size in zip(known, sizes)]
    for bag, rows in zip(bags, kind.table_rows):
        bag[0] = rows - 1
    model = official_model_of(path, kind)
    if kind.indices_per_bag:
        flat, offsets = [bag.reshape(-1) for bag in bags], [np.arange(items) * hot for hot in kind.lengths]
        predictions = numpy_predictions(model, dense, flat, offsets)
        named = {name: bag.reshape(items, -1) for name, bag in zip(index_names(kind), bags)}
        recorded = {"dense_x": dense, **named, "pred": predictions.astype(np.float32)}
    else:
        predictions = numpy_predictions(model, dense, np.stack(bags, axis=1))
        recorded = {"X_int": dense, "X_cat": np.stack(bags, axis=1), "torch_res": predictions.astype(np.float32)}
    reference = path.with_suffix(".npz")
    np.savez(reference, **recorded, target=(rng.random(items) < predictions).astype(np.float32))
    return reference


def _write_rows(file, tensor: DemoTensor) -> None:
    table = int(tensor.name.removeprefix("table."))
    rows = known_rows(tensor.shape[0], table)
    for row, values in zip(rows.tolist(), row_values(rows, table)):
        file.seek(tensor.offset + row * DIM * 4)
        file.write(values)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], *([name] for name in DEMOS)):
        sys.exit("One folder to write to was wanted. Try: python tests/support/official_model.py /tmp/official v2")
    folder, kind = Path(sys.argv[1]), DEMOS[(sys.argv[2:] or ["v1"])[0]]
    folder.mkdir(parents=True, exist_ok=True)
    print(write_official_model(folder, kind), write_reference(folder / "official.onnx", kind))
