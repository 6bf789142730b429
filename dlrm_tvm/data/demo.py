"""The built-in demo models as files, and inputs for them; the scripts use the first when no model is given.

    __data/demo_dlrm_10000.onnx        the graph; ends in a marker with the sha256 of
    __data/demo_dlrm_10000.onnx.data   all weights, float32: layers at offset 0, tables from a 2 MiB boundary on

demo_dlrm is MLPerf's first DLRM, demo_dlrm_v2 the second one (DLRM-DCNv2). Both files are generated from a seed on
first use (weights by demo_weights.py, the graph by dlrm_graph.py).
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..console import show
from ..errors import UserError
from ..machine.files import locked, whole_blocks, write_whole
from ..model.dlrm import Dense, Dlrm, GraphInputs, Table
from ..model.interactions import Cross, Dot
from ..paths import DATA, SHIPPED_DATA
from .demo_weights import (
    BOTTOM,
    CRITEO_TABLE_ROWS,
    DEMOS,
    V1,
    V2,
    DemoModel,
    DemoTensor,
    data_chunks,
    demo_network,
    demo_tensors,
    index_names,
    mlp_end,
)
from .npz import read_arrays

DEMO_TABLE_ROWS = 10_000


def demo_reference(model: DemoModel = V1) -> Path:
    """The items of the demo that are shipped, with PyTorch's outputs and labels; for tables of DEMO_TABLE_ROWS."""
    return SHIPPED_DATA / model.reference


DEMO_REFERENCE = demo_reference()


def reference_for(fingerprint: str) -> Path:
    """The shipped items of the demo with this fingerprint; of the first demo, which will be refused, for any other."""
    for model in DEMOS.values():
        path = demo_reference(model)
        if path.is_file() and str(read_arrays(path, ["model_fingerprint"])["model_fingerprint"]) == fingerprint:
            return path
    return DEMO_REFERENCE


def demo_model_path(
    table_rows: int = DEMO_TABLE_ROWS,
    model: DemoModel = V1,
    *,
    directory: Path = DATA,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Path of the demo model's ONNX file, which is generated if missing or damaged (seconds, ~80 MB; v2 ~150 MB).

    One line announces that, on stderr unless `announce` is given. An existing model is checked in milliseconds:
    marker, size, sha256 of the layers. Raises UserError when the disk has no room.
    """
    path = directory / f"{model.name}_{table_rows}.onnx"
    tensors = demo_tensors(table_rows, model)
    if _is_intact(path, tensors, table_rows, model):
        return path
    megabytes = tensors[-1].end / 1e6
    say = announce or partial(show, to=sys.stderr)
    size = f"tables capped at {table_rows:,} rows ({megabytes:,.0f} MB)"
    say(f"Generating the demo model, {size}: {os.path.relpath(path)}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory):
            if not _is_intact(path, tensors, table_rows, model):
                _generate(path, tensors, table_rows, model)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: {reason}; the demo model needs {megabytes:,.0f} MB here. Free some space.") from error
    return path


def demo_dlrm(table_rows: int = DEMO_TABLE_ROWS, model: DemoModel = V1, *, directory: Path = DATA) -> Dlrm:
    """The demo model from its data file, without ONNX; all weights are memory maps."""
    path = demo_model_path(table_rows, model, directory=directory)
    tensors = demo_tensors(table_rows, model)
    arrays = {each.name: np.memmap(_data_path(path), "<f4", "r", each.offset, each.shape) for each in tensors}

    def dense(name: str, activation: str) -> Dense:
        weight = arrays[f"{name}.weight"]
        return Dense(weight, arrays.get(f"{name}.bias", np.zeros(len(weight), np.float32)), activation)

    def mlp(prefix: str, activations: list[str]) -> tuple[Dense, ...]:
        return tuple(dense(f"{prefix}.{i}", activation) for i, activation in enumerate(activations))

    crossings = tuple(tuple(dense(f"cross.{i}.{each}", "none") for each in "vw") for i in range(len(model.ranks)))
    return Dlrm(
        name=path.stem,
        bottom=mlp("bottom", ["relu"] * (len(model.bottom) - 1)),
        tables=tuple(Table(tensor.name, arrays[tensor.name]) for tensor in tensors if tensor.is_table),
        interaction=Cross(crossings) if crossings else Dot(),
        top=mlp("top", ["relu"] * (len(model.top) - 2) + ["sigmoid"]),
        graph_inputs=GraphInputs("dense_x", index_names(model), (), "pred", model.indices_per_bag),
    )


def demo_inputs(num_items: int, *, seed: int, table_rows: int = DEMO_TABLE_ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Inputs like Criteo's: dense [n, 13] float32 = log(1 + count), indices [n, 26] int64, both skewed.

    Counts are m * 2^s with m uniform in 0..7 and s in 0..9, so log(1 + count) is 0 to 8.2. A row number is u^8 * rows
    with u uniform, so half of the lookups read the first 1/256 of a table. Of one seed, fewer items are the first of
    more.
    """
    log_counts = np.array([math.log1p(count) for count in range((7 << 9) + 1)], dtype=np.float32)
    dense = np.empty((num_items, BOTTOM[0]), dtype=np.float32)
    indices = np.empty((num_items, len(CRITEO_TABLE_ROWS)), dtype=np.int64)
    for column in range(BOTTOM[0]):
        words = _words(seed, column, num_items)
        shifts = ((words >> np.uint64(32)) * np.uint64(10)) >> np.uint64(32)
        dense[:, column] = log_counts[((words & np.uint64(7)) << shifts).astype(np.int64)]
    for table, rows in enumerate(CRITEO_TABLE_ROWS):
        u = _words(seed, BOTTOM[0] + table, num_items) >> np.uint64(32)  # a fraction of 32 bits
        for _ in range(3):
            u = (u * u) >> np.uint64(32)
        indices[:, table] = (u * np.uint64(min(rows, table_rows))) >> np.uint64(32)
    return dense, indices


def demo_bags(
    num_items: int, *, seed: int, table_rows: int = DEMO_TABLE_ROWS, model: DemoModel = V2
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The same with bags of the model's lengths: dense, and indices [n, length] int64 of each table.

    As in MLPerf's data, a bag's first index tells the others: one category always brings the same rows.
    """
    dense, firsts = demo_inputs(num_items, seed=seed, table_rows=table_rows)
    bags = []
    for table, (rows, length) in enumerate(zip(model.table_rows, model.lengths)):
        rows = np.uint64(min(rows, table_rows))
        first = firsts[:, table].astype(np.uint64) % rows
        keys = (first[:, None] << np.uint64(20)) + np.arange(length, dtype=np.uint64) + np.uint64(table << 10)
        others = ((_mixed(keys) >> np.uint64(32)) * rows) >> np.uint64(32)
        others[:, 0] = first
        bags.append(others.astype(np.int64))
    return dense, bags


def data_sha256(table_rows: int, model: DemoModel = V1) -> str:
    """sha256 of the data file, computed without writing it: the value for `DemoModel.data_sha256`."""
    digest = hashlib.sha256()
    for chunk in data_chunks(demo_tensors(table_rows, model)):
        digest.update(chunk)
    return digest.hexdigest()


def _mixed(keys: np.ndarray) -> np.ndarray:
    """uint64 -> uint64: splitmix64's finisher (Steele, Lea, Flood, OOPSLA 2014), which scatters neighbours."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _words(seed: int, column: int, count: int) -> np.ndarray:
    return np.random.PCG64([seed, column]).random_raw(count)


def _is_intact(path: Path, tensors: list[DemoTensor], table_rows: int, model: DemoModel) -> bool:
    """Whether both files are complete. The graph is renamed into place last, so its marker proves the data's sha256."""
    expected_sha256 = model.data_sha256.get(table_rows)
    try:
        tail = path.read_bytes()[-len(_marker("0" * 64)) :].decode("ascii", "replace")
        marked = tail == _marker(expected_sha256 or tail[-64:])
        if not marked or _data_path(path).stat().st_size != tensors[-1].end:
            return False
        with _data_path(path).open("rb") as data:
            return hashlib.sha256(data.read(mlp_end(tensors))).hexdigest() == model.mlp_sha256
    except OSError:
        return False


def _generate(path: Path, tensors: list[DemoTensor], table_rows: int, model: DemoModel) -> None:
    """Write data and graph under temporary names, then rename them: data first, as the graph has its sha256."""
    from .dlrm_graph import dlrm_graph  # imports onnx, which is needed only here

    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < tensors[-1].end:
        raise OSError(f"only {free_bytes / 1e6:,.0f} MB are free")
    graph_temporary, data_temporary = (Path(f"{name}.tmp") for name in (path, _data_path(path)))
    try:
        sha256 = _write_data(data_temporary, tensors)
        expected_sha256 = model.data_sha256.get(table_rows, sha256)
        if sha256 != expected_sha256:
            raise RuntimeError(f"the demo weights have sha256 {sha256}, not {expected_sha256}: has PCG64 changed?")
        names = {"name": model.name, "data_name": _data_path(path).name, "marker": _marker(sha256)}
        graph = dlrm_graph(demo_network(tensors, model), **names)
        graph_temporary.write_bytes(graph.SerializeToString())
        path.unlink(missing_ok=True)  # an older graph must not stand beside the new data
        data_temporary.replace(_data_path(path))
        graph_temporary.replace(path)
    finally:
        graph_temporary.unlink(missing_ok=True)
        data_temporary.unlink(missing_ok=True)


def _write_data(path: Path, tensors: list[DemoTensor]) -> str:
    """Write the data file and return its sha256. In whole huge pages, so that the page cache can map it by those."""
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for block in whole_blocks(np.frombuffer(chunk, np.uint8) for chunk in data_chunks(tensors)):
            write_whole(file, block)
            digest.update(block)
    return digest.hexdigest()


def _marker(sha256: str) -> str:
    return f"dlrm_tvm demo model, data sha256 {sha256}"


def _data_path(path: Path) -> Path:
    return path.with_name(path.name + ".data")
