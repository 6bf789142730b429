"""The list of phases: their order, what is left out, what is printed and dumped on the way."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from models import job_of, random_dlrm, schedules_of, without_code, without_linking

from dlrm_tvm.compiler import pipeline, precision_choice, summary
from dlrm_tvm.compiler.conversion_journal import NoRoomError
from dlrm_tvm.compiler.job import Job
from dlrm_tvm.compiler.options import CompileSettings
from dlrm_tvm.compiler.pipeline import PHASES, compile_model, numbers_chosen
from dlrm_tvm.compiler.plan import layer_shapes
from dlrm_tvm.errors import UserError
from dlrm_tvm.kernels.isa import AVX2, GENERIC
from dlrm_tvm.schedules.rules import network_shape

MODEL = random_dlrm(table_rows=(20, 30), dim=32)
NAMES = [phase.name for phase in PHASES]


def settings(folder: Path, **flags: object) -> CompileSettings:
    """Of TVM's default code generation, which any CPU runs."""
    return CompileSettings(
        onnx_model=folder / "model.onnx", batch_size=4, tuning_log_file=None, directory=folder / "built", **flags
    )


def test_every_phase_begins_once_in_the_order_of_the_list(tmp_path):
    begun = []
    done = compile_model(Job(settings(tmp_path), lambda path: MODEL, progress=begun.append))
    assert begun == NAMES
    assert len(set(NAMES)) == len(NAMES)
    assert done.library.is_file()
    manifest = json.loads(done.library.with_suffix(".json").read_text())
    assert manifest["onnx_model"] == str(tmp_path / "model.onnx")


def test_the_graph_of_weights_that_cannot_be_read_is_removed_if_it_was_not_there(tmp_path, monkeypatch):
    graph = tmp_path / "w.pt.onnx"
    monkeypatch.setattr(pipeline, "graph_of_weights", lambda path: graph.write_text("graph") and graph)

    def refuse(path):
        raise UserError("none of ours")

    job = Job(replace(settings(tmp_path), onnx_model=None, torch_weights=tmp_path / "w.pt"), refuse)
    for there_before in (False, True):
        if there_before:
            graph.write_text("graph")
        with pytest.raises(UserError, match="none of ours"):
            pipeline.read(job)
        assert graph.exists() is there_before


def test_phases_whose_result_is_given_are_left_out(tmp_path, capsys):
    begun = []
    job = replace(job_of(MODEL, 4, directory=tmp_path), progress=begun.append)
    assert compile_model(job).library == tmp_path / "small_b4.so"
    given = {"find target", "read", "choose scales", "lay out tables", "choose schedules"}
    assert begun == [name for name in NAMES if name not in given]
    assert capsys.readouterr().out == "", "job_of is quiet"


def test_a_search_before_the_pipeline_costs_no_phase_twice(tmp_path, capsys):
    begun = []
    job = numbers_chosen(Job(settings(tmp_path), lambda path: MODEL, progress=begun.append))
    assert begun == NAMES[: NAMES.index("look at machine")]
    assert job.numerics.precision == "fp32"
    compile_model(job)
    assert begun == NAMES
    assert capsys.readouterr().out.count("model       small: ") == 1


def test_a_phase_that_fails_ends_the_list_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise UserError("wrong")

    begun = []
    monkeypatch.setattr(pipeline, "verify", fail)
    with pytest.raises(UserError, match="wrong"):
        compile_model(Job(settings(tmp_path), lambda path: MODEL, progress=begun.append))
    assert begun == NAMES[: NAMES.index("verify") + 1]
    assert list((tmp_path / "built").iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, 3e38])
def test_a_sampled_row_beyond_float32_is_named_with_its_table(tmp_path, value):
    rows = MODEL.tables[1].rows.copy()
    rows[7, 5] = value
    model = replace(MODEL, tables=(MODEL.tables[0], replace(MODEL.tables[1], rows=rows)))
    with pytest.raises(UserError, match=rf"^small: table emb_1, row 7 holds {value:.6g}:".replace("+", "[+]")):
        compile_model(Job(settings(tmp_path), lambda path: model))
    assert list((tmp_path / "built").iterdir()) == []


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_disk_is_looked_at_and_the_size_printed_before_tables_are_read(tmp_path, monkeypatch, capsys, precision):
    looked_at, printed = [], []

    def read(model, *_: object, **__: object) -> object:
        printed.append(capsys.readouterr().out)
        raise UserError("read")

    monkeypatch.setattr(pipeline, "check_room", lambda directory, nbytes: looked_at.append(nbytes))
    monkeypatch.setattr(pipeline, "choose_numerics", read)
    flags = settings(tmp_path, precision=precision, target_cpu="znver4")
    with pytest.raises(UserError, match="read"):
        compile_model(Job(flags, lambda path: MODEL))
    nbytes = {"bf16": 50 * 32 * 2, "int8": 50 * 64}[precision]  # rows of int8 fill whole vectors of 64
    assert looked_at == [nbytes]
    assert f"tables      0.0 MB become 0.0 MB in {precision}, written beside the library\n" in printed[0]


def test_our_kernels_are_dumped_phase_by_phase(require_fma, tmp_path):
    compile_model(job_of(MODEL, 4, schedules_of(MODEL, 4), directory=tmp_path / "built", dump_ir=tmp_path / "ir"))
    dumped = {path.name: path.read_text() for path in (tmp_path / "ir").iterdir()}
    # The model, its numerics, tables and schedules were given: their phases have nothing to say.
    assert sorted(dumped) == ["5_plan.txt", "6_tir.py", "7_relax.py", "8_assembly.s", "9_verification.json"]
    assert dumped["5_plan.txt"].startswith("NetworkPlan(batch=4, ")
    assert dumped["6_tir.py"].count("@T.prim_func") == 2, "the network, and the one for bags"
    # On Python 3.12 and newer, TVM prints the symbolic sizes as type parameters: "def main[total](".
    functions = set(re.findall(r"def (\w+)[\[(]", dumped["7_relax.py"]))
    assert functions >= {"main", "bags", "peak_fma", "stream_read"}
    assert json.loads(dumped["9_verification.json"])["items"] == 12


def test_default_code_generation_is_dumped_without_a_plan(tmp_path):
    compile_model(Job(settings(tmp_path, dump_ir=tmp_path / "ir"), lambda path: MODEL))
    dumped = {path.name: path.read_text() for path in (tmp_path / "ir").iterdir()}
    assert sorted(dumped) == [
        "1_model.json", "2_numerics.json", "3_tables.json", "7_relax.py", "8_assembly.s", "9_verification.json",
    ]  # fmt: skip
    assert json.loads(dumped["1_model.json"])["table_rows"] == [20, 30]
    assert json.loads(dumped["2_numerics.json"]) == {"precision": "fp32"}
    tables = json.loads(dumped["3_tables.json"])
    assert (tables["first_elements"], tables["copied_bytes"]) == ([0, 20 * 32], 50 * 32 * 4)
    assert tables["reasons_for_copies"].keys() == {"emb_0", "emb_1"}


def test_dumped_schedules_name_kernels_and_where_each_schedule_comes_from(require_fma, tmp_path):
    flags = replace(settings(tmp_path, dump_ir=tmp_path / "ir"), tuning_log_file=tmp_path / "log")
    (tmp_path / "log").write_text("")
    compile_model(Job(flags, lambda path: MODEL, quiet=True))
    dumped = json.loads((tmp_path / "ir" / "4_schedules.json").read_text())
    assert dumped["network"].keys() == {"mr", "block_tiles", "fetch_every", "fetch_locality"}
    assert dumped["tuned"] == []
    assert set(dumped["by_rule"]) == {f"network_fp32 {network_shape(4, layer_shapes(MODEL))}", *dumped["dense"]}
    assert all(numbers.keys() == {"nr", "unroll", "ahead"} for numbers in dumped["dense"].values())


@pytest.mark.parametrize("rates, refused, taken", [((5e3, 7e3), (), "generic"), ((7e3, 5e3), (), "avx2"),
                                                   ((5e3,), ("generic",), "avx2")])  # fmt: skip
def test_auto_writes_the_fastest_of_those_that_pass(tmp_path, monkeypatch, capsys, rates, refused, taken):
    """Of two families, as a CPU has for small batches; of both, TVM's default code."""

    def judge(library: Path) -> SimpleNamespace:
        family = json.loads(library.with_suffix(".json").read_text())["family"]
        return SimpleNamespace(passed=family not in refused, auc_ratio=0.9995, items=400)

    def timed(libraries: list[Path], l3_bytes: int) -> list[float]:
        assert all(library.is_file() for library in libraries), "all at once"
        return list(rates[: len(libraries)])

    monkeypatch.setattr(pipeline, "families_to_time", lambda *_: [AVX2, GENERIC])
    monkeypatch.setattr(pipeline, "items_per_second", timed)
    candidates = precision_choice.Candidates(("fp32",))
    job = Job(settings(tmp_path), lambda path: MODEL, candidates=candidates, judge=judge)
    with without_linking():
        job = compile_model(without_code(job))
    assert json.loads(job.library.with_suffix(".json").read_text())["family"] == taken
    assert sorted(path.suffix for path in (tmp_path / "built").iterdir()) == [".json", ".params", ".so"]
    assert job.items_per_s == {"fp32 on avx2": rates[0], "fp32 on generic": None if refused else rates[1]}
    other = {"generic": "avx2 slower, 5,000", "avx2": "generic slower, 5,000"}[taken]
    other = "generic refused by its AUC ratio" if refused else other
    line = f"auto        fp32 on {taken} is taken, with {max(rates):,.0f} items/s here; fp32 on {other}\n"
    assert line in capsys.readouterr().out
    assert summary.result(job, 1.0)["candidates_items_per_s"] == job.items_per_s


def judged_well(library: Path) -> SimpleNamespace:
    return SimpleNamespace(passed=True, auc_ratio=1.0, items=400)


@pytest.fixture
def two_families(monkeypatch) -> None:
    """Of one precision, as a CPU has for small batches; of both, TVM's default code. The second is faster."""
    monkeypatch.setattr(pipeline, "families_to_time", lambda *_: [AVX2, GENERIC])
    monkeypatch.setattr(pipeline, "items_per_second", lambda libraries, _: [5e3, 7e3][: len(libraries)])


def auto_job(folder: Path, **flags: object) -> Job:
    candidates = precision_choice.Candidates(("fp32",))
    return Job(settings(folder, **flags), lambda path: MODEL, candidates=candidates, judge=judged_well)


def test_a_candidate_of_auto_that_the_disk_has_no_room_for_is_left_out(two_families, tmp_path, monkeypatch, capsys):
    looked_at = []

    def check_room(directory: Path, nbytes: int) -> None:
        looked_at.append(nbytes)
        if len(looked_at) in full:
            raise NoRoomError("disk: 1 MiB free, 2 MiB needed. Free some space.")

    monkeypatch.setattr(pipeline, "check_room", check_room)
    full = {2}
    with without_linking():
        job = compile_model(without_code(auto_job(tmp_path)))
    assert job.items_per_s == {"fp32 on avx2": 5e3}
    assert (
        "auto        not fp32 on generic: disk: 1 MiB free, 2 MiB needed. Free some space.\n" in capsys.readouterr().out
    )
    full = {3, 4}
    with pytest.raises(UserError, match="1 MiB free"):
        compile_model(without_code(auto_job(tmp_path)))


def test_candidates_of_auto_dump_to_directories_of_their_own(two_families, tmp_path):
    compile_model(auto_job(tmp_path, dump_ir=tmp_path / "ir"))
    for family in ("avx2", "generic"):
        assert (tmp_path / "ir" / f"fp32_{family}" / "8_assembly.s").is_file()
    assert (tmp_path / "ir" / "1_model.json").is_file()


def test_an_undefined_auc_ratio_is_not_accepted():
    assert not precision_choice.accepted(SimpleNamespace(passed=True, auc_ratio=None))
    assert precision_choice.accepted(SimpleNamespace(passed=True, auc_ratio=1.0))
