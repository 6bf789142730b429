"""Dot interaction on AMX tiles: all z_i . z_j, j < i (j <= i with self), of an item's z = [x, e1, .., eT].

    copy         vectors -> tiles of A, Z [V/16][k tiles][16 vectors][16 words]
    transpose    each tile of Z -> one of B, whose line k holds word k of 16 vectors
    multiply     sums (I, J) += Z[I, k] * transposed Z[J, k], J <= I: blocks of 16 x 16 pairs
    collect      rows of those blocks -> whole vectors of 16 dots, float32

A row of a block below the diagonal is 16 dots as they are wanted. Rows of a block on the diagonal hold fewer: several
are put together to fill a vector, `PairOrder.vectors`; the first top layer's weights are packed in that order. For 27
vectors that gives the least, 22 vectors for 351 dots. What lies in blocks past the last vector is never collected.

int8: z = factor * q, and a dot is (factor_i * factor_j) * the sum of whole numbers; signed bytes on both sides need no
compensation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from tvm.tirx.script.builder import ir as T

from ..kernels.tile_unit import TILE_ROWS, TILE_WORDS, TileUnit, touch
from ..kernels.vectors import LANES, bits_of, broadcast, floats, load, padded, store, zeros


@dataclass(frozen=True)
class Part:
    """The first `count` lanes of row `row` of block (i, j): dots of vector 16 * i + row with 16 * j and on."""

    i: int
    j: int
    row: int
    count: int

    @property
    def vector(self) -> int:
        return TILE_ROWS * self.i + self.row

    @property
    def block(self) -> int:
        """Its block's number among (0, 0), (1, 0), (1, 1), (2, 0), .."""
        return self.i * (self.i + 1) // 2 + self.j


@dataclass(frozen=True)
class PairOrder:
    """In which order the dots of `num_vectors` vectors come out."""

    num_vectors: int
    with_self: bool = False

    @property
    def num_blocks(self) -> int:
        """Blocks of 16 vectors."""
        return -(-self.num_vectors // TILE_ROWS)

    @property
    def num_sums(self) -> int:
        """Blocks of 16 x 16 pairs on and below the diagonal."""
        return self.num_blocks * (self.num_blocks + 1) // 2

    @property
    def num_groups(self) -> int:
        return len(self.vectors)

    @cached_property
    def vectors(self) -> list[list[Part]]:
        """What each vector of 16 dots is made of: the longest part first, then the longest that still fits."""
        left = sorted(self._parts(), key=lambda part: -part.count)
        vectors: list[list[Part]] = []
        for part in left:
            for vector in vectors:
                if sum(each.count for each in vector) + part.count <= LANES:
                    vector.append(part)
                    break
            else:
                vectors.append([part])
        return vectors

    def _parts(self) -> list[Part]:
        parts = []
        for vector in range(self.num_vectors):
            i, row = divmod(vector, TILE_ROWS)
            parts += [Part(i, j, row, LANES) for j in range(i)]
            parts.append(Part(i, i, row, row + self.with_self))
        return [part for part in parts if part.count]

    @property
    def order(self) -> list[tuple[int, int] | None]:
        """The pair (i, j) in each output lane; None for lanes that no part fills, which are 0."""
        order: list[tuple[int, int] | None] = []
        for vector in self.vectors:
            for part in vector:
                order += [(part.vector, TILE_ROWS * part.j + lane) for lane in range(part.count)]
            order += [None] * (-len(order) % LANES)  # zeros
        return order


class TileDots:
    """Emits the dots of one item after the other; sums and factors of two items are kept in turns, `which` is 0 or 1,
    so that one item's dots are collected beside the next one's products.

    unit: configured with tiles of 16 rows; words: of a vector, whole k tiles; kind: of product, see tile_unit.DOTS.
    """

    def __init__(self, order: PairOrder, words: int, kind: str, unit: TileUnit) -> None:
        self._order, self._kind, self._unit = order, kind, unit
        self._k_tiles = words // LANES
        size = order.num_blocks * self._k_tiles * TILE_WORDS
        self._rows, self._columns = _scratch(size), _scratch(size)
        for k in range(self._k_tiles):  # words beyond x stay zero
            store(self._rows, self._at(0, k), zeros())
        # A row that is put behind others is read from before its beginning: 16 more words for the first one.
        self._sums_size = order.num_sums * TILE_WORDS
        self._sums = _scratch(LANES + 2 * self._sums_size)
        self.factors = _scratch(LANES + 2 * padded(order.num_vectors)) if kind == "signed" else None

    def take(self, word: Callable) -> None:
        """Copy an item's vectors but x; word(i): chunk -> 16 words of vector i."""
        for vector in range(1, self._order.num_vectors):
            block, row = divmod(vector, TILE_ROWS)
            words = word(vector)
            for chunk in range(self._k_tiles):
                store(self._rows, self._at(block, chunk) + row * LANES, words(chunk))

    def row_at(self, unit_words: int, unit) -> tuple:
        """(buffer, index) of a unit of words of vector 0, for whoever packs x into it."""
        per_tile = LANES // unit_words
        return self._rows, T.floordiv(unit, per_tile) * TILE_WORDS + T.floormod(unit, per_tile) * unit_words

    def factors_at(self, which):
        """Where the factors of an item's vectors begin, of int8."""
        return LANES + which * padded(self._order.num_vectors)

    def transpose(self) -> None:
        """What was taken, into tiles of B."""
        with T.serial(self._order.num_blocks * self._k_tiles) as tile:
            at = T.bind(tile * TILE_WORDS)
            transpose(self._rows, self._columns, at)

    def multiply(self, which) -> None:
        for i in range(self._order.num_blocks):
            for first in range(0, i + 1, 2):
                self._block_row(which, i, [j for j in (first, first + 1) if j <= i])

    def _block_row(self, which, i: int, columns: list[int]) -> None:
        """Blocks (i, j) of one or two j."""
        for c in range(len(columns)):
            self._unit.zero(c)
        for k in range(self._k_tiles):
            self._unit.load(4, self._rows, self._at(i, k))
            for c, j in enumerate(columns):
                self._unit.load(6 + c, self._columns, self._at(j, k))
                self._unit.dot(self._kind, c, 4, 6 + c)
        for c, j in enumerate(columns):
            self._unit.store(c, self._sums, self._sums_at(which, Part(i, j, 0, 0)))

    def _sums_at(self, which, part: Part):
        return LANES + which * self._sums_size + part.block * TILE_WORDS + part.row * LANES

    def collect(self, which, write: Callable) -> None:
        """write(group, 16 dots): all groups of an item."""
        for group, parts in enumerate(self._order.vectors):
            value, filled = self._part(which, parts[0], 0), parts[0].count
            for part in parts[1:]:
                value = _behind(value, filled, self._part(which, part, filled))
                filled += part.count
            # Zeros, not whatever dots or words of no vector are there: rows of their own scales look at all lanes.
            write(group, value if filled == LANES else _behind(value, filled, zeros()))

    def _part(self, which, part: Part, lane: int):
        """The part's dots from this lane on; the lanes before hold anything."""
        sums = load(self._sums, self._sums_at(which, part) - lane)
        if self.factors is None:
            return sums
        factors = self.factors_at(which)
        own = broadcast(self.factors[factors + part.vector])
        others = load(self.factors, factors + TILE_ROWS * part.j - lane)
        return floats(bits_of(sums)) * (own * others)

    def _at(self, block: int, k: int):
        return (block * self._k_tiles + k) * TILE_WORDS


def _behind(value, filled: int, other):
    """The first `filled` lanes of value, then those of other."""
    lanes = [lane if lane < filled else LANES + lane for lane in range(LANES)]
    return T.Shuffle([T.bind(value), T.bind(other)], lanes)


def _scratch(size: int):
    buffer = T.alloc_buffer((size,), "float32", scope="global")
    touch(buffer, size)
    return buffer


def transpose(source, to, at) -> None:
    """16 x 16 words from source[at..] to to[at..]: pieces of 4 words put together from memory, then two levels of
    exchanges."""
    quads = range(0, LANES, 4)
    low, high = ([4 * q + lane for q in range(4) for lane in (a, a + 16, a + 1, a + 17)] for a in (0, 2))
    left, right = ([4 * q + lane for q in range(4) for lane in (a, a + 1, a + 16, a + 17)] for a in (0, 2))
    for quarter in range(4):
        # Row g of each quad of rows: words 4 * quarter .. + 3 of rows g, 4 + g, 8 + g, 12 + g.
        rows = [
            T.bind(T.Shuffle([load(source, at + (q + g) * LANES + 4 * quarter, 4) for q in quads], list(range(LANES))))
            for g in range(4)
        ]
        pairs = [T.bind(T.Shuffle(two, picks)) for picks in (low, high) for two in (rows[:2], rows[2:])]
        for half, (first, second) in enumerate((pairs[:2], pairs[2:])):
            for number, picks in enumerate((left, right)):
                line = 4 * quarter + 2 * half + number
                store(to, at + line * LANES, T.Shuffle([first, second], picks))
