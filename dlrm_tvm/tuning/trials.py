"""The time of one kernel, or of the whole network, with a given schedule, as a share of the peak measured around it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from ..compiler.job import Job
from ..compiler.options import CompileSettings
from ..compiler.pipeline import machine_code
from ..compiler.plan import layer_shapes
from ..compiler.table_layout import lay_out_tables
from ..kernels.dense import DenseSchedule
from ..model.dlrm import Dlrm
from ..model.precision import Numerics
from ..schedules.layer_probe import LayerProbe, flops_of, rotating_weights
from ..schedules.machine_model import Peak, own_pages
from ..schedules.rules import LayerShape, NetworkSchedule, Schedules, in_k_blocks
from ..schedules.target import CpuTarget

_DENSE_SECONDS = 0.25
_NETWORK_SECONDS = 3.0
_ROUNDS = 5
_TABLE_ROWS = 50_000  # of each table at most: together far more than any cache or TLB holds
_ITEMS = 12_000  # distinct items to rotate over: 160 MB of rows


@dataclass(frozen=True)
class Timing:
    time_us: float
    share_of_peak: float


class DenseTrial:
    """One dense layer on a block of tiles of mr items, its weights from the same cache level as in the network."""

    def __init__(
        self,
        layer: LayerShape,
        mr: int,
        cpu: CpuTarget,
        peak: Peak,
        precision: str,
        network_bytes: int,
        block_tiles: int = 1,
    ) -> None:
        """precision: of the network; network_bytes: of the weights of all layers."""
        family = cpu.layer_family(layer.precision, precision)
        self._probe = LayerProbe(layer, mr, cpu, family, rotating_weights(layer, network_bytes), block_tiles)
        self._peak, self._tiles = peak, block_tiles
        self._flops = mr * block_tiles * flops_of(layer, family)

    def time(self, schedule: DenseSchedule) -> Timing:
        run = self._probe.compiled(schedule)
        return _measure(lambda: run(self._tiles), self._flops, self._peak, _DENSE_SECONDS)


class NetworkTrial:
    """The whole network on tables of up to 50,000 rows each and inputs whose rows no cache holds."""

    def __init__(
        self, model: Dlrm, batch: int, cpu: CpuTarget, peak: Peak, dense_schedule: Callable, numerics: Numerics
    ) -> None:
        """dense_schedule(mr, layer): of each layer."""
        tables = tuple(replace(table, rows=table.rows[:_TABLE_ROWS], row_weights=None) for table in model.tables)
        model = replace(model, tables=tables)
        layout = lay_out_tables(model, copy=True, numerics=numerics)
        settings = CompileSettings(batch_size=batch, precision=numerics.precision)
        self._job = Job(settings, cpu=cpu, model=model, numerics=numerics, tables=layout)
        self._peak, self._dense_schedule = peak, dense_schedule
        rng = np.random.default_rng(0)
        self._inputs = [_random_batch(model, batch, rng) for _ in range(max(2, -(-_ITEMS // batch)))]

    def time(self, schedule: NetworkSchedule) -> Timing:
        job = machine_code(replace(self._job, schedules=self._schedules(schedule)))
        parameters = [*self._tables, _filled(job.mlp)]
        main = relax.VirtualMachine(job.executable, tvm.cpu())["main"]
        batches = itertools.cycle(self._inputs)
        flops = job.settings.batch_size * job.model.flops_per_item
        return _measure(lambda: main(*next(batches), *parameters), flops, self._peak, _NETWORK_SECONDS)

    @cached_property
    def _tables(self) -> list:
        return [_filled(source) for source in self._job.tables.sources]

    def _schedules(self, schedule: NetworkSchedule) -> Schedules:
        layers = layer_shapes(self._job.model, self._job.numerics, self._job.family)
        l2 = self._job.cpu.caches.l2

        def dense(layer: LayerShape) -> DenseSchedule:
            return in_k_blocks(self._dense_schedule(schedule.mr, layer), layer, l2, schedule.block_tiles)

        return Schedules.given(schedule, dense, layers)


def _random_batch(model: Dlrm, items: int, rng: np.random.Generator) -> tuple:
    dense = _tensor((items, model.num_dense), np.float32)
    np.from_dlpack(dense)[:] = rng.random((items, model.num_dense), dtype=np.float32)
    indices = _tensor((items, len(model.tables)), np.int64)
    for column, table in zip(np.from_dlpack(indices).T, model.tables):
        column[:] = rng.integers(0, table.num_rows, items)
    return dense, indices


def _measure(call: Callable, flops: int, peak: Peak, seconds: float) -> Timing:
    """The median over short rounds of FLOP/s as a share of the peak around the round: drift of the clock cancels."""
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


def _filled(source):
    tensor = _tensor(source.shape, source.dtype)
    flat, at = np.from_dlpack(tensor).reshape(-1), 0
    for chunk in source.chunks(0):
        flat[at : at + chunk.size] = chunk.reshape(-1)
        at += chunk.size
    return tensor


def _tensor(shape: tuple[int, ...], dtype):
    return tvm_ffi.from_dlpack(own_pages(shape, dtype))
