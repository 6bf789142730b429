"""Activations as tiles, so that one layer's output is the next one's input without packing in between.

    [tile][block][row][lane]     tile: `mr` items, block: 16 columns, row: item of the tile, lane: column in the block

A dense kernel that walks k reads `mr` scalars 64 bytes apart, all of a cache line before the next, and writes whole
vectors; rows never lie 4 KB apart, which would make them fight for the same cache sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .vectors import LANES, padded


@dataclass(frozen=True)
class Tiles:
    """Where the activations of one layer lie: from element `base` of `buffer`, `columns` wide, `mr` items a tile."""

    buffer: Any
    base: int
    columns: int
    mr: int

    @property
    def tile_size(self) -> int:
        """float32 elements of one tile."""
        return self.mr * padded(self.columns)

    def index(self, tile, row, block, lane=0):
        """Element index of column 16*block + lane of item `row` of `tile`; each may be an expression."""
        return self.base + tile * self.tile_size + (block * self.mr + row) * LANES + lane
