"""The LLVM IR of instructions that TVM has no name for; what they compute is in isa.py."""

from __future__ import annotations

from .vectors import LANES

BYTE_ORDER = [4 * part + 16 * half + at for part in range(4) for half in range(2) for at in range(4)]
"""The column in each byte of 32: the pack instructions work on quarters of a register."""

_PURE = """
attributes #0 = { alwaysinline nounwind willreturn memory(none) }
"""
AVX512 = (
    _PURE
    + """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float>, <16 x float>)
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)
declare <16 x i32> @llvm.x86.avx512.mask.cvtps2dq.512(<16 x float>, <16 x i32>, i16, i32)
declare <32 x i16> @llvm.x86.avx512.packusdw.512(<16 x i32>, <16 x i32>)
declare <32 x i16> @llvm.x86.avx512.packssdw.512(<16 x i32>, <16 x i32>)
declare <32 x i8> @llvm.x86.avx512.mask.pmovus.wb.512(<32 x i16>, <32 x i8>, i32)
declare <32 x i8> @llvm.x86.avx512.mask.pmovs.wb.512(<32 x i16>, <32 x i8>, i32)
"""
)

BF16 = """
define linkonce_odr <16 x float> @dlrm_dot_bf16(<16 x float> %acc, <16 x float> %x, <16 x float> %w) #0 {
  %a = bitcast <16 x float> %x to <32 x bfloat>
  %b = bitcast <16 x float> %w to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %acc, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}
define linkonce_odr <16 x float> @dlrm_pair_bf16(<16 x float> %lo, <16 x float> %hi) #0 {
  %p = call <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float> %hi, <16 x float> %lo)
  %r = bitcast <32 x bfloat> %p to <16 x float>
  ret <16 x float> %r
}
"""

INT8 = """
define linkonce_odr <16 x i32> @dlrm_dot_int8(<16 x i32> %acc, <16 x float> %x, <16 x float> %w) #0 {
  %a = bitcast <16 x float> %x to <64 x i8>
  %b = bitcast <16 x float> %w to <64 x i8>
  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %acc, <64 x i8> %a, <64 x i8> %b)
  ret <16 x i32> %r
}
""" + "".join(
    f"""
define linkonce_odr <8 x float> @dlrm_bytes_{name}(<16 x float> %a, <16 x float> %b) #0 {{
  %c = call <16 x i32> @llvm.x86.avx512.mask.cvtps2dq.512(<16 x float> %a, <16 x i32> zeroinitializer, i16 -1, i32 4)
  %d = call <16 x i32> @llvm.x86.avx512.mask.cvtps2dq.512(<16 x float> %b, <16 x i32> zeroinitializer, i16 -1, i32 4)
  %e = call <32 x i16> @llvm.x86.avx512.{pack}.512(<16 x i32> %c, <16 x i32> %d)
  %f = call <32 x i8> @llvm.x86.avx512.mask.{move}.wb.512(<32 x i16> %e, <32 x i8> zeroinitializer, i32 -1)
  %g = xor <32 x i8> %f, splat (i8 {flip})
  %r = bitcast <32 x i8> %g to <8 x float>
  ret <8 x float> %r
}}
"""
    for name, pack, move, flip in (
        ("unsigned", "packusdw", "pmovus", 0),
        ("signed", "packssdw", "pmovs", 0),
        ("raised", "packssdw", "pmovs", -128),
    )
)

_WHOLE = ", ".join(f"i32 {byte}" for byte in range(64))
_UPPER_BYTES = 0x8888888888888888 - (1 << 64)  # of each int32, as a mask


def _unpack_helpers(with_vbmi: bool) -> str:
    """Of AVX512_VBMI or any CPU. LLVM makes vpermt2b of the plain shuffle, three times as long as vpermb."""
    helpers = ""
    for half in range(2):
        places = [BYTE_ORDER.index(half * LANES + column) for column in range(LANES)]
        if with_vbmi:
            order = ", ".join(f"i8 0, i8 0, i8 0, i8 {place}" for place in places)
            body = f"""  %w = shufflevector <32 x i8> %b, <32 x i8> poison, <64 x i32> <{_WHOLE}>
  %s = call <64 x i8> asm "vpermb $2, $1, $0 {{$3}} {{z}}", "=v,v,v,^Yk"(
    <64 x i8> <{order}>, <64 x i8> %w, i64 {_UPPER_BYTES})"""
        else:
            order = ", ".join(f"i32 32, i32 32, i32 32, i32 {place}" for place in places)
            body = f"  %s = shufflevector <32 x i8> %b, <32 x i8> zeroinitializer, <64 x i32> <{order}>"
        helpers += f"""
define linkonce_odr <16 x float> @dlrm_unpack_{half}(<8 x float> %v) #0 {{
  %b = bitcast <8 x float> %v to <32 x i8>
{body}
  %i = bitcast <64 x i8> %s to <16 x i32>
  %r = sitofp <16 x i32> %i to <16 x float>
  ret <16 x float> %r
}}
"""
    return helpers


UNPACK, UNPACK_VBMI = _unpack_helpers(with_vbmi=False), _unpack_helpers(with_vbmi=True)


def _order(numbers) -> str:
    return ", ".join(f"i32 {number}" for number in numbers)


_LOW, _HIGH, _BYTES = _order(range(LANES)), _order(range(LANES, 2 * LANES)), _order(BYTE_ORDER)


def _rounded(name: str, vector: str, least: int, most: int) -> str:
    """%name: the 16 float32 of %vector as int32 within least .. most."""
    lines = ""
    for half, order in (("low", range(8)), ("high", range(8, 16))):
        lines += f"""
  %{name}.{half}.f = shufflevector <16 x float> %{vector}, <16 x float> poison, <8 x i32> <{_order(order)}>
  %{name}.{half} = call <8 x i32> @llvm.x86.avx.cvt.ps2dq.256(<8 x float> %{name}.{half}.f)"""
    return f"""{lines}
  %{name}.all = shufflevector <8 x i32> %{name}.low, <8 x i32> %{name}.high, <16 x i32> <{_LOW}>
  %{name}.least = call <16 x i32> @llvm.smax.v16i32(<16 x i32> %{name}.all, <16 x i32> splat (i32 {least}))
  %{name} = call <16 x i32> @llvm.smin.v16i32(<16 x i32> %{name}.least, <16 x i32> splat (i32 {most}))"""


def _products(name: str, x: str, w: str) -> str:
    """%name: 16 int32, the sums of pairs of products of the <32 x i16> %x and %w."""
    lines = ""
    for half, order in (("low", _LOW), ("high", _HIGH)):
        for side, value in (("x", x), ("w", w)):
            lines += f"""
  %{name}.{side}.{half} = shufflevector <32 x i16> %{value}, <32 x i16> poison, <16 x i32> <{order}>"""
        lines += f"""
  %{name}.{half} = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %{name}.x.{half}, <16 x i16> %{name}.w.{half})"""
    return f"""{lines}
  %{name} = shufflevector <8 x i32> %{name}.low, <8 x i32> %{name}.high, <16 x i32> <{_LOW}>"""


def _byte_pairs(name: str, places: range) -> str:
    """%name: 8 int32, the sums of four products each of bytes of %a and %b."""
    lines = ""
    for value in "ab":
        lines += f"""
  %{name}.{value} = shufflevector <64 x i8> %{value}, <64 x i8> poison, <32 x i32> <{_order(places)}>"""
    return f"""{lines}
  %{name}.pairs = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %{name}.a, <32 x i8> %{name}.b)
  %{name} = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %{name}.pairs, <16 x i16> splat (i16 1))"""


# Of layers, whose weights are small enough, pairs of products in 16 bits; of rows bytes in even and in odd places
# apart, as 16 bits.
AVX2_INT8 = f"""{_PURE}
declare <8 x i32> @llvm.x86.avx.cvt.ps2dq.256(<8 x float>)
declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)
declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)
declare <16 x i32> @llvm.smax.v16i32(<16 x i32>, <16 x i32>)
declare <16 x i32> @llvm.smin.v16i32(<16 x i32>, <16 x i32>)
define linkonce_odr <16 x i32> @dlrm_dot_bytes(<16 x i32> %acc, <16 x float> %x, <16 x float> %w) #0 {{
  %a = bitcast <16 x float> %x to <64 x i8>
  %b = bitcast <16 x float> %w to <64 x i8>{_byte_pairs("low", range(32))}{_byte_pairs("high", range(32, 64))}
  %sums = shufflevector <8 x i32> %low, <8 x i32> %high, <16 x i32> <{_LOW}>
  %r = add <16 x i32> %acc, %sums
  ret <16 x i32> %r
}}
define linkonce_odr <16 x i32> @dlrm_dot_int8(<16 x i32> %acc, <16 x float> %x, <16 x float> %w) #0 {{
  %a = bitcast <16 x float> %x to <32 x i16>
  %b = bitcast <16 x float> %w to <32 x i16>
  %a.even = and <32 x i16> %a, splat (i16 255)
  %a.odd = lshr <32 x i16> %a, splat (i16 8)
  %b.up = shl <32 x i16> %b, splat (i16 8)
  %b.even = ashr <32 x i16> %b.up, splat (i16 8)
  %b.odd = ashr <32 x i16> %b, splat (i16 8){_products("even", "a.even", "b.even")}{_products("odd", "a.odd", "b.odd")}
  %both = add <16 x i32> %even, %odd
  %r = add <16 x i32> %acc, %both
  ret <16 x i32> %r
}}
""" + "".join(
    f"""
define linkonce_odr <8 x float> @dlrm_bytes_{kind}(<16 x float> %a, <16 x float> %b) #0 {{{
        _rounded("c", "a", least, most)
    }{_rounded("d", "b", least, most)}
  %e = shufflevector <16 x i32> %c, <16 x i32> %d, <32 x i32> <{_BYTES}>
  %f = trunc <32 x i32> %e to <32 x i8>
  %g = xor <32 x i8> %f, splat (i8 {flip})
  %r = bitcast <32 x i8> %g to <8 x float>
  ret <8 x float> %r
}}
define linkonce_odr <4 x float> @dlrm_own_{kind}(<16 x float> %a) #0 {{{_rounded("c", "a", least, most)}
  %d = trunc <16 x i32> %c to <16 x i8>
  %e = xor <16 x i8> %d, splat (i8 {flip})
  %r = bitcast <16 x i8> %e to <4 x float>
  ret <4 x float> %r
}}
"""
    for kind, least, most, flip in (("unsigned", 0, 255, 0), ("signed", -128, 127, 0), ("raised", -128, 127, -128))
)
