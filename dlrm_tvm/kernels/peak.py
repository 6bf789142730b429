"""What the hardware can do at most: loops of nothing but multiply-adds, and of nothing but reading.

peak_fma: every thread of the instance runs independent chains of fused multiply-adds on 16 float32 lanes, with both
factors in registers. 16 chains in AVX-512, 6 in AVX2 (12 of its 16 registers, as a vector of 16 takes two), cover a
latency of 4 cycles at 4 and 3 instructions per cycle; no memory is touched.
FLOPs of a call: threads * rounds * flops_per_round(registers).

stream_read: one thread reads an array from front to back, 64 bytes at a time into 16 independent sums: the bandwidth
that a batch of one, which must read every weight once, can reach at most. Bytes of a call: the array's.
"""

from __future__ import annotations

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .dense import REGISTERS
from .vectors import LANES, broadcast, fma, load, store, zeros

STEPS = 32  # multiply-adds of each chain per round, so that the loop itself costs nothing
MAX_THREADS = 1024
_CHAINS, _CHAINS_AVX2 = 16, 6
_SUMS, _SUMS_AVX2 = 16, 4


def flops_per_round(registers: int) -> int:
    """registers: how many vectors of 16 the CPU's registers hold."""
    return _chains(registers) * STEPS * LANES * 2


def _chains(registers: int) -> int:
    return _CHAINS if registers == REGISTERS else _CHAINS_AVX2


def peak_fma(registers: int = REGISTERS):
    """f(rounds: int32, factors [2] f32, sink [MAX_THREADS * 16] f32): chains x = x * factors[0] + factors[1].

    The factors are arguments, so that LLVM cannot fold the chains; 0.999 and 1e-6 keep x a normal number.
    """
    chains = _chains(registers)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("peak_fma")
        T.func_attr({"tirx.noalias": True})
        rounds = T.arg("rounds", T.int32())
        factors = T.arg("factors", T.buffer((2,), "float32"))
        sink = T.arg("sink", T.buffer((MAX_THREADS * LANES,), "float32"))
        threads = T.bind(T.max(1, T.call_packed("runtime.NumThreads")))
        with T.parallel(threads) as thread:
            acc = T.alloc_buffer((chains * LANES,), "float32", scope="local")
            x, y = T.bind(broadcast(factors[0])), T.bind(broadcast(factors[1]))
            for chain in range(chains):
                store(acc, chain * LANES, broadcast(T.float32(chain + 1)))
            with T.serial(rounds):
                for _ in range(STEPS):
                    for chain in range(chains):
                        store(acc, chain * LANES, fma(load(acc, chain * LANES), x, y))
            _sum_into(sink, thread, acc, chains)
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
        _sum_into(sink, 0, acc, sums)
    return builder.get()


def _sum_into(sink, slot, acc, count: int) -> None:
    total = load(acc, 0)
    for at in range(1, count):
        total = total + load(acc, at * LANES)
    store(sink, slot * LANES, total)
