"""Building: verified before it is put in place, and nothing half-written stays behind, whatever fails."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import random_dlrm

from dlrm_tvm import building, lower, target
from dlrm_tvm.errors import UserError

MODEL = random_dlrm(table_rows=(200, 300), dim=32)  # parameters of 70 KB
FILES = ["small_b4.json", "small_b4.params", "small_b4.so"]


@pytest.fixture(scope="module")
def lowered():
    return lower.lower_plain(MODEL, 4, target.cpu_target(None), lower.Dump(None))


def build(lowered, directory: Path, model=MODEL):
    cpu = target.cpu_target(None)
    return building.build_library(model, lowered, None, cpu, batch=4, name="small", directory=directory)


def content(directory: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refusal(lowered, directory: Path, model=MODEL) -> str:
    """The one line with which building fails, after a look that the directory is as it was before."""
    before = content(directory)
    with pytest.raises(UserError) as error:
        build(lowered, directory, model)
    assert content(directory) == before
    assert not list(directory.glob(".*")), "the staging directory is gone"
    assert "\n" not in str(error.value)
    return str(error.value)


@contextmanager
def file_size_limit(size: int):
    """Writing past `size` bytes of a file fails as on a full disk: a short write, then OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_library_its_manifest_and_its_parameters_are_left_and_nothing_else(lowered, tmp_path):
    library, verification = build(lowered, tmp_path / "new")
    assert library == tmp_path / "new" / "small_b4.so"
    assert sorted(content(tmp_path / "new")) == FILES
    assert verification.items == 12
    assert 0 < verification.max_abs_error < 1e-6
    manifest = json.loads(library.with_suffix(".json").read_text())
    assert (manifest["parameter_file"], manifest["batch_size"]) == ("small_b4.params", 4)


def test_verification_is_not_claimed_where_this_cpu_cannot_run_the_library(lowered, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "host_flags", frozenset)
    library, verification = build(lowered, tmp_path)
    assert verification is None
    assert library.is_file()


def test_a_library_that_computes_something_else_is_not_put_in_place(lowered, tmp_path):
    build(lowered, tmp_path)  # an older one, which must survive
    other = random_dlrm(table_rows=(200, 300), dim=32, seed=1)
    assert "the library's predictions are off by" in refusal(lowered, tmp_path, other)


def test_a_library_that_computes_nan_is_not_put_in_place(tmp_path):
    good = random_dlrm(table_rows=(200, 300), dim=32, top=())
    tables = tuple(replace(table, rows=np.full_like(table.rows, np.nan)) for table in good.tables)
    lowered = lower.lower_plain(replace(good, tables=tables), 4, target.cpu_target(None), lower.Dump(None))
    assert "the library's predictions are off by nan" in refusal(lowered, tmp_path, good)


@pytest.mark.parametrize("size", [0, 4096, (2 << 20) + 20_000, (2 << 20) + 69_000])
def test_a_disk_that_fills_up_under_the_parameters_leaves_nothing_behind(lowered, tmp_path, size):
    build(lowered, tmp_path)
    with file_size_limit(size):
        message = refusal(lowered, tmp_path)
    assert "File too large while writing; nothing was left behind" in message


def test_a_disk_that_fills_up_under_the_manifest_leaves_nothing_behind(lowered, tmp_path, monkeypatch):
    def full(self: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    assert "No space left on device while writing" in refusal(lowered, tmp_path)


def test_a_disk_too_small_for_the_parameters_is_refused_before_anything_is_written(lowered, tmp_path, monkeypatch):
    usage = building.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(building, "write_parameters", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(building.shutil, "disk_usage", lambda path: usage._replace(free=building.LINK_BYTES + 60_000))
    assert refusal(lowered, tmp_path) == f"{tmp_path}: 16 MiB free, 19 MiB needed. Free some space."


def test_a_disk_that_filled_up_while_parameters_were_written_never_reaches_llvm(lowered, tmp_path, monkeypatch):
    usage = building.shutil.disk_usage(tmp_path)
    frees = iter([building.LINK_BYTES * 2, 70_000])
    monkeypatch.setattr(building.shutil, "disk_usage", lambda path: usage._replace(free=next(frees)))
    assert refusal(lowered, tmp_path) == f"{tmp_path}: 0 MiB free, 16 MiB needed. Free some space."


def test_a_linker_that_fails_is_quoted(lowered, tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'ld: final link failed: No space left on device'\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    out = tmp_path / "out"
    out.mkdir()
    message = refusal(lowered, out)
    assert "small_b4.so could not be linked: ld: final link failed: No space left on device" in message


FULL_DISK = """
import os, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_building import MODEL, build, lower, target
lowered = lower.lower_plain(MODEL, 4, target.cpu_target(None), lower.Dump(None))
try:
    build(lowered, Path(sys.argv[1]))
except ValueError as error:
    print(type(error).__name__, error)
print(os.listdir(sys.argv[1]))
"""


def test_a_small_disk_is_refused_and_left_as_it_was(tmp_path):
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    private = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*private, mount], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    tests = Path(__file__).parent
    command = f'{mount} && exec "$@"'
    script = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(tests), str(tests.parent)]
    finished = subprocess.run([*private, command, "sh", *script], capture_output=True, text=True, timeout=120)
    error, left = finished.stdout.splitlines()
    assert error == f"UserError {tmp_path}: 1 MiB free, 19 MiB needed. Free some space."
    assert left == "[]"


def test_object_files_are_written_beside_the_library_not_on_another_disk(lowered, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    library, _ = build(lowered, tmp_path / "new")
    assert sorted(content(library.parent)) == FILES


def test_staging_vanishes_whatever_happens_inside(tmp_path):
    with pytest.raises(KeyboardInterrupt), building.staging_directory(tmp_path / "new") as staging:
        (staging / "half").write_text("half")
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []


def test_two_builds_at_once_stage_apart(tmp_path):
    with building.staging_directory(tmp_path) as first, building.staging_directory(tmp_path) as second:
        assert first != second
        assert first.parent == second.parent == tmp_path


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    return monkeypatch


def test_no_compiler_is_said_with_what_to_install(no_compiler):
    with pytest.raises(UserError, match=r"no C compiler found: looked for g\+\+, gcc.*apt-get install gcc"):
        building.check_compiler()


@pytest.mark.parametrize("variable", ["CXX", "CC"])
def test_a_compiler_named_but_not_there_is_said(no_compiler, variable):
    no_compiler.setenv(variable, "gcc-99")
    with pytest.raises(UserError, match=r"gcc-99 \(from \$CXX or \$CC\)"):
        building.check_compiler()


def test_any_one_compiler_will_do(no_compiler, tmp_path):
    (tmp_path / "clang").write_text("#!/bin/sh\n")
    os.chmod(tmp_path / "clang", 0o755)
    building.check_compiler()
    no_compiler.setenv("CC", str(tmp_path / "clang"))
    building.check_compiler()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_weights_that_are_not_finite_are_refused_with_their_layer(value, part):
    layer = MODEL.top[0]
    changed = getattr(layer, part).copy()
    changed.flat[3] = value
    broken = replace(MODEL, top=(replace(layer, **{part: changed}), *MODEL.top[1:]))
    with pytest.raises(UserError, match="small: layer 2 has weights that are not finite"):
        building.check_finite(broken)
    building.check_finite(MODEL)
