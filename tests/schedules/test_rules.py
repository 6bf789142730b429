"""Schedules from a log of this CPU, and the rules for the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from models import random_dlrm

from dlrm_tvm.compiler.plan import layer_shapes
from dlrm_tvm.kernels.dense import DenseSchedule
from dlrm_tvm.kernels.gather import Prefetch
from dlrm_tvm.kernels.isa import REGISTERS, REGISTERS_AVX2
from dlrm_tvm.model.precision import PRECISIONS, numerics_of
from dlrm_tvm.paths import DEFAULT_LOG
from dlrm_tvm.schedules.rules import (
    LayerShape,
    NetworkSchedule,
    Schedules,
    choose_schedules,
    computed_items,
    default_dense,
    default_network,
    dense_shape,
    network_from,
    network_numbers,
    network_shape,
    tile_heights,
)
from dlrm_tvm.schedules.tuning_log import Record, TuningLog, read_log

LAYER = LayerShape("relu", 512, 256)
RULE_MR = default_network(100).mr
GOOD_NETWORK = {"mr": 6, "block_tiles": 3, "fetch_every": 2, "fetch_locality": 3}


def network_record(numbers: dict[str, int], *, cpu: str = "znver4", batch: int = 100, layers=(LAYER,)) -> Record:
    return Record("network_fp32", network_shape(batch, layers), "fp32", cpu, numbers, 1.0, 0.9, "0.27.0", "2026-11-23")


def dense_record(numbers: dict[str, int], *, mr: int = RULE_MR, cpu: str = "znver4") -> Record:
    shape = dense_shape(mr, 512, 256)
    return Record("dense_fp32_relu", shape, "fp32", cpu, numbers, 1.0, 0.9, "0.27.0", "2026-11-23")


def chosen(*records: Record, layers=(LAYER,), cpu: str = "znver4", batch: int = 100, **kind) -> Schedules:
    return choose_schedules(TuningLog(Path("log"), records), layers, cpu=cpu, batch=batch, **kind)


def test_an_empty_log_leaves_everything_to_the_rules():
    found = chosen()
    assert found.network == default_network(100)
    assert found.dense == {LAYER: default_dense(default_network(100).mr, 256)}
    assert (found.tuned, len(found.untuned)) == ((), 2)
    assert not found.is_default, "the kernels are ours"


def test_a_networks_record_is_not_for_one_of_other_layers():
    """64 MB of weights want larger blocks than 9 MB; equal layers share a schedule and count once."""
    other = LayerShape("relu", 3456, 512)
    assert chosen(network_record(GOOD_NETWORK, layers=[LAYER, other])).network == default_network(100)
    found = chosen(network_record(GOOD_NETWORK), layers=[LAYER, LAYER])
    assert found.network == NetworkSchedule(6, 3, Prefetch(every=2, locality=3))


def test_panels_that_all_tiles_of_a_block_read_take_a_quarter_of_l2_at_most():
    wide = LayerShape("none", 3456, 512)
    found = chosen(layers=[LAYER, wide], l2=1 << 20, block_items=100)
    assert found.network.block_tiles > 1
    assert found.dense[LAYER].k_blocks == 1
    schedule = found.dense[wide]
    assert 3456 * schedule.nr * 4 / schedule.k_blocks <= (1 << 20) / 4
    assert schedule.k_blocks == -(-3456 * schedule.nr * 4 * 4 // (1 << 20))
    assert chosen(layers=[wide], l2=1 << 20, block_items=1).dense[wide].k_blocks == 1, "one tile reads a panel once"
    assert chosen(layers=[wide], block_items=100).dense[wide].k_blocks == 1, "of an unknown machine"


def test_records_of_this_cpu_are_taken_and_named():
    found = chosen(network_record(GOOD_NETWORK), dense_record({"nr": 64, "unroll": 4}, mr=6))
    assert found.network == NetworkSchedule(6, 3, Prefetch(every=2, locality=3))
    assert found.dense == {LAYER: DenseSchedule(64, 4)}
    assert (len(found.tuned), found.untuned) == (2, ())
    assert all("network_fp32" in name or "dense_fp32_relu" in name for name in found.tuned)


def test_dense_schedules_are_those_of_the_chosen_tile_height():
    found = chosen(network_record(GOOD_NETWORK), dense_record({"nr": 64, "unroll": 4}, mr=10))
    assert found.dense == {LAYER: default_dense(6, 256)}
    assert len(found.untuned) == 1


@pytest.mark.parametrize("cpu, registers", [("znver3", REGISTERS_AVX2), ("sapphirerapids", REGISTERS)])
def test_records_of_another_cpu_are_never_taken(cpu, registers):
    records = (network_record(GOOD_NETWORK), dense_record({"nr": 64, "unroll": 1}))
    found = chosen(*records, cpu=cpu, registers=registers)
    assert found.network == default_network(100, registers)
    assert found.dense[LAYER].registers(found.network.mr) <= registers
    assert found.tuned == ()


def test_records_of_this_cpu_are_found_among_later_ones_of_others():
    other = network_record(GOOD_NETWORK | {"mr": 8}, cpu="sapphirerapids")
    assert chosen(network_record(GOOD_NETWORK), other).network.mr == 6


def test_records_of_another_batch_or_activation_are_not_taken():
    records = (network_record(GOOD_NETWORK, batch=16), dense_record({"nr": 64, "unroll": 4}))
    found = chosen(*records, layers=[LayerShape("sigmoid", 512, 256)])
    assert found.network == default_network(100)
    assert found.tuned == ()


def test_a_kernel_that_several_layers_share_is_named_once():
    assert len(chosen(layers=[LAYER] * 3).untuned) == 2


@pytest.mark.parametrize("batch, mr", [(6, 6), (7, 4), (8, 4), (10, 6), (16, 6), (100, 6), (2048, 6)])
def test_avx2_takes_tiles_of_6_unless_the_last_one_keeps_fewer_than_4_rows(batch, mr):
    assert tile_heights(batch, REGISTERS_AVX2)[0] == mr


@pytest.mark.parametrize("batch, mr, whole, alone", [(12, 6, 12, 12), (17, 6, 18, 17), (13, 6, 18, 16), (7, 4, 8, 8)])
def test_the_last_tile_of_avx2_alone_is_computed_for_its_own_items(batch, mr, whole, alone):
    assert computed_items(batch, mr, REGISTERS) == whole
    assert computed_items(batch, mr, REGISTERS_AVX2) == alone


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_each_precision_has_records_of_its_own(precision):
    layer = LayerShape("relu", 512, 256, precision, unit=2)
    layers = [layer, LAYER]
    network = replace(network_record(GOOD_NETWORK, layers=layers), kernel=f"network_{precision}", precision=precision)
    dense = replace(dense_record({"nr": 64, "unroll": 4}, mr=6), kernel=f"dense_{precision}_relu", precision=precision)
    found = chosen(network, dense, layers=layers, precision=precision)
    assert (found.network.mr, found.dense[layer]) == (6, DenseSchedule(64, 4))
    assert (len(found.tuned), len(found.untuned)) == (2, 1), "an fp32 layer is another kernel"
    for other in {"fp32", "bf16", "int8"} - {precision}:
        assert chosen(network, dense, layers=layers, precision=other).network == default_network(100, precision=other)


def test_a_register_tile_of_half_a_unit_counts_as_untuned():
    packed, record = replace(LAYER, unit=2), dense_record({"nr": 48, "unroll": 2})
    found = chosen(record, layers=[packed])
    assert found.dense == {packed: default_dense(RULE_MR, 256, unit=2)}
    assert found.tuned == ()
    assert chosen(record, layers=[packed, LAYER]).dense[LAYER] == DenseSchedule(48, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"mr": 0},
        {"mr": -1},
        {"mr": REGISTERS},
        {"mr": 101},
        {"block_tiles": 0},
        {"fetch_every": -1},
        {"fetch_locality": 4},
        {"fetch_locality": -1},
        None,
    ],
)
def test_network_numbers_that_no_kernel_can_be_made_of_count_as_untuned(change):
    numbers = {"mr": 6} if change is None else GOOD_NETWORK | change
    found = chosen(network_record(numbers), layers=())
    assert found.network == default_network(100)
    assert (found.tuned, len(found.untuned)) == ((), 1)


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"nr": 32},
        {"unroll": 1},
        {"nr": 0, "unroll": 1},
        {"nr": -16, "unroll": 1},
        {"nr": 20, "unroll": 1},
        {"nr": 32, "unroll": 3},
        {"nr": 32, "unroll": 0},
        {"nr": 32, "unroll": 32},
    ],
)
def test_dense_numbers_that_no_kernel_can_be_made_of_count_as_untuned(numbers):
    found, good = chosen(dense_record(numbers)), chosen(dense_record({"nr": 48, "unroll": 2}))
    assert found.network.mr == good.network.mr == RULE_MR
    assert good.dense[LAYER] == DenseSchedule(48, 2), "the record must be found"
    assert found.dense[LAYER] == default_dense(RULE_MR, 256)
    assert found.tuned == ()


def test_a_batch_of_one_never_gets_a_tile_of_several_items():
    assert chosen(network_record(GOOD_NETWORK, batch=1), batch=1).network.mr == 1


def test_network_numbers_survive_the_log():
    schedule = NetworkSchedule(7, 4, Prefetch(every=8, locality=1))
    assert network_from(network_numbers(schedule)) == schedule


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rules_give_every_batch_and_width_a_schedule_that_fits_the_registers(precision):
    for batch in range(1, 300):
        network = default_network(batch, precision=precision)
        assert 1 <= network.mr <= batch
        assert network.block_tiles >= 1
        for outputs in (1, 15, 16, 17, 33, 48, 100, 256, 1000, 1024):
            for unit in (1, 2):
                dense = default_dense(network.mr, outputs, unit=unit)
                assert dense.nr % (16 * unit) == 0 or dense.nr >= outputs, "outputs packed together lie in one tile"
                assert network.mr == 1 or dense.registers(network.mr) <= REGISTERS


@pytest.mark.parametrize("batch", [1, 16, 100, 400, 2048])
@pytest.mark.parametrize("block_items", [1, 30, 256, 512])
def test_blocks_have_nearly_one_size_and_not_a_tile_more_than_asked_for(batch, block_items):
    network = default_network(batch, block_items=block_items)
    tiles = -(-batch // network.mr)
    blocks = -(-tiles // network.block_tiles)
    assert network.block_tiles == 1 or (network.block_tiles - 1) * network.mr < block_items
    assert blocks * network.block_tiles - tiles < blocks, "the last block lacks less than a tile per block"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_shipped_log_has_mlperfs_network_for_the_machines_that_it_names(precision):
    """By the sizes of its layers: a record under another key is never found."""
    model = random_dlrm(
        num_dense=13, table_rows=[2] * 26, dim=128, bottom=(512, 256), top=(1024, 1024, 512, 256), interaction="dot"
    )
    layers = layer_shapes(model, numerics_of(model, precision))
    log = read_log(DEFAULT_LOG, must_exist=True)
    recorded = {(each.cpu, each.shape) for each in log.records if each.kernel == f"network_{precision}"}
    assert {"znver5"} <= {cpu for cpu, _ in recorded}
    for cpu, shape in recorded:
        batch = int(shape.split()[0].removeprefix("batch="))
        tuned = choose_schedules(log, layers, cpu=cpu, batch=batch, precision=precision).tuned
        assert f"network_{precision} {shape}" in tuned
