"""Every thread of an instance on its core: `__patches/thread_placement.py`, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from scripts import CORES, TWO_CORES, WITH_COMPILER

from dlrm_tvm.instances.process import thread_environment
from dlrm_tvm.paths import ROOT
from dlrm_tvm.runtime.thread_pool import SHORT_WAIT

pytest.importorskip("tvm_ffi", reason="needs apache-tvm")

PLACE = """
import json, os, re, sys
{before}
from dlrm_tvm.runtime.thread_pool import place_threads, verify_confined
place_threads({threads}, {cores})
{after}
allowed = {{}}
for task in os.listdir("/proc/self/task"):
    status = open(f"/proc/self/task/{{task}}/status").read()
    allowed[task] = re.search(r"Cpus_allowed_list:\\s*(\\S+)", status).group(1)
print(json.dumps({{"main": allowed.pop(str(os.getpid())), "others": sorted(allowed.values())}}))
"""

# One thread of the pool per slot of the sink; a slot that no thread wrote stays 0.
COMPILE_LOOP = f"""
{WITH_COMPILER}
import numpy, tvm
from dlrm_tvm.kernels.peak import MAX_THREADS, PeakLoop
from dlrm_tvm.kernels.vectors import LANES
from dlrm_tvm.schedules.target import cpu_target
loop = tvm.compile(tvm.IRModule(dict(peak_fma=PeakLoop().function())), target=cpu_target(None).tvm_target)["peak_fma"]
"""
RUN_LOOP = """
sink = tvm.runtime.tensor(numpy.zeros(MAX_THREADS * LANES, numpy.float32))
factors = tvm.runtime.tensor(numpy.array([0.999, 1e-6], numpy.float32))
for _ in range(20):
    loop(1000, factors, sink)
assert list(sink.numpy()[: 3 * LANES : LANES] > 0) == [True, True, False]
"""
# What helpers do in half a second after a call: whether one is awake after the first part of it, and CPU seconds.
WAIT = """
import time
began = time.process_time()
time.sleep(0.2)
states = [open(f"/proc/self/task/{task}/stat").read().rsplit(") ", 1)[1][0] for task in os.listdir("/proc/self/task")]
time.sleep(0.3)
print(states.count("R") > 1, time.process_time() - began)
"""
SPINS = "TVM_THREAD_POOL_SPIN_COUNT"


def place(
    cores: list[int] | None, *, threads: int | None = None, before: str = "", after: str = "", **environment: str
) -> subprocess.CompletedProcess:
    script = PLACE.format(threads=threads or len(cores), cores=cores, before=before, after=after)
    names = ("TVM_NUM_THREADS", "TVM_BIND_THREADS", "OMP_NUM_THREADS", SPINS)
    kept = {name: value for name, value in os.environ.items() if name not in names}
    kept |= {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", script], env=kept, capture_output=True, text=True, timeout=600)


def threads_after(cores: list[int] | None, **options: str | int) -> dict:
    done = place(cores, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@TWO_CORES
@pytest.mark.parametrize("before", ["", WITH_COMPILER], ids=["run time alone", "all of TVM"])
def test_each_thread_has_its_core_and_the_caller_the_first(before: str) -> None:
    first, second = CORES[1], CORES[0]
    assert threads_after([first, second], before=before, OPENBLAS_NUM_THREADS="1") == {
        "main": str(first),
        "others": [str(second)],
    }


def test_single_thread_stays_on_its_core_whatever_tvm_would_choose() -> None:
    core = CORES[-1]
    threads = threads_after([core], OPENBLAS_NUM_THREADS="1")
    assert threads == {"main": str(core), "others": []}


@TWO_CORES
def test_a_thread_that_is_not_the_pools_stays_where_it_was_and_is_found() -> None:
    before = f"os.sched_setaffinity(0, {CORES[:2]}); import threading"
    before += "; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    threads = threads_after([CORES[0]], before=before, OPENBLAS_NUM_THREADS="1")
    assert threads["main"] == str(CORES[0])
    (other,) = threads["others"]
    assert other in (f"{CORES[0]}-{CORES[1]}", f"{CORES[0]},{CORES[1]}")
    done = place([CORES[0]], before=before, after=f"verify_confined({CORES[:1]})", OPENBLAS_NUM_THREADS="1")
    assert "RuntimeError: thread " in done.stderr and "outside of" in done.stderr


@TWO_CORES
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pool_without_cores_leaves_the_affinity_mask_alone(threads: int) -> None:
    before = f"os.sched_setaffinity(0, {CORES[1:2]})"
    placed = threads_after(None, threads=threads, before=before, OPENBLAS_NUM_THREADS="1")
    assert placed == {"main": str(CORES[1]), "others": [str(CORES[1])] * (threads - 1)}


@TWO_CORES
def test_binding_switched_off_in_the_environment_is_overruled() -> None:
    threads = threads_after(CORES[:2], TVM_BIND_THREADS="0", OPENBLAS_NUM_THREADS="1")
    assert threads == {"main": str(CORES[0]), "others": [str(CORES[1])]}


@TWO_CORES
def test_running_a_parallel_loop_moves_nothing(require_fma: None) -> None:
    threads = threads_after(CORES[:2], after=COMPILE_LOOP + RUN_LOOP, OPENBLAS_NUM_THREADS="1")
    assert threads == {"main": str(CORES[0]), "others": [str(CORES[1])]}


@TWO_CORES
def test_helpers_sleep_between_calls_unless_the_environment_says_otherwise(require_fma: None) -> None:
    def waiting(**environment: str) -> tuple[bool, float]:
        done = place(None, threads=2, after=COMPILE_LOOP + RUN_LOOP + WAIT, OPENBLAS_NUM_THREADS="1", **environment)
        assert done.returncode == 0, done.stderr
        awake, cpu_s = done.stdout.splitlines()[0].split()
        return awake == "True", float(cpu_s)

    assert waiting()[1] < 0.05  # a helper that yields 300,000 times takes more, unless others leave it no time
    assert waiting(**{SPINS: "3000000"})[0]


def test_helpers_of_an_instance_wait_as_tvm_has_it_or_the_user(monkeypatch) -> None:
    for name, value in ((SHORT_WAIT[0], "5"), SHORT_WAIT):
        monkeypatch.setenv(name, value)
        assert thread_environment(2).get(SPINS) == {"5": "5"}.get(value)


def test_one_thread_leaves_the_environment_alone() -> None:
    after = f"assert {SPINS!r} not in os.environ"
    assert threads_after(None, threads=1, after=after, OPENBLAS_NUM_THREADS="1")["others"] == []


@TWO_CORES
def test_pool_of_another_size_is_an_error() -> None:
    before = "from dlrm_tvm.runtime.tvm_alone import tvm_ffi; tvm_ffi.get_global_func('runtime.NumThreads')()"
    done = place(CORES[:2], before=before, TVM_NUM_THREADS="1")
    assert "RuntimeError: this thread's TVM pool has 1 threads and cannot grow to 2" in done.stderr


def test_core_that_does_not_exist_is_an_error() -> None:
    done = place([CORES[0], 8191])
    assert "RuntimeError: TVM left no thread on core 8191" in done.stderr


def test_cores_must_be_different() -> None:
    assert "ValueError: one different core per thread is needed" in place([0, 0]).stderr


def test_every_thread_needs_a_core() -> None:
    assert "ValueError: 2 threads need 2 cores, got 1" in place([0], threads=2).stderr
