"""Little DLRMs as data, the paper's formulas for them, and ways to run what is compiled from them.

    model = random_dlrm(dim=20, table_rows=(5, 7, 3), bottom=(30,), top=(40, 17))
    dense, indices = random_batch(model, 33)
    numpy_predictions(model, dense, indices)        # [33] float64, independent of dlrm_tvm.reference

Weights come from a seed, of a scale that keeps the predictions apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from dlrm_tvm.model.dlrm import Dense, Dlrm, GraphInputs, Table
from dlrm_tvm.model.interactions import Concat, Cross, Dot
from dlrm_tvm.model.precision import Numerics, numerics_of

if TYPE_CHECKING:
    from dlrm_tvm.compiler.job import Job
    from dlrm_tvm.kernels.dense import DenseSchedule
    from dlrm_tvm.kernels.isa import Family
    from dlrm_tvm.schedules.rules import LayerShape, NetworkSchedule, Schedules
    from dlrm_tvm.schedules.target import CpuTarget


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
    ranks: Sequence[int | None] = (6, 6),
) -> Dlrm:
    """bottom, top: hidden widths, `dim` and 1 are appended. interaction: "dot", "dot_self", "cat" or "cross".
    ranks: of each cross layer, None for full rank.

    sigmoid_layer: which top layer ends in the sigmoid; the others have ReLU, the last one `last_activation` if it is
    not this one.
    """
    rng = np.random.default_rng(seed)
    count, with_self = len(table_rows) + 1, interaction == "dot_self"
    dots = count * (count + 1) // 2 if with_self else count * (count - 1) // 2
    joined = dim + dots if interaction.startswith("dot") else count * dim
    activations = [*["relu"] * len(top), last_activation]
    activations[sigmoid_layer] = "sigmoid"
    return Dlrm(
        name="small",
        bottom=_layers([num_dense, *bottom, dim], [bottom_activation] * (len(bottom) + 1), rng),
        tables=tuple(
            Table(f"emb_{t}", (rng.uniform(-1, 1, (rows, dim)) * np.sqrt(3) / dim**0.5).astype(np.float32))
            for t, rows in enumerate(table_rows)
        ),
        interaction={"cat": Concat, "cross": lambda: random_cross(joined, ranks, rng)}.get(
            interaction, lambda: Dot(with_self)
        )(),
        top=_layers([joined, *top, 1], activations, rng),
        graph_inputs=GraphInputs("dense_x", ("indices",), (), "pred"),
    )


def _layers(widths: Sequence[int], activations: Sequence[str], rng: np.random.Generator) -> tuple[Dense, ...]:
    def layer(inputs: int, outputs: int, activation: str) -> Dense:
        weight = rng.uniform(-1, 1, (outputs, inputs)) * np.sqrt(3 / inputs)
        return Dense(weight.astype(np.float32), rng.uniform(-0.3, 0.3, outputs).astype(np.float32), activation)

    return tuple(layer(*fan, activation) for fan, activation in zip(pairwise(widths), activations))


def random_cross(width: int, ranks: Sequence[int | None], rng: np.random.Generator) -> Cross:
    """Every bias is used, V's too."""
    widths = [(width, width) if rank is None else (width, rank, width) for rank in ranks]
    return Cross(tuple(_layers(each, ["none"] * (len(each) - 1), rng) for each in widths))


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
    if model.interaction.name in ("cat", "cross"):
        joined = numpy_crossed(model.interaction, z.reshape(len(z), -1))
    else:
        i, j = np.tril_indices(z.shape[1], 0 if model.interaction.with_self else -1)
        joined = np.concatenate([x, np.einsum("nid,njd->nij", z, z)[:, i, j]], axis=1)
    pred = numpy_mlp(model.top, joined)[:, 0]
    return pred if model.clamp is None else np.minimum(np.maximum(pred, model.clamp[0]), model.clamp[1])


def numpy_crossed(interaction: Concat | Cross, x0: np.ndarray) -> np.ndarray:
    """arXiv 2008.13535, equations 1 and 2 -> [items, width]; what is joined without cross layers stays as it is."""
    x = x0
    for crossing in getattr(interaction, "crossings", ()):
        gate = x
        for layer in crossing:
            gate = np.einsum("nk,ok->no", gate, layer.weight.astype(np.float64)) + layer.bias
        x = x0 * gate + x
    return x


def numpy_pooled(table: Table, indices: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """One table's bags [items, dim] float64, row by row."""
    pooled = np.zeros((len(offsets), table.dim))
    weight = (lambda row: 1.0) if table.row_weights is None else table.row_weights.__getitem__
    ends = [*offsets[1:], len(indices)]
    for item, (begin, end) in enumerate(zip(offsets, ends)):
        for index in indices[begin:end]:
            pooled[item] += weight(index) * table.rows[index]
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
    from dlrm_tvm.runtime.thread_pool import place_threads

    answers: list = []

    def run() -> None:
        place_threads(threads)
        answers.append(call())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers, "the call raised; see the thread's traceback"
    return answers[0]


def schedules_of(
    model: Dlrm,
    batch: int,
    network: NetworkSchedule | None = None,
    dense: Callable[[LayerShape], DenseSchedule] | None = None,
    numerics: Numerics | None = None,
) -> Schedules:
    """Of our kernels: the rules' schedules, but for those that are given. dense: of each layer."""
    from dlrm_tvm.compiler.plan import layer_shapes
    from dlrm_tvm.schedules.rules import Schedules, default_dense, default_network
    from dlrm_tvm.schedules.target import cpu_target

    precision = "fp32" if numerics is None else numerics.precision
    family = cpu_target(None).family(precision)
    network = network or default_network(batch, family.registers)

    def rule(layer: LayerShape) -> DenseSchedule:
        return default_dense(network.mr, layer.outputs, family.registers, layer.unit)

    return Schedules.given(network, dense or rule, layer_shapes(model, numerics, family))


def job_of(
    model: Dlrm, batch: int, schedules: Schedules | None = None, numerics: Numerics | None = None, **settings: Any
) -> Job:
    """A compilation of a model in memory for this CPU. schedules None: TVM's default code generation."""
    from dlrm_tvm.compiler.job import Job
    from dlrm_tvm.compiler.options import CompileSettings
    from dlrm_tvm.compiler.table_layout import lay_out_tables
    from dlrm_tvm.schedules.rules import DEFAULT_CODE
    from dlrm_tvm.schedules.target import cpu_target

    numerics = numerics or numerics_of(model, "fp32")
    settings = {"isa": "avx512", "output_name": "small", **settings}  # schedules of vectors are given
    return Job(
        CompileSettings(batch_size=batch, precision=numerics.precision, **settings),
        quiet=True,
        cpu=cpu_target(None),
        model=model,
        numerics=numerics,
        tables=lay_out_tables(model, numerics=numerics),
        schedules=schedules or DEFAULT_CODE,
    )


_MAIN, _BAGS = ("main", "dlrm"), ("bags", "dlrm_bags")  # an entry and the kernel it calls


def library_in_memory(
    model: Dlrm,
    batch: int,
    schedules: Schedules | None = None,
    numerics: Numerics | None = None,
    isa: Family | None = None,
) -> Callable[..., np.ndarray]:
    """f(dense, indices, threads=1) -> predictions [batch] float32 of the model compiled; arguments as of job_of.

    With offsets=.. too it calls `bags`, for which both are as flat_bags makes them. A function of our kernels is
    compiled when it is first called: many tests need one of the two.
    """
    import tvm_ffi
    from tvm import IRModule
    from tvm.runtime import cpu
    from tvm.runtime.vm import VirtualMachine

    from dlrm_tvm.compiler.lower import build, lower
    from dlrm_tvm.compiler.pipeline import plan

    job = replace(job_of(model, batch, schedules, numerics), isa=isa)
    if isa is not None and isa.emulated:
        job = replace(job, cpu=unoptimized(job.cpu))
    job = lower(plan(job))

    measuring = ("peak_", "stream_read", "ask_for_tiles")  # not compiled: a third of a small network's time

    @cache
    def machine(dropped: tuple[str, ...]) -> VirtualMachine:
        kept = {
            name: each
            for name, each in job.module.functions.items()
            if name.name_hint not in dropped and not name.name_hint.startswith(measuring)
        }
        return VirtualMachine(build(replace(job, module=IRModule(kept, attrs=job.module.attrs))).executable, cpu())

    others = ((), ()) if schedules is None else (_BAGS, _MAIN)  # TVM's default code has layers in common
    parameters = [
        np.concatenate([chunk.reshape(-1) for chunk in source.chunks(0)]).reshape(source.shape)
        for source in (*job.tables.sources, job.mlp)
    ]
    parameters = [tvm_ffi.from_dlpack(aligned(array)) for array in parameters]

    def run(dense: np.ndarray, indices: np.ndarray, threads: int = 1, offsets: np.ndarray | None = None) -> np.ndarray:
        in_bags = offsets is not None
        arrays = [dense, indices, offsets] if in_bags else [dense, indices]
        inputs = [tvm_ffi.from_dlpack(aligned(array)) for array in arrays]
        function = machine(others[in_bags])[("main", "bags")[in_bags]]
        return on_threads(threads, lambda: np.from_dlpack(function(*inputs, *parameters)).copy())

    return run


def unoptimized(cpu: CpuTarget) -> CpuTarget:
    """Without LLVM's passes, which make little of the hundreds of loops of emulated tiles in half a minute."""
    import tvm

    attributes = cpu.tvm_target.attrs
    options = {name: attributes[name] for name in ("mcpu", "mattr") if name in attributes}
    plain = tvm.target.Target({"kind": "llvm", "num-cores": 1, "opt-level": 0, **options})
    return replace(cpu, tvm_target=plain)


def without_code(job: Job) -> Job:
    """The job with what is made of machine code left out, for `without_linking`: milliseconds in place of a second."""
    from dlrm_tvm.compiler.verify import Verification
    from dlrm_tvm.runtime.parameters import array_source

    mlp = array_source("mlp", np.zeros(16, np.float32))
    return replace(job, module=0, mlp=mlp, executable=0, verification=Verification(0, 0.0))


@contextmanager
def without_linking() -> Iterator[None]:
    from dlrm_tvm.compiler import library_writer

    with patch.object(library_writer, "_link", lambda _, path: path.write_bytes(b"")):
        yield


def build_without_code(model: Dlrm, batch: int, directory: Path) -> Path:
    """A library with the model's tables and manifest, which can be opened, not run."""
    from dlrm_tvm.compiler.pipeline import compile_model

    with without_linking():
        return compile_model(without_code(job_of(model, batch, directory=directory))).library


def build_plain(model: Dlrm, batch: int, directory: Path) -> Path:
    """The model compiled by TVM's default code generation, which runs on any CPU -> path of the library. LLVM's passes
    are left out: they take 2 s, and the code is right without them."""
    from dlrm_tvm.compiler.pipeline import compile_model

    job = job_of(model, batch, directory=directory)
    return compile_model(replace(job, cpu=unoptimized(job.cpu))).library


def build(model: Dlrm, batch: int, schedules: Schedules | None, directory: Path, **settings: Any) -> Path:
    """directory/small_bBATCH.so, of the job that job_of makes."""
    from dlrm_tvm.compiler.pipeline import compile_model

    return compile_model(job_of(model, batch, schedules, directory=directory, **settings)).library
