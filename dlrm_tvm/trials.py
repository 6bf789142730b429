"""Time one kernel, or the whole network, with a given schedule, beside the peak measured around it."""

from __future__ import annotations

import itertools
import mmap
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .kernels.dense import DenseSchedule, PackedDense, dense_layer
from .kernels.forms import Form
from .kernels.gemv import gemv_layer
from .kernels.instructions import imported
from .kernels.peak import MAX_THREADS, PeakLoop
from .kernels.tiles import Tiles
from .kernels.vectors import LANES, padded, store
from .lower import Dump, lower_tuned
from .model import Dlrm
from .numerics import Numerics
from .placement import place_threads
from .plan import LayerShape
from .schedules import NetworkSchedule
from .table_layout import lay_out_tables
from .target import CpuTarget

_DENSE_SECONDS = 0.25
_NETWORK_SECONDS = 3.0
_ROUNDS = 5
_TABLE_ROWS = 50_000  # of each table at most: together far more than any cache or TLB holds
_ITEMS = 12_000  # different items to rotate over: 160 MB of rows


@dataclass(frozen=True)
class Timing:
    time_us: float
    share_of_peak: float


class Peak:
    """The loop of kernels/peak.py on the calling thread: GFLOP/s over a millisecond."""

    def __init__(self, cpu: CpuTarget, precision: str = "fp32") -> None:
        place_threads(1)
        loop = PeakLoop(precision, cpu.registers)
        self._flops_per_round = loop.flops_per_round
        self._loop = tvm.compile(tvm.IRModule({"peak_fma": loop.function()}), target=cpu.tvm_target)["peak_fma"]
        self._factors, self._sink = _tensor((2,), np.float32), _tensor((MAX_THREADS * LANES,), np.float32)
        np.from_dlpack(self._factors)[:] = (0.999, 1e-6)

    def gflops(self, rounds: int = 5000) -> float:
        start = perf_counter()
        self._loop(rounds, self._factors, self._sink)
        return rounds * self._flops_per_round / (perf_counter() - start) / 1e9


class DenseTrial:
    """One dense layer on one tile of mr items. The weights come from as far as they do in the network: calls rotate
    over copies of them, `network_bytes` in all."""

    def __init__(self, layer: LayerShape, mr: int, cpu: CpuTarget, peak: Peak, network_bytes: int) -> None:
        self._layer, self._mr, self._cpu, self._peak = layer, mr, cpu, peak
        self._form = Form(layer.precision)
        # Weights, then scales, surplus and biases, one each per output.
        self._elements = padded(layer.outputs) * (layer.inputs + 3)
        self._copies = [_random(self._elements) for _ in range(-(-network_bytes // (4 * self._elements)))]

    def time(self, schedule: DenseSchedule) -> Timing:
        layer, mr = self._layer, self._mr
        ends = [padded(layer.outputs) * (layer.inputs + part) for part in range(3)]
        packed = PackedDense(
            layer.inputs, layer.outputs, layer.activation, 0, ends[0], schedule,
            takes=self._form, scale_at=ends[1], surplus_at=ends[2],
        )  # fmt: skip
        function = _dense_function(packed, mr, self._elements)
        run = tvm.compile(tvm.IRModule({"dense": function}), target=self._cpu.tvm_target)["dense"]
        x, y = _random(mr * padded(layer.inputs)), _tensor((mr * padded(layer.outputs),), np.float32)
        copies = itertools.cycle(self._copies)
        flops = 2 * mr * layer.inputs * self._form.values * layer.outputs
        return _measure(lambda: run(x, next(copies), y), flops, self._peak, _DENSE_SECONDS)


class NetworkTrial:
    """The whole network on tables of up to 50,000 rows each and inputs whose rows no cache holds."""

    def __init__(
        self, model: Dlrm, batch: int, cpu: CpuTarget, peak: Peak, dense_schedule: Callable, numerics: Numerics
    ) -> None:
        tables = tuple(replace(table, rows=table.rows[:_TABLE_ROWS], row_weights=None) for table in model.tables)
        self._model, self._batch, self._cpu, self._peak = replace(model, tables=tables), batch, cpu, peak
        self._layout = lay_out_tables(self._model, copy=True, numerics=numerics)
        self._numerics = numerics
        self._dense_schedule = dense_schedule
        self._tables: list | None = None
        rng = np.random.default_rng(0)
        self._inputs = [self._random_batch(rng) for _ in range(max(2, -(-_ITEMS // batch)))]

    def time(self, schedule: NetworkSchedule) -> Timing:
        lowered = lower_tuned(
            self._model,
            self._batch,
            schedule,
            lambda layer: self._dense_schedule(schedule.mr, layer),
            self._cpu,
            Dump(None),
            self._layout,
            numerics=self._numerics,
        )
        if self._tables is None:
            self._tables = [_filled(source) for source in self._layout.sources]
        parameters = [*self._tables, _filled(lowered.mlp)]
        main = relax.VirtualMachine(lowered.executable, tvm.cpu())["main"]
        batches = itertools.cycle(self._inputs)
        flops = self._batch * self._model.flops_per_item
        return _measure(lambda: main(*next(batches), *parameters), flops, self._peak, _NETWORK_SECONDS)

    def _random_batch(self, rng: np.random.Generator) -> tuple:
        dense = _tensor((self._batch, self._model.num_dense), np.float32)
        np.from_dlpack(dense)[:] = rng.random((self._batch, self._model.num_dense), dtype=np.float32)
        indices = _tensor((self._batch, len(self._model.tables)), np.int64)
        for column, table in zip(np.from_dlpack(indices).T, self._model.tables):
            column[:] = rng.integers(0, table.num_rows, self._batch)
        return dense, indices


def _measure(call: Callable, flops: int, peak: Peak, seconds: float) -> Timing:
    """The median over short rounds of (FLOP/s / the peak before and after the round): drift of the clock cancels."""
    call()
    shares, times = [], []
    for _ in range(_ROUNDS):
        before, calls, start = peak.gflops(), 0, perf_counter()
        while (elapsed := perf_counter() - start) < seconds / _ROUNDS or calls == 0:
            call()
            calls += 1
        times.append(elapsed / calls)
        shares.append(flops / times[-1] / 1e9 / max(before, peak.gflops()))
    return Timing(statistics.median(times) * 1e6, statistics.median(shares))


def _dense_function(layer: PackedDense, mr: int, elements: int):
    """Its outputs stay float32: how they are packed for the next layer is the network's."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("dense")
        T.func_attr({"tirx.noalias": True})
        x = T.arg("x", T.buffer((mr * padded(layer.inputs),), "float32"))
        weights = T.arg("weights", T.buffer((elements,), "float32"))
        y = T.arg("y", T.buffer((mr * padded(layer.outputs),), "float32"))
        source, target = Tiles(x, 0, layer.inputs, mr), Tiles(y, 0, layer.outputs, mr)

        def write(tile, row, block, values: list) -> None:
            for v, value in enumerate(values):
                store(y, target.index(tile, row, block + v), value)

        with imported(layer.takes.precision):
            if mr == 1:
                live = T.alloc_buffer((layer.inputs + 1,), "int32", scope="global")
                gemv_layer(layer, weights, lambda k: x[k], lambda block, values: write(0, 0, block, values), live)
            else:
                word = lambda tile, row, block, lane: x[source.index(tile, row, block, lane)]  # noqa: E731
                dense_layer(layer, weights, mr, word, write, 1)
    return builder.get()


def _random(elements: int):
    """Numbers around zero, the negative ones replaced by 0, as after a ReLU."""
    tensor = _tensor((elements,), np.float32)
    np.from_dlpack(tensor)[:] = np.maximum(np.random.default_rng(0).random(elements, dtype=np.float32) - 0.5, 0)
    return tensor


def _filled(source):
    tensor = _tensor(source.shape, source.dtype)
    flat, at = np.from_dlpack(tensor).reshape(-1), 0
    for chunk in source.chunks():
        flat[at : at + chunk.size] = chunk.reshape(-1)
        at += chunk.size
    return tensor


def _tensor(shape: tuple[int, ...], dtype):
    """Zeros in pages of their own, huge ones where the kernel grants them."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return tvm_ffi.from_dlpack(np.frombuffer(memory, dtype, count=size // np.dtype(dtype).itemsize).reshape(shape))
