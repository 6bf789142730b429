"""Instructions that TVM has no name for, as LLVM IR helpers that a TIR function carries with it.

TVM's passes turn bfloat16 into float32 on CPUs, and its vpdpbusd is of another LLVM's signature. So narrow values
travel as words: a float32x16 is 16 words of 32 bits, each of one fp32, two bf16 or four int8 values, and only the
helpers look inside. `imported()` attaches them to the function that is being emitted; LLVM inlines them.

Scalar meaning, for every lane l (Intel SDM; Intel Architecture Instruction Set Extensions, AVX512_BF16):

    dot_bf16(acc, x, w)[l]    = acc[l] + x[l].bf16[1] * w[l].bf16[1] + x[l].bf16[0] * w[l].bf16[0]       vdpbf16ps
                                which takes denormals as zero and rounds to nearest even whatever MXCSR says
    dot_int8(acc, x, w)[l]    = acc[l] + sum over b < 4 of x[l].u8[b] * w[l].s8[b], as int32, no saturation  vpdpbusd
    pair_bf16(lo, hi)         = 16 words of the 32 values lo, hi, rounded to nearest even           vcvtne2ps2bf16
    bytes_unsigned(a, b)      = 8 words of round(a), round(b), kept within 0 .. 255, columns in the order BYTE_ORDER
    bytes_signed(a, b)        = the same within -128 .. 127
    bytes_raised(a, b)        = those with 128 added

Rounding is to nearest even (cvtps2dq); what is no number or beyond int32 becomes the least value.
The helpers read and write no memory and say so: LLVM otherwise keeps their order, and takes reductions apart.
"""

from __future__ import annotations

from contextlib import nullcontext

from tvm.tirx.script.builder import ir as T

BYTE_ORDER = [4 * part + 16 * half + at for part in range(4) for half in range(2) for at in range(4)]
"""Which of 32 columns lies in each byte of the words: packs work on quarters of a register."""

_DECLARATIONS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float>, <16 x float>)
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)
declare <16 x i32> @llvm.x86.avx512.mask.cvtps2dq.512(<16 x float>, <16 x i32>, i16, i32)
declare <32 x i16> @llvm.x86.avx512.packusdw.512(<16 x i32>, <16 x i32>)
declare <32 x i16> @llvm.x86.avx512.packssdw.512(<16 x i32>, <16 x i32>)
declare <32 x i8> @llvm.x86.avx512.mask.pmovus.wb.512(<32 x i16>, <32 x i8>, i32)
declare <32 x i8> @llvm.x86.avx512.mask.pmovs.wb.512(<32 x i16>, <32 x i8>, i32)
attributes #0 = { alwaysinline nounwind willreturn memory(none) }
"""

_HELPERS = {
    "bf16": """
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
""",
    "int8": """
define linkonce_odr <16 x i32> @dlrm_dot_int8(<16 x i32> %acc, <16 x float> %x, <16 x float> %w) #0 {
  %a = bitcast <16 x float> %x to <64 x i8>
  %b = bitcast <16 x float> %w to <64 x i8>
  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %acc, <64 x i8> %a, <64 x i8> %b)
  ret <16 x i32> %r
}
"""
    + "".join(
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
    ),
}


def imported(precision: str):
    """A frame within which the helpers of a precision may be called; it changes nothing for fp32.

    with T.prim_func(..): .. with imported("int8"): body
    """
    if precision not in _HELPERS:
        return nullcontext()
    return T.attr(0, "pragma_import_llvm", _DECLARATIONS + _HELPERS[precision])


def dot_bf16(acc, x, w):
    return T.call_pure_extern("float32x16", "dlrm_dot_bf16", acc, x, w)


def dot_int8(acc, x, w):
    """acc: int32x16."""
    return T.call_pure_extern("int32x16", "dlrm_dot_int8", acc, x, w)


def pair_bf16(lo, hi):
    return T.call_pure_extern("float32x16", "dlrm_pair_bf16", lo, hi)


def pack_bytes(kind: str, a, b):
    """float32x8: 32 bytes; kind: "unsigned", "signed" or "raised"."""
    return T.call_pure_extern("float32x8", f"dlrm_bytes_{kind}", a, b)
