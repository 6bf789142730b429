"""The few vector expressions that all kernels use: 16 float32 lanes, one AVX-512 register.

Expressions and statements of TVM's IRBuilder, which know nothing of DLRMs. Scalar meaning, for l in range(16):
load(b, i)[l] = b[i+l];  fma(x, y, z)[l] = x[l]*y[l] + z[l], rounded once.
"""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

LANES = 16


def padded(width: int) -> int:
    """width rounded up to whole vectors, as in tiles and packed matrices."""
    return -(-width // LANES) * LANES


def load(buffer, index, lanes: int = LANES):
    return buffer[T.ramp(index, 1, lanes)]


def store(buffer, index, value, lanes: int = LANES) -> None:
    T.buffer_store(buffer, value, [T.ramp(index, 1, lanes)])


def broadcast(scalar, lanes: int = LANES):
    return T.broadcast(scalar, lanes)


def fma(x, y, z, lanes: int = LANES):
    """x*y + z as one instruction. `x*y + z` would be fused only under some of LLVM's flags."""
    return T.call_llvm_pure_intrin(f"float32x{lanes}", f"llvm.fma.v{lanes}f32", x, y, z)


def zeros(lanes: int = LANES):
    return broadcast(T.float32(0), lanes)


def floats(integers):
    """16 int32 -> 16 float32, rounded to nearest even."""
    return T.cast(integers, f"float32x{LANES}")


def words_of(integers):
    """16 int32 as words, bit for bit."""
    return T.reinterpret(f"float32x{LANES}", integers)


def bits_of(words):
    """16 words as int32, bit for bit."""
    return T.reinterpret(f"int32x{LANES}", words)


def relu(x):
    """Of a vector or a scalar: 0 where x < 0, else x, so that NaN stays NaN. One instruction: x86's max gives its
    second operand where one is NaN, and T.max(x, 0) would have 0 there."""
    x = T.bind(x)
    zero = T.float32(0) if x.ty.dtype == "float32" else zeros()
    return T.Select(x < zero, zero, x)


def prefetch(buffer, index, locality: int) -> None:
    """Prefetch the cache line of buffer[index]; locality 3 is prefetcht0 (L1), 2 is t1 (L2), 1 is t2, 0 is nta."""
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", T.address_of(buffer[index]), 0, locality, 1))


def held(value):
    """An int32 expression in a cell of its own: TVM's simplifier puts a Select wherever its value is used, and a
    function of many such places takes twice as long to build."""
    cell = T.alloc_buffer((1,), "int32", scope="local")
    T.buffer_store(cell, value, [0])
    return cell[0]
