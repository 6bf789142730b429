"""How activations lie between two layers, and what a multiply-add on them is: one outline for all precisions.

Everything lies in words of 32 bits, in float32 buffers whatever the words hold: 1 fp32, 2 bf16 or 4 int8 values. A
dense layer or a dot takes words of x and words of w:

    acc' = acc + sum over the values of a word of x * w           fp32: vfmadd, bf16: vdpbf16ps, int8: vpdpbusd

int8 multiplies unsigned bytes of x by signed ones of w. What may be negative is therefore kept with 128 added (a
`signed` form), and what those 128 add to a sum, 128 * sum of w, is taken off again: in a layer beforehand (dense.py),
in the interaction afterwards (dots.py).

Vectors of 16 outputs become words `unit` vectors at a time. For int8 the packs then leave columns in another order
(instructions.py), which weights and tables are packed in too, so that nothing is ever put back in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.tirx.script.builder import ir as T

from .instructions import BYTE_ORDER, dot_bf16, dot_int8, pack_bytes, pair_bf16
from .vectors import LANES, bits_of, broadcast, floats, fma, words_of, zeros

VALUES = {"fp32": 1, "bf16": 2, "int8": 4}  # per word
UNIT = {"fp32": 1, "bf16": 2, "int8": 2}  # vectors of 16 values that are packed together
_BEYOND = 65535  # any number beyond a byte that an int32 holds: rounding makes the least one of what it does not hold
_ALL_SIGNS = -0x7F7F7F80  # 0x80808080 as int32: its xor adds 128 to each signed byte


@dataclass(frozen=True)
class Form:
    """signed: values may be negative; by_row: each row has a scale of its own. Both are of int8 alone."""

    precision: str
    signed: bool = False
    by_row: bool = False

    @property
    def values(self) -> int:
        """How many values a word holds."""
        return VALUES[self.precision]

    @property
    def unit(self) -> int:
        """How many vectors of 16 values are packed together."""
        return UNIT[self.precision]

    @property
    def unit_words(self) -> int:
        return self.unit * LANES // self.values

    @property
    def is_narrow(self) -> bool:
        return self.precision != "fp32"

    @property
    def sum_dtype(self) -> str:
        return "int32" if self.precision == "int8" else "float32"

    @property
    def largest(self) -> int:
        """The largest int8 value: what a row's largest is scaled to."""
        return 127 if self.signed else 255

    @property
    def zero_point(self) -> int:
        """What the byte of the value 0 holds."""
        return 128 if self.signed else 0

    def words(self, columns: int) -> int:
        """Words of so many columns, in whole units."""
        width = self.unit * LANES
        return -(-columns // width) * self.unit_words

    def is_zero(self, word):
        """Whether a scalar word is made of values that are all zero."""
        if self.precision == "fp32":
            return word == T.float32(0)
        return T.reinterpret("int32", word) == T.int32(0)

    def no_sum(self):
        return _int32s(0) if self.precision == "int8" else zeros()

    def left(self, words):
        """Words of a row of signed values as the first factor of `dot`."""
        if self.precision != "int8":
            return words
        return words_of(T.bitwise_xor(bits_of(words), _int32s(_ALL_SIGNS)))

    def dot(self, acc, x, w):
        """acc + x . w over the values of each word: 16 sums."""
        if self.precision == "fp32":
            return fma(x, w, acc)
        return dot_bf16(acc, x, w) if self.precision == "bf16" else dot_int8(acc, x, w)

    def pack(self, vectors: list, *, as_row: bool = False):
        """`unit` vectors of 16 float32 -> their words; for int8 in the bytes' own steps, rounded here.

        as_row: for the interaction, whose vectors are signed bytes as those of tables are.
        """
        if self.precision == "fp32":
            return vectors[0]
        if self.precision == "bf16":
            return pair_bf16(*vectors)
        if not self.by_row:  # a row's own steps leave nothing beyond
            vectors = [T.min(vector, broadcast(T.float32(_BEYOND))) for vector in vectors]
        return pack_bytes("signed" if as_row else "raised" if self.signed else "unsigned", *vectors)

    def planes(self, words) -> list:
        """16 words -> `values` vectors of 16 float32: plane p holds value p of each word."""
        if self.precision == "fp32":
            return [words]
        bits = T.bind(bits_of(words))
        if self.precision == "bf16":
            high = T.bitwise_and(bits, _int32s(-(1 << 16)))
            return [words_of(T.shift_left(bits, _int32s(16))), words_of(high)]
        return [floats(T.shift_right(T.shift_left(bits, _int32s(24 - 8 * plane)), _int32s(24))) for plane in range(4)]

    def join(self, planes: list):
        """The inverse of planes: values rounded to nearest even, for int8 whole numbers within -127 .. 127."""
        if self.precision == "fp32":
            return planes[0]
        if self.precision == "bf16":
            low, high = (_upper_half(T.bind(bits_of(plane))) for plane in planes)
            low = T.bitwise_and(T.shift_right(low, _int32s(16)), _int32s((1 << 16) - 1))
            return words_of(T.bitwise_or(low, high))
        words = _int32s(0)
        for plane, values in enumerate(planes):
            byte = T.bitwise_and(T.cast(values, f"int32x{LANES}"), _int32s(255))
            words = T.bitwise_or(words, T.shift_left(byte, _int32s(8 * plane)))
        return words_of(words)


def _int32s(number: int):
    return broadcast(T.int32(number))


def _upper_half(bits):
    """float32 bits rounded to bfloat16, nearest even, in the upper 16 bits."""
    odd = T.bitwise_and(T.shift_right(bits, _int32s(16)), _int32s(1))
    return T.bitwise_and(bits + _int32s(0x7FFF) + odd, _int32s(-(1 << 16)))


FP32 = Form("fp32")


def column_order(precision: str, columns: int) -> np.ndarray:
    """[columns, in whole units]: which column each value of the words holds."""
    if precision != "int8":
        return np.arange(columns)
    width = UNIT[precision] * LANES
    return (np.arange(columns // width)[:, None] * width + np.array(BYTE_ORDER)).reshape(-1)
