"""The rule for tiles: pairs of them, little padding, blocks that fit L2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlrm_tvm.machine.caches import Caches, caches_of
from dlrm_tvm.schedules.machine_model import MOST_ITEMS
from dlrm_tvm.schedules.rules import LayerShape
from dlrm_tvm.schedules.tile_rules import tile_network, tile_schedules

# The widest layers of MLPerf's model: words of the inputs, outputs.
BF16 = (LayerShape("relu", 256, 256, "bf16"), LayerShape("relu", 512, 1024, "bf16"))
INT8 = (LayerShape("relu", 128, 256, "int8"), LayerShape("relu", 256, 1024, "int8"))
FP32 = (LayerShape("relu", 768, 512, "bf16", 2, 3), LayerShape("relu", 1536, 1024, "bf16", 2, 3))
# Bytes of an item's inputs and outputs; in three parts of a k block's inputs, beside the sums.
WIDEST = {BF16: 4096, INT8: 2048, FP32: 4 * (192 + 1024)}
EMERALD_RAPIDS = caches_of("emeraldrapids")


@pytest.mark.parametrize("batch", [*range(16, 130), 256, 500, 512, 513, 1000, 2048, 5000])
@pytest.mark.parametrize("layers", WIDEST, ids=["bf16", "int8", "fp32"])
@pytest.mark.parametrize("caches", [EMERALD_RAPIDS, Caches(32 << 10, 256 << 10)], ids=["2 MB", "256 KB"])
def test_a_block_is_pairs_of_tiles_that_fit_l2_and_pads_less_than_a_row_per_tile(batch, layers, caches) -> None:
    network = tile_network(layers, batch, caches)
    items = network.mr * network.block_tiles
    blocks = -(-batch // items)
    assert network.block_tiles % 2 == 0 and 1 <= network.mr <= 16
    assert items <= MOST_ITEMS
    widest = WIDEST[layers]
    assert items * widest <= max(caches.l2, 32 * widest) + 2 * 16 * widest
    assert blocks * items - batch < blocks * network.block_tiles


@pytest.mark.parametrize("layers", [BF16, FP32], ids=["bf16", "fp32"])
def test_a_batch_of_100_takes_8_tiles_of_13_rows(layers) -> None:
    network = tile_network(layers, 100, EMERALD_RAPIDS)
    assert (network.mr, network.block_tiles) == (13, 8)


def test_large_batches_go_in_blocks_of_at_most_384_items_on_2_mb_of_l2() -> None:
    """2048 items are 6 blocks of 342, in pairs of tiles."""
    network = tile_network(BF16, 2048, EMERALD_RAPIDS)
    assert (network.mr, network.block_tiles) == (16, 22)


def test_int8_with_dynamic_scales_goes_in_blocks_of_256_where_static_ones_go_in_512() -> None:
    """Its inputs lie in L2 as float32 too."""
    layers = [replace(layer, staged=True) for layer in INT8]
    assert [tile_network(each, 2048, EMERALD_RAPIDS).items for each in (layers, INT8)] == [256, 512]


def test_fp32_in_three_parts_goes_in_blocks_of_256_k_block_by_k_block() -> None:
    """An item's 1024 inputs take 6 KB: 256 items' would not stay in L2 as a whole."""
    schedules = tile_schedules(FP32, 2048, EMERALD_RAPIDS)
    assert (schedules.network.mr, schedules.network.block_tiles) == (16, 16)
    assert [schedules.dense[layer].k_outermost for layer in FP32] == [False, True]
