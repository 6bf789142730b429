"""What the hardware can do at most: loops of nothing but multiply-adds, and of nothing but reading.

peak_fma: every thread of the instance runs independent chains of the multiply-add that a precision's kernels are made
of (fp32 vfmadd, bf16 vdpbf16ps, int8 vpdpbusd), on 16 lanes, with both factors in registers. 20 chains in AVX-512, 6 in
AVX2 (12 of its 16 registers, as a vector of 16 takes two), cover a latency of 6 cycles at 3 instructions per cycle;
no memory is touched. FLOPs of a call: threads * rounds * PeakLoop.flops_per_round.

stream_read: one thread reads an array from front to back, 64 bytes at a time into 16 independent sums: the bandwidth
that a batch of one, which must read every weight once, can reach at most. Bytes of a call: the array's.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .dense import REGISTERS
from .forms import Form
from .instructions import imported
from .vectors import LANES, broadcast, fma, load, store, words_of, zeros

STEPS = 32  # multiply-adds of each chain per round, so that the loop itself costs nothing
MAX_THREADS = 1024
_CHAINS, _CHAINS_AVX2 = 20, 6
_SUMS, _SUMS_AVX2 = 16, 4


@dataclass(frozen=True)
class PeakLoop:
    """registers: how many vectors of 16 the CPU's registers hold."""

    precision: str = "fp32"
    registers: int = REGISTERS

    @property
    def chains(self) -> int:
        return _CHAINS if self.registers == REGISTERS else _CHAINS_AVX2

    @property
    def flops_per_round(self) -> int:
        """A multiply-add counts as two, whatever its numbers are."""
        return self.chains * STEPS * LANES * Form(self.precision).values * 2

    def function(self):
        """f(rounds: int32, factors [2] f32, sink [MAX_THREADS * 16] f32).

        fp32: chains x = x * factors[0] + factors[1], where 0.999 and 1e-6 keep x a normal number; bf16 and int8:
        x = x + factors[0] . factors[1] over their words. They are arguments, so that LLVM cannot fold the chains.
        """
        form = Form(self.precision)
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("peak_fma")
            T.func_attr({"tirx.noalias": True})
            rounds = T.arg("rounds", T.int32())
            factors = T.arg("factors", T.buffer((2,), "float32"))
            sink = T.arg("sink", T.buffer((MAX_THREADS * LANES,), "float32"))
            threads = T.bind(T.max(1, T.call_packed("runtime.NumThreads")))
            with imported(self.precision), T.parallel(threads) as thread:
                acc = T.alloc_buffer((self.chains * LANES,), form.sum_dtype, scope="global")
                x, y = T.bind(broadcast(factors[0])), T.bind(broadcast(factors[1]))
                for chain in range(self.chains):
                    number = T.int32(chain + 1) if form.sum_dtype == "int32" else T.float32(chain + 1)
                    store(acc, chain * LANES, broadcast(number))
                with T.serial(rounds):
                    for _ in range(STEPS):
                        for chain in range(self.chains):
                            last = load(acc, chain * LANES)
                            store(acc, chain * LANES, form.dot(last, x, y) if form.is_narrow else fma(last, x, y))
                total = _sum(acc, self.chains)
                store(sink, thread * LANES, words_of(total) if form.sum_dtype == "int32" else total)
        return builder.get()


def stream_read(elements: int, registers: int = REGISTERS):
    """f(array [elements] f32, sink [MAX_THREADS * 16] f32), elements a multiple of 256."""
    sums = _SUMS if registers == REGISTERS else _SUMS_AVX2
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("stream_read")
        T.func_attr({"tirx.noalias": True})
        array = T.arg("array", T.buffer((elements,), "float32"))
        sink = T.arg("sink", T.buffer((MAX_THREADS * LANES,), "float32"))
        acc = T.alloc_buffer((sums * LANES,), "float32", scope="local")
        for place in range(sums):
            store(acc, place * LANES, zeros())
        with T.serial(elements // (sums * LANES)) as at:
            for place in range(sums):
                value = load(array, (at * sums + place) * LANES)
                store(acc, place * LANES, load(acc, place * LANES) + value)
        store(sink, 0, _sum(acc, sums))
    return builder.get()


def _sum(acc, count: int):
    total = load(acc, 0)
    for at in range(1, count):
        total = total + load(acc, at * LANES)
    return total
