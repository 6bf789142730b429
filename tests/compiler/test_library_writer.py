"""Building: verified before it is put in place, and nothing half-written stays behind, whatever fails."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import job_of, random_dlrm
from scripts import WITH_COMPILER, assert_gone

from dlrm_tvm.compiler import job, library_writer
from dlrm_tvm.compiler.pipeline import check_finite, compile_model, machine_code
from dlrm_tvm.errors import UserError
from dlrm_tvm.paths import ROOT
from dlrm_tvm.runtime.artifact import open_artifact

MODEL = random_dlrm(table_rows=(200, 300), dim=32)  # parameters of 70 KB
FILES = ["small_b4.json", "small_b4.params", "small_b4.so"]


@pytest.fixture(scope="module")
def compiled():
    return machine_code(job_of(MODEL, 4))


def build(compiled, directory: Path, model=MODEL):
    """The files of what was compiled, verified against `model`."""
    settings = replace(compiled.settings, directory=directory)
    return compile_model(replace(compiled, settings=settings, model=model))


def content(directory: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refusal(compiled, directory: Path, model=MODEL) -> str:
    """The one line with which building fails, after a look that the directory is as it was before."""
    before = content(directory)
    with pytest.raises(UserError) as error:
        build(compiled, directory, model)
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


def test_a_library_its_manifest_and_its_parameters_are_left_and_nothing_else(compiled, tmp_path):
    done = build(compiled, tmp_path / "new")
    assert done.library == tmp_path / "new" / "small_b4.so"
    assert sorted(content(tmp_path / "new")) == FILES
    assert done.verification.items == 12
    assert 0 < done.verification.max_abs_error < 1e-6
    manifest = json.loads(done.library.with_suffix(".json").read_text())
    assert (manifest["parameter_file"], manifest["batch_size"]) == ("small_b4.params", 4)


def test_verification_is_not_claimed_where_this_cpu_cannot_run_the_library(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "host_flags", frozenset)
    done = build(compiled, tmp_path)
    assert done.verification is None
    assert done.library.is_file()


def test_a_library_that_computes_something_else_is_not_put_in_place(compiled, tmp_path):
    build(compiled, tmp_path)  # an older one, which must survive
    other = random_dlrm(table_rows=(200, 300), dim=32, seed=1)
    assert "the library's predictions are off by" in refusal(compiled, tmp_path, other)


def test_a_library_that_computes_nan_is_not_put_in_place(tmp_path):
    good = random_dlrm(table_rows=(200, 300), dim=32, top=())
    tables = tuple(replace(table, rows=np.full_like(table.rows, np.nan)) for table in good.tables)
    compiled = machine_code(job_of(replace(good, tables=tables), 4))
    assert "the library's predictions are off by nan" in refusal(compiled, tmp_path, good)


@pytest.mark.parametrize("size", [0, 4096, (2 << 20) + 20_000, (2 << 20) + 69_000])
def test_a_disk_that_fills_up_under_the_parameters_leaves_nothing_behind(compiled, tmp_path, size):
    build(compiled, tmp_path)
    with file_size_limit(size):
        message = refusal(compiled, tmp_path)
    assert "File too large while writing; nothing was left behind" in message


def test_a_disk_that_fills_up_under_the_manifest_leaves_nothing_behind(compiled, tmp_path, monkeypatch):
    def full(self: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    assert "No space left on device while writing" in refusal(compiled, tmp_path)


def test_a_disk_too_small_for_the_parameters_is_refused_before_anything_is_written(compiled, tmp_path, monkeypatch):
    usage = library_writer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(library_writer, "write_parameters", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(
        library_writer.shutil, "disk_usage", lambda path: usage._replace(free=library_writer.LINK_BYTES + 60_000)
    )
    assert refusal(compiled, tmp_path) == f"{tmp_path}: 16 MiB free, 19 MiB needed. Free some space."


def test_a_disk_that_filled_up_while_parameters_were_written_never_reaches_llvm(compiled, tmp_path, monkeypatch):
    usage = library_writer.shutil.disk_usage(tmp_path)
    frees = iter([library_writer.LINK_BYTES * 2, 70_000])
    monkeypatch.setattr(library_writer.shutil, "disk_usage", lambda path: usage._replace(free=next(frees)))
    assert refusal(compiled, tmp_path) == f"{tmp_path}: 0 MiB free, 16 MiB needed. Free some space."


def test_a_linker_that_fails_is_quoted(compiled, tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'ld: final link failed: No space left on device'\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    out = tmp_path / "out"
    out.mkdir()
    message = refusal(compiled, out)
    assert "small_b4.so could not be linked: ld: final link failed: No space left on device" in message


FULL_DISK = f"""
import os, sys
sys.path[:0] = sys.argv[2:]
{WITH_COMPILER}
from pathlib import Path
from test_library_writer import MODEL, build, job_of, library_writer, machine_code
if os.environ.get("UNCHECKED"):
    library_writer._check_free = lambda *_: None
compiled = machine_code(job_of(MODEL, 4))
try:
    build(compiled, Path(sys.argv[1]))
except ValueError as error:
    print(type(error).__name__, error)
print(os.listdir(sys.argv[1]))
"""


def on_a_disk_of(size: str, folder: Path, **environment: str) -> list[str]:
    """What FULL_DISK prints on a file system of that size: the error, and the names of what is left."""
    mount = f"mount -t tmpfs -o size={size} none {folder}"
    private = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*private, mount], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    folders = (Path(__file__).parent, ROOT / "tests" / "support", ROOT)
    script = [sys.executable, "-c", FULL_DISK, str(folder), *map(str, folders)]
    options = {"capture_output": True, "text": True, "timeout": 600, "env": os.environ | environment}
    return subprocess.run([*private, f'{mount} && exec "$@"', "sh", *script], **options).stdout.splitlines()


def test_a_small_disk_is_refused_and_left_as_it_was(tmp_path):
    error, left = on_a_disk_of("1m", tmp_path)
    assert error == f"NoRoomError {tmp_path}: 1 MiB free, 19 MiB needed. Free some space."
    assert left == "[]"


def test_a_disk_that_llvm_fills_up_is_one_line_and_leaves_nothing_behind(tmp_path):
    """LLVM ends the process that it is in. Of 100 KB parameters take 76, and the object file more than are left."""
    error, left = on_a_disk_of("100k", tmp_path, UNCHECKED="1")
    assert "NoRoomError small_b4.so could not be linked: LLVM ERROR: " in error and "No space left on device" in error
    assert left == "[]"


def test_a_ctrl_c_while_a_child_links_ends_the_child_and_what_it_started(tmp_path):
    """Its group: the compiler that it waits for too."""
    pids = tmp_path / "pids"

    def work() -> None:
        subprocess.run(["sh", "-c", f"echo $$ $PPID > {pids}; sleep 60"])

    def interrupt() -> None:
        while not pids.exists() or not pids.read_text().strip():
            time.sleep(0.01)
        while not ended.is_set():  # one that arrives while garbage is collected is lost
            os.kill(os.getpid(), signal.SIGINT)
            ended.wait(5)

    ended = threading.Event()
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        library_writer._in_child(work)
    ended.set()
    assert_gone(pids.read_text().split())


@pytest.mark.parametrize("failure", ["os.abort()", "os._exit(3)", "sys.exit(0)", "1 / 0"])
def test_a_child_that_ends_in_any_way_but_the_right_one_is_told(failure):
    status, _ = library_writer._in_child(lambda: exec(failure))
    assert status != 0
    assert library_writer._in_child(lambda: None) == (0, "")


def test_two_compilations_of_one_name_do_not_mix_their_files(compiled, tmp_path, monkeypatch):
    """Each moves three files; while one is at it the other waits."""
    renames, begun = [], threading.Barrier(2)
    rename = os.replace

    def slow(source: Path, target: Path) -> None:
        renames.append(source.parent.name)
        time.sleep(0.05)
        rename(source, target)

    def finish(name: str) -> None:
        staging = tmp_path / name
        staging.mkdir()
        job = library_writer.stage(replace(compiled, staging=staging, settings=replace(settings, directory=tmp_path)))
        begun.wait()
        library_writer.put_in_place(job)

    settings = compiled.settings
    monkeypatch.setattr(library_writer.os, "replace", slow)
    threads = [threading.Thread(target=finish, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert renames in (["first"] * 3 + ["second"] * 3, ["second"] * 3 + ["first"] * 3)
    open_artifact(tmp_path / "small_b4.so")


def test_ctrl_c_while_files_are_put_in_place_leaves_all_of_one_build(compiled, tmp_path, monkeypatch):
    rename = os.replace

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    build(compiled, tmp_path)
    (tmp_path / "staging").mkdir()
    settings = replace(compiled.settings, directory=tmp_path)
    job = library_writer.stage(replace(compiled, staging=tmp_path / "staging", settings=settings))
    monkeypatch.setattr(library_writer.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        library_writer.put_in_place(job)
    open_artifact(tmp_path / "small_b4.so")


def test_object_files_are_written_beside_the_library_not_on_another_disk(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    library = build(compiled, tmp_path / "new").library
    assert sorted(content(library.parent)) == FILES


def test_staging_vanishes_whatever_happens_inside(tmp_path):
    with pytest.raises(KeyboardInterrupt), library_writer.staging_directory(tmp_path / "new") as staging:
        (staging / "half").write_text("half")
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []


def test_two_builds_at_once_stage_apart(tmp_path):
    with library_writer.staging_directory(tmp_path) as first, library_writer.staging_directory(tmp_path) as second:
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
        library_writer.check_compiler()


@pytest.mark.parametrize("variable", ["CXX", "CC"])
def test_a_compiler_named_but_not_there_is_said(no_compiler, variable):
    no_compiler.setenv(variable, "gcc-99")
    with pytest.raises(UserError, match=r"gcc-99 \(from \$CXX or \$CC\)"):
        library_writer.check_compiler()


def test_any_one_compiler_will_do(no_compiler, tmp_path):
    (tmp_path / "clang").write_text("#!/bin/sh\n")
    os.chmod(tmp_path / "clang", 0o755)
    library_writer.check_compiler()
    no_compiler.setenv("CC", str(tmp_path / "clang"))
    library_writer.check_compiler()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_weights_that_are_not_finite_are_refused_with_their_layer(value, part):
    layer = MODEL.top[0]
    changed = getattr(layer, part).copy()
    changed.flat[3] = value
    broken = replace(MODEL, top=(replace(layer, **{part: changed}), *MODEL.top[1:]))
    with pytest.raises(UserError, match="small: layer 2 has weights that are not finite"):
        check_finite(broken)
    check_finite(MODEL)
