"""Activations as tiles, so that one layer's output is the next one's input without packing in between.

    [tile][block][row][lane]     tile: `mr` items, block: 16 words, row: item of the tile, lane: word in the block

A word holds 1 fp32, 2 bf16 or 4 int8 columns (forms.py). A dense kernel that walks k reads `mr` words 64 bytes apart,
all of a cache line before the next, and writes whole vectors; rows never lie 4 KB apart, which would make them fight
for the same cache sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .vectors import LANES, padded


@dataclass(frozen=True)
class Tiles:
    """Where the activations of one layer lie: from word `base` of `buffer`, `words` per item, `mr` items a tile."""

    buffer: Any
    base: int
    words: int
    mr: int

    @property
    def tile_size(self) -> int:
        """Words of one tile."""
        return self.mr * padded(self.words)

    def index(self, tile, row, block, lane=0):
        """Index of word 16*block + lane of item `row` of `tile`; each may be an expression."""
        return self.base + tile * self.tile_size + (block * self.mr + row) * LANES + lane

    def unit_index(self, tile, row, unit, unit_words: int):
        """Index of the first of a unit's words, of which a block holds a whole number."""
        if unit_words == LANES:
            return self.index(tile, row, unit)
        per_block = LANES // unit_words
        return self.index(tile, row, unit // per_block, unit % per_block * unit_words)
