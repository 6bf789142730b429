"""The rule for AMX: every layer in panels of 32 outputs, as many items in a block as L2 takes the activations of.

    rows     of a tile, at most 16: a small batch is cut into pairs of tiles of as few rows as it needs
    block    items whose inputs of the widest layer fit their share of L2, 512 at most

Weights stream through once per block, so larger blocks are better until activations leave L2, where each panel reads
them anew. Inputs with dynamic scales lie there as float32 too: on a Granite Rapids blocks of 256 items are 1.2 times as
fast as of 512 (2026-12-01). A layer so wide that activations would leave L2 with fewer items than weights from L3 need
goes k block by k block instead (tile_dense.py): then one k block's activations stay in L2, beside the sums of the whole
layer.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..kernels.dense import DenseSchedule
from ..kernels.gather import Prefetch
from ..kernels.tile_dense import K_TILES, PANEL
from ..kernels.tile_unit import TILE_ROWS
from ..kernels.vectors import LANES
from ..kernels.words import VALUES
from ..machine.caches import Caches
from .machine_model import MOST_ITEMS
from .rules import LayerShape, NetworkSchedule, Schedules

_WORD_BYTES = 4
_L2_SHARE = 0.375  # of 2 MB: 384 items of 1,024 inputs in bf16, 128 in three parts, of which 160 were 2 % slower
_L2_SHARE_BY_K = _L2_SHARE_STAGED = 0.75
_LEAST_ITEMS = 256
_TO_L2 = Prefetch(every=1, locality=2)


def tile_schedules(layers: Iterable[LayerShape], batch: int, caches: Caches) -> Schedules:
    layers = tuple(layers)
    kernels = dict.fromkeys(_kernel(layer) for layer in layers)
    dense = {layer: DenseSchedule(PANEL, 1, k_outermost=_is_wide(layer, caches)) for layer in layers}
    return Schedules(tile_network(layers, batch, caches), dense, untuned=("network on tiles", *kernels))


def tile_network(layers: tuple[LayerShape, ...], batch: int, caches: Caches) -> NetworkSchedule:
    most = min(_most_items(layer, caches) for layer in layers)
    pairs = min(MOST_ITEMS, int(most)) // (2 * TILE_ROWS)
    block = max(1, pairs) * 2 * TILE_ROWS
    blocks = -(-batch // block)
    tiles = _even(-(-batch // (blocks * TILE_ROWS)))
    rows = -(-batch // (blocks * tiles))
    return NetworkSchedule(rows, tiles, _TO_L2)


def _kernel(layer: LayerShape) -> str:
    parts = f"x{layer.parts}" if layer.parts > 1 else ""
    return f"tiles_{layer.precision}{parts}_{layer.activation}"


def _is_wide(layer: LayerShape, caches: Caches) -> bool:
    """Whether a layer goes k block by k block."""
    return _items_of_inputs(layer, caches) < min(_LEAST_ITEMS, _items_by_k(layer, caches))


def _most_items(layer: LayerShape, caches: Caches) -> float:
    most = _items_by_k(layer, caches) if _is_wide(layer, caches) else _items_of_inputs(layer, caches)
    if layer.staged:
        words = layer.inputs * (1 + VALUES[layer.precision])
        most = min(most, max(_LEAST_ITEMS, caches.l2 * _L2_SHARE_STAGED / (_WORD_BYTES * words)))
    return most


def _items_of_inputs(layer: LayerShape, caches: Caches) -> float:
    return caches.l2 * _L2_SHARE / (_WORD_BYTES * layer.inputs)


def _items_by_k(layer: LayerShape, caches: Caches) -> float:
    words = min(layer.inputs, K_TILES[layer.parts] * LANES * layer.parts) + layer.outputs
    return caches.l2 * _L2_SHARE_BY_K / (_WORD_BYTES * words)


def _even(count: int) -> int:
    return count + count % 2
