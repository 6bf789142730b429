"""The built-in demo model as files, and inputs for it: what the scripts use when no model is given.

    __data/demo_dlrm_10000.onnx        the graph; ends in a marker with the sha256 of
    __data/demo_dlrm_10000.onnx.data   all weights, float32: MLPs at offset 0, tables from a 2 MiB boundary on

Both are generated from a seed on first use (demo_weights.py has the numbers, demo_graph.py the graph).
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .demo_weights import BOTTOM, CRITEO_TABLE_ROWS, TOP, DemoTensor, data_chunks, demo_tensors, mlp_end
from .errors import UserError
from .model import Dense, Dlrm, GraphInputs, Interaction, Table
from .parameters import whole_blocks, write_whole

DEMO_TABLE_ROWS = 10_000
DEMO_DIRECTORY = Path(__file__).resolve().parents[1] / "__data"
DEMO_REFERENCE = DEMO_DIRECTORY / "demo_data_small.npz"

# Of the whole data file, and of its head up to the end of the MLP weights, which no cap on the tables changes.
DATA_SHA256 = {
    10_000: "a384e7349d82e94521a8c3d53667035efd24d75dc07dfd25650cbeb957ca2b70",
    100_000: "7011c47d393c8f2f9e992de5c7f468a963e7be9fcde2d753cb39ceb972599c41",
}
MLP_SHA256 = "69fca0d1c1172d195c8b562e67ab54eb152b7e47c1d9a61f0faaf5133de8561e"


def demo_model_path(
    table_rows: int = DEMO_TABLE_ROWS,
    *,
    directory: Path = DEMO_DIRECTORY,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Path of the demo model's ONNX file, generated first where it is missing or damaged (seconds, ~80 MB).

    Generating is announced by one line, on stderr unless `announce` takes it. A model already there is checked in
    milliseconds: marker, size, sha256 of the MLP weights. Raises UserError when the disk cannot take it.
    """
    path = directory / f"demo_dlrm_{table_rows}.onnx"
    tensors = demo_tensors(table_rows)
    if _is_intact(path, tensors, DATA_SHA256.get(table_rows)):
        return path
    megabytes = tensors[-1].end / 1e6
    say = announce or (lambda line: print(line, file=sys.stderr))
    say(f"Generating the demo model, tables capped at {table_rows:,} rows ({megabytes:,.0f} MB): {path}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            if not _is_intact(path, tensors, DATA_SHA256.get(table_rows)):
                _generate(path, tensors, DATA_SHA256.get(table_rows))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: {reason}; the demo model needs {megabytes:,.0f} MB here. Free some space.") from error
    return path


def demo_dlrm(table_rows: int = DEMO_TABLE_ROWS, *, directory: Path = DEMO_DIRECTORY) -> Dlrm:
    """The demo model straight from its data file, all weights as memory maps; no ONNX involved."""
    path = demo_model_path(table_rows, directory=directory)
    arrays = {
        tensor.name: np.memmap(_data_path(path), "<f4", "r", tensor.offset, tensor.shape)
        for tensor in demo_tensors(table_rows)
    }

    def mlp(prefix: str, activations: list[str]) -> tuple[Dense, ...]:
        layers = ((f"{prefix}.{i}", activation) for i, activation in enumerate(activations))
        return tuple(Dense(arrays[f"{name}.weight"], arrays[f"{name}.bias"], how) for name, how in layers)

    return Dlrm(
        name=path.stem,
        bottom=mlp("bottom", ["relu"] * (len(BOTTOM) - 1)),
        tables=tuple(Table(tensor.name, arrays[tensor.name]) for tensor in demo_tensors(table_rows) if tensor.is_table),
        interaction=Interaction("dot"),
        top=mlp("top", ["relu"] * (len(TOP) - 2) + ["sigmoid"]),
        graph_inputs=GraphInputs(dense="dense_x", indices=("indices",), offsets=(), output="pred"),
    )


def demo_inputs(num_items: int, *, seed: int, table_rows: int = DEMO_TABLE_ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Inputs shaped like Criteo's: dense [n, 13] float32 = log(1 + count), indices [n, 26] int64, both skewed.

    Counts are m * 2^s, m uniform in 0..7 and s in 0..9, so log(1 + count) is 0 to 8.2. A row number is u^8 * rows of
    a uniform u, so low rows are frequent: half of the accesses fall into the first 1/256 of a table. Fewer items from
    the same seed are the head of more.
    """
    log_counts = np.array([math.log1p(count) for count in range((7 << 9) + 1)], dtype=np.float32)
    dense = np.empty((num_items, BOTTOM[0]), dtype=np.float32)
    indices = np.empty((num_items, len(CRITEO_TABLE_ROWS)), dtype=np.int64)
    for column in range(BOTTOM[0]):
        words = _words(seed, column, num_items)
        shifts = ((words >> np.uint64(32)) * np.uint64(10)) >> np.uint64(32)
        dense[:, column] = log_counts[((words & np.uint64(7)) << shifts).astype(np.int64)]
    for table, rows in enumerate(CRITEO_TABLE_ROWS):
        u = _words(seed, BOTTOM[0] + table, num_items) >> np.uint64(32)  # a fraction in 32 bits
        for _ in range(3):
            u = (u * u) >> np.uint64(32)
        indices[:, table] = (u * np.uint64(min(rows, table_rows))) >> np.uint64(32)
    return dense, indices


def data_sha256(table_rows: int) -> str:
    """sha256 of the data file, computed without writing it: what belongs into `DATA_SHA256`."""
    digest = hashlib.sha256()
    for chunk in data_chunks(demo_tensors(table_rows)):
        digest.update(chunk)
    return digest.hexdigest()


def _words(seed: int, column: int, count: int) -> np.ndarray:
    return np.random.PCG64([seed, column]).random_raw(count)


def _is_intact(path: Path, tensors: list[DemoTensor], expected_sha256: str | None) -> bool:
    """Whether both files stand complete: the graph is renamed into place last, so its marker vouches for the data."""
    try:
        tail = path.read_bytes()[-len(_marker("0" * 64)) :].decode("ascii", "replace")
        marked = tail == _marker(expected_sha256 or tail[-64:])
        if not marked or _data_path(path).stat().st_size != tensors[-1].end:
            return False
        with _data_path(path).open("rb") as data:
            return hashlib.sha256(data.read(mlp_end(tensors))).hexdigest() == MLP_SHA256
    except OSError:
        return False


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One generating process per folder at a time; the system lifts the lock when its holder dies."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _generate(path: Path, tensors: list[DemoTensor], expected_sha256: str | None) -> None:
    """Write data and graph under temporary names, then rename them: data first, as the graph vouches for it."""
    from .demo_graph import demo_graph  # imports onnx, which only generating needs

    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < tensors[-1].end:
        raise OSError(f"only {free_bytes / 1e6:,.0f} MB are free")
    graph_temporary, data_temporary = (Path(f"{name}.tmp") for name in (path, _data_path(path)))
    try:
        sha256 = _write_data(data_temporary, tensors)
        if sha256 != (expected_sha256 or sha256):
            raise RuntimeError(f"the demo weights have sha256 {sha256}, not {expected_sha256}: has PCG64 changed?")
        graph = demo_graph(tensors, data_name=_data_path(path).name, marker=_marker(sha256))
        graph_temporary.write_bytes(graph.SerializeToString())
        path.unlink(missing_ok=True)  # an older graph must not vouch for the new data
        data_temporary.replace(_data_path(path))
        graph_temporary.replace(path)
    finally:
        graph_temporary.unlink(missing_ok=True)
        data_temporary.unlink(missing_ok=True)


def _write_data(path: Path, tensors: list[DemoTensor]) -> str:
    """Write the data file; its sha256. In whole huge pages, so that the page cache can keep and map it as such."""
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
