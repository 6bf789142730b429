"""One model for all threads of a service: at once, after a fork, and at the interpreter's exit."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from models import assert_close, build_plain, numpy_predictions, random_bags, random_batch, random_dlrm
from scripts import CORES, TWO_CORES, WITH_COMPILER

import dlrm_tvm
from dlrm_tvm.errors import UserError
from dlrm_tvm.paths import ROOT

MODEL = random_dlrm(table_rows=(11, 1, 300), dim=20, seed=4)
BATCH = 5
CALLERS = 6

SETUP = f"""
import os, sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from dlrm_tvm import load
dense, indices = np.zeros((300, 13), np.float32), np.zeros((300, 3), np.int64)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return build_plain(MODEL, BATCH, tmp_path_factory.mktemp("library"))


def run(library: Path, script: str) -> subprocess.CompletedProcess:
    # Python 3.12 and newer warn of every fork in a process that has threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SETUP + script, str(library)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_many_threads_call_one_model_at_once_and_each_gets_its_own_predictions(library) -> None:
    model = dlrm_tvm.load(str(library))
    start = threading.Barrier(CALLERS)

    def call(number: int) -> bool:
        """Whole and partial batches and bags, each with inputs that no other thread has."""
        start.wait()
        for turn in range(20):
            dense, indices = random_batch(MODEL, 2 + (number + turn) % 12, seed=100 * number + turn)
            assert_close(model(dense, indices), numpy_predictions(MODEL, dense, indices))
            bags = random_bags(MODEL, len(dense), seed=100 * number + turn)
            assert_close(model(dense, *bags), numpy_predictions(MODEL, dense, *bags))
        return True

    with ThreadPoolExecutor(CALLERS) as pool:
        assert list(pool.map(call, range(CALLERS))) == [True] * CALLERS


def test_threads_share_the_weights(library) -> None:
    model = dlrm_tvm.load(str(library))
    maps = lambda: Path("/proc/self/maps").read_text().count("small_b5.params")  # noqa: E731
    before = maps()
    with ThreadPoolExecutor(3) as pool:
        assert len(list(pool.map(lambda _: model(*random_batch(MODEL, 3)), range(3)))) == 3
    assert maps() == before > 0


@TWO_CORES
def test_threads_of_their_own_pools_predict_the_same(library) -> None:
    model, batch = dlrm_tvm.load(str(library)), random_batch(MODEL, 12)
    with ThreadPoolExecutor(1) as pool:
        two = pool.submit(lambda: dlrm_tvm.load(str(library), threads=2)).result()
        np.testing.assert_array_equal(pool.submit(two, *batch).result(), model(*batch))
        with pytest.raises(UserError, match=r"this thread's models use 2 threads: load with threads=2, or in another"):
            pool.submit(model, *batch).result()


@pytest.mark.parametrize("before", ["", WITH_COMPILER], ids=["run time alone", "all of TVM"])
def test_a_child_of_fork_calls_a_model_of_one_thread(library, before) -> None:
    done = run(
        library,
        f"{before}\n"
        "model = load(sys.argv[1]); wanted = model(dense, indices)\n"
        "if (pid := os.fork()) == 0:\n"
        "    sys.exit(0 if (model(dense, indices) == wanted).all() else 7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_child_of_fork_loads_though_a_thread_of_its_parent_was_loading(library) -> None:
    done = run(
        library,
        "import signal; from dlrm_tvm.runtime import seats\n"
        "wanted = load(sys.argv[1])(dense, indices)\n"
        "with seats.making:\n"
        "    if (pid := os.fork()) == 0:\n"
        "        signal.alarm(20)\n"
        "        os._exit(0 if (load(sys.argv[1])(dense, indices) == wanted).all() else 7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


@TWO_CORES
def test_a_child_of_fork_is_told_that_the_threads_did_not_come_along(library) -> None:
    done = run(
        library,
        "model = load(sys.argv[1], threads=2); wanted = model(dense, indices)\n"
        "if (pid := os.fork()) == 0:\n"
        "    answers = []\n"
        "    for attempt in (lambda: model(dense, indices), lambda: load(sys.argv[1], threads=2)):\n"
        "        try: attempt()\n"
        "        except ValueError as error: print(error, flush=True)\n"
        "    thread = threading.Thread(target=lambda: answers.append(model(dense, indices)))\n"
        "    thread.start(); thread.join()\n"
        "    os._exit(0 if (answers[0] == wanted).all() else 7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
    )
    assert done.stderr == ""
    *refusals, status = done.stdout.splitlines()
    assert len(refusals) == 2 and all("forked by a thread whose models use 2 threads" in line for line in refusals)
    assert status == "0", "a new thread of the child has a pool of its own"


@pytest.mark.parametrize(("wait_s", "before"), [(0.0, ""), (0.1, WITH_COMPILER)])
def test_daemon_threads_that_call_at_the_interpreters_exit_do_not_abort_it(library, wait_s, before) -> None:
    done = run(
        library,
        f"{before}\n"
        "model = load(sys.argv[1])\n"
        "def serve():\n"
        "    while True: model(dense, indices)\n"
        "for _ in range(4): threading.Thread(target=serve, daemon=True).start()\n"
        f"time.sleep({wait_s}); print('end')",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_daemon_threads_that_load_at_the_interpreters_exit_do_not_abort_it(library) -> None:
    done = run(
        library,
        "load(sys.argv[1])\n"
        "def serve():\n"
        "    while True: load(sys.argv[1])(dense[:3], indices[:3])\n"
        "for _ in range(4): threading.Thread(target=serve, daemon=True).start()\n"
        "time.sleep(0.3); print('end')",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@TWO_CORES
def test_threads_with_pools_of_two_call_at_once(library) -> None:
    done = run(
        library,
        "from concurrent.futures import ThreadPoolExecutor\n"
        "model = load(sys.argv[1], threads=2); wanted = model(dense, indices)\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    print(all((pred == wanted).all() for pred in pool.map(lambda _: model(dense, indices), range(40))))",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("threads", [len(CORES) + 1, 10**6, 10**30, 0, -1, 1.0, "2", None, True])
def test_a_number_of_threads_that_the_machine_has_not_is_refused(library, threads) -> None:
    with pytest.raises(UserError, match=r"threads: ((1 core is|\d+ cores are) usable here|a number of at least 1)"):
        dlrm_tvm.load(str(library), threads=threads)


def test_a_call_from_a_signal_handler_within_a_call_is_refused_and_the_outer_one_is_right(library) -> None:
    done = run(
        library,
        "import signal\n"
        "model = load(sys.argv[1]); wanted, said = model(dense, indices), set()\n"
        "def handle(*_):\n"
        "    try: assert (model(dense, indices) == wanted).all()\n"
        "    except ValueError as error: said.add(str(error))\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.003)\n"
        "signal.signal(signal.SIGALRM, handle); signal.setitimer(signal.ITIMER_REAL, 0.003)\n"
        "many = np.repeat(dense, 300, 0), np.repeat(indices, 300, 0)\n"
        "print(all((model(*many) == np.repeat(wanted, 300)).all() for _ in range(5)))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0); print(*said)",
    )
    right, said = done.stdout.splitlines()
    assert (done.returncode, done.stderr, right) == (0, "", "True")
    assert said.startswith("this call came in the middle of another one of the same thread")


def test_a_call_when_the_interpreter_ends_is_a_call(library) -> None:
    """From a function of atexit that was given before ours, and so runs after it."""
    script = "import atexit; atexit.register(lambda: print(model(dense, indices).shape)); model = load(sys.argv[1])"
    done = run(library, script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(300,)\n", "")
