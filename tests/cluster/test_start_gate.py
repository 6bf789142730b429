"""--start-gate: the script on a node starts at a line, and ends with its parent, its pipe and its raylet."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from models import build_plain, random_dlrm
from scripts import assert_gone, changed

from dlrm_tvm.cluster.start_gate import READY


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return build_plain(random_dlrm(), 32, tmp_path_factory.mktemp("library"))


@contextmanager
def sleeping() -> Iterator[subprocess.Popen]:
    """In the place of a raylet."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def at_its_gate(library: Path, raylet: int, *options: object) -> Iterator[subprocess.Popen]:
    """Started with Ctrl-C blocked, as an actor's threads have it."""
    words = ("--model", library, "--num-instances", 1, "--warmup", 0, *options, "--start-gate", raylet)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(changed(*words), text=True, **pipes)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        assert READY in iter(lambda: process.stdout.readline().strip(), "")
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def go(process: subprocess.Popen) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def everybody(process: subprocess.Popen) -> list[int]:
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert children
    return [process.pid, *children]


def wait_for_cpu_s(pid: int, seconds: float) -> None:
    """Until that process has computed for so long from now on."""
    before, deadline = psutil.Process(pid).cpu_times().user, time.monotonic() + 60
    while psutil.Process(pid).cpu_times().user - before < seconds:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_line_starts_the_run(library):
    with sleeping() as raylet, at_its_gate(library, raylet.pid, "--duration", 0.3) as process:
        assert not select.select([process.stdout], [], [], 0.3)[0]  # it waits: no peak is measured and shown
        opened_after = time.time()
        go(process)
        result = json.loads(process.stdout.read().splitlines()[-1])
        assert process.wait() == 0
        assert result["items_per_s"] > 0 and opened_after < result["window_opened_at"] < time.time()


def test_the_end_of_the_pipe_calls_the_start_off(library):
    with sleeping() as raylet, at_its_gate(library, raylet.pid) as process:
        running = everybody(process)
        process.stdin.close()
        assert process.wait(30) != 0
        assert "Traceback" not in process.stderr.read()
        assert_gone(running[1:])


def test_ctrl_c_that_was_blocked_ends_the_run_with_figures(library):
    with sleeping() as raylet, at_its_gate(library, raylet.pid, "--duration", 500) as process:
        go(process)
        wait_for_cpu_s(everybody(process)[1], 1)  # of which the peak takes 0.1
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()
        assert json.loads(out.splitlines()[-1])["interrupted"]


@pytest.mark.parametrize("who", ["pipe", "raylet"])
def test_a_run_ends_when_the_actor_or_its_raylet_is_gone(library, who):
    """A raylet that nobody waits for is a zombie, not gone."""
    with sleeping() as raylet, at_its_gate(library, raylet.pid, "--duration", 500) as process:
        go(process)
        running = everybody(process)
        if who == "pipe":
            process.stdin.close()
        else:
            raylet.kill()
        process.wait(20)
        assert_gone(running[1:])


def test_a_script_dies_with_the_actor_that_started_it(library):
    words = changed("--model", library, "--num-instances", 1, "--start-gate", os.getpid())
    actor = f"import subprocess, sys; p = subprocess.Popen({words!r}, stdin=0); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen(
        [sys.executable, "-c", actor], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        pid = int(started.stdout.readline())
        assert READY in iter(lambda: started.stdout.readline().strip(), "")
        running = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        started.kill()
        assert_gone(running)
