"""The hardware's limits: a loop of multiply-adds alone, and a loop of reads alone.

peak_fma: every thread runs independent chains of the family's multiply-add on 16 lanes, with both factors in
registers; no memory is touched. 20 chains in AVX-512, or 6 in AVX2 (12 of its 16 registers, two per vector of 16),
cover a latency of 6 cycles at 3 instructions per cycle. FLOPs of a call: threads * rounds * PeakLoop.flops_per_round.

stream_read: one thread reads an array from front to back, 64 bytes at a time, into independent sums. A batch of one
reads every weight once, so this bandwidth is its limit. Bytes of a call: the array's.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .isa import AVX512, Family, imported
from .tile_unit import SUMS, TILE_ROWS, TILE_WORDS, A, B, TileUnit, tile_ir
from .vectors import LANES, broadcast, load, store, words_of, zeros
from .words import Form

STEPS = 8  # multiply-adds of each chain per round, so that the loop itself costs nothing
MAX_THREADS = 1024


@dataclass(frozen=True)
class PeakLoop:
    family: Family = AVX512
    name: str = "peak_fma"

    @property
    def flops_per_round(self) -> int:
        return self.family.chains * STEPS * self.family.flops_per_step

    def function(self):
        """f(rounds: int32, factors [2] f32, sink [MAX_THREADS * 16] f32).

        acc = family.peak_step(acc, factors[0], factors[1]); with 0.999 and 1e-6 fp32's stays a normal number. Factors
        are arguments, so that LLVM cannot fold the chains.
        """
        if self.family.tiles:
            return _tile_peak(self.family, self.name)
        family, chains = self.family, self.family.chains
        dtype = Form(family.precision).sum_dtype
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(self.name)
            T.func_attr({"tirx.noalias": True})
            rounds = T.arg("rounds", T.int32())
            factors = T.arg("factors", T.buffer((2,), "float32"))
            sink = T.arg("sink", T.buffer((MAX_THREADS * LANES,), "float32"))
            threads = T.bind(T.max(1, T.call_packed("runtime.NumThreads")))
            with imported(family), T.parallel(threads) as thread:
                acc = T.alloc_buffer((chains * LANES,), dtype, scope="global")
                x, y = T.bind(broadcast(factors[0])), T.bind(broadcast(factors[1]))
                for chain in range(chains):
                    number = T.int32(chain + 1) if dtype == "int32" else T.float32(chain + 1)
                    store(acc, chain * LANES, broadcast(number))
                with T.serial(rounds):
                    for _ in range(STEPS):
                        for chain in range(chains):
                            store(acc, chain * LANES, family.peak_step(load(acc, chain * LANES), x, y))
                total = _sum(acc, chains)
                store(sink, thread * LANES, words_of(total) if dtype == "int32" else total)
        return builder.get()


def _tile_peak(family: Family, name: str):
    """The same with products of two tiles, as many as make a multiply-add. Their numbers are random: on zeros AMX runs
    a fifth faster."""
    kind = "bf16" if family.takes == "bf16" else "unsigned"
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        rounds = T.arg("rounds", T.int32())
        T.arg("factors", T.buffer((2,), "float32"))
        sink = T.arg("sink", T.buffer((MAX_THREADS * LANES,), "float32"))
        threads = T.bind(T.max(1, T.call_packed("runtime.NumThreads")))
        helpers = "" if family.emulated else tile_ir(TILE_ROWS)
        with imported(family, helpers), T.parallel(threads) as thread:
            unit = TileUnit(TILE_ROWS, emulated=family.emulated)
            numbers = T.alloc_buffer((4 * TILE_WORDS,), "float32", scope="global")
            _fill(numbers, 4 * TILE_WORDS, finite=family.takes == "bf16")
            unit.configure()
            for place, register in enumerate((*A, *B)):
                unit.load(register, numbers, place * TILE_WORDS)
            with T.serial(rounds), T.serial(STEPS):  # a loop costs nothing beside products of 16 cycles
                for c in SUMS * len(family.products):
                    unit.dot(kind, c, A[c // 2], B[c % 2])
            unit.store(0, numbers, 0)
            store(sink, thread * LANES, load(numbers, 0))
    return builder.get()


def _fill(buffer, words: int, *, finite: bool) -> None:
    """Random words (xorshift32); finite: pairs of bf16 within 0.5 and 1 of either sign."""
    state = T.alloc_buffer((1,), "uint32", scope="local")
    T.buffer_store(state, T.uint32(2463534242), [0])
    with T.serial(words) as at:
        bits = state[0]
        for shift, way in ((13, T.shift_left), (17, T.shift_right), (5, T.shift_left)):
            bits = T.bind(T.bitwise_xor(bits, way(bits, T.uint32(shift))))
        T.buffer_store(state, bits, [0])
        word = T.bitwise_or(T.bitwise_and(bits, T.uint32(0x807F807F)), T.uint32(0x3F003F00)) if finite else bits
        T.buffer_store(buffer, T.reinterpret("float32", word), [at])


def stream_read(elements: int, family: Family = AVX512):
    """f(array [elements] f32, sink [MAX_THREADS * 16] f32), elements a multiple of 256."""
    sums = family.registers // 2  # the others hold what was read
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
