"""What a sweep measures and in which order: its text, what fits, the rounds."""

from __future__ import annotations

from collections import Counter

import pytest

from dlrm_tvm.errors import UserError
from dlrm_tvm.sweep.plan import (
    AUTO_BATCHES,
    Combination,
    SweepSpec,
    auto_combinations,
    auto_placements,
    expand,
    parse_spec,
    shuffled_rounds,
)

SINGLE_RUN = SweepSpec(None, (1,), (100,))


def four_cores(instances: int | None, threads: int) -> int | None:
    """How many instances run where there are four cores."""
    fit = 4 // threads
    wanted = max(fit, 1) if instances is None else instances
    return wanted if wanted <= fit else None


@pytest.mark.parametrize(
    "text, spec",
    [
        ("instances=1,2;threads=1,2;batch=16,100,400", SweepSpec((1, 2), (1, 2), (16, 100, 400))),
        (" batch = 16 , 1 ; ", SweepSpec(None, None, (16, 1))),
        ("threads=1-3,2,8", SweepSpec(None, (1, 2, 3, 8), None)),
        ("batch=1000000", SweepSpec(None, None, (1_000_000,))),
        ("engine=openvino, ours", SweepSpec(engine=("openvino", "ours"))),
        ("batch=1-2048*2;cores=2-8+2", SweepSpec(batch=tuple(2**n for n in range(12)), cores=(2, 4, 6, 8))),
        ("rate=50,100;batch=1-100x10", SweepSpec(batch=(1, 10, 100), rate=(50, 100))),
        ("precision=int8,fp32,int8;batch=1", SweepSpec(None, None, (1,), None, ("int8", "fp32"))),
    ],
)
def test_values_of_each_key_are_read_in_their_order_once_each(text: str, spec: SweepSpec) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    "text, found",
    [
        ("", "'' is no KEY=VALUES"),
        ("1,2", "'1,2' is no KEY=VALUES"),
        ("instances=1;;batch=2", "'' is no KEY=VALUES"),
        ("rows=1", "'rows' is none of instances, threads, batch, cores, rate, engine, precision"),
        ("cores=4;instances=2", "names cores and instances: the one decides the other"),
        ("rate=0.5", "'0.5' of rate is neither"),
        ("engine=ours,tensorrt", "'tensorrt' of engine is none of ours, onnxruntime, openvino"),
        ("precision=fp32,fp8", "'fp8' of precision is none of fp32, bf16, int8"),
        ("precision=", "'' of precision is none of"),
        ("batch=1;batch=2", "names batch twice"),
        ("batch=", "'' of batch is neither"),
        ("batch=1,,2", "'' of batch is neither"),
        ("threads=0", "'0' of threads is neither"),
        ("threads=4-2", "'4-2' of threads is neither"),
        ("threads=-2", "'-2' of threads is neither"),
        ("batch=1.5", "'1.5' of batch is neither"),
        ("batch=٣", "'٣' of batch is neither"),
        ("batch=1000001", "'1000001' of batch goes beyond 1000000"),
        ("instances=1-9999999999999", "goes beyond 65536"),
    ],
)
def test_text_that_is_no_sweep_is_refused_with_what_was_found_and_an_example(text: str, found: str) -> None:
    with pytest.raises(UserError) as error:
        parse_spec(text)
    assert found in str(error.value)
    assert "Write it like --sweep instances=1,2 threads=1-8*2 batch=16,100" in str(error.value)


def test_keys_left_out_are_as_in_a_single_run() -> None:
    found, left_out = expand(parse_spec("threads=1,2,3"), single_run=SINGLE_RUN, fitting=four_cores)
    assert found == [Combination(4, 1, 100), Combination(2, 2, 100), Combination(1, 3, 100)]
    assert left_out == []
    found, _ = expand(parse_spec("batch=1,16"), single_run=SweepSpec((2,), (2,), (100,)), fitting=four_cores)
    assert found == [Combination(2, 2, 1), Combination(2, 2, 16)]


def test_combinations_that_need_more_cores_are_left_out() -> None:
    found, left_out = expand(parse_spec("instances=1,4;threads=1,2,8"), single_run=SINGLE_RUN, fitting=four_cores)
    assert found == [Combination(1, 1, 100), Combination(1, 2, 100), Combination(4, 1, 100)]
    assert left_out == [Combination(1, 8, 100), Combination(4, 2, 100), Combination(4, 8, 100)]


def test_engines_and_precisions_multiply_what_fits() -> None:
    spec = parse_spec("threads=1,8;engine=ours,openvino;precision=fp32,int8")
    found, left_out = expand(spec, single_run=SINGLE_RUN, fitting=four_cores)
    named = [("ours", "fp32"), ("ours", "int8"), ("openvino", "fp32"), ("openvino", "int8")]
    assert found == [Combination(4, 1, 100, *each) for each in named]
    assert left_out == [Combination(1, 8, 100, *each) for each in named]
    assert str(found[3]) == "4 instances × 1 thread, batch 100, int8, OpenVINO"


def test_cores_are_filled_by_instances_of_each_number_of_threads() -> None:
    found, left_out = expand(parse_spec("cores=1,4,8;threads=1,2"), single_run=SINGLE_RUN, fitting=four_cores)
    assert found == [Combination(1, 1, 100), Combination(4, 1, 100), Combination(2, 2, 100)]
    assert left_out == [Combination(8, 1, 100), Combination(4, 2, 100)]


def test_rates_are_an_axis_of_their_own() -> None:
    found, _ = expand(parse_spec("rate=50,2000"), single_run=SINGLE_RUN, fitting=four_cores)
    assert found == [Combination(4, 1, 100, rate=50), Combination(4, 1, 100, rate=2000)]
    assert str(found[1]) == "4 instances × 1 thread, batch 100, 2,000 batches/s"


def test_more_combinations_than_anyone_waits_for_are_refused() -> None:
    with pytest.raises(UserError, match="names 1001 combinations; at most 1000"):
        expand(parse_spec("batch=1-1001"), single_run=SINGLE_RUN, fitting=four_cores)


@pytest.mark.parametrize(
    "cores, placements",
    [
        (1, {(1, 1)}),
        (2, {(2, 1), (1, 2), (1, 1)}),
        (7, {(7, 1), (1, 7), (1, 1), (3, 2), (1, 4)}),
        (12, {(12, 1), (1, 12), (1, 1), (6, 2), (3, 4), (1, 8), (4, 3), (2, 6)}),
    ],
)
def test_auto_fills_the_cores_in_all_telling_ways(cores: int, placements: set[tuple[int, int]]) -> None:
    assert set(auto_placements(cores)) == placements


@pytest.mark.parametrize("cores", [1, 2, 3, 24, 96, 256])
def test_auto_never_needs_more_cores_than_there_are_and_takes_half_an_hour_at_most(cores: int) -> None:
    combinations = auto_combinations(cores, repeats=3, seconds_each=6.5)
    assert all(one.instances * one.threads <= cores for one in combinations)
    assert len(combinations) * 3 * 6.5 <= 1800
    assert {one.batch for one in combinations} == set(AUTO_BATCHES)
    assert {(one.instances, one.threads) for one in combinations} >= {(cores, 1), (1, cores)}


def test_auto_with_long_windows_keeps_the_first_placement() -> None:
    combinations = auto_combinations(64, repeats=3, seconds_each=600)
    assert {(one.instances, one.threads) for one in combinations} == {(64, 1)}


COMBINATIONS = [Combination(instances, 1, batch) for instances in range(1, 5) for batch in (1, 16, 100)]


def test_every_round_runs_every_combination_once_in_an_order_of_its_own() -> None:
    planned = shuffled_rounds(COMBINATIONS, repeats=3, seed=7)
    rounds = [[run.combination for run in planned[at : at + 12]] for at in (0, 12, 24)]
    assert [run.round for run in planned] == [0] * 12 + [1] * 12 + [2] * 12
    assert all(Counter(order) == Counter(COMBINATIONS) for order in rounds)
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]
    assert COMBINATIONS not in rounds


def test_the_same_seed_gives_the_same_order_and_more_rounds_begin_with_it() -> None:
    planned = shuffled_rounds(COMBINATIONS, repeats=2, seed=7)
    assert shuffled_rounds(COMBINATIONS[::-1], repeats=2, seed=7) == planned
    assert shuffled_rounds(COMBINATIONS, repeats=3, seed=7)[:24] == planned
    assert shuffled_rounds(COMBINATIONS, repeats=2, seed=8) != planned


def test_engines_of_one_setting_follow_each_other_in_an_order_that_changes() -> None:
    engines = ("ours", "onnxruntime", "openvino")
    combinations = [Combination(1, 1, batch, engine, "fp32") for batch in (1, 16, 100) for engine in engines]
    planned = shuffled_rounds(combinations, repeats=20, seed=7)
    assert all(
        Counter(run.combination for run in planned if run.round == number) == Counter(combinations)
        for number in range(20)
    )
    trios = [[run.combination for run in planned[at : at + 3]] for at in range(0, len(planned), 3)]
    assert all(len({one.batch for one in trio}) == 1 and {one.engine for one in trio} == set(engines) for trio in trios)
    assert len({tuple(one.engine for one in trio) for trio in trios}) == 6
    assert len({tuple(trio[0].batch for trio in trios[at : at + 3]) for at in range(0, 60, 3)}) == 6
