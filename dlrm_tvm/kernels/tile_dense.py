"""Fully connected layers on AMX tiles: y = activation(x Wᵀ + b), with weights and activations as dense.py has them.

A tile of items of activations.py is a tile of A: 16 words of each item, 64 bytes apart. Weights that are packed for 32
outputs, [N/32][K][32] words, are pairs of B tiles, whose lines lie 128 bytes apart. Of values in parts (words.py) a k
tile is as many tiles, one after the other. A product loads the tiles whose part is another than the product's before.

    for panel in N/32:                           # 32 outputs
        for kb in k blocks:                      # of K_TILES k tiles, whose weights stay in L1
            for pair in tiles/2:                 # 2 tiles of items: 2 x 2 tiles of sums, one tile load per product
                for k in the k block:
                    for (i, j) in products:      # bf16 and int8: (0, 0) alone
                        sums += A[pair, k, part i] * B[panel, k, part j]

A layer whose activations are more than L2 holds goes through them k block by k block (`k_outermost`: for kb, for panel,
for pair): the activations of a k block stay in L2 while all panels pass, and the sums of the whole layer go through L2.

Activations stream from L2, by loads that leave L1 to the weights, and the next k block's weights are prefetched. Sums
of a k block but the last one go to memory and are added by the last one's epilogue. Epilogues are carried: the sums of
a block are stored in the first step of the next block, and turned into outputs beside its products, for vector
instructions are free there, unlike tile loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from tvm.tirx.script.builder import ir as T

from .activations import Tiles
from .dense import PackedDense, no_row_scale
from .tile_unit import TILE_ROWS, TILE_WORDS, TileUnit, touch
from .vectors import LANES, bits_of, held, load, padded, prefetch

PANEL = 2 * LANES  # outputs
# By parts: k tiles of a k block, at most. Its weights, 36 KB of bf16 or int8, 24 KB of three parts, stay in L1 beside
# activations that stream through; 2 or 8 k tiles of three parts were slower.
K_TILES = {1: 18, 3: 4}
_BLOCK_WORDS = 4 * TILE_WORDS  # of 2 x 2 tiles of sums
_TO_L2 = 2


def k_blocks(layer: PackedDense) -> list[range]:
    """The k tiles of each k block: as few blocks as keep to K_TILES, of nearly one size."""
    parts = layer.takes.parts
    k_tiles = layer.inputs // (LANES * parts)
    count = -(-k_tiles // K_TILES[parts])
    ends = [k_tiles * block // count for block in range(count + 1)]
    return [range(first, end) for first, end in pairwise(ends)]


class TileScratch:
    """Memory for sums on their way to the epilogue.

        [0]             of the block whose epilogue is next
        [1 + slot]      of early k blocks; one slot more than pairs of tiles, so that a panel's last pair stays until
                        its epilogue, while the next panel begins; with k outermost one for each pair and panel

    pairs: of tiles, at most; layers: all that use it.
    """

    def __init__(self, pairs: int, layers: Iterable[PackedDense]) -> None:
        self.pairs = pairs
        size = _BLOCK_WORDS * (1 + max(_slots(layer, pairs) for layer in layers))
        self.buffer = T.alloc_buffer((size,), "float32", scope="global")
        touch(self.buffer, size)


def _slots(layer: PackedDense, pairs: int) -> int:
    if len(k_blocks(layer)) == 1:
        return 0
    panels = -(-padded(layer.outputs) // PANEL)
    return panels * pairs if layer.schedule.k_outermost else pairs + 1


@dataclass(frozen=True)
class _Block:
    """Which panel, and which pair of tiles."""

    panel: Any
    pair: Any


def tile_dense_layer(
    layer: PackedDense,
    weights,
    unit: TileUnit,
    scratch: TileScratch,
    source: Tiles,
    write: Callable,
    tiles,
    row_scale: Callable = no_row_scale,
) -> None:
    """All outputs of `tiles` tiles, an expression; of an odd number one tile more, whose memory must be there.

    source: activations in whole k tiles; write and row_scale: as dense_layer has them. The layer is packed for panels
    of 32 outputs, of which the last one may have 16.
    """
    pairs = T.bind(T.truncdiv(tiles + 1, 2))
    whole, rest = divmod(padded(layer.outputs), PANEL)
    for first, count, halves in ((0, whole, 2), (whole, min(rest, 1), 1)):
        if count:
            _Panels(layer, weights, unit, scratch, source, write, pairs, row_scale, first, count, halves).emit()


@dataclass(frozen=True)
class _Panels:
    """Emits `panels` panels of `halves` * 16 outputs, from panel `first` on."""

    layer: PackedDense
    weights: Any
    unit: TileUnit
    scratch: TileScratch
    source: Tiles
    write: Callable
    pairs: Any
    row_scale: Callable
    first: int
    panels: int
    halves: int

    def emit(self) -> None:
        if self.k_outermost:
            for kb, count in self._runs:
                with T.serial(count) as number, T.serial(self.panels) as panel:
                    self._pass(kb, number, panel)
        else:
            with T.serial(self.panels) as panel:
                for kb, count in self._runs:
                    with T.serial(count) as number:
                        self._pass(kb, number, panel)
        for c, _, _ in self.registers:
            self.unit.store(c, self.scratch.buffer, c * TILE_WORDS)
        finish = self._epilogue(_Block(self.panels - 1, self.pairs - 1))
        for half in range(2):
            with T.serial(self.unit.rows) as row:
                finish(half, row)

    @property
    def k_blocks(self) -> list[range]:
        return k_blocks(self.layer)

    @property
    def k_outermost(self) -> bool:
        return self.layer.schedule.k_outermost and len(self.k_blocks) > 1

    def _pass(self, kb: int, number, panel) -> None:
        """All pairs through one panel's k block, the one `number` places behind k block kb, of one size with it."""
        with T.serial(self.pairs) as pair:
            self._block(kb, self.k_blocks[kb].start + number * len(self.k_blocks[kb]), _Block(panel, pair))

    @property
    def _runs(self) -> list[tuple[int, int]]:
        """(first k block, number of k blocks) of each loop: the first, runs of one size between, and the last one."""
        last, runs = len(self.k_blocks) - 1, [(0, 1)]
        for _, run in groupby(self.k_blocks[1:last], key=len):
            runs.append((sum(runs[-1]), len(list(run))))
        return [*runs, (last, 1)] if last else runs

    @property
    def registers(self) -> list[tuple[int, int, int]]:
        """(sums, activations, weights) of the products of two parts."""
        return [(2 * row + half, 4 + row, 6 + half) for row in range(2) for half in range(self.halves)]

    @property
    def kind(self) -> str:
        takes = self.layer.takes
        return "bf16" if takes.precision == "bf16" else "signed" if takes.signed else "unsigned"

    def _block(self, kb: int, first, block: _Block) -> None:
        """One k block of one block, from k tile `first` on, in the way of k block kb: sums of the block before are put
        away in its first step. Beside the last k block goes the epilogue of the last block that is complete, once: it
        may change in place what it reads. The very first block has none before it."""
        is_last, steps = kb == len(self.k_blocks) - 1, len(self.k_blocks[kb])
        kept = self._place_before(kb, block)
        finish = self._epilogue(self._before(block)) if is_last else None
        rows = T.bind(T.Select(self._number(block) == 0, 0, self.unit.rows))
        lines = -(-TILE_ROWS * self.halves * self.layer.takes.parts // self.scratch.pairs)
        ahead = self._weights_ahead(block, first, steps)

        def begin(c: int) -> None:
            self.unit.store(c, self.scratch.buffer, kept + c * TILE_WORDS)
            if kb > 0 and not is_last:  # the last one's epilogue adds them: vector instructions are free there
                self.unit.load(c, self.scratch.buffer, self._slot(block) + c * TILE_WORDS)
            else:
                self.unit.zero(c)

        def step(number, halves: tuple[int, ...], share: int, turn, begin: Callable | None) -> None:
            """Finishes the halves' rows from turn * share on, two at a time, for which biases are loaded once."""
            together = 2 if share % 2 == self.unit.rows % 2 == 0 else 1
            here = T.bind(ahead + (block.pair * steps + number) * (lines * LANES))

            def beside(piece: Callable) -> None:
                """This step's share of the weights that come next, and of the epilogue."""
                for line in piece(lines):
                    prefetch(self.weights, here + line * LANES, _TO_L2)
                for group in piece(len(halves) * share // together if is_last else 0):
                    half, at = divmod(group * together, share)
                    row = T.bind(turn * share + at)
                    with T.If(row < rows), T.Then():
                        for after in range(together):
                            finish(halves[half], row + after)

            self._step(block, first + number, begin, beside)

        # Each tile's rows have steps of their own: no division, and places that change by one distance.
        parts = [((0, 1), range(1))] if steps == 1 else [((0,), range(steps // 2)), ((1,), range(steps // 2, steps))]
        for halves, own in parts:
            share, done = -(-self.unit.rows // len(own)), 0
            if own.start == 0:
                step(0, halves, share, 0, begin)
                done = 1
            if len(own) > done:
                with T.serial(len(own) - done) as at:
                    step(at + (own.start + done), halves, share, at + done, None)

    def _step(self, block: _Block, k, begin: Callable | None, beside: Callable) -> None:
        """The products of one k tile; beside(piece) follows each of them, piece: count -> its range of so many. Where
        sums are stored meanwhile it follows the last one alone, for it reads them all."""
        takes, width = self.layer.takes, self.halves * LANES
        x_at = T.bind(self.source.index(block.pair * 2, 0, k * takes.parts))
        weights_at = T.bind(self._weights_at(block, k))
        held: dict[int, int] = {}  # register -> part
        tiles = [(number, *pair, *of) for number, pair in enumerate(takes.products) for of in self.registers]
        for done, (number, of_x, of_w, c, a, b) in enumerate(tiles, 1):
            if held.get(a) != of_x:
                at = x_at + ((a - 4) * self.source.tile_size + of_x * self.unit.rows * LANES)
                self.unit.load(a, self.source.buffer, at, streamed=True)
            if held.get(b) != of_w:
                at = weights_at + (of_w * TILE_ROWS * width + (b - 6) * LANES)
                self.unit.load(b, self.weights, at, stride=width)
            held |= {a: of_x, b: of_w}
            if begin is not None and number == 0:
                begin(c)
            self.unit.dot(self.kind, c, a, b)
            pieces = len(tiles)
            if begin is None or done == pieces:
                first = 0 if begin is not None else done - 1
                beside(lambda count: range(count * first // pieces, count * done // pieces))  # noqa: B023

    def _weights_at(self, block: _Block, k):
        """Where the panel's k tile begins."""
        inputs, width = self.layer.inputs, self.halves * LANES
        first = self.layer.weight_at + self.first * PANEL * inputs
        return first + block.panel * (width * inputs) + k * (TILE_ROWS * width * self.layer.takes.parts)

    def _weights_ahead(self, block: _Block, first, steps: int):
        """Of the k block that comes next: its panel's next one, or with k outermost the next panel's, behind whose last
        comes the first one's next k block."""
        following = self._weights_at(block, first + steps)
        if not self.k_outermost:
            return T.bind(following)
        is_end = block.panel == self.panels - 1
        panel, k = T.Select(is_end, 0, block.panel + 1), T.Select(is_end, first + steps, first)
        return T.bind(self._weights_at(_Block(T.bind(panel), block.pair), T.bind(k)))

    def _number(self, block: _Block):
        return block.panel * self.pairs + block.pair

    def _before(self, block: _Block) -> _Block:
        """The block before this one in the order in which blocks are completed; of the very first one nothing real."""
        is_first = block.pair == 0  # no division: LLVM would move it to each row of an epilogue
        panel, pair = T.Select(is_first, block.panel - 1, block.panel), T.Select(is_first, self.pairs, block.pair) - 1
        keep = held if self.layer.takes.parts > 1 else T.bind  # LLVM makes less of cells in int8: 3 to 7 % slower
        return _Block(keep(panel), keep(pair))

    def _slot(self, block: _Block):
        """Where sums of the block's early k blocks lie."""
        number = self._number(block)
        if not self.k_outermost:
            number = T.truncmod(number, self.pairs + 1)
        return T.bind((1 + number) * _BLOCK_WORDS)

    def _place_before(self, kb: int, block: _Block):
        """Where the sums go that the tiles still hold: those of the pair before, or of the last k block's last pair."""
        if (rounds := len(self.k_blocks)) == 1:
            return 0
        if self.k_outermost:
            own = 0 if kb == rounds - 1 else self._slot(self._before(block))
            other = 0 if kb == 0 else self._slot(_Block(self.panels - 1, self.pairs - 1))
            return T.bind(T.Select(self._number(block) == 0, T.int32(other) if other == 0 else other, own))
        own = 0 if kb == rounds - 1 else self._slot(_Block(block.panel, block.pair - 1))
        other = 0 if kb == 0 else self._slot(_Block(block.panel, self.pairs - 1))
        return T.bind(T.Select(block.pair == 0, T.int32(other) if other == 0 else other, own))

    def _epilogue(self, block: _Block) -> Callable:
        """finish(half, row): the outputs of an item of a block's first or second tile, out of its sums."""
        slot = None if len(self.k_blocks) == 1 else self._slot(block)
        output = T.bind(self.first * PANEL + block.panel * (self.halves * LANES))
        vector = T.bind(T.truncdiv(output, LANES))

        def finish(half: int, row) -> None:
            at = T.bind(half * (2 * TILE_WORDS) + row * LANES)
            tile = T.bind(block.pair * 2 + half)
            scale = self.row_scale(tile, row)
            sums = [self._sums(at + v * TILE_WORDS, slot) for v in range(self.halves)]
            finish_sums = self.layer.finish_sums
            values = [finish_sums(self.weights, output + v * LANES, sums[v], scale) for v in range(self.halves)]
            self.write(tile, row, vector, values)

        return finish

    def _sums(self, at, slot):
        """16 sums over all k blocks; slot: where those of the early ones begin, None without any."""
        whole = self.layer.takes.precision == "int8"
        parts = [load(self.scratch.buffer, place) for place in ([at] if slot is None else [at, slot + at])]
        parts = [bits_of(part) if whole else part for part in parts]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]
