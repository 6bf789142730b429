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


def _order(numbers) -> str:
    return ", ".join(f"i32 {number}" for number in numbers)


_WHOLE = _order(range(64))
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
_LOW = _order(range(LANES))


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


def _dot(name: str, of_half: str) -> str:
    """%acc + the dots of four bytes each of %x and %w. of_half: makes 8 of them, %half, of %half.a, %half.b and
    %half.acc."""
    text = f"""
define linkonce_odr <16 x i32> @dlrm_dot_{name}(<16 x i32> %acc, <16 x float> %x, <16 x float> %w) #0 {{
  %a = bitcast <16 x float> %x to <64 x i8>
  %b = bitcast <16 x float> %w to <64 x i8>"""
    for half, first in (("low", 0), ("high", 8)):
        places, lanes = _order(range(4 * first, 4 * first + 32)), _order(range(first, first + 8))
        text += f"""
  %{half}.a = shufflevector <64 x i8> %a, <64 x i8> poison, <32 x i32> <{places}>
  %{half}.b = shufflevector <64 x i8> %b, <64 x i8> poison, <32 x i32> <{places}>
  %{half}.acc = shufflevector <16 x i32> %acc, <16 x i32> poison, <8 x i32> <{lanes}>""" + of_half.replace("half", half)
    return f"""{text}
  %r = shufflevector <8 x i32> %low, <8 x i32> %high, <16 x i32> <{_LOW}>
  ret <16 x i32> %r
}}
"""


# Of layers, whose weights are small enough, pairs of products in 16 bits.
_PAIRS = """
  %half.pairs = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %half.a, <32 x i8> %half.b)
  %half.sums = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %half.pairs, <16 x i16> splat (i16 1))
  %half = add <8 x i32> %half.acc, %half.sums"""
_FOURS = """
  %half = call <8 x i32> @llvm.x86.avx512.vpdpbusd.256(<8 x i32> %half.acc, <32 x i8> %half.a, <32 x i8> %half.b)"""

_PACKS = f"""
declare <8 x i32> @llvm.x86.avx.cvt.ps2dq.256(<8 x float>)
declare <16 x i32> @llvm.smax.v16i32(<16 x i32>, <16 x i32>)
declare <16 x i32> @llvm.smin.v16i32(<16 x i32>, <16 x i32>)
define linkonce_odr <8 x float> @dlrm_bytes_signed(<16 x float> %a, <16 x float> %b) #0 {{{
    _rounded("c", "a", -128, 127)
}{_rounded("d", "b", -128, 127)}
  %e = shufflevector <16 x i32> %c, <16 x i32> %d, <32 x i32> <{_order(BYTE_ORDER)}>
  %f = trunc <32 x i32> %e to <32 x i8>
  %r = bitcast <32 x i8> %f to <8 x float>
  ret <8 x float> %r
}}
""" + "".join(
    f"""
define linkonce_odr <4 x float> @dlrm_own_{kind}(<16 x float> %a) #0 {{{_rounded("c", "a", least, least + 255)}
  %d = trunc <16 x i32> %c to <16 x i8>
  %e = xor <16 x i8> %d, splat (i8 {least})
  %r = bitcast <16 x i8> %e to <4 x float>
  ret <4 x float> %r
}}
"""
    for kind, least in (("unsigned", 0), ("raised", -128))
)

AVX2_INT8 = f"""{_PURE}
declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)
declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)
{_dot("bytes", _PAIRS)}{_PACKS}{UNPACK}"""
AVX_VNNI = f"""{_PURE}
declare <8 x i32> @llvm.x86.avx512.vpdpbusd.256(<8 x i32>, <32 x i8>, <32 x i8>)
{_dot("bytes", _FOURS)}{_dot("int8", _FOURS)}{_PACKS}{UNPACK}"""
