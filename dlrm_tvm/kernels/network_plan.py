"""What the network's functions are emitted from, as data: shapes, schedules, and where weights lie."""

from __future__ import annotations

from dataclasses import dataclass

from .dense import PackedDense
from .embedding_bag import BAG_FETCH, BagFetch
from .gather import RowFetch
from .interaction import Grouping
from .vectors import LANES


@dataclass(frozen=True)
class NetworkPlan:
    """All that the function is made from. Elements are float32; dim is a multiple of 16.

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
    def top_columns(self) -> int:
        if self.grouping is None:
            return self.dim * (self.num_tables + 1)
        return self.dim + LANES * self.grouping.num_groups
