"""The scripts as their commands run them, and their results as programs in stricter languages than Python read them."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest

from dlrm_tvm.paths import ROOT

CORES = sorted(os.sched_getaffinity(0))
WITH_COMPILER = "from dlrm_tvm.runtime.tvm_alone import import_compiler; import_compiler()"  # the tests' own way too
# What a run measures beside its window, for an instant; and no progress among the lines that tests count, however slow.
BRIEF = {
    "dlrm_tvm.console._PRINTED_EVERY_S": 3600.0,
    "dlrm_tvm.bench.measure.PEAK_SECONDS": 0.1,
    "dlrm_tvm.loadgen.run.PEAK_SECONDS": 0.1,
    "dlrm_tvm.loadgen.run._CLOSED_LOOP_S": (0.2, 0.2),
}
TWO_CORES = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


def read_result(output: str) -> dict:
    """The JSON object of a script's last line. Raises ValueError for NaN and Infinity, which are no JSON."""
    return parsed(output.splitlines()[-1])


def parsed(text: str) -> dict:
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def command(*options: object) -> list[str]:
    return [sys.executable, str(ROOT / "multi_instance.py"), *map(str, options)]


def run(*options: object, script: str = "multi_instance") -> subprocess.CompletedProcess:
    """The script in this process, which has imported all that it needs: a second less. Its instances are processes
    all the same. It is BRIEF."""
    spec = importlib.util.spec_from_file_location(script, ROOT / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    words = [f"{script}.py", *map(str, options)]
    with (
        ExitStack() as brief,
        patch.object(sys, "argv", words),
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as exit_,
    ):
        for name, value in BRIEF.items():
            brief.enter_context(patch(name, value))
        spec.loader.exec_module(module)
        module.command()
    return subprocess.CompletedProcess(words, int(exit_.value.code or 0), out.getvalue(), err.getvalue())


def score(library: Path, data: Path) -> tuple[int, dict, str]:
    """accuracy.py's exit status, result and output."""
    done = run("--model", library, "--ref-data", data, script="accuracy")
    assert done.stdout, done.stderr
    return done.returncode, read_result(done.stdout), done.stdout


def start(*options: object) -> subprocess.Popen:
    """The script in a process of its own, to be watched and ended; without progress."""
    return subprocess.Popen(changed("--quiet", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def changed(*options: object, setup: str = "") -> list[str]:
    """The command of the script, BRIEF and after `setup`, which changes what its process takes for given."""
    lines = [f"import sys; sys.path.insert(0, {str(ROOT)!r})"]
    lines += [f"import {name.rpartition('.')[0]}; {name} = {value}" for name, value in BRIEF.items()]
    lines += [setup, "import multi_instance; multi_instance.command()"]
    return [sys.executable, "-c", "\n".join(lines), *map(str, options)]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def assert_gone(pids: Iterable[int | str]) -> None:
    """A killed process that is not our child ends some time after the kill, and may stay unread."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(map(_is_alive, pids)):
        time.sleep(0.05)
    assert not any(map(_is_alive, pids))


def _is_alive(pid: int | str) -> bool:
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_one_line(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == ""
    for part in parts:
        assert part in done.stderr
