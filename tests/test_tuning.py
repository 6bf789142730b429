"""The search of `compile.py --tune`: what it tries, keeps, takes up again. Timings are made up, but for one test."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from models import on_threads, random_dlrm
from narrow import narrow_cases
from tqdm import tqdm

from dlrm_tvm import trials, tuning
from dlrm_tvm.errors import UserError
from dlrm_tvm.kernels.dense import REGISTERS, DenseSchedule
from dlrm_tvm.kernels.gather import RowFetch
from dlrm_tvm.numerics import PRECISIONS, numerics_of
from dlrm_tvm.plan import LayerShape, layer_shapes
from dlrm_tvm.schedules import NetworkSchedule, default_dense, default_network, tile_heights
from dlrm_tvm.selection import Selection
from dlrm_tvm.target import CpuTarget, cpu_target
from dlrm_tvm.trials import Timing
from dlrm_tvm.tuning_log import Record, append, read_log

CPU = CpuTarget("znver4", None, ("avx512f",), is_host=True)
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


def search_in(folder: Path) -> tuning.Search:
    return tuning.Search(CPU, folder / "log", tqdm(disable=True))


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
    candidates = tuning.dense_candidates(mr, LayerShape("relu", 100, outputs, unit=unit))
    assert candidates[0] == default_dense(mr, outputs, unit=unit), "the rule's comes first: the others must beat it"
    assert len(set(candidates)) == len(candidates)
    assert all(schedule.nr % 16 == 0 and schedule.unroll in (1, 2) for schedule in candidates)
    # Vectors that are packed together lie in one register tile.
    assert all(schedule.nr % (16 * unit) == 0 or schedule.nr >= outputs for schedule in candidates)
    # A tile of one item runs the gemv kernel, which keeps no weights in registers.
    assert all(
        schedule.nr // 16 < REGISTERS if mr == 1 else schedule.registers(mr) <= REGISTERS for schedule in candidates
    )


@pytest.mark.parametrize("batch", [1, 3, 16, 100])
def test_the_best_so_far_is_the_first_of_every_stage(batch):
    heights = tile_heights(batch)[:3]
    best = default_network(batch)
    for stage in tuning.network_stages(batch, heights):
        candidates = list(stage(best))
        assert candidates[0] == best
        assert len(set(candidates)) == len(candidates)


@pytest.fixture
def made_up_trials(monkeypatch) -> list:
    """Replaces what measures -> the list that names each measurement. Widest tiles of 2 unrolled steps, the second
    height, two tiles a block and fetches of every element win."""
    timed = []

    class FakeDense:
        def __init__(self, layer, mr, *_) -> None:
            self.layer, self.mr = layer, mr

        def time(self, schedule: DenseSchedule) -> Timing:
            timed.append((self.mr, self.layer, schedule))
            return Timing(1.0, schedule.nr * schedule.unroll / 1000)

    class FakeNetwork:
        def __init__(self, model, batch, cpu, peak, dense_schedule, numerics) -> None:
            self.layers, self.dense_schedule = layer_shapes(model, numerics), dense_schedule
            self.second = tile_heights(batch, precision=numerics.precision)[1:]

        def time(self, schedule: NetworkSchedule) -> Timing:
            for layer in self.layers:
                assert self.dense_schedule(schedule.mr, layer) == widest(schedule.mr, layer), "not the best layers"
            timed.append(schedule)
            wanted = (schedule.mr in self.second[:1], schedule.block_tiles == 2, schedule.fetch.every == 1)
            return Timing(1.0, 0.4 + 0.1 * sum(wanted) + 0.1 * wanted[0])  # heights are found first: they weigh most

    for name, fake in {"Peak": lambda *_: None, "DenseTrial": FakeDense, "NetworkTrial": FakeNetwork}.items():
        monkeypatch.setattr(tuning, name, fake)
    return timed


def widest(mr: int, layer: LayerShape) -> DenseSchedule:
    return max(tuning.dense_candidates(mr, layer), key=lambda schedule: schedule.nr * schedule.unroll)


@pytest.mark.parametrize("batch", [1, 3, 16, 100])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tune_appends_a_line_per_kernel_that_selection_then_finds(tmp_path, made_up_trials, batch, precision):
    log, numerics = tmp_path / "log", numerics_of(MODEL, precision, np.ones(3, np.float32))
    tuning.tune(MODEL, batch, CPU, log, numerics)
    chosen = Selection(read_log(log, must_exist=True), CPU.cpu, batch, precision=precision)
    network = chosen.network()
    layers = list(dict.fromkeys(layer_shapes(MODEL, numerics)))
    assert [chosen.dense(layer) for layer in layers] == [widest(network.mr, layer) for layer in layers]
    assert (len(chosen.tuned), chosen.untuned, chosen.borrowed) == (1 + len(layers), [], set())
    assert len(log.read_text().splitlines()) == 1 + len(layers), "heights not chosen leave no lines"
    assert list(tmp_path.iterdir()) == [log], "the trials are done with"
    assert len(set(made_up_trials)) == len(made_up_trials), "something was measured twice"
    if batch == 100:
        second = tile_heights(batch, precision=precision)[1]
        assert network == NetworkSchedule(second, 2, RowFetch(every=1, locality=2))


def test_tune_keeps_the_lines_that_were_in_the_log(tmp_path, made_up_trials):
    log = tmp_path / "log"
    tuning.tune(MODEL, 16, CPU, log, NUMERICS)
    before = log.read_text()
    tuning.tune(MODEL, 100, CPU, log, NUMERICS)
    assert log.read_text().startswith(before)
    assert Selection(read_log(log, must_exist=True), CPU.cpu, 16).network().mr == tile_heights(16)[1]


@pytest.mark.parametrize("interrupt_at", [3, -2])
def test_tune_taken_up_again_ends_as_if_never_interrupted(tmp_path, made_up_trials, monkeypatch, interrupt_at):
    """Interrupted among the layers, and between the last stages of the network."""
    whole, log = tmp_path / "whole", tmp_path / "log"
    tuning.tune(MODEL, 100, CPU, whole, NUMERICS)
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
        for trial in (tuning.DenseTrial, tuning.NetworkTrial):
            patch.setattr(trial, "time", stopping(trial.time))
        with pytest.raises(KeyboardInterrupt):
            tuning.tune(MODEL, 100, CPU, log, NUMERICS)
    (trials,) = tmp_path.glob("log.*.trials")
    assert len(trials.read_text().splitlines()) == stop
    tuning.tune(MODEL, 100, CPU, log, NUMERICS)
    assert made_up_trials == wanted, "each once, in the same order"
    assert log.read_text() == whole.read_text()


@pytest.mark.parametrize(
    ("cpu", "said"),
    [
        (CpuTarget("sapphirerapids", None, ("avx512f",), is_host=False), "sapphirerapids.*--target-cpu"),
        (CpuTarget("sandybridge", None, ("avx",), is_host=True), "sandybridge.*AVX-512"),
    ],
)
def test_tune_refuses_what_it_cannot_measure(tmp_path, made_up_trials, cpu, said):
    with pytest.raises(UserError, match=said):
        tuning.tune(MODEL, 100, cpu, tmp_path / "log", NUMERICS)
    assert made_up_trials == []
    assert list(tmp_path.iterdir()) == []


def test_tune_refuses_a_log_that_cannot_be_written_before_any_trial(tmp_path, made_up_trials):
    with pytest.raises(UserError, match="--tuning-log-file") as error:
        tuning.tune(MODEL, 100, CPU, tmp_path, NUMERICS)
    assert str(tmp_path) in str(error.value)
    assert made_up_trials == []


@pytest.mark.parametrize("precision", narrow_cases(*[(each,) for each in PRECISIONS]))
def test_trials_measure_on_this_machine(require_fma, monkeypatch, precision):
    """Real kernels, for an instant: whether the numbers are good is for --tune, that they are numbers is for here."""
    for name, value in {"_DENSE_SECONDS": 0.01, "_NETWORK_SECONDS": 0.01, "_ITEMS": 100}.items():
        monkeypatch.setattr(trials, name, value)
    cpu, batch = cpu_target(None), 16
    numerics = numerics_of(MODEL, precision, np.ones(3, np.float32))
    network = default_network(batch, precision=precision)

    def measure() -> list[Timing]:
        peak = trials.Peak(cpu, precision)
        layer = layer_shapes(MODEL, numerics)[1]
        timings = []
        for mr in (1, network.mr):  # the two dense kernels: gemv and tiles
            trial = trials.DenseTrial(layer, mr, cpu, peak, MODEL.mlp_bytes)
            timings += [trial.time(schedule) for schedule in tuning.dense_candidates(mr, layer)[:2]]
        rule = lambda mr, layer: default_dense(mr, layer.outputs, unit=layer.unit)  # noqa: E731
        whole = trials.NetworkTrial(MODEL, batch, cpu, peak, rule, numerics)
        return [*timings, whole.time(network), whole.time(NetworkSchedule(network.mr, 2, RowFetch(0, 2)))]

    for timing in on_threads(1, measure):
        assert math.isfinite(timing.time_us) and timing.time_us > 0
        assert math.isfinite(timing.share_of_peak) and 0 < timing.share_of_peak < 1.5
