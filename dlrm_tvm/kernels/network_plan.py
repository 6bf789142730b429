"""What the network's functions are emitted from, as data: shapes, schedules, and where weights lie."""

from __future__ import annotations

from dataclasses import dataclass

from .dense import PackedDense
from .embedding_bag import BAG_FETCH, BagFetch
from .forms import Form
from .gather import RowFetch
from .interaction import Grouping


@dataclass(frozen=True)
class NetworkPlan:
    """All that the function is made from. Elements are words of 32 bits in float32 buffers (forms.py); dim, in columns,
    is a multiple of 16. table_form: of rows and of x beside them; row_words: of a row, a multiple of 16.
    Of int8: factors_at, in mlp: what to multiply each vector with, from the second number on; x_factor: what x is in
    steps of, None where each item's x has its own; units_at: one number per dot to bring it into steps, None likewise.

    mr: items per tile; block_tiles: tiles a block has at most; final: the last layer, with one output;
    skip_zeros: take the kernel for one item (gemv.py); only for a batch of one.
    means: per table whether bags are averaged; clamp: least and greatest prediction, None for none.
    """

    batch: int
    num_dense: int
    num_tables: int
    dim: int
    table_elements: int
    mlp_elements: int
    bottom: tuple[PackedDense, ...]
    grouping: Grouping | None  # None: interaction "cat"
    top: tuple[PackedDense, ...]
    final: PackedDense
    mr: int
    block_tiles: int
    fetch: RowFetch
    skip_zeros: bool
    means: tuple[bool, ...]
    table_form: Form
    row_words: int
    factors_at: int = 0
    x_factor: float | None = None
    units_at: int | None = None
    clamp: tuple[float, float] | None = None
    bag_fetch: BagFetch = BAG_FETCH

    @property
    def tiles(self) -> int:
        return -(-self.batch // self.mr)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a call that the profiled network times, in the order in which they run."""
        bottom = (f"bottom {layer}" for layer in range(1, len(self.bottom) + 1))
        top = (f"top {layer}" for layer in range(1, len(self.top) + 2))
        return ("gather", *bottom, "interaction", *top)

    @property
    def top_form(self) -> Form:
        """Of what the interaction gives to the first top layer."""
        return (*self.top, self.final)[0].takes

    @property
    def top_words(self) -> int:
        """Of one item's input of the first top layer."""
        return (*self.top, self.final)[0].inputs
