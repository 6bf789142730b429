"""Instruction families in one table, and the LLVM IR of instructions that TVM has no name for.

    family         precision   FLOPs per multiply-add
    amx_int8       int8        32,768, of two tiles
    amx_bf16       bf16        16,384
    amx_fp32       fp32        16,384, in six products of bf16 tiles
    avx512_vnni    int8        128
    avx512_bf16    bf16         64
    avx512         fp32         32
    avx_vnni       int8        128, in two instructions
    avx2_int8      int8        128, in six
    avx2           fp32         32, in two instructions

`family_for` chooses one for a CPU and a precision. In a bf16 or int8 network the layers that stay fp32 run on the
fp32 multiply-add of the same registers. So do the interaction and the last layer of an fp32 network on tiles.

TVM's passes turn bfloat16 into float32 on CPUs, and its vpdpbusd has another LLVM's signature. So bf16 and int8 values
travel as words: a float32x16 is 16 words of 32 bits, each with one fp32, two bf16 or four int8 values, and only the
helpers look inside. `imported()` attaches them to the function that is being emitted; LLVM inlines them. Their texts
are in llvm_ir.py.

Scalar meaning, for every lane l (Intel SDM; Intel Architecture Instruction Set Extensions, AVX512_BF16):

    dot_bf16(acc, x, w)[l]    = acc[l] + x[l].bf16[1] * w[l].bf16[1] + x[l].bf16[0] * w[l].bf16[0]       vdpbf16ps
                                denormals count as zero; rounds to nearest even whatever MXCSR says
    dot_int8(acc, x, w)[l]    = acc[l] + sum over b < 4 of x[l].u8[b] * w[l].s8[b], as int32, no saturation  vpdpbusd
    dot_bytes(acc, x, w)[l]   = the same, on AVX2 alone if |w| <= 64: it adds pairs up in 16 bits        vpmaddubsw
    pair_bf16(lo, hi)         = 16 words of the 32 values lo, hi, rounded to nearest even           vcvtne2ps2bf16
    bytes_unsigned(a, b)      = 8 words of round(a), round(b), kept within 0 .. 255, columns in the order BYTE_ORDER
    bytes_signed(a, b)        = the same within -128 .. 127
    bytes_raised(a, b)        = those with 128 added
    own_unsigned(a), own_raised(a) = 4 words of round(a), within the same bounds, columns in order
    unpack_0(w), unpack_1(w)  = the first and last 16 columns of such 8 words, signed, times 2^24

Rounding is to nearest even (cvtps2dq); NaN and values beyond int32 become the least value.
The helpers are declared to touch no memory: otherwise LLVM keeps their order, and splits reductions.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from tvm.tirx.script.builder import ir as T

from . import llvm_ir
from .vectors import LANES, fma

REGISTERS = 32  # vectors of 16 float32: AVX-512's
REGISTERS_AVX2 = 8  # its 16 registers of 8 float32, in pairs


def unpack_bytes(half: int, words):
    """Words of bytes in the order BYTE_ORDER, float32x8 -> columns 16 * half to 16 * half + 15 times 2^24."""
    return T.call_pure_extern("float32x16", f"dlrm_unpack_{half}", words)


def dot_fp32(acc, x, w):
    return fma(x, w, acc)


def dot_bf16(acc, x, w):
    return T.call_pure_extern("float32x16", "dlrm_dot_bf16", acc, x, w)


def dot_int8(acc, x, w):
    """acc: int32x16."""
    return T.call_pure_extern("int32x16", "dlrm_dot_int8", acc, x, w)


def dot_bytes(acc, x, w):
    """acc: int32x16."""
    return T.call_pure_extern("int32x16", "dlrm_dot_bytes", acc, x, w)


def scaled_bytes(acc, x, y):
    """y + acc . x, for the peak loop: of acc + x . y LLVM would take the product, always the same, out of the loop."""
    return dot_bytes(T.reinterpret("int32x16", y), T.reinterpret("float32x16", acc), x)


def pair_bf16(lo, hi):
    return T.call_pure_extern("float32x16", "dlrm_pair_bf16", lo, hi)


def pack_bytes(kind: str, a, b):
    """float32x8: 32 bytes; kind: "unsigned", "signed" or "raised"."""
    return T.call_pure_extern("float32x8", f"dlrm_bytes_{kind}", a, b)


def pack_own_bytes(kind: str, vector):
    """float32x4: 16 bytes; kind: "unsigned" or "raised"."""
    return T.call_pure_extern("float32x4", f"dlrm_own_{kind}", vector)


WHOLE = ((0, 0),)
# Of three parts each, small terms first. Each changes one side, so that its tiles alone are loaded. What is left out is
# 2^-24 of a product or less: as exact as an fp32 multiply-add, which five, four or three products are not.
SIX_PRODUCTS = ((2, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 0))


@dataclass(frozen=True)
class Family:
    """The instructions that kernels of one precision are made of.

    flags: of /proc/cpuinfo, needed to run them; registers: of vectors of 16 lanes; chains: independent multiply-adds
    of the peak loop (peak.py), each a peak_step(acc, x, y). multiply_add(acc, x, w): acc + x . w over the values of
    each word, `flops_per_step` FLOPs; helpers: the LLVM IR of both. multiplies: the instructions in it that
    multiply a register, of which fp32's has one.

    words: what layers take where it is not the precision's own (words.py): bf16 for fp32 on AMX; "bytes", one vector
    packed alone, for int8 on AVX2, which has no registers for two. largest_weight: of int8 layers, in steps of their
    scale. widens_rows: its dots of rows of bytes are faster in 16 bits, signed.

    tiles: layers and dots run on AMX's tiles (tile_unit.py), whose products flops_per_step and chains are of; emulated:
    by loops instead, for tests on CPUs without AMX. products: (part of x, part of w) of the tile products that make a
    multiply-add, in their order; more than one where values are sums of bf16 parts (words.py).
    """

    name: str
    precision: str
    flags: tuple[str, ...]
    registers: int
    flops_per_step: int
    chains: int
    multiply_add: Callable = field(repr=False)
    peak_step: Callable = field(repr=False)
    helpers: str = field(default="", repr=False)
    tiles: bool = False
    emulated: bool = False
    products: tuple[tuple[int, int], ...] = WHOLE
    words: str = ""
    largest_weight: int = 127
    multiplies: int = 1
    widens_rows: bool = False

    @property
    def takes(self) -> str:
        """The kind of the words that it multiplies (words.py)."""
        return self.words or self.precision

    @property
    def parts(self) -> int:
        """That a value is the sum of."""
        return 1 + max(part for product in self.products for part in product)

    @property
    def tile_dots(self) -> bool:
        """Whether the interaction runs on tiles too. Splitting rows would cost more than tiles gain there."""
        return self.tiles and self.products == WHOLE


# fp32's peak loop: acc = acc * x + y stays a normal number.
AVX2 = Family("avx2", "fp32", ("avx2", "fma"), REGISTERS_AVX2, 2 * LANES, 6, dot_fp32, fma)
AVX2_INT8 = Family(
    "avx2_int8", "int8", AVX2.flags, REGISTERS_AVX2, 8 * LANES, 6, dot_bytes, scaled_bytes,
    llvm_ir.AVX2_INT8, words="bytes", largest_weight=64, multiplies=2, widens_rows=True,
)  # fmt: skip
AVX_VNNI = Family(
    "avx_vnni", "int8", ("avx_vnni", *AVX2.flags), REGISTERS_AVX2, 8 * LANES, 6, dot_bytes, dot_bytes, llvm_ir.AVX_VNNI,
    words="bytes",
)  # fmt: skip
AVX512 = Family("avx512", "fp32", ("avx512f",), REGISTERS, 2 * LANES, 20, dot_fp32, fma)
AVX512_BF16 = Family(
    "avx512_bf16", "bf16", ("avx512bw", "avx512_bf16"), REGISTERS, 4 * LANES, 20, dot_bf16, dot_bf16,
    llvm_ir.AVX512 + llvm_ir.BF16,
)  # fmt: skip
AVX512_VNNI = Family(
    "avx512_vnni", "int8", ("avx512bw", "avx512_vnni"), REGISTERS, 8 * LANES, 20, dot_int8, dot_int8,
    llvm_ir.AVX512 + llvm_ir.INT8 + llvm_ir.UNPACK,
)  # fmt: skip

_TILE_FLOPS = 2 * 16 * 16 * 16  # of the words of a product of two tiles, each of one value
AMX_BF16 = Family(
    "amx_bf16", "bf16", ("amx_tile", "amx_bf16", *AVX512_BF16.flags), REGISTERS, 2 * _TILE_FLOPS, 4, dot_bf16,
    dot_bf16, AVX512_BF16.helpers, tiles=True,
)  # fmt: skip
AMX_INT8 = Family(
    "amx_int8", "int8", ("amx_tile", "amx_int8", "avx512vbmi", *AVX512_VNNI.flags, *AMX_BF16.flags), REGISTERS,
    4 * _TILE_FLOPS, 4, dot_int8, dot_int8,
    llvm_ir.AVX512 + llvm_ir.BF16 + llvm_ir.INT8 + llvm_ir.UNPACK_VBMI, tiles=True,
)  # fmt: skip
AMX_FP32 = Family(
    "amx_fp32", "fp32", ("amx_tile", "amx_bf16", *AVX512.flags), REGISTERS, 2 * _TILE_FLOPS, 4, dot_fp32, fma,
    tiles=True, products=SIX_PRODUCTS, words="bf16",
)  # fmt: skip

# Of one precision, the fastest first.
FAMILIES = (AMX_INT8, AMX_BF16, AMX_FP32, AVX512_VNNI, AVX512_BF16, AVX_VNNI, AVX2_INT8, AVX512, AVX2)
# CPUs without AVX2 get TVM's default code and this peak loop, but none of our kernels.
GENERIC = Family("generic", "fp32", (), 4, 2 * LANES, 3, dot_fp32, fma)


def family_for(flags: Container[str], precision: str, *, tiles: bool = True) -> Family | None:
    """The fastest family of a precision on a CPU with these flags of /proc/cpuinfo; None if it has none.

    tiles: whether one that is made of tiles will do.
    """
    able = (family for family in FAMILIES if all(flag in flags for flag in family.flags) and tiles >= family.tiles)
    return next((family for family in able if family.precision == precision), None)


def beside(family: Family, precision: str) -> Family | None:
    """The family of a layer of this precision in a network of `family`; None for fp32, which needs no helpers."""
    if precision in (family.precision, "fp32"):
        return family if precision == family.precision else None
    return replace(AMX_BF16, emulated=family.emulated)  # int8's first layer on tiles


def imported(family: Family, more: str = ""):
    """A frame within which the family's helpers may be called, and those of `more` LLVM IR; it changes nothing for a
    family without any.

    with T.prim_func(..): .. with imported(AVX512_VNNI): body
    """
    helpers = family.helpers + more
    return T.attr(0, "pragma_import_llvm", helpers) if helpers else nullcontext()
