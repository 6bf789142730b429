"""Probing a layer: which candidate wins, and that real ones are measured."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from models import random_dlrm
from quantized import quantized_cases

from dlrm_tvm.compiler.plan import layer_shapes
from dlrm_tvm.kernels.gather import Prefetch
from dlrm_tvm.kernels.isa import AVX2_INT8, REGISTERS_AVX2
from dlrm_tvm.model.precision import numerics_of
from dlrm_tvm.schedules import layer_probe
from dlrm_tvm.schedules.rules import NetworkSchedule, Probed, default_network
from dlrm_tvm.schedules.target import cpu_target

MODEL = random_dlrm(dim=32, bottom=(32,), top=(64, 48))
FETCH = Prefetch(4, 2)


@pytest.fixture
def made_up_layer(monkeypatch) -> SimpleNamespace:
    """A layer whose blocks take `seconds(mr, tiles, ahead, unroll)`; calls: all blocks that ran, in order."""
    world = SimpleNamespace(now=0.0, calls=[], seconds=lambda mr, tiles, *_: 1e-3 * mr * tiles)

    class FakeProbe:
        def __init__(self, layer, mr, cpu, family, weights, most_tiles) -> None:
            self.mr, self.most = mr, most_tiles

        def compiled(self, schedule) -> Callable[[int], None]:
            def run(tiles: int) -> None:
                assert tiles <= self.most
                world.calls.append((self.mr, tiles, schedule.ahead, schedule.unroll))
                world.now += world.seconds(*world.calls[-1])

            return run

    monkeypatch.setattr(layer_probe, "LayerProbe", FakeProbe)
    for clock in ("perf_counter", "thread_time"):
        monkeypatch.setattr(layer_probe, clock, lambda: world.now)
    return world


def probed(batch: int, start: NetworkSchedule) -> Probed:
    layer = layer_shapes(MODEL, numerics_of(MODEL, "fp32"))[1]
    return layer_probe.probe_blocks([layer], start, batch, cpu_target("znver4"), "fp32", 1 << 20)


def test_the_first_candidate_stands_where_nothing_is_faster(made_up_layer) -> None:
    start = default_network(100, block_items=30)
    assert probed(100, start).network == start


def test_the_fastest_tile_wins_then_the_fastest_block(made_up_layer) -> None:
    """Tiles of 10 items with four steps a loop body, then blocks of 200 items without prefetching for them."""
    start = default_network(2048, block_items=30)
    assert start.mr == 5

    def seconds(mr: int, tiles: int, ahead: bool, unroll: int) -> float:
        per_item = 1e-3 + 1e-6 * abs(mr * tiles - 200) + 1e-4 * ahead - 5e-5 * (mr == 10) - 5e-5 * (unroll == 4)
        return per_item * mr * tiles

    made_up_layer.seconds = seconds
    found = probed(2048, start)
    assert (found.network.mr, found.unroll, found.ahead) == (10, 4, False)
    assert found.network.items == pytest.approx(200, abs=20)
    layer = layer_shapes(MODEL, numerics_of(MODEL, "fp32"))[1]
    assert found.gflops == pytest.approx(2 * layer.inputs * layer.outputs / 9e-4 / 1e9, rel=0.03)


@pytest.mark.parametrize("batch, mr, unroll", [(16, 4, 4), (16, 8, 4), (32, 8, 1), (100, 13, 4), (256, 4, 4)])
def test_each_height_is_tried_with_each_number_of_steps(made_up_layer, batch, mr, unroll) -> None:
    """The rule's own height too."""
    made_up_layer.seconds = lambda *tile: tile[0] * tile[1] * (1e-3 if (tile[0], tile[3]) == (mr, unroll) else 2e-3)
    found = probed(batch, default_network(batch))
    assert (found.network.mr, found.unroll) == (mr, unroll)


def test_of_int8_without_vnni_only_tiles_that_win_somewhere_are_tried(made_up_layer) -> None:
    layer = layer_shapes(MODEL, numerics_of(MODEL, "int8", np.ones(len(MODEL.tables))), AVX2_INT8)[1]
    start = default_network(100, REGISTERS_AVX2, "int8")
    found = layer_probe.probe_blocks([layer], start, 100, cpu_target("znver3"), "int8", 1 << 20)
    assert (found.network.mr, found.unroll, found.ahead) == (5, 2, True)
    assert {(mr, ahead, unroll) for mr, _, ahead, unroll in made_up_layer.calls} == {
        (mr, True, unroll) for mr in (4, 5, 6) for unroll in (1, 2)
    }


def test_a_rule_of_more_than_512_items_has_room_in_tiles_of_another_height(made_up_layer) -> None:
    """515 items are one block of 103 tiles of 5 by the rule, and one of 129 tiles of 4."""
    start = default_network(515, block_items=512)
    assert start.items == 515
    made_up_layer.seconds = lambda mr, tiles, *_: mr * tiles * (1e-3 if mr == 4 else 2e-3)
    assert probed(515, start).network.mr == 4
    assert max(tiles for mr, tiles, *_ in made_up_layer.calls if mr == 4) == 129


def test_padding_counts(made_up_layer) -> None:
    """Tiles of 8 items compute 16 for a batch of 10."""
    candidates = [Probed(NetworkSchedule(mr, 1, FETCH)) for mr in (5, 8)]
    runs = [lambda tiles, mr=mr: setattr(made_up_layer, "now", made_up_layer.now + mr) for mr in (5, 8)]
    found = layer_probe.timed(candidates, runs, 10, 10**9)
    assert [each.gflops for each in found] == [1, pytest.approx(1 / 1.6)]


def test_of_padding_avx2_computes_the_last_tile_no_more(made_up_layer) -> None:
    """16 items in tiles of 6 take what whole tiles of 16 items would."""
    runs = [lambda tiles: setattr(made_up_layer, "now", made_up_layer.now + 6 * tiles)]
    found = layer_probe.timed([Probed(NetworkSchedule(6, 3, FETCH))], runs, 16, 10**9, REGISTERS_AVX2)
    assert found[0].gflops == pytest.approx(1)


def test_a_small_batch_runs_in_its_own_blocks() -> None:
    of = lambda mr, tiles, batch: layer_probe.blocks_of_turn(NetworkSchedule(mr, tiles, FETCH), batch)  # noqa: E731
    assert of(6, 2, 16) == [2, 1] * 14
    assert of(5, 20, 100) == [20, 20]
    assert of(5, 8, 100) == [8, 8, 4] * 2
    assert of(6, 86, 2048) == [86]


def test_less_than_noise_does_not_beat_the_rule(made_up_layer) -> None:
    start = default_network(2048, block_items=30)
    made_up_layer.seconds = lambda mr, tiles, *_: mr * tiles * (1e-3 if (mr, tiles) == (5, 6) else 0.995e-3)
    assert probed(2048, start).network == start


def test_candidates_take_turns(made_up_layer) -> None:
    """So that drift of the clock hits all alike: between two turns of one come those of all others."""
    candidates = [Probed(NetworkSchedule(5, tiles, FETCH)) for tiles in (60, 80)]

    def run(name: str) -> None:
        made_up_layer.calls.append(name)
        made_up_layer.now += 0.1

    runs = [lambda tiles, name=name: run(name) for name in "ab"]
    layer_probe.timed(candidates, runs, 400, 1)
    assert len(made_up_layer.calls) >= 6 and made_up_layer.calls == ["a", "b"] * (len(made_up_layer.calls) // 2)


@pytest.mark.parametrize("precision", ["fp32", *quantized_cases(("bf16",), ("int8",))])
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_real_layers_are_probed(require_fma, monkeypatch, precision, batch) -> None:
    """For an instant: whether the choice is good is for benchmarks."""
    monkeypatch.setattr(layer_probe, "_SECONDS", 0.01)
    cpu, numerics = cpu_target(None), numerics_of(MODEL, precision, np.ones(len(MODEL.tables), np.float32))
    layers = layer_shapes(MODEL, numerics)
    start = default_network(batch, cpu.family(precision).registers, precision)
    found = layer_probe.probe_blocks(layers, start, batch, cpu, precision, 1 << 16)
    assert 0 < found.gflops < 10_000
    assert found.network.mr * (found.network.block_tiles - 1) < batch


@pytest.mark.parametrize("precision", quantized_cases(("bf16",), ("int8",)))
def test_a_first_layer_that_stays_float32_and_is_the_largest_is_probed(monkeypatch, precision) -> None:
    monkeypatch.setattr(layer_probe, "_SECONDS", 0.01)
    model, cpu = random_dlrm(num_dense=300, bottom=(64,)), cpu_target(None)
    layers = layer_shapes(model, numerics_of(model, precision, np.ones(3, np.float32)))
    start = default_network(7, cpu.family(precision).registers, precision)
    assert 0 < layer_probe.probe_blocks(layers, start, 7, cpu, precision, 1 << 16).gflops < 10_000
