"""Which schedule each kernel gets: what was tuned, else a rule.

A schedule is a handful of numbers. What may be tuned, and the rule that stands in where nothing was:

    network_fp32      per batch: mr items per tile, tiles per block, how rows are fetched
    dense_fp32_relu   per (mr, inputs, outputs): outputs per register tile, k steps per loop body

and likewise for bf16 and int8, whose inputs are counted in words of 2 and 4 columns.

The rules come from the measurements in tests/benchmarks/EXPERIMENTS.md. Knows nothing of files or of TVM.
"""

from __future__ import annotations

from dataclasses import dataclass

from .kernels.dense import REGISTERS, DenseSchedule
from .kernels.gather import RowFetch
from .kernels.vectors import LANES, padded

GEMV_OUTPUTS = 256  # 16 accumulators

# What a tile of so many items costs per item beside one of 5, whole network on Zen 4. More than 10 items leave too
# few registers for two vectors of outputs and their weights; 5 x 64 outputs read less per multiply-add than 10 x 32.
_TILE_COST = {5: 1.0, 10: 1.015, 4: 1.01, 8: 1.02, 6: 1.02, 9: 1.03, 7: 1.03}
# bf16 and int8 on Zen 5, whose two multiply-adds a cycle outrun its last-level cache: tall tiles reuse weights more.
_TILE_COST_NARROW = {10: 1.0, 12: 1.005, 8: 1.02, 9: 1.02, 6: 1.05, 5: 1.06}
_BLOCK_ITEMS = {"fp32": 1, "bf16": 20, "int8": 50}  # that share a layer's weights; less data, so more fit beside them
_TILE_COST_AVX2 = {6: 1.0, 5: 1.05, 4: 1.12}  # one vector of outputs is all that 8 registers leave room for
_SMALL_BATCH = 14  # up to here a batch is one tile
_SMALL_BATCH_AVX2 = 6


@dataclass(frozen=True)
class NetworkSchedule:
    """mr: items per tile; block_tiles: tiles that go through the top MLP together; fetch: see RowFetch."""

    mr: int
    block_tiles: int
    fetch: RowFetch


def default_network(batch: int, registers: int = REGISTERS, precision: str = "fp32") -> NetworkSchedule:
    """fp32: one tile a block, so that weights stream from the last-level cache front to back: prefetchers like that."""
    mr = tile_heights(batch, registers, precision)[0]
    return NetworkSchedule(mr, default_block(mr, precision), RowFetch(every=4, locality=2))


def default_block(mr: int, precision: str) -> int:
    """Tiles of mr items in a block."""
    return max(1, _BLOCK_ITEMS[precision] // mr)


def tile_heights(batch: int, registers: int = REGISTERS, precision: str = "fp32") -> list[int]:
    """Sensible mr for a batch, the one expected to be fastest first: little padding, few loads per multiply-add."""
    costs, small = (_TILE_COST, _SMALL_BATCH) if registers == REGISTERS else (_TILE_COST_AVX2, _SMALL_BATCH_AVX2)
    if precision != "fp32":
        costs = _TILE_COST_NARROW
    if batch <= small:
        return [batch]
    return sorted(costs, key=lambda mr: -(-batch // mr) * mr * costs[mr])


def default_dense(mr: int, outputs: int, registers: int = REGISTERS, unit: int = 1) -> DenseSchedule:
    """As many whole vectors of outputs as registers allow, up to 8, of those that divide the layer's width.

    unit: how many vectors of outputs are packed together.
    """
    vectors = padded(outputs) // LANES
    if mr == 1:
        return DenseSchedule(min(GEMV_OUTPUTS * registers // REGISTERS, vectors * LANES), 1)
    most = max(unit, min(8, (registers - 1) // (mr + 1)))
    whole = [v for v in range(unit, most + 1, unit) if vectors % v == 0]
    return DenseSchedule(max(whole, default=min(unit, vectors)) * LANES, 1)


def network_kernel(precision: str) -> str:
    return f"network_{precision}"


def dense_kernel(precision: str, activation: str) -> str:
    return f"dense_{precision}_{activation}"


def dense_shape(mr: int, inputs: int, outputs: int) -> str:
    """How a dense kernel's shape is written in the tuning log."""
    return f"mr={mr} k={inputs} n={outputs}"


def network_shape(batch: int) -> str:
    return f"batch={batch}"
