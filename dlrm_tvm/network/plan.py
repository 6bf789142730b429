"""All that the network's functions are emitted from, as data: shapes, schedules, and places of weights."""

from __future__ import annotations

from dataclasses import dataclass

from ..kernels.dense import PackedDense
from ..kernels.embedding_bag import BagPrefetch
from ..kernels.gather import Prefetch
from ..kernels.isa import AVX512, REGISTERS, Family
from ..kernels.words import Form
from .interaction import DotPlan
from .joined import JoinedPlan


@dataclass(frozen=True)
class NetworkPlan:
    """Elements are words of 32 bits in float32 buffers (words.py). dim: in columns, a multiple of 16; table_form: of
    rows, and of x beside them; row_words: of a row, a multiple of 16; factors_at: for int8, in mlp: the scale of each
    table's rows, from the second number on. family: whose instructions the layers run on.

    mr: items per tile; block_tiles: tiles per block at most; final: the last layer, with one output;
    skip_zeros: use the kernel for one item (gemv.py); only for a batch of one.
    means: per table whether bags are averaged; clamp: least and greatest prediction, None for none.
    """

    batch: int
    num_dense: int
    num_tables: int
    dim: int
    table_elements: int
    mlp_elements: int
    bottom: tuple[PackedDense, ...]
    interaction: DotPlan | JoinedPlan
    top: tuple[PackedDense, ...]
    final: PackedDense
    mr: int
    block_tiles: int
    prefetch: Prefetch
    skip_zeros: bool
    means: tuple[bool, ...]
    table_form: Form
    row_words: int
    bag_prefetch: BagPrefetch
    factors_at: int = 0
    clamp: tuple[float, float] | None = None
    family: Family = AVX512

    @property
    def tiles(self) -> int:
        return -(-self.batch // self.mr)

    @property
    def is_tiled(self) -> bool:
        """Whether it runs on AMX's tiles."""
        return self.family.tiles

    @property
    def fetches_beside(self) -> bool:
        """Whether an item's rows are prefetched beside the copies of the item before."""
        return self.is_tiled and self.interaction.copies(self.family)

    @property
    def most_tiles(self) -> int:
        """Tiles of a block, at most; pairs of them on AMX, which computes two at once."""
        most = min(self.block_tiles, self.tiles)
        return most + most % 2 if self.is_tiled else most

    @property
    def bottom_tiles(self) -> int:
        """Tiles that go through the bottom MLP together: one, so that it hides its rows' latency; on AMX the block."""
        return self.most_tiles if self.is_tiled else 1

    @property
    def last_rows(self) -> int | None:
        """Items of the batch's last tile where layers compute those alone; None where they compute whole tiles. AVX2's
        tiles of 6 divide few batches."""
        rows = self.batch % self.mr
        return rows if rows and self.family.registers < REGISTERS else None

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of a call that the profiled network times, in the order in which they run."""
        bottom = (f"bottom {layer}" for layer in range(1, len(self.bottom) + 1))
        top = (f"top {layer}" for layer in range(1, len(self.top) + 2))
        return ("gather", *bottom, "interaction", *self.interaction.parts, *top)

    @property
    def layers(self) -> tuple[PackedDense, ...]:
        """Of all layers that dense kernels compute, in the order in which they run."""
        return (*self.bottom, *self.interaction.layers, *self.top)

    @property
    def top_form(self) -> Form:
        """Of the first top layer's input."""
        return (*self.top, self.final)[0].takes

    @property
    def top_words(self) -> int:
        """Of the first top layer's input, per item."""
        return (*self.top, self.final)[0].inputs
