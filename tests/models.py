"""Little DLRMs as data, the paper's formulas for them, and ways to run what is compiled from them.

    model = random_dlrm(dim=20, table_rows=(5, 7, 3), bottom=(30,), top=(40, 17))
    dense, indices = random_batch(model, 33)
    numpy_predictions(model, dense, indices)        # [33] float64, independent of dlrm_tvm.reference

Weights come from a seed, of a scale that keeps the predictions apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_tvm.model import Dense, Dlrm, GraphInputs, Interaction, Table


def random_dlrm(
    *,
    num_dense: int = 13,
    table_rows: Sequence[int] = (5, 7, 3),
    dim: int = 16,
    bottom: Sequence[int] = (20,),
    top: Sequence[int] = (24,),
    interaction: str = "dot",
    sigmoid_layer: int = -1,
    bottom_activation: str = "relu",
    last_activation: str = "none",
    seed: int = 0,
) -> Dlrm:
    """bottom, top: hidden widths, `dim` and 1 are appended. interaction: "dot", "dot_self" or "cat".

    sigmoid_layer: which top layer ends in the sigmoid; the others have ReLU, the last one `last_activation` if it is
    not this one.
    """
    rng = np.random.default_rng(seed)
    count, with_self = len(table_rows) + 1, interaction == "dot_self"
    dots = count * (count + 1) // 2 if with_self else count * (count - 1) // 2
    joined = count * dim if interaction == "cat" else dim + dots
    activations = [*["relu"] * len(top), last_activation]
    activations[sigmoid_layer] = "sigmoid"
    return Dlrm(
        name="small",
        bottom=_layers([num_dense, *bottom, dim], [bottom_activation] * (len(bottom) + 1), rng),
        tables=tuple(
            Table(f"emb_{t}", (rng.uniform(-1, 1, (rows, dim)) * np.sqrt(3) / dim**0.5).astype(np.float32))
            for t, rows in enumerate(table_rows)
        ),
        interaction=Interaction(interaction.removesuffix("_self"), with_self),
        top=_layers([joined, *top, 1], activations, rng),
        graph_inputs=GraphInputs("dense_x", ("indices",), (), "pred"),
    )


def _layers(widths: Sequence[int], activations: Sequence[str], rng: np.random.Generator) -> tuple[Dense, ...]:
    def layer(inputs: int, outputs: int, activation: str) -> Dense:
        weight = rng.uniform(-1, 1, (outputs, inputs)) * np.sqrt(3 / inputs)
        return Dense(weight.astype(np.float32), rng.uniform(-0.3, 0.3, outputs).astype(np.float32), activation)

    return tuple(layer(*fan, activation) for fan, activation in zip(pairwise(widths), activations))


def random_batch(model: Dlrm, items: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """dense [items, num_dense] float32, indices [items, T] int64; the first two items take first and last rows."""
    rng = np.random.default_rng(seed)
    dense = rng.uniform(-1.7, 1.7, (items, model.num_dense)).astype(np.float32)
    indices = np.stack([rng.integers(0, table.num_rows, items) for table in model.tables], axis=1)
    indices[:1] = 0
    indices[1:2] = [table.num_rows - 1 for table in model.tables]
    return dense, indices


def random_bags(model: Dlrm, items: int, seed: int = 1, longest: int = 7) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """indices, offsets as torch.nn.EmbeddingBag takes them per table: bags of 0 to `longest` indices.

    The first of several items has empty bags, the last one takes each table's last row. Of three tables and more the
    second has empty bags only; the last table's second bag is ten times as long.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, (len(model.tables), items))
    lengths[:, :1] = 0
    lengths[-1, 1:2] = 10 * longest
    lengths[:, -1:] = 1
    if len(model.tables) > 2:
        lengths[1] = 0
    indices = [rng.integers(0, table.num_rows, lengths[t].sum()) for t, table in enumerate(model.tables)]
    for values, table in zip(indices, model.tables):
        values[-1:] = table.num_rows - 1
    return indices, [np.cumsum([0, *each])[:items] for each in lengths]


def flat_bags(
    indices: Sequence[np.ndarray], offsets: Sequence[np.ndarray], batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same as the library's function `bags` takes them; items up to `batch` get empty bags."""
    begins, first = [], 0
    for values, starts in zip(indices, offsets):
        begins.append(first + np.concatenate([starts, np.full(batch + 1 - len(starts), len(values))]))
        first += len(values)
    flat = np.concatenate([*indices, [0]])  # an array of nothing has no memory
    return flat.astype(np.int64), np.array(begins, np.int64)


def numpy_predictions(
    model: Dlrm, dense: np.ndarray, indices: np.ndarray | Sequence[np.ndarray], offsets: Sequence | None = None
) -> np.ndarray:
    """The formulas of arXiv 1906.00091, section 2, in float64 -> [items]; with offsets, bags as random_bags makes."""
    if offsets is None:
        indices, offsets = list(np.asarray(indices).T), [np.arange(len(dense))] * len(model.tables)
    x = numpy_mlp(model.bottom, dense)
    z = np.stack([x, *map(numpy_pooled, model.tables, indices, offsets)], axis=1)
    if model.interaction.kind == "cat":
        joined = z.reshape(len(z), -1)
    else:
        i, j = np.tril_indices(z.shape[1], 0 if model.interaction.with_self else -1)
        joined = np.concatenate([x, np.einsum("nid,njd->nij", z, z)[:, i, j]], axis=1)
    pred = numpy_mlp(model.top, joined)[:, 0]
    return pred if model.clamp is None else np.minimum(np.maximum(pred, model.clamp[0]), model.clamp[1])


def numpy_pooled(table: Table, indices: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """One table's bags [items, dim] float64, row by row."""
    pooled = np.zeros((len(offsets), table.dim))
    weights = np.ones(table.num_rows) if table.row_weights is None else table.row_weights
    ends = [*offsets[1:], len(indices)]
    for item, (begin, end) in enumerate(zip(offsets, ends)):
        for index in indices[begin:end]:
            pooled[item] += weights[index] * table.rows[index]
        if table.pooling == "mean" and end > begin:
            pooled[item] /= end - begin
    return pooled


def numpy_mlp(layers: Sequence[Dense], x: np.ndarray) -> np.ndarray:
    """x [items, inputs] -> [items, outputs] float64 through all layers."""
    functions = {"none": lambda y: y, "relu": lambda y: y * (y > 0), "sigmoid": lambda y: 0.5 * (1 + np.tanh(y / 2))}
    x = x.astype(np.float64)
    for layer in layers:
        x = functions[layer.activation](np.einsum("nk,ok->no", x, layer.weight.astype(np.float64)) + layer.bias)
    return x


def assert_close(got: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    """Everywhere |got - wanted| <= tolerance * max(1, |wanted|), which a NaN on one side fails."""
    error = np.abs(got - wanted) / np.maximum(1, np.abs(wanted))
    assert got.shape == wanted.shape
    assert np.all(error <= tolerance), f"largest error {np.nanmax(error):.3g}, {np.isnan(error).sum()} NaN"


def aligned(values: np.ndarray) -> np.ndarray:
    """A C-contiguous copy from a 64-byte boundary: what generated code takes for granted."""
    values = np.ascontiguousarray(values)
    raw = np.empty(values.nbytes + 64, np.uint8)
    at = -raw.ctypes.data % 64
    copy = raw[at : at + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def on_threads(threads: int, call: Callable[[], Any]) -> Any:
    """call() in a fresh Python thread, whose TVM pool, a pool per calling thread, has `threads` threads."""
    from dlrm_tvm.placement import place_threads

    answers: list = []

    def run() -> None:
        place_threads(threads)
        answers.append(call())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers, "the call raised; see the thread's traceback"
    return answers[0]


def library_in_memory(lowered: Any) -> Callable[..., np.ndarray]:
    """f(dense, indices, threads=1) -> predictions [batch] float32 of what lower_tuned or lower_plain made.

    With offsets=.. too it calls `bags`, for which both are as flat_bags makes them.
    """
    import tvm_ffi
    from tvm.runtime import cpu
    from tvm.runtime.vm import VirtualMachine

    machine = VirtualMachine(lowered.executable, cpu())
    one_hot, bags = machine["main"], machine["bags"]
    parameters = [
        np.concatenate([chunk.reshape(-1) for chunk in source.chunks()]).reshape(source.shape)
        for source in (*lowered.tables.sources, lowered.mlp)
    ]
    parameters = [tvm_ffi.from_dlpack(aligned(array)) for array in parameters]

    def run(dense: np.ndarray, indices: np.ndarray, threads: int = 1, offsets: np.ndarray | None = None) -> np.ndarray:
        function, arrays = (one_hot, [dense, indices]) if offsets is None else (bags, [dense, indices, offsets])
        inputs = [tvm_ffi.from_dlpack(aligned(array)) for array in arrays]
        return on_threads(threads, lambda: np.from_dlpack(function(*inputs, *parameters)).copy())

    return run


def build_plain(model: Dlrm, batch: int, directory: Path, name: str = "small") -> Path:
    """The model compiled without schedules of ours, which runs on any CPU -> path of the library."""
    from dlrm_tvm import building, lower, target

    cpu = target.cpu_target(None)
    lowered = lower.lower_plain(model, batch, cpu, lower.Dump(None))
    library, _ = building.build_library(model, lowered, None, cpu, batch=batch, name=name, directory=directory)
    return library
