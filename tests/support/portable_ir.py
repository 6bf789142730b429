"""The helpers of kernels/isa.py in LLVM IR that any CPU runs: bf16 and int8 kernels can be tested without AVX-512.

Written from the scalar meanings in isa.py's docstring. Slow. Unlike the instructions, they keep denormals, and do not
tell what becomes of NaN.
"""

from __future__ import annotations

from dataclasses import replace

from dlrm_tvm.kernels.isa import AVX2_INT8, AVX_VNNI, REGISTERS, Family
from dlrm_tvm.kernels.llvm_ir import BYTE_ORDER, UNPACK

_ORDER = ", ".join(f"i32 {column}" for column in BYTE_ORDER)
_BOTH = ", ".join(f"i32 {at}" for at in range(32))

_BF16 = f"""
define linkonce_odr <16 x float> @dlrm_dot_bf16(<16 x float> %acc, <16 x float> %x, <16 x float> %w) #0 {{
  %xi = bitcast <16 x float> %x to <16 x i32>
  %wi = bitcast <16 x float> %w to <16 x i32>
  %xs = shl <16 x i32> %xi, splat (i32 16)
  %ws = shl <16 x i32> %wi, splat (i32 16)
  %xm = and <16 x i32> %xi, splat (i32 -65536)
  %wm = and <16 x i32> %wi, splat (i32 -65536)
  %x0 = bitcast <16 x i32> %xs to <16 x float>
  %w0 = bitcast <16 x i32> %ws to <16 x float>
  %x1 = bitcast <16 x i32> %xm to <16 x float>
  %w1 = bitcast <16 x i32> %wm to <16 x float>
  %p1 = fmul <16 x float> %x1, %w1
  %s1 = fadd <16 x float> %acc, %p1
  %p0 = fmul <16 x float> %x0, %w0
  %s0 = fadd <16 x float> %s1, %p0
  ret <16 x float> %s0
}}
define linkonce_odr <16 x i16> @portable_bf16(<16 x float> %x) #0 {{
  %bits = bitcast <16 x float> %x to <16 x i32>
  %half = lshr <16 x i32> %bits, splat (i32 16)
  %odd = and <16 x i32> %half, splat (i32 1)
  %up = add <16 x i32> %odd, splat (i32 32767)
  %sum = add <16 x i32> %bits, %up
  %high = lshr <16 x i32> %sum, splat (i32 16)
  %r = trunc <16 x i32> %high to <16 x i16>
  ret <16 x i16> %r
}}
define linkonce_odr <16 x float> @dlrm_pair_bf16(<16 x float> %lo, <16 x float> %hi) #0 {{
  %a = call <16 x i16> @portable_bf16(<16 x float> %lo)
  %b = call <16 x i16> @portable_bf16(<16 x float> %hi)
  %p = shufflevector <16 x i16> %a, <16 x i16> %b, <32 x i32> <{_BOTH}>
  %r = bitcast <32 x i16> %p to <16 x float>
  ret <16 x float> %r
}}
"""


def _dot_int8() -> str:
    lines = ["  %xi = bitcast <16 x float> %x to <16 x i32>", "  %wi = bitcast <16 x float> %w to <16 x i32>"]
    total = "%acc"
    for byte in range(4):
        lines += [
            f"  %xs{byte} = lshr <16 x i32> %xi, splat (i32 {8 * byte})",
            f"  %x{byte} = and <16 x i32> %xs{byte}, splat (i32 255)",
            f"  %ws{byte} = shl <16 x i32> %wi, splat (i32 {24 - 8 * byte})",
            f"  %w{byte} = ashr <16 x i32> %ws{byte}, splat (i32 24)",
            f"  %p{byte} = mul <16 x i32> %x{byte}, %w{byte}",
            f"  %s{byte} = add <16 x i32> {total}, %p{byte}",
        ]
        total = f"%s{byte}"
    body = "\n".join(lines)
    head = "define linkonce_odr <16 x i32> @dlrm_dot_int8(<16 x i32> %acc, <16 x float> %x, <16 x float> %w) #0 {"
    return f"{head}\n{body}\n  ret <16 x i32> {total}\n}}\n"


def _bytes(kind: str, least: int, most: int, flip: int) -> str:
    def within(name: str) -> str:
        return f"""
  %r{name} = call <16 x float> @llvm.roundeven.v16f32(<16 x float> %{name})
  %l{name} = call <16 x float> @llvm.maxnum.v16f32(<16 x float> %r{name}, <16 x float> splat (float {least}.0))
  %m{name} = call <16 x float> @llvm.minnum.v16f32(<16 x float> %l{name}, <16 x float> splat (float {most}.0))
  %i{name} = fptosi <16 x float> %m{name} to <16 x i32>
  %b{name} = trunc <16 x i32> %i{name} to <16 x i8>"""

    return f"""
define linkonce_odr <8 x float> @dlrm_bytes_{kind}(<16 x float> %x, <16 x float> %y) #0 {{{within("x")}{within("y")}
  %p = shufflevector <16 x i8> %bx, <16 x i8> %by, <32 x i32> <{_ORDER}>
  %f = xor <32 x i8> %p, splat (i8 {flip})
  %r = bitcast <32 x i8> %f to <8 x float>
  ret <8 x float> %r
}}
"""


PORTABLE = (
    """
declare <16 x float> @llvm.roundeven.v16f32(<16 x float>)
declare <16 x float> @llvm.maxnum.v16f32(<16 x float>, <16 x float>)
declare <16 x float> @llvm.minnum.v16f32(<16 x float>, <16 x float>)
attributes #0 = { alwaysinline nounwind willreturn memory(none) }
"""
    + _BF16
    + _dot_int8()
    + _bytes("unsigned", 0, 255, 0)
    + _bytes("signed", -128, 127, 0)
    + _bytes("raised", -128, 127, -128)
    + UNPACK
)


# Weights of 8 bits, and rows, on AVX2.
_BYTES_ON_AVX2 = (
    AVX2_INT8.helpers.replace("@dlrm_dot_bytes", "@dlrm_dot_pairs")
    + _dot_int8()
    + """
define linkonce_odr <16 x i32> @dlrm_dot_bytes(<16 x i32> %acc, <16 x float> %x, <16 x float> %w) #0 {
  %r = call <16 x i32> @dlrm_dot_int8(<16 x i32> %acc, <16 x float> %x, <16 x float> %w)
  ret <16 x i32> %r
}
"""
)


def portable(family: Family) -> Family:
    """The family with these helpers, and with AMX's tiles by loops; AVX2's as it is, AVX-VNNI's on AVX2."""
    if family is AVX_VNNI:
        return replace(family, helpers=_BYTES_ON_AVX2)
    if family.registers != REGISTERS:
        return family
    return replace(family, helpers=PORTABLE, emulated=family.tiles)
