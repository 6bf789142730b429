"""Dot interaction: all dots z_i . z_j, j < i, of one item's vectors z = [x, e1, .., eT], straight from the tables.

Plain definition, for pair p = (i, j):   dots[p] = sum_d z[i, d] * z[j, d]

Blocked form: 16 pairs at a time in 16 accumulators over all of D (4 x 4 pairs need 8 loads per 16 multiply-adds),
then a tree that turns 16 vectors into the vector of their 16 sums: 30 shuffles, 15 additions. Registers: 16
accumulators + 8 rows. AVX2's 16 registers of 8 lanes take half of a group at a time, 2 x 4 pairs: 8 accumulators + 6
rows, whose 16 lanes are added one half after the other; of int8 without VNNI 16 bytes, made 16 bits. The order of the
pairs is our own, `Grouping.order`; the first top layer's weights are packed in that order.

Knows no tables: `row` gives, per vector and 16 of its words, an expression. In int8, but not in 16 bits, z_i gets 128
added to each byte (words.py), so that its dot is too large by 128 * sum_d z[j, d]. `Lanes` tells the z_i and z_j of
each lane, so that interaction.py can subtract that and scale the dots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tvm.tirx.script.builder import ir as T

from ..kernels.vectors import LANES, fma, load, store, zeros
from ..kernels.words import Form

EDGE = 4  # vectors on each side of a block of pairs: EDGE * EDGE accumulators
HALF = LANES // 2
_WORDS_AT_ONCE = 4  # whose 16 bytes, made 16 bits, are a register

# LLVM unrolls no loop with a call that must not be duplicated; this one is no instruction. Unrolled, it takes one
# accumulator after the other and keeps all rows on the stack.
_ROLLED = """
define linkonce_odr void @dlrm_rolled() alwaysinline nounwind {
  call void asm sideeffect "", ""() noduplicate
  ret void
}
"""


@dataclass(frozen=True)
class Grouping:
    """The pairs of n vectors in groups of 16: `blocks` x (blocks - 1) / 2 full blocks, then the `rest`."""

    blocks: int
    rest: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def num_block_groups(self) -> int:
        return self.blocks * (self.blocks - 1) // 2

    @property
    def num_groups(self) -> int:
        return self.num_block_groups + len(self.rest)

    @property
    def order(self) -> list[tuple[int, int] | None]:
        """The pair in each output lane; None for empty lanes of the last group."""
        order: list[tuple[int, int] | None] = []
        for block_i in range(1, self.blocks):
            for block_j in range(block_i):
                order += _block_pairs(block_i * EDGE, block_j * EDGE)
        for group in self.rest:
            order += [*group, *[None] * (LANES - len(group))]
        return order


def group_pairs(pairs: list[tuple[int, int]], num_vectors: int) -> Grouping:
    """Groups for the lower triangle `pairs`. Pairs outside full blocks go by columns, so that groups share rows."""
    blocks = num_vectors // EDGE
    covered = {pair for i in range(1, blocks) for j in range(i) for pair in _block_pairs(i * EDGE, j * EDGE)}
    left = sorted((pair for pair in pairs if pair not in covered), key=lambda pair: (pair[1] // EDGE, -pair[0]))
    rest = tuple(tuple(left[at : at + LANES]) for at in range(0, len(left), LANES))
    return Grouping(blocks, rest)


def _block_pairs(first_i: int, first_j: int) -> list[tuple[int, int]]:
    return [(first_i + a, first_j + b) for a in range(EDGE) for b in range(EDGE)]


@dataclass(frozen=True)
class Lanes:
    """The vector in each lane on one side of a group's pairs: four from `first` on, four lanes each (`each`) or in
    turn; or those `listed`.
    """

    first: object = None
    each: bool = False
    listed: tuple[int, ...] = ()

    def of(self, buffer):
        """16 lanes out of a buffer with one number per vector."""
        if not self.listed:
            order = [lane // EDGE if self.each else lane % EDGE for lane in range(LANES)]
            return T.Shuffle([T.bind(load(buffer, self.first, EDGE))] * EDGE, order)
        used = sorted({i // LANES for i in self.listed})
        order = [used.index(i // LANES) * LANES + i % LANES for i in self.listed]
        return T.Shuffle([T.bind(load(buffer, at * LANES)) for at in used], order)


def dot_interaction(
    grouping: Grouping, words: int, row: Callable, first_row: Callable, write: Callable, form: Form, registers: int
) -> None:
    """All groups of one item.

    row(i): prepares vector i >= 1 (i may be an expression) and returns chunk -> 16 of its words, or (chunk, lanes) ->
    so many; first_row(): the same for vector 0, x. write(group, sums, i, j): one group's 16 sums, and the Lanes of its
    pairs (i, j). words: of a vector, a multiple of 16; registers: of vectors of 16 lanes, as a family has them.
    """
    in_halves = form.widens or (form.precision == "fp32" and registers <= EDGE * EDGE)
    if in_halves:
        with T.attr(0, "pragma_import_llvm", _ROLLED):
            _groups(grouping, words // LANES, row, first_row, write, partial(_dots_in_halves, form=form))
    else:
        _groups(grouping, words // LANES, row, first_row, write, partial(_dots, form=form))


def _groups(
    grouping: Grouping, chunks: int, row: Callable, first_row: Callable, write: Callable, dots: Callable
) -> None:
    """dots(pairs of vectors, chunks): their dots as one vector."""
    if grouping.blocks > 1:
        with T.serial(grouping.blocks - 1) as upper:
            block_i = upper + 1
            group = T.bind(block_i * upper // 2)
            left = [row(block_i * EDGE + a) for a in range(EDGE)]
            right = [first_row(), *(row(b) for b in range(1, EDGE))]
            sides = Lanes(block_i * EDGE, each=True), Lanes(0)
            write(group, dots([(x, y) for x in left for y in right], chunks), *sides)
            with T.serial(upper) as other:
                block_j = other + 1
                left = [row(block_i * EDGE + a) for a in range(EDGE)]
                right = [row(block_j * EDGE + b) for b in range(EDGE)]
                sides = Lanes(block_i * EDGE, each=True), Lanes(block_j * EDGE)
                write(group + block_j, dots([(x, y) for x in left for y in right], chunks), *sides)
    for at, pairs in enumerate(grouping.rest):
        used = {i: first_row() if i == 0 else row(i) for i in sorted({i for pair in pairs for i in pair})}
        sums = dots([(used[i], used[j]) for i, j in pairs], chunks)
        filled = [*pairs, *[pairs[0]] * (LANES - len(pairs))]
        sides = (Lanes(listed=tuple(pair[side] for pair in filled)) for side in range(2))
        write(grouping.num_block_groups + at, sums, *sides)


def _dots(pairs: list, chunks: int, form: Form):
    """The dots of up to 16 pairs of vectors as one vector, lane q for pair q.

    Lanes past them hold 0; for int8, whose sums are not dots yet, the first pair's sum.

    Everything is a bound value: LLVM stored accumulators in a buffer to the stack again and again.
    """
    sums: list = [form.no_sum()] * len(pairs)
    for chunk in range(chunks):
        loaded = {id(v): T.bind(v(chunk)) for v in {id(v): v for pair in pairs for v in pair}.values()}
        lefts = {id(x): T.bind(form.left(loaded[id(x)])) for x in {id(x): x for x, _ in pairs}.values()}
        for q, (x, y) in enumerate((lefts[id(x)], loaded[id(y)]) for x, y in pairs):
            sums[q] = T.bind(form.dot(sums[q], x, y))
    spare = [sums[0]] * (LANES - len(sums)) if form.precision == "int8" else []
    return sum_lanes(sums + spare, form)


def _dots_in_halves(pairs: list, chunks: int, form: Form):
    """The same, 8 pairs at a time."""
    zero = T.broadcast(T.int32(0), HALF) if form.widens else zeros(HALF)
    halves = [_half_dots(pairs[at : at + HALF], chunks, form, zero) if pairs[at:] else zero for at in (0, HALF)]
    return T.bind(T.Shuffle(halves, list(range(LANES))))


def _half_dots(pairs: list, chunks: int, form: Form, zero):
    """The dots of up to 8 pairs of vectors as 8 lanes; of bytes exact."""
    sums = [T.alloc_buffer((HALF,), "int32" if form.widens else "float32", scope="global") for _ in pairs]
    for each in sums:
        store(each, 0, zero, HALF)
    parts, add = (_words_in_16_bits, _add_products) if form.widens else (_halves_of_words, _add_product)
    with T.serial(chunks) as chunk:
        T.evaluate(T.call_extern("void", "dlrm_rolled"))
        for part in parts({id(v): v for pair in pairs for v in pair}, chunk):
            for each, (x, y) in zip(sums, pairs):
                store(each, 0, add(load(each, 0, HALF), part[id(x)], part[id(y)]), HALF)
    taken = [T.bind(load(each, 0, HALF)) for each in sums]
    return _tree(_in_slots(taken, zero, _HALF_LEVELS), _HALF_LEVELS)


def _halves_of_words(vectors: dict, chunk) -> Iterator[dict]:
    """Of each of the vectors 8 of a chunk's words, then the others; each part is emitted when it is asked for."""
    loaded = {key: T.bind(vector(chunk)) for key, vector in vectors.items()}
    for first in (0, HALF):
        lanes = list(range(first, first + HALF))
        yield {key: T.bind(T.Shuffle([words], lanes)) for key, words in loaded.items()}


def _add_product(total, x, y):
    return fma(x, y, total, HALF)


def _words_in_16_bits(vectors: dict, chunk) -> Iterator[dict]:
    """The same, 4 words at a time, whose 16 bytes are made 16 bits."""
    for part in range(LANES // _WORDS_AT_ONCE):
        at = T.bind(chunk * (LANES // _WORDS_AT_ONCE) + part)
        yield {key: _in_16_bits(vector(at, _WORDS_AT_ONCE)) for key, vector in vectors.items()}


def _in_16_bits(words):
    return T.bind(T.cast(T.reinterpret("int8x16", words), "int16x16"))


def _add_products(total, x, y):
    """vpmaddwd adds up two products of 16 bits each."""
    return total + T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", x, y)


# One level of the tree: lanes of (a, b), 0..15 of a and 16..31 of b, whose two picks are added.
_LEVELS = (
    ([*range(8), *range(24, 32)], [*range(8, 16), *range(16, 24)]),
    (
        [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27],
        [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31],
    ),
    ([b + o for b in (0, 4, 8, 12) for o in (0, 1, 18, 19)], [b + o for b in (0, 4, 8, 12) for o in (2, 3, 16, 17)]),
    ([b + o for b in (0, 4, 8, 12) for o in (0, 2, 16, 18)], [b + o for b in (0, 4, 8, 12) for o in (1, 3, 17, 19)]),
)
# The same for 8 lanes, those between quarters last: they are the slowest shuffles.
_HALF_LEVELS = (
    ([b + o for b in (0, 4) for o in (0, 1, 10, 11)], [b + o for b in (0, 4) for o in (2, 3, 8, 9)]),
    ([b + o for b in (0, 4) for o in (0, 2, 8, 10)], [b + o for b in (0, 4) for o in (1, 3, 9, 11)]),
    ([0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]),
)


def sum_lanes(vectors: list, form: Form):
    """Up to 16 vectors -> one; lane q holds the sum over the lanes of vectors[q], 0 past them."""
    return _tree(_in_slots(vectors, form.no_sum(), _LEVELS), _LEVELS)


def _in_slots(vectors: list, zero, levels: tuple) -> list:
    """As `_tree` takes them for lane q to hold the sum of vectors[q]; `zero` for those that are missing."""
    slots = _slots(levels)
    lanes = [zero] * len(slots)
    for vector, slot in zip(vectors, slots):
        lanes[slot] = vector
    return lanes


def _tree(vectors: list, levels: tuple):
    """As many vectors as lanes -> one; lane l holds the sum over the lanes of vectors[_slots(levels)[l]]."""
    for first, second in levels:
        vectors = [
            T.bind(T.Shuffle([a, b], first) + T.Shuffle([a, b], second)) for a, b in zip(vectors[::2], vectors[1::2])
        ]
    return vectors[0]


def _slots(levels: tuple) -> list[int]:
    """The vector that arrives in each lane, found by running the tree on names."""
    lanes = len(levels[0][0])
    vectors = [[{slot}] * lanes for slot in range(lanes)]
    for first, second in levels:
        vectors = [
            [(a + b)[x] | (a + b)[y] for x, y in zip(first, second)] for a, b in zip(vectors[::2], vectors[1::2])
        ]
    return [next(iter(slots)) for slots in vectors[0]]
