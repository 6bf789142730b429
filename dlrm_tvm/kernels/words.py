"""Layout of activations between two layers, and the multiply-add on them: the same code for all precisions.

Everything is stored as words of 32 bits in float32 buffers: 1 fp32, 2 bf16 or 4 int8 values. A dense layer or a dot
takes words of x and words of w:

    acc' = acc + sum over the values of a word of x * w           fp32: vfmadd, bf16: vdpbf16ps, int8: vpdpbusd

Where there is no vpdpbusd, vpmaddubsw adds up two products and cuts the sum off at 16 bits, so int8 weights are within
-64 .. 64 there. Layers take "bytes", of one vector of 16 outputs each; rows of tables are int8 words as everywhere.

vpdpbusd multiplies unsigned bytes of x by signed bytes of w. So values that may be negative are stored with 128 added
(a `signed` form). This adds 128 * sum of w to a sum; layers subtract it beforehand (dense.py), the interaction
afterwards (network/interaction.py).

fp32 values on AMX are sums of three bf16 parts, x = x1 + x2 + x3, each a word's half like any bf16 value:

    x1 = the upper half of x,   x2 = the upper half of x - x1,   x3 = x - x1 - x2         8 + 8 + 8 bits of mantissa

Cutting off is exact and cheap; weights are rounded to nearest, offline. Of Inf and NaN at least one part is NaN.

`unit` vectors of 16 outputs are packed to words together. int8's pack instructions change the order of columns
(isa.py). Weights and tables are packed in that order too, so that it is never undone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.tirx.script.builder import ir as T

from .isa import AVX512, WHOLE, Family, dot_int8, pack_bytes, pack_own_bytes, pair_bf16, unpack_bytes
from .llvm_ir import BYTE_ORDER
from .vectors import LANES, bits_of, broadcast, floats, padded, words_of, zeros

VALUES = {"fp32": 1, "bf16": 2, "int8": 4, "bytes": 4}  # per word
UNIT = {"fp32": 1, "bf16": 2, "int8": 2, "bytes": 1}  # vectors of 16 values that are packed together
UNPACKED = 2.0**24
_BEYOND = 65535  # more than a byte, less than int32's limit, beyond which rounding gives the least int32
_ALL_SIGNS = -0x7F7F7F80  # 0x80808080 as int32: xor with it adds 128 to each signed byte


@dataclass(frozen=True)
class Form:
    """Only for int8: signed: values may be negative; by_row: each row has its own scale.

    family: whose multiply-add takes the words; None if only their layout matters, of values in one part.
    """

    precision: str
    signed: bool = False
    by_row: bool = False
    family: Family | None = None

    def __post_init__(self) -> None:
        assert self.family is None or self.precision in (self.family.takes, self.family.precision)

    @property
    def values(self) -> int:
        """Per word."""
        return VALUES[self.precision]

    @property
    def unit(self) -> int:
        """Vectors of 16 values that are packed together."""
        return UNIT[self.precision]

    @property
    def unit_words(self) -> int:
        return self.unit * LANES // self.values

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """(part of x, part of w) of the products that make one multiply-add on tiles, in their order."""
        return WHOLE if self.family is None else self.family.products

    @property
    def parts(self) -> int:
        """That a value is the sum of: so many times the words, a unit's parts one after the other."""
        return 1 if self.family is None else self.family.parts

    @property
    def is_whole(self) -> bool:
        """Whether values are whole numbers within a byte's bounds, and sums are int32."""
        return self.precision in ("int8", "bytes")

    @property
    def sum_dtype(self) -> str:
        return "int32" if self.is_whole else "float32"

    @property
    def largest(self) -> int:
        """The int8 value of a row's largest magnitude."""
        return 127 if self.signed else 255

    @property
    def is_raised(self) -> bool:
        """Whether signed values are stored with 128 added: tiles multiply signed bytes too."""
        return self.signed and not (self.family is not None and self.family.tiles)

    @property
    def widens(self) -> bool:
        """Whether rows of bytes are multiplied as signed numbers of 16 bits."""
        return self.precision == "int8" and self.family is not None and self.family.widens_rows

    @property
    def is_direct(self) -> bool:
        """Whether words are made of their own values alone, and `unpack` gives those back."""
        return not self.by_row and self.parts == 1

    @property
    def zero_point(self) -> int:
        """The byte of the value 0."""
        return 128 if self.is_raised else 0

    def words(self, columns: int) -> int:
        """Number of words of so many columns, in whole units."""
        width = self.unit * LANES
        return -(-columns // width) * self.unit_words * self.parts

    def is_zero(self, word):
        """Whether all values of a scalar word are zero."""
        if self.precision == "fp32":
            return word == T.float32(0)
        return T.reinterpret("int32", word) == T.int32(0)

    def no_sum(self):
        return _int32s(0) if self.is_whole else zeros()

    def left(self, words):
        """Words of a row of signed values as the first factor of `dot`."""
        if self.precision != "int8":
            return words
        return words_of(T.bitwise_xor(bits_of(words), _int32s(_ALL_SIGNS)))

    def dot(self, acc, x, w):
        """acc + x . w over the values of each word: 16 sums."""
        if self.precision == "int8":  # rows of tables, also where layers take other words
            return dot_int8(acc, x, w)
        return self.family.multiply_add(acc, x, w)

    def pack(self, vectors: list, *, as_row: bool = False):
        """`unit` vectors of 16 float32 -> their words; int8 values are divided by their scale already.

        as_row: as signed bytes, like rows of a table.
        """
        if self.precision == "fp32":
            return vectors[0]
        if self.precision == "bf16":
            return pair_bf16(*vectors)
        if not self.by_row:  # a row's own scale leaves no value beyond
            vectors = [T.min(vector, broadcast(T.float32(_BEYOND))) for vector in vectors]
        kind = "unsigned" if not self.signed else "raised" if self.is_raised else "signed"
        if self.precision == "bytes":
            return pack_own_bytes(kind, vectors[0])
        return pack_bytes("signed" if as_row else kind, *vectors)

    def pack_parts(self, vectors: list) -> list:
        """The words of each part of `unit` vectors. In several parts word i holds columns i and 16 + i of 32."""
        if self.parts == 1:
            return [self.pack(vectors)]
        words = []
        for _ in range(self.parts):
            vectors = [T.bind(vector) for vector in vectors]
            low, high = (T.bind(_upper_half(vector)) for vector in vectors)
            lower = T.shift_right(T.reinterpret(f"uint32x{LANES}", vectors[0]), broadcast(T.uint32(16)))
            words.append(words_of(T.bitwise_or(bits_of(high), T.reinterpret(f"int32x{LANES}", lower))))
            vectors = [vectors[0] - low, vectors[1] - high]
        return words

    def unpack(self, words) -> list:
        """The inverse of pack for a form that `is_direct`: a unit's words -> its vectors of 16 float32. Bytes come
        times UNPACKED, in the upper end of their int32: that takes one instruction less."""
        if self.precision == "fp32":
            return [words]
        if self.precision == "bf16":
            values = T.bind(T.reinterpret("uint16x32", words))
            halves = [T.cast(T.Shuffle([values], list(range(at, at + LANES))), "uint32x16") for at in (0, LANES)]
            return [T.reinterpret("float32x16", T.shift_left(half, broadcast(T.uint32(16)))) for half in halves]
        if self.precision == "bytes":
            words = T.cast(T.reinterpret("uint8x16", words), "int32x16")
            return [floats(T.shift_left(words - _int32s(self.zero_point), _int32s(24)))]
        if self.is_raised:
            words = T.bitwise_xor(T.reinterpret("int32x8", words), T.broadcast(T.int32(_ALL_SIGNS), 8))
            words = T.reinterpret("float32x8", words)
        words = T.bind(words)
        return [unpack_bytes(half, words) for half in range(2)]

    def planes(self, words) -> list:
        """16 words -> `values` vectors of 16 float32; plane p holds value p of each word."""
        if self.precision == "fp32":
            return [words]
        bits = T.bind(bits_of(words))
        if self.precision == "bf16":
            high = T.bitwise_and(bits, _int32s(-(1 << 16)))
            return [words_of(T.shift_left(bits, _int32s(16))), words_of(high)]
        return [floats(T.shift_right(T.shift_left(bits, _int32s(24 - 8 * plane)), _int32s(24))) for plane in range(4)]

    def join(self, planes: list):
        """The inverse of planes, but for int8: bf16 rounds to nearest even."""
        if self.precision == "fp32":
            return planes[0]
        low, high = (_rounded_half(T.bind(bits_of(plane))) for plane in planes)
        low = T.bitwise_and(T.shift_right(low, _int32s(16)), _int32s((1 << 16) - 1))
        return words_of(T.bitwise_or(low, high))


def _int32s(number: int):
    return broadcast(T.int32(number))


def _upper_half(vector):
    """float32 cut off to bfloat16."""
    return words_of(T.bitwise_and(bits_of(vector), _int32s(-(1 << 16))))


def _rounded_half(bits):
    """float32 bits rounded to bfloat16, nearest even, in the upper 16 bits."""
    odd = T.bitwise_and(T.shift_right(bits, _int32s(16)), _int32s(1))
    return T.bitwise_and(bits + _int32s(0x7FFF) + odd, _int32s(-(1 << 16)))


FP32 = Form("fp32", family=AVX512)  # and AVX2's, whose multiply-add is the same IR


def column_order(precision: str, columns: int) -> np.ndarray:
    """[columns, in whole units]: the column of each value in the words."""
    if precision != "int8":
        return np.arange(columns)
    width = UNIT[precision] * LANES
    return (np.arange(columns // width)[:, None] * width + np.array(BYTE_ORDER)).reshape(-1)


def table_form(precision: str, family: Family | None = None) -> Form:
    """Of rows, whose values may be negative."""
    return FP32 if precision == "fp32" else Form(precision, signed=precision == "int8", family=family)


def row_words(dim: int, precision: str) -> int:
    """Words of a stored row, a multiple of 16."""
    return padded(table_form(precision).words(dim))
