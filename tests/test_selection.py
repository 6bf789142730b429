"""Schedules out of a log: what is tuned, what is borrowed from another CPU, what comes by rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dlrm_tvm.kernels.dense import REGISTERS, REGISTERS_AVX2, DenseSchedule
from dlrm_tvm.kernels.gather import RowFetch
from dlrm_tvm.numerics import PRECISIONS
from dlrm_tvm.plan import LayerShape
from dlrm_tvm.schedules import NetworkSchedule, default_dense, default_network, dense_shape, network_shape
from dlrm_tvm.selection import Selection, network_from, network_numbers
from dlrm_tvm.tuning_log import Record, TuningLog

LAYER = LayerShape("relu", 512, 256)
RULE_MR = default_network(100).mr
GOOD_NETWORK = {"mr": 6, "block_tiles": 3, "fetch_every": 2, "fetch_locality": 3}


def network_record(numbers: dict[str, int], *, cpu: str = "znver4", batch: int = 100) -> Record:
    return Record("network_fp32", network_shape(batch), "fp32", cpu, numbers, 1.0, 0.9, "0.27.0", "2026-11-23")


def dense_record(numbers: dict[str, int], *, mr: int = RULE_MR, cpu: str = "znver4") -> Record:
    shape = dense_shape(mr, 512, 256)
    return Record("dense_fp32_relu", shape, "fp32", cpu, numbers, 1.0, 0.9, "0.27.0", "2026-11-23")


def selection(*records: Record, cpu: str = "znver4", batch: int = 100) -> Selection:
    return Selection(TuningLog(Path("log"), records), cpu, batch)


def test_an_empty_log_leaves_everything_to_the_rules():
    chosen = selection()
    assert chosen.network() == default_network(100)
    assert chosen.dense(LAYER) == default_dense(default_network(100).mr, 256)
    assert (chosen.tuned, len(chosen.untuned), chosen.borrowed) == ([], 2, set())


def test_records_of_this_cpu_are_taken_and_named():
    chosen = selection(network_record(GOOD_NETWORK), dense_record({"nr": 64, "unroll": 4}, mr=6))
    assert chosen.network() == NetworkSchedule(6, 3, RowFetch(every=2, locality=3))
    assert chosen.dense(LAYER) == DenseSchedule(64, 4)
    assert (len(chosen.tuned), chosen.untuned, chosen.borrowed) == (2, [], set())
    assert all("network_fp32" in name or "dense_fp32_relu" in name for name in chosen.tuned)


def test_dense_schedules_are_those_of_the_chosen_tile_height():
    chosen = selection(network_record(GOOD_NETWORK), dense_record({"nr": 64, "unroll": 4}, mr=10))
    chosen.network()
    assert chosen.dense(LAYER) == default_dense(6, 256)
    assert len(chosen.untuned) == 1


def test_records_of_other_cpus_are_not_borrowed_where_registers_are_few():
    records = (network_record(GOOD_NETWORK), dense_record({"nr": 64, "unroll": 1}))
    chosen = Selection(TuningLog(Path("log"), records), "znver3", 100, REGISTERS_AVX2)
    assert chosen.network() == default_network(100, REGISTERS_AVX2)
    schedule = chosen.dense(LAYER)
    assert schedule.registers(chosen.network().mr) <= REGISTERS_AVX2
    assert (chosen.tuned, chosen.borrowed) == ([], set())


def test_records_of_another_batch_or_activation_are_not_taken():
    chosen = selection(network_record(GOOD_NETWORK, batch=16), dense_record({"nr": 64, "unroll": 4}))
    assert chosen.network() == default_network(100)
    chosen.dense(LayerShape("sigmoid", 512, 256))
    assert chosen.tuned == []


def test_a_record_of_another_cpu_is_borrowed_and_its_cpu_named():
    chosen = selection(network_record(GOOD_NETWORK, cpu="sapphirerapids"))
    assert chosen.network().mr == 6
    assert chosen.borrowed == {"sapphirerapids"}
    own = selection(network_record(GOOD_NETWORK), network_record(GOOD_NETWORK | {"mr": 8}, cpu="sapphirerapids"))
    assert own.network().mr == 6
    assert own.borrowed == set()


def test_a_kernel_that_several_layers_share_is_named_once():
    chosen = selection()
    chosen.network()
    for _ in range(3):
        chosen.dense(LAYER)
    assert len(chosen.untuned) == 2


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_each_precision_has_records_of_its_own(precision):
    layer = LayerShape("relu", 512, 256, precision, unit=2)
    network = replace(network_record(GOOD_NETWORK), kernel=f"network_{precision}", precision=precision)
    dense = replace(dense_record({"nr": 64, "unroll": 4}, mr=6), kernel=f"dense_{precision}_relu", precision=precision)
    log = TuningLog(Path("log"), (network, dense))
    chosen = Selection(log, "znver4", 100, precision=precision)
    assert (chosen.network().mr, chosen.dense(layer)) == (6, DenseSchedule(64, 4))
    chosen.dense(LAYER)
    assert (len(chosen.tuned), len(chosen.untuned)) == (2, 1), "an fp32 layer is another kernel"
    for other in {"fp32", "bf16", "int8"} - {precision}:
        assert Selection(log, "znver4", 100, precision=other).network() == default_network(100, precision=other)


def test_a_register_tile_of_half_a_unit_counts_as_untuned():
    chosen = selection(dense_record({"nr": 48, "unroll": 2}))
    chosen.network()
    assert chosen.dense(replace(LAYER, unit=2)) == default_dense(RULE_MR, 256, unit=2)
    assert chosen.tuned == []
    assert chosen.dense(LAYER) == DenseSchedule(48, 2)


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
    chosen = selection(network_record(numbers))
    assert chosen.network() == default_network(100)
    assert (chosen.tuned, len(chosen.untuned), chosen.borrowed) == ([], 1, set())


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
    chosen, good = selection(dense_record(numbers)), selection(dense_record({"nr": 48, "unroll": 2}))
    assert chosen.network().mr == good.network().mr == RULE_MR
    assert good.dense(LAYER) == DenseSchedule(48, 2), "the record must be found"
    assert chosen.dense(LAYER) == default_dense(RULE_MR, 256)
    assert chosen.tuned == []


def test_a_batch_of_one_never_gets_a_tile_of_several_items():
    assert selection(network_record(GOOD_NETWORK, batch=1), batch=1).network().mr == 1


def test_network_numbers_survive_the_log():
    schedule = NetworkSchedule(7, 4, RowFetch(every=8, locality=1))
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
