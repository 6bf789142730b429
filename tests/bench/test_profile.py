"""--profile: the stamps change nothing, and what they say adds up."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import models
import numpy as np
import pytest
from models import build_plain, job_of, on_threads, random_bags, random_batch, random_dlrm, schedules_of
from quantized import dynamic
from scripts import read_result, run

from dlrm_tvm.bench import measure
from dlrm_tvm.bench.profile import check_profile, profile_json, profile_lines, summarize
from dlrm_tvm.compiler import pipeline
from dlrm_tvm.compiler.plan import layer_shapes
from dlrm_tvm.compiler.roofline import roofline
from dlrm_tvm.errors import UserError
from dlrm_tvm.instances.profiling import ProfiledCalls, profile_calls, ticks_per_ns
from dlrm_tvm.kernels.isa import AMX_FP32, AVX2_INT8, AVX512_VNNI, AVX_VNNI
from dlrm_tvm.machine.caches import caches_of
from dlrm_tvm.model.precision import numerics_of
from dlrm_tvm.runtime.artifact import open_artifact
from dlrm_tvm.runtime.executor import Executor
from dlrm_tvm.runtime.manifest import Manifest, Part
from dlrm_tvm.schedules.rules import Schedules, default_dense, default_network
from dlrm_tvm.schedules.tile_rules import tile_schedules

CORES = sorted(os.sched_getaffinity(0))
NAMES = ["gather", "bottom 1", "bottom 2", "interaction", "top 1", "top 2"]


def medium_dlrm(interaction: str = "dot"):
    """Large enough that each part takes many times a stamp."""
    return random_dlrm(table_rows=[100] * 8, dim=128, bottom=(512,), top=(512,), interaction=interaction)


def build(model, batch: int, directory: Path, *, profile: bool = True, dump: Path | None = None) -> Path:
    return models.build(model, batch, schedules_of(model, batch), directory, profile=profile, dump_ir=dump)


def prepared(engine: Executor, model, bags: bool, count: int = 3) -> list:
    batches = [random_batch(model, engine.batch_size, seed=seed) for seed in range(count)]
    if bags:
        batches = [(dense, *random_bags(model, len(dense), seed)) for seed, (dense, _) in enumerate(batches)]
    return [engine.prepare(*each) for each in batches]


@pytest.fixture(scope="module", params=[(1, "dot"), (7, "cat"), (33, "dot_self")], ids=str)
def stamped(request: pytest.FixtureRequest, require_fma: None, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """(model, batch, artifact with time stamps)"""
    batch, interaction = request.param
    model = medium_dlrm(interaction)
    return model, batch, open_artifact(build(model, batch, tmp_path_factory.mktemp("stamped")))


@pytest.mark.parametrize("bags", [False, True], ids=["one row", "bags"])
@pytest.mark.parametrize("threads", [1, 2])
def test_stamps_change_no_prediction_and_parts_add_up(stamped: tuple, threads: int, bags: bool) -> None:
    model, batch, artifact = stamped

    def check() -> tuple[list[float], ProfiledCalls]:
        engine = Executor(artifact, threads=threads)
        batches = prepared(engine, model, bags)
        for each in batches:
            wanted = engine.run(each).copy()
            assert np.array_equal(engine.run_profiled(each)[0], wanted)
        return profile_calls(engine, batches, 0.1)

    calls = on_threads(threads, check)
    assert [part.name for part in artifact.manifest.profile] == NAMES
    assert all(ns > 0 for ns in calls.parts_ns)
    # Two threads on few items leave one idle, and launching and calling are parts of no part.
    assert (0.5 if threads == 1 and batch == 33 else 0) < sum(calls.parts_ns) / calls.call_ns <= 1.01
    assert calls.calls >= 2 and calls.main_ns > 0


@pytest.mark.parametrize("interaction", ["dot", "dot_self", "cat"])
@pytest.mark.parametrize("batch", [1, 33])
def test_flops_of_all_parts_are_the_models(require_fma: None, batch: int, interaction: str) -> None:
    model = medium_dlrm(interaction)
    plan = pipeline.plan(job_of(model, batch, schedules_of(model, batch))).planned.plan
    parts = roofline(model, plan)
    assert [part.name for part in parts] == list(plan.parts) == NAMES
    assert sum(part.flops for part in parts) == model.flops_per_item
    assert all(part.nbytes >= 0 for part in parts)
    inputs = 8 * len(model.tables) + 4 * model.num_dense
    assert parts[0].nbytes >= inputs + (64 * len(model.tables) if plan.prefetch.every else 0)
    assert (parts[0].bag_nbytes, parts[0].index_nbytes) == (inputs, 8 + 4 * model.dim), "bags: all of every row"
    rest = {part.name: part.bag_nbytes for part in parts[1:]}
    assert rest == {name: 0.0 if name == "interaction" else None for name in NAMES[1:]}
    if batch == 1:  # every weight, bias and row is read once for the item
        assert sum(part.nbytes for part in parts) == model.mlp_bytes + model.gather_bytes_per_item + inputs


def test_fp32_layers_on_tiles_are_held_against_the_tiles_peak_and_the_others_against_that_of_vectors() -> None:
    model = medium_dlrm()
    layers = layer_shapes(model, numerics_of(model, "fp32"), AMX_FP32)
    job = replace(job_of(model, 100, tile_schedules(layers, 100, caches_of("emeraldrapids"))), isa=AMX_FP32)
    parts = {part.name: part for part in roofline(model, pipeline.plan(job).planned.plan)}
    assert sum(part.flops for part in parts.values()) == model.flops_per_item
    vectors = 64 / (16384 / (6 * 16))  # FLOPs of a cycle: two multiply-adds of 16; six products of 16 cycles
    wanted = {name: vectors if name in ("interaction", "top 2") else 1 for name in NAMES if name != "gather"}
    assert {name: parts[name].peak_share for name in wanted} == pytest.approx(wanted)
    weight = model.top[0].weight
    assert parts["top 1"].nbytes * 100 == pytest.approx(weight.size * 6 + len(weight) * 4), "6 bytes a weight"


@pytest.mark.parametrize("family, share", [(AVX512_VNNI, 1 / 4), (AVX_VNNI, 1 / 4), (AVX2_INT8, 1 / 2)])
def test_fp32_layers_of_int8_are_held_against_the_multiplies_that_int8_takes(family, share) -> None:
    """Four values a register, in one instruction or, without VNNI, in two."""
    model = medium_dlrm()
    numerics = dynamic(model, "int8", family=family)
    network = default_network(100, family.registers, "int8")
    dense = lambda layer: default_dense(network.mr, layer.outputs, family.registers, layer.unit)  # noqa: E731
    schedules = Schedules.given(network, dense, layer_shapes(model, numerics, family))
    job = replace(job_of(model, 100, schedules, numerics), isa=family)
    parts = {part.name: part.peak_share for part in roofline(model, pipeline.plan(job).planned.plan)}
    assert parts == {name: share if name in ("bottom 1", "top 2") else 1 for name in NAMES}


def test_main_is_the_same_function_with_and_without_the_flag(require_fma: None, tmp_path: Path) -> None:
    model = random_dlrm()
    for profile in (False, True):
        build(model, 10, tmp_path, profile=profile, dump=tmp_path / str(profile))
    without, with_it = ((tmp_path / name / "6_tir.py").read_text() for name in ("False", "True"))
    assert with_it.startswith(without.rstrip())
    assert "readcyclecounter" in with_it and "readcyclecounter" not in without
    stamps = re.findall(r"\brdtsc\b", (tmp_path / "True" / "8_assembly.s").read_text())
    # One at the start, one after each part: bottom 13-20-16, top -24-1; the same with bags.
    assert len(stamps) == 2 * (1 + len(NAMES))


def test_a_manifest_without_the_field_opens(require_fma: None, tmp_path: Path) -> None:
    manifest = open_artifact(build(random_dlrm(), 10, tmp_path)).manifest
    fields = json.loads(manifest.to_json())
    assert Manifest.from_json(json.dumps(fields)) == manifest
    del fields["profile"]
    older = Manifest.from_json(json.dumps(fields))
    assert older == replace(manifest, profile=())
    with pytest.raises(UserError, match=r"no time stamps in it\. Type: python .* --profile$"):
        check_profile(replace(older, untuned_kernels=("dense_fp32_relu",)), "small.so")


def test_a_reading_that_was_held_up_does_not_change_the_rate() -> None:
    times = np.arange(1, 101) * 10_000
    ticks = (times * 2.5).astype(np.int64) + 2**40
    times[[0, 60]] += 3_000_000
    assert ticks_per_ns(times, ticks) == pytest.approx(2.5, rel=1e-6)


def test_rows_of_bags_are_counted_where_they_are_pooled() -> None:
    rows = Part("gather", "rows located", 0, 100.0, 1.0, 60.0, 520.0)
    dots, layer = Part("interaction", "351 dots", 2000, 400.0, 1.0, 0.0), Part("top 1", "4-1", 8, 16.0)
    manifest = SimpleNamespace(profile=(rows, dots, layer), batch_size=10)
    calls = [ProfiledCalls(6, 1100.0, 1000.0, [200.0, 600.0, 200.0])]

    def found(indices: float | None) -> list[tuple[str, float]]:
        profile = summarize(manifest, calls, peak_gflops=50.0, stream_gbps=10.0, indices_per_item=indices)
        return [(each.part.what, each.gbps * each.ns_per_item) for each in profile.parts]

    assert found(None) == [("rows located", 100), ("351 dots", 400), ("4-1", 16)]
    text = "\n".join(profile_lines(summarize(manifest, calls, peak_gflops=50, stream_gbps=10, indices_per_item=214)))
    assert re.search(r"gather +bags pooled +0.020 +18.2% +- +5567.0", text)
    assert found(214) == [("bags pooled", 60 + 214 * 520), ("351 dots", 0), ("4-1", 16)]


def test_table_and_json_say_the_same(require_fma: None, tmp_path: Path) -> None:
    manifest = open_artifact(build(random_dlrm(), 10, tmp_path)).manifest
    parts = tuple(
        Part(f"part {at}", "13-4", flops, nbytes) for at, (flops, nbytes) in enumerate([(0, 100), (2000, 50)])
    )
    manifest = replace(manifest, profile=parts, batch_size=10)
    calls = [
        ProfiledCalls(6, 1100.0, 1000.0, [200.0, 600.0]),
        ProfiledCalls(4, 1300.0, 1200.0, [400.0, 600.0]),
    ]
    profile = summarize(manifest, calls, peak_gflops=50.0, stream_gbps=10.0)
    gather, layer = profile_json(profile)["profile"]
    assert (gather["us_per_item"], gather["gbps"], gather["bound"]) == (0.03, pytest.approx(100 / 30), "stream")
    assert (layer["gflops"], layer["peak_fraction"], layer["bound"]) == (
        pytest.approx(2000 / 60), pytest.approx(2 / 3), "peak",
    )  # fmt: skip
    call = profile_json(profile)["profile_call"]
    assert (call["calls"], call["parts_us"], call["outside_us"]) == (10, pytest.approx(0.9), pytest.approx(0.3))
    assert call["ratio"] == pytest.approx(1200 / 1100)
    text = "\n".join(profile_lines(profile))
    assert "0.667 peak" in text and "0.333 stream" in text and "1.091" in text
    assert "mean of 2 instances" in text and "Repeat" not in text
    disturbed = summarize(manifest, calls, peak_gflops=30.0, stream_gbps=10.0)
    assert "A part beyond its limit: something else ran" in "\n".join(profile_lines(disturbed))


@pytest.fixture(scope="module")
def profiled_library(require_fma: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the demo's layers, but few tables: of the pairs of 27 vectors much code is made."""
    model = random_dlrm(table_rows=[100] * 3, dim=128, bottom=(512, 256), top=(1024, 1024, 512, 256))
    return build(model, 6, tmp_path_factory.mktemp("profiled"))


@pytest.mark.parametrize("bags", [(), ("--indices-per-bag", 3)], ids=["one row", "bags"])
def test_a_library_is_profiled(profiled_library: Path, bags: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_PROFILE_SECONDS", 0.5)
    brief = ("--num-instances", 1, "--duration", 0.5, "--warmup", 0.1)
    done = run("--model", profiled_library, *brief, "--profile", *bags)
    assert done.returncode == 0, done.stderr
    result = read_result(done.stdout)
    parts, call = result["profile"], result["profile_call"]
    assert [part["part"] for part in parts] == [
        "gather", "bottom 1", "bottom 2", "bottom 3", "interaction", "top 1", "top 2", "top 3", "top 4", "top 5",
    ]  # fmt: skip
    assert sum(part["flops_per_item"] for part in parts) == result["flops_per_item"]
    assert sum(part["us_per_item"] for part in parts) * 6 == pytest.approx(call["parts_us"])
    assert 0.5 < call["parts_us"] / call["call_us"] <= 1.01
    assert all(part["us_per_item"] > 0 and part["roofline_fraction"] > 0 for part in parts)
    assert 0.4 < call["ratio"] < 2.5
    assert f"{call['ratio']:.3f} (the faster half of {call['calls']:,} calls each" in " ".join(done.stdout.split())


def test_a_library_without_stamps_is_refused_with_the_command_to_type(demo_library: Path) -> None:
    done = run("--model", demo_library, "--num-instances", 1, "--profile")
    assert (done.returncode, done.stdout) == (1, "")
    name = demo_library.name.removesuffix("_b100.so")
    assert re.search(
        rf"has no time stamps in it\. Type: python \S*compile\.py --output-name {name} --profile\n", done.stderr
    )
    assert done.stderr.count("\n") == 1


def test_a_plain_library_is_refused_with_the_reason(tmp_path: Path) -> None:
    done = run("--model", build_plain(random_dlrm(), 10, tmp_path), "--num-instances", 1, "--profile")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no kernels of ours to time: it was compiled with --tuning-log-file none" in done.stderr


def test_compiling_plain_kernels_with_stamps_is_refused() -> None:
    done = run("--tuning-log-file", "none", "--profile", script="compile")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("--profile times kernels of ours") and done.stderr.count("\n") == 1
