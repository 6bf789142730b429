"""Embedding bags alone: our kernel beside PyTorch's EmbeddingBag and ONNX Runtime, one core, one thread, fp32.

    make bench-bags                              or  PYTHONPATH=. python tests/benchmarks/bags.py --bag 20

Every engine pools the same bags of random rows out of the same memory: tables far larger than any cache, several sets
of indices in turn, so that rows are cold. Our kernel is the one that the network is made with. PyTorch's CPU build
pools float32 sums through FBGEMM. ONNX Runtime has the form that PyTorch's exporter writes (a Loop over the bags) and
the best one that a graph of bags of one length allows (Gather, Reshape, ReduceSum). Outputs are checked first: a
wrong engine gets no number. Then engines take turns in random order. Leaves nothing; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter

import numpy as np

from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.machine.environment import describe_environment
from dlrm_tvm.machine.topology import read_topology

TOLERANCE = 1e-5
SETS = 12  # of indices, in turn
CALLS = 3  # of an engine's turn, after one that is not timed


@dataclass(frozen=True, eq=False)
class Lookups:
    """tables: [T, rows, dim] float32; indices: [SETS, T, batch * bag] int64, bag b of a table at b * bag."""

    tables: np.ndarray
    indices: np.ndarray
    batch: int
    bag: int

    @property
    def rows_per_call(self) -> int:
        return self.tables.shape[0] * self.batch * self.bag

    def wanted(self, number: int) -> np.ndarray:
        """[batch, T, dim] float64 of one set."""
        shape = (self.batch, self.bag)
        pooled = [t[i.reshape(shape)].sum(axis=1, dtype=np.float64) for t, i in zip(self.tables, self.indices[number])]
        return np.stack(pooled, axis=1)


@dataclass(frozen=True)
class Engine:
    """run(number of the set) is timed; outputs() gives [batch, T, dim] of the last run."""

    name: str
    run: Callable[[int], object]
    outputs: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Row:
    """ns_per_row: of a round's turns the median, the lowest and highest tenth; ratio: ours is so much faster."""

    engine: str
    max_abs_error: float
    ns_per_row: float | None = None
    ns_per_row_p10: float | None = None
    ns_per_row_p90: float | None = None
    ratio: float | None = None
    ratio_p10: float | None = None
    ratio_p90: float | None = None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name, default, meaning in (
        ("tables", 26, "how many"),
        ("table-rows", 200_000, "of each table"),
        ("dim", 128, "values of a row, a multiple of 16"),
        ("batch", 100, "bags per table and call"),
        ("bag", 20, "rows per bag"),
        ("rounds", 30, "turns of each engine"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{meaning}; default {default}")
    parser.add_argument("--core", type=int, help="cpu id to run on; default: the first usable one")
    args = parser.parse_args()
    least = min(args.tables, args.table_rows, args.dim, args.batch, args.bag, args.rounds)
    if least < 1 or args.dim % 16:
        raise UserError("sizes must be at least 1, and --dim a multiple of 16.")
    return args


def main() -> int:
    args = parse_args()
    topology = read_topology()
    core = min(topology.usable) if args.core is None else args.core
    os.sched_setaffinity(0, [core])
    lookups = make_lookups(args)
    print(
        f"{args.tables} tables of {args.table_rows:,} x {args.dim} ({lookups.tables.nbytes / 1e9:.1f} GB), "
        f"{args.batch} bags of {args.bag} rows each, one thread on core {core}",
        flush=True,
    )
    engines = [engine for opened in (open_ours, open_torch, open_onnxruntime) for engine in opened(lookups)]
    errors = {engine.name: check(engine, lookups) for engine in engines}
    times = measure([engine for engine in engines if errors[engine.name] <= TOLERANCE], lookups, args.rounds)
    results = [row(name, errors[name], times) for name in errors]
    print(table(results))
    environment = describe_environment(topology)
    print(json.dumps({**vars(args), "core": core, "results": [asdict(r) for r in results], "environment": environment}))
    return 0 if max(errors.values()) <= TOLERANCE else 1


def make_lookups(args: argparse.Namespace) -> Lookups:
    rng = np.random.default_rng(0)
    tables = in_huge_pages((args.tables, args.table_rows, args.dim), np.float32)
    values = rng.random((args.table_rows, args.dim), dtype=np.float32) - np.float32(0.5)
    for number, each in enumerate(tables):
        each[:] = np.roll(values, number, axis=0)
    indices = in_huge_pages((SETS, args.tables, args.batch * args.bag), np.int64)
    indices[:] = rng.integers(0, args.table_rows, indices.shape)
    return Lookups(tables, indices, args.batch, args.bag)


def in_huge_pages(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros in memory of their own, the same for every engine; huge pages where the kernel grants them."""
    memory = mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


def open_ours(lookups: Lookups) -> list[Engine]:
    import tvm
    import tvm_ffi

    from dlrm_tvm.kernels.embedding_bag import BagShape, bag_prefetch, embedding_bag, tiles_at_once
    from dlrm_tvm.schedules.rules import default_network
    from dlrm_tvm.schedules.target import cpu_target

    cpu = cpu_target(None)
    tables, rows, dim = lookups.tables.shape
    mr = default_network(lookups.batch, cpu.family("fp32").registers).mr
    items = mr * tiles_at_once(-(-lookups.batch // mr), mr * tables * dim * 4)
    shape = BagShape(lookups.batch, dim, lookups.tables.size, (False,) * tables)
    module = tvm.IRModule({"embedding_bag_fp32": embedding_bag(shape, items, bag_prefetch(dim))})
    function = tvm.compile(module, target=cpu.tvm_target)["embedding_bag_fp32"]
    arrays = {name: in_huge_pages(*size) for name, size in {
        "offsets": ((tables, lookups.batch + 1), np.int64), "info": ((2, tables), np.int64),
        "pooled": ((lookups.batch * tables * dim,), np.float32), "wrong": ((lookups.batch,), np.int64),
    }.items()}  # fmt: skip
    per_table = lookups.batch * lookups.bag
    arrays["offsets"][:] = np.arange(tables)[:, None] * per_table + np.arange(lookups.batch + 1) * lookups.bag
    arrays["info"][:] = np.arange(tables) * rows * dim, np.full(tables, rows)
    offsets, info, pooled, wrong = map(tvm_ffi.from_dlpack, arrays.values())
    sets = [tvm_ffi.from_dlpack(each.reshape(-1)) for each in lookups.indices]
    weights = tvm_ffi.from_dlpack(lookups.tables.reshape(-1))
    outputs = arrays["pooled"].reshape(lookups.batch, tables, dim)
    return [Engine("ours", lambda k: function(sets[k], offsets, weights, info, pooled, wrong), outputs.copy)]


def open_torch(lookups: Lookups) -> list[Engine]:
    try:
        import torch
    except ImportError:
        print("PyTorch     skipped: not installed (pip install torch)", flush=True)
        return []
    torch.set_num_threads(1)
    pool = torch.nn.functional.embedding_bag
    weights = [torch.from_numpy(each) for each in lookups.tables]
    sets = [[torch.from_numpy(each) for each in indices] for indices in lookups.indices]
    offsets = torch.arange(lookups.batch) * lookups.bag
    last: list = []

    def run(number: int) -> None:
        with torch.inference_mode():
            last[:] = [pool(i, w, offsets, mode="sum") for i, w in zip(sets[number], weights)]

    return [Engine("PyTorch", run, lambda: np.stack([each.numpy() for each in last], axis=1))]


def open_onnxruntime(lookups: Lookups) -> list[Engine]:
    try:
        import onnxruntime
    except ImportError:
        print("ONNX Runtime skipped: not installed (pip install -r requirements-dev.txt)", flush=True)
        return []
    from bag_graphs import gather_graph, loop_graph

    forms = {"ONNX Runtime, Loop": loop_graph, "ONNX Runtime, Gather": gather_graph}
    return [_onnxruntime_engine(onnxruntime, name, graph(lookups), lookups) for name, graph in forms.items()]


def _onnxruntime_engine(ort, name: str, graph: bytes, lookups: Lookups) -> Engine:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    tables, _, dim = lookups.tables.shape
    offsets = np.arange(lookups.batch, dtype=np.int64) * lookups.bag
    outputs = [ort.OrtValue.ortvalue_from_numpy(np.zeros((lookups.batch, dim), np.float32)) for _ in range(tables)]
    weights = [ort.OrtValue.ortvalue_from_numpy(each) for each in lookups.tables]  # the same memory, not a copy
    bound, kept = [], []
    wanted = {each.name for each in session.get_inputs()}
    for indices in lookups.indices:
        binding = session.io_binding()
        for t in range(tables):
            values = {f"table_{t}": weights[t], f"indices_{t}": ort.OrtValue.ortvalue_from_numpy(indices[t])}
            values["offsets"] = ort.OrtValue.ortvalue_from_numpy(offsets)
            for key in values.keys() & wanted:
                binding.bind_ortvalue_input(key, values[key])
            binding.bind_ortvalue_output(f"pooled_{t}", outputs[t])
            kept.append(values)
        bound.append(binding)

    def run(number: int, keep: list = kept) -> None:
        session.run_with_iobinding(bound[number])

    return Engine(name, run, lambda: np.stack([each.numpy() for each in outputs], axis=1))


def check(engine: Engine, lookups: Lookups) -> float:
    """The largest absolute error over two sets."""
    errors = []
    for number in (0, SETS - 1):
        engine.run(number)
        errors.append(np.abs(engine.outputs() - lookups.wanted(number)).max())
    return float(max(errors))


def measure(engines: list[Engine], lookups: Lookups, rounds: int) -> dict[str, list[float]]:
    """ns per row of every engine, round after round; in each round all have one turn, in random order."""
    rng = np.random.default_rng(1)
    times: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for number in range(rounds):
        for at in rng.permutation(len(engines)):
            engine = engines[at]
            engine.run((number * (CALLS + 1)) % SETS)
            start = perf_counter()
            for call in range(CALLS):
                engine.run((number * (CALLS + 1) + call + 1) % SETS)
            times[engine.name].append((perf_counter() - start) / CALLS / lookups.rows_per_call * 1e9)
    return times


def row(name: str, error: float, times: dict[str, list[float]]) -> Row:
    if name not in times:
        return Row(name, error)
    ratios = [its / ours for its, ours in zip(times[name], times.get("ours", times[name]))]
    return Row(name, error, *_spread(times[name]), *_spread(ratios))


def _spread(values: list[float]) -> tuple[float, float, float]:
    return median(values), float(np.percentile(values, 10)), float(np.percentile(values, 90))


def table(results: list[Row]) -> str:
    lines = [
        f"{'engine':<22}  {'ns/row':>7}  {'p10..p90':>16}  {'engine/ours':>11}  {'p10..p90':>13}  {'max error':>9}"
    ]
    for r in results:
        if r.ns_per_row is None:
            lines.append(f"{r.engine:<22}  wrong outputs: not measured, max error {r.max_abs_error:.1e}")
            continue
        spread, ratios = f"{r.ns_per_row_p10:.1f}..{r.ns_per_row_p90:.1f}", f"{r.ratio_p10:.2f}..{r.ratio_p90:.2f}"
        lines.append(
            f"{r.engine:<22}  {r.ns_per_row:>7.1f}  {spread:>16}  {r.ratio:>11.2f}  {ratios:>13}  "
            f"{r.max_abs_error:>9.1e}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_script(main))
