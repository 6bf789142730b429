"""The search of `compile.py --tune`: what it tries, keeps, takes up again. Timings are made up, but for one test."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from models import on_threads, random_dlrm
from quantized import needs_library

from dlrm_tvm.compiler.plan import layer_shapes
from dlrm_tvm.console import Bar
from dlrm_tvm.kernels.dense import DenseSchedule
from dlrm_tvm.kernels.gather import Prefetch
from dlrm_tvm.kernels.isa import REGISTERS, REGISTERS_AVX2
from dlrm_tvm.machine.caches import caches_of
from dlrm_tvm.model.precision import PRECISIONS, numerics_of
from dlrm_tvm.schedules.machine_model import MachineModel, Peak
from dlrm_tvm.schedules.rules import (
    LayerShape,
    NetworkSchedule,
    Probed,
    _usable_dense,
    choose_schedules,
    default_dense,
    default_network,
    dense_numbers,
    tile_heights,
)
from dlrm_tvm.schedules.target import CpuTarget, cpu_target
from dlrm_tvm.schedules.tuning_log import Record, append, read_log
from dlrm_tvm.tuning import search, trials
from dlrm_tvm.tuning.trials import Timing

CPU = CpuTarget("znver4", None, ("avx512f", "avx512bw", "avx512_bf16", "avx512_vnni"), is_host=True)
CANDIDATES = [{"nr": nr, "unroll": 1} for nr in (16, 32, 48, 64)]
MODEL = random_dlrm(bottom=(40,), top=(40, 24))
NUMERICS = numerics_of(MODEL, "fp32")


class Clock:
    """What times candidates: remembers which, gives made-up shares of the peak, and is interrupted once."""

    def __init__(self, shares: dict[int, float] | None = None, interrupt_at: int | None = None) -> None:
        self.shares, self.interrupt_at, self.timed = shares or {}, interrupt_at, []

    def __call__(self, numbers: dict[str, int]) -> Timing:
        if self.interrupt_at == len(self.timed) + 1:
            raise KeyboardInterrupt
        self.timed.append(numbers)
        return Timing(10.0, self.shares.get(numbers["nr"], 0.5))


def search_in(folder: Path) -> search.Search:
    return search.Search(CPU, folder / "log", Bar("tuning"))


def best_of(folder: Path, clock: Callable, candidates: list[dict[str, int]] = CANDIDATES) -> Record:
    return search_in(folder).best("dense_fp32_relu", "mr=5 k=40 n=64", candidates, clock)


def test_an_interrupted_search_goes_on_from_what_was_measured(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        best_of(tmp_path, Clock({32: 0.9}, interrupt_at=3))
    kept = read_log(tmp_path / "log.trials", must_exist=True).records
    assert [record.schedule for record in kept] == CANDIDATES[:2]
    assert not (tmp_path / "log").exists(), "nothing is chosen yet"
    second = Clock()
    best = best_of(tmp_path, second)
    assert second.timed == CANDIDATES[2:]
    assert (best.schedule["nr"], best.share_of_peak) == (32, 0.9), "the one measured before the interruption"
    third = Clock(interrupt_at=1)
    assert best_of(tmp_path, third) == best


def test_a_candidate_is_measured_once_within_one_search(tmp_path):
    search, clock = search_in(tmp_path), Clock()
    for _ in range(2):
        search.best("dense_fp32_relu", "mr=5 k=40 n=64", CANDIDATES, clock)
    assert clock.timed == CANDIDATES
    search.best("dense_fp32_relu", "mr=6 k=40 n=64", CANDIDATES, clock)
    assert len(clock.timed) == 2 * len(CANDIDATES), "another shape is another kernel"


@pytest.mark.parametrize(
    ("shares", "winner"),
    [
        ({16: 0.500, 48: 0.509}, 16),
        ({16: 0.500, 48: 0.511}, 48),
        ({16: 0.500, 32: 0.511, 48: 0.512}, 48),
        ({16: 0.900, 48: 0.500}, 16),
    ],
)
def test_a_candidate_wins_only_by_more_than_the_margin_over_the_first(tmp_path, shares, winner):
    shares = dict.fromkeys((16, 32, 48, 64), 0.4) | shares
    assert best_of(tmp_path, Clock(shares)).schedule["nr"] == winner


@pytest.mark.parametrize("other", [{"cpu": "sapphirerapids"}, {"tvm": "0.1.0"}])
def test_trials_of_another_cpu_or_tvm_do_not_count(tmp_path, other):
    fields = {"cpu": "znver4", "tvm": tvm.__version__} | other
    for numbers in CANDIDATES:
        record = Record("dense_fp32_relu", "mr=5 k=40 n=64", "fp32", **fields, schedule=numbers,
                        time_us=1.0, share_of_peak=0.99, date="2026-11-23")  # fmt: skip
        append(tmp_path / "log.trials", record)
    clock = Clock()
    best = best_of(tmp_path, clock)
    assert clock.timed == CANDIDATES
    assert (best.share_of_peak, best.cpu, best.tvm) == (0.5, "znver4", tvm.__version__)


@pytest.mark.parametrize("mr", range(1, 15))
@pytest.mark.parametrize("outputs", [1, 16, 24, 40, 128, 256, 479, 1024])
@pytest.mark.parametrize("unit", [1, 2])
def test_dense_candidates_are_distinct_and_fit_the_registers(mr, outputs, unit):
    candidates = search.dense_candidates(mr, LayerShape("relu", 100, outputs, unit=unit))
    assert candidates[0] == default_dense(mr, outputs, unit=unit), "the rule's comes first: the others must beat it"
    assert len(set(candidates)) == len(candidates)
    assert all(schedule.nr % 16 == 0 and schedule.unroll in (1, 2) for schedule in candidates)
    # Vectors that are packed together lie in one register tile.
    assert all(schedule.nr % (16 * unit) == 0 or schedule.nr >= outputs for schedule in candidates)
    # A tile of one item runs the gemv kernel, which keeps no weights in registers.
    assert all(
        schedule.nr // 16 < REGISTERS if mr == 1 else schedule.registers(mr) <= REGISTERS for schedule in candidates
    )


@pytest.mark.parametrize("mr", range(1, 7))
@pytest.mark.parametrize("outputs", [1, 16, 20, 40, 128])
@pytest.mark.parametrize("unit", [1, 2])
def test_dense_candidates_of_avx2_are_such_that_a_log_with_them_is_used(mr, outputs, unit):
    """Tall tiles have no registers for two vectors of outputs; x of an int8 network is packed in twos all the same."""
    layer = LayerShape("relu", 100, outputs, unit=unit)
    candidates = search.dense_candidates(mr, layer, REGISTERS_AVX2)
    assert candidates[0] == default_dense(mr, outputs, REGISTERS_AVX2, unit)
    assert all(_usable_dense(dense_numbers(schedule), layer) for schedule in candidates)


@pytest.mark.parametrize("batch", [1, 3, 16, 100])
def test_the_best_so_far_is_the_first_of_every_stage(batch):
    heights = tile_heights(batch)[:3]
    best = default_network(batch)
    for stage in search.network_stages(batch, heights, block_items=1):
        candidates = list(stage(best))
        assert candidates[0] == best
        assert len(set(candidates)) == len(candidates)


@pytest.fixture
def clock() -> SimpleNamespace:
    """now: seconds, of which a made-up trial of a layer takes 1, of the network 10."""
    return SimpleNamespace(now=0.0)


@pytest.fixture
def made_up_trials(monkeypatch, clock) -> list:
    """Replaces what measures -> the list that names each measurement. Widest tiles of 2 unrolled steps, the second
    height, two tiles a block and fetches of every element win."""
    timed = []

    class FakeDense:
        def __init__(self, layer, mr, *_) -> None:
            self.layer, self.mr = layer, mr

        def time(self, schedule: DenseSchedule) -> Timing:
            timed.append((self.mr, self.layer, schedule))
            clock.now += 1
            return Timing(1.0, schedule.nr * schedule.unroll / 1000)

    class FakeNetwork:
        def __init__(self, model, batch, cpu, peak, dense_schedule, numerics) -> None:
            self.layers, self.dense_schedule = layer_shapes(model, numerics), dense_schedule
            self.second = tile_heights(batch, precision=numerics.precision)[1:]

        def time(self, schedule: NetworkSchedule) -> Timing:
            for layer in self.layers:
                of_layer = [each[2] for each in timed if is_dense(each) and each[:2] == (schedule.mr, layer)]
                rule = default_dense(schedule.mr, layer.outputs, unit=layer.unit)
                best = max(of_layer, key=width, default=rule)
                assert self.dense_schedule(schedule.mr, layer) == best, "not the best layers that were measured"
            timed.append(schedule)
            clock.now += 10
            wanted = (schedule.mr in self.second[:1], schedule.block_tiles == 2, schedule.prefetch.every == 1)
            return Timing(1.0, 0.4 + 0.1 * sum(wanted) + 0.1 * wanted[0])  # heights are found first: they weigh most

    machine = MachineModel(caches_of("znver4"), 117, 92)
    fakes = {"Peak": lambda *_: None, "DenseTrial": FakeDense, "NetworkTrial": FakeNetwork}
    fakes |= {"measure_machine": lambda *_: machine, "probe_blocks": lambda layers, start, *_: Probed(start)}
    for name, fake in fakes.items():
        monkeypatch.setattr(search, name, fake)
    return timed


def width(schedule: DenseSchedule) -> int:
    return schedule.nr * schedule.unroll


def widest(mr: int, layer: LayerShape) -> DenseSchedule:
    return max(search.dense_candidates(mr, layer), key=width)


@pytest.mark.parametrize("batch", [1, 3, 16, 100])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tune_appends_a_line_per_kernel_that_compiling_then_finds(tmp_path, made_up_trials, batch, precision):
    log, numerics = tmp_path / "log", numerics_of(MODEL, precision, np.ones(3, np.float32))
    search.tune(MODEL, batch, CPU, log, numerics)
    layers = list(dict.fromkeys(layer_shapes(MODEL, numerics)))
    chosen = choose_schedules(read_log(log, must_exist=True), layers, cpu=CPU.cpu, batch=batch, precision=precision)
    network = chosen.network
    assert chosen.dense == {layer: widest(network.mr, layer) for layer in layers}
    assert (len(chosen.tuned), chosen.untuned) == (1 + len(layers), ())
    assert len(log.read_text().splitlines()) == 1 + len(layers), "heights not chosen leave no lines"
    assert list(tmp_path.iterdir()) == [log], "the trials are done with"
    assert len(set(made_up_trials)) == len(made_up_trials), "something was measured twice"
    if batch == 100:
        second = tile_heights(batch, precision=precision)[1]
        assert network == NetworkSchedule(second, 2, Prefetch(every=1, locality=2))


def is_dense(trial: tuple | NetworkSchedule) -> bool:
    return isinstance(trial, tuple)


@pytest.mark.parametrize("seconds", [0.5, 20, 60, 130])
def test_the_search_stops_at_its_seconds_with_a_record_of_every_kernel(
    tmp_path, made_up_trials, clock, capsys, seconds
):
    """Half of the seconds for layers, trials of 1 s; all that is left for the network, trials of 10 s."""
    log = tmp_path / "log"
    search.tune(MODEL, 100, CPU, log, NUMERICS, seconds, lambda: clock.now)
    timed = list(made_up_trials)
    dense = [each for each in timed if is_dense(each)]
    assert len(dense) == min(math.ceil(seconds / 2), 50) and seconds <= clock.now < seconds + 10
    assert timed[: len(dense)] == dense
    largest = max(layer_shapes(MODEL, NUMERICS), key=lambda layer: layer.inputs * layer.outputs)
    first = tile_heights(100)[0]
    assert dense[0] == (first, largest, default_dense(first, largest.outputs)), "the rule's schedule, the most work"

    layers = list(dict.fromkeys(layer_shapes(MODEL, NUMERICS)))
    records = read_log(log, must_exist=True)
    assert len(records.records) == 1 + len(layers)
    chosen = choose_schedules(records, layers, cpu=CPU.cpu, batch=100)
    measured = {each[:2] for each in dense if each[0] == chosen.network.mr}
    assert len(chosen.tuned) == len(measured) + bool(len(timed) - len(dense)), "what was not measured is by rule"
    for layer in layers:
        if (chosen.network.mr, layer) not in measured:
            assert chosen.dense[layer] == default_dense(chosen.network.mr, layer.outputs)

    printed = capsys.readouterr().out
    assert re.fullmatch(rf"tuning      {len(timed)} of \d+ candidates measured; --tune again .*\n", printed)
    search.tune(MODEL, 100, CPU, log, NUMERICS)
    dense = [each for each in made_up_trials if is_dense(each)]
    assert len(set(dense)) == len(dense) == 50, "the next search goes on"
    assert re.fullmatch(r"tuning      (\d+) of \1 candidates measured\n", capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == [log]
    chosen = choose_schedules(read_log(log, must_exist=True), layers, cpu=CPU.cpu, batch=100)
    assert (chosen.network.mr, chosen.network.block_tiles, chosen.untuned) == (tile_heights(100)[1], 2, ())


def test_blocks_near_the_rules_are_measured_first():
    assert search.block_candidates(2048, 5, 30)[:2] == [4, 10]  # tiles of 20 and 50 items
    assert search.block_candidates(2048, 5, 512)[:3] == [103, 69, 38]  # 512, 400, 200, made even
    assert search.block_candidates(2048, 5, 5)[:2] == [1, 2]


def test_what_was_not_measured_never_replaces_a_record_of_the_log(tmp_path, made_up_trials, clock):
    log = tmp_path / "log"
    search.tune(MODEL, 100, CPU, log, NUMERICS)
    whole = log.read_text()
    search.tune(MODEL, 100, CPU, log, NUMERICS, 1e-9, lambda: clock.now)
    found = choose_schedules(
        read_log(log, must_exist=True), layer_shapes(MODEL, NUMERICS), cpu=CPU.cpu, batch=100
    ).network
    assert found.mr == tile_heights(100)[1] and log.read_text().startswith(whole)


def test_tune_keeps_the_lines_that_were_in_the_log(tmp_path, made_up_trials):
    log = tmp_path / "log"
    search.tune(MODEL, 16, CPU, log, NUMERICS)
    before = log.read_text()
    search.tune(MODEL, 100, CPU, log, NUMERICS)
    assert log.read_text().startswith(before)
    chosen = choose_schedules(read_log(log, must_exist=True), layer_shapes(MODEL, NUMERICS), cpu=CPU.cpu, batch=16)
    assert chosen.network.mr == tile_heights(16)[1]


@pytest.mark.parametrize("interrupt_at", [3, -2])
def test_tune_taken_up_again_ends_as_if_never_interrupted(tmp_path, made_up_trials, monkeypatch, interrupt_at):
    """Interrupted among the layers, and between the last stages of the network."""
    whole, log = tmp_path / "whole", tmp_path / "log"
    search.tune(MODEL, 100, CPU, whole, NUMERICS)
    wanted = list(made_up_trials)
    stop = interrupt_at % len(wanted)
    made_up_trials.clear()

    def stopping(time: Callable) -> Callable:
        def timed(trial, schedule) -> Timing:
            if len(made_up_trials) == stop:
                raise KeyboardInterrupt
            return time(trial, schedule)

        return timed

    with monkeypatch.context() as patch:
        for trial in (search.DenseTrial, search.NetworkTrial):
            patch.setattr(trial, "time", stopping(trial.time))
        with pytest.raises(KeyboardInterrupt):
            search.tune(MODEL, 100, CPU, log, NUMERICS)
    (trials,) = tmp_path.glob("log.*.trials")
    assert len(trials.read_text().splitlines()) == stop
    search.tune(MODEL, 100, CPU, log, NUMERICS)
    assert made_up_trials == wanted, "each once, in the same order"
    assert log.read_text() == whole.read_text()


@pytest.mark.parametrize(
    "precision",
    [
        "fp32",
        pytest.param("int8", marks=needs_library("int8")),
        pytest.param("bf16", marks=[needs_library("bf16"), pytest.mark.slow]),
    ],
)
def test_trials_measure_on_this_machine(require_fma, monkeypatch, precision):
    """Real kernels, for an instant: whether the numbers are good is for --tune, that they are numbers is for here."""
    for name, value in {"_DENSE_SECONDS": 0.01, "_NETWORK_SECONDS": 0.01, "_ITEMS": 100}.items():
        monkeypatch.setattr(trials, name, value)
    cpu, batch = cpu_target(None), 16
    family = cpu.family(precision)
    numerics = numerics_of(MODEL, precision, np.ones(3, np.float32), largest_weight=family.largest_weight)
    network = default_network(batch, family.registers, precision)

    def measure() -> list[Timing]:
        peak = Peak(cpu, family)
        layer = layer_shapes(MODEL, numerics, family)[1]
        timings = []
        for mr in (1, network.mr):  # the two dense kernels: gemv and tiles
            trial = trials.DenseTrial(layer, mr, cpu, peak, precision, MODEL.mlp_bytes)
            timings += [trial.time(schedule) for schedule in search.dense_candidates(mr, layer, family.registers)[:2]]
        rule = lambda mr, layer: default_dense(mr, layer.outputs, family.registers, layer.unit)  # noqa: E731
        whole = trials.NetworkTrial(MODEL, batch, cpu, peak, rule, numerics)
        return [*timings, whole.time(network), whole.time(NetworkSchedule(network.mr, 2, Prefetch(0, 2)))]

    for timing in on_threads(1, measure):
        assert math.isfinite(timing.time_us) and timing.time_us > 0
        assert math.isfinite(timing.share_of_peak) and 0 < timing.share_of_peak < 1.5
