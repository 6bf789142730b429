"""A first guess of how many items share a layer's weights: from the machine's caches, its peak, and the rate at which
weights stream. On the host layer_probe.py betters it.

    demand(items) = MLP bytes / (items * FLOPs per item / peak)         weights that a core at its peak reads per second
    need          = the fewest items whose demand is at most STREAM_SHARE of what streams from the last-level cache
    fit           = items whose inputs and outputs of the widest layer take L2
    block         = need, but no more than fit, nor than MOST_ITEMS

Blocks of 5 items suit a Zen 4, whose L3 streams 92 GB/s to a core; on an Emerald Rapids, which gets 22 GB/s, they give
0.32 of fp32's peak and blocks of 100 items 0.81 (measured 2026-11-30). Both rates are measured on the host
when a library is compiled; of another CPU they are not known, and blocks are as large as its L2 takes.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from time import perf_counter

import numpy as np
import tvm

from ..kernels.isa import Family
from ..kernels.peak import MAX_THREADS, PeakLoop, stream_read
from ..kernels.vectors import LANES, padded
from ..kernels.words import VALUES
from ..machine.caches import Caches
from ..model.dlrm import Dlrm
from ..model.precision import Numerics, weight_bytes
from ..runtime.thread_pool import place_threads
from .passes import compile_kernels
from .rules import LayerShape
from .target import CpuTarget

STREAM_SHARE = 0.1  # beyond it Zen 4 and Emerald Rapids both lost more than 2 % to waiting
MOST_ITEMS = 512
_SECONDS = 0.25  # of each measurement
_WORD_BYTES = 4
_PEAK_FLOPS = 100_000_000  # of one reading: a millisecond at 100 GFLOP/s


@dataclass(frozen=True)
class MachineModel:
    """peak_gflops: of the network's multiply-add; stream_gbps: of weights; both None where they were not measured.
    fp32_gflops: of float32's multiply-add, measured beside bf16's alone."""

    caches: Caches
    peak_gflops: float | None = None
    stream_gbps: float | None = None
    fp32_gflops: float | None = None

    @property
    def fields(self) -> dict[str, float | None]:
        own = {name: value for name, value in asdict(self).items() if name != "caches"}
        return {**asdict(self.caches), **own}

    def keeps(self, nbytes: int) -> bool:
        """Whether so many bytes of weights stay in L2 beside activations, so that blocks need not be large."""
        return nbytes <= self.caches.l2 // 2

    def block_items(self, model: Dlrm, numerics: Numerics, layers: Iterable[LayerShape]) -> int:
        """Items of a block; at least one. layers: of the model, as their kernels see them."""
        if self.keeps(weight_bytes(model, numerics)):
            return 1
        widest = max(layer.inputs + padded(layer.outputs) // VALUES[layer.precision] for layer in layers)
        fit = max(1, self.caches.l2 // (_WORD_BYTES * widest))
        need = MOST_ITEMS
        if self.peak_gflops is not None:
            need = math.ceil(self._demand_of_one(model, numerics) / (STREAM_SHARE * self.stream_gbps))
        return max(1, min(need, fit, MOST_ITEMS))

    def _demand_of_one(self, model: Dlrm, numerics: Numerics) -> float:
        """GB/s of weights at the peak, were they read for each item anew."""
        flops = 2 * sum(layer.weight.size for layer in model.layers)
        return weight_bytes(model, numerics) * self.peak_gflops / flops


def measure_machine(cpu: CpuTarget, family: Family, nbytes: int) -> MachineModel:
    """Of the calling thread: the family's peak, beside bf16's also fp32's, and reading nbytes over and over, which is
    as much as the weights."""
    fp32 = _peak_gflops(cpu, cpu.family("fp32")) if family.precision == "bf16" else None
    return MachineModel(cpu.caches, _peak_gflops(cpu, family), _stream_gbps(cpu, family, nbytes), fp32)


def _peak_gflops(cpu: CpuTarget, family: Family) -> float:
    peak = Peak(cpu, family)
    began, gflops = perf_counter(), [peak.gflops()]
    while perf_counter() - began < _SECONDS:
        gflops.append(peak.gflops())
    return max(gflops)


class Peak:
    """The loop of kernels/peak.py on the calling thread: GFLOP/s over some milliseconds."""

    def __init__(self, cpu: CpuTarget, family: Family) -> None:
        place_threads(1)
        loop = PeakLoop(family)
        self._flops_per_round = loop.flops_per_round
        self._loop = compile_kernels({"peak_fma": loop.function()}, cpu)["peak_fma"]
        self._factors = tvm.runtime.from_dlpack(own_pages((2,), np.float32))
        self._sink = tvm.runtime.from_dlpack(own_pages((MAX_THREADS * LANES,), np.float32))
        np.from_dlpack(self._factors)[:] = (0.999, 1e-6)

    def gflops(self) -> float:
        rounds = max(1, _PEAK_FLOPS // self._flops_per_round)
        start = perf_counter()
        self._loop(rounds, self._factors, self._sink)
        return rounds * self._flops_per_round / (perf_counter() - start) / 1e9


def own_pages(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros in pages of their own, huge ones if the kernel grants them."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, max(size, 1))
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, count=size // np.dtype(dtype).itemsize).reshape(shape)


def _stream_gbps(cpu: CpuTarget, family: Family, nbytes: int) -> float:
    elements = -(-nbytes // _WORD_BYTES // 256) * 256
    function = stream_read(elements, family)
    read = compile_kernels({"stream_read": function}, cpu)["stream_read"]
    array = tvm.runtime.from_dlpack(own_pages((elements,), np.float32))
    sink = tvm.runtime.from_dlpack(own_pages((MAX_THREADS * LANES,), np.float32))
    np.from_dlpack(array)[:] = 1  # pages of their own, not the one page of zeros
    read(array, sink)
    began, best = perf_counter(), 0.0
    while (start := perf_counter()) - began < _SECONDS:
        read(array, sink)
        best = max(best, elements * _WORD_BYTES / (perf_counter() - start) / 1e9)
    return best
