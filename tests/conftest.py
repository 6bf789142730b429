"""Fixtures that compile: the demo library once per session, and only where the CPU can run it."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from dlrm_tvm.paths import ROOT

if find_spec("tvm"):  # as compile.py does: PyTorch would take 3 s and 190 MB in each process
    from dlrm_tvm.runtime.tvm_alone import import_compiler

    import_compiler()


@pytest.fixture(scope="session")
def require_fma() -> None:
    """Skips what runs our kernels on a CPU with neither AVX-512 nor AVX2 and FMA."""
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    if "avx512f" not in flags and not {"avx2", "fma"} <= flags:
        pytest.skip("this CPU has neither avx512f nor avx2 and fma")


@pytest.fixture(scope="session")
def demo_library(require_fma: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model compiled for batches of 100 by compile.py itself, once for all of xdist's processes."""
    return _made_once(tmp_path_factory, "demo/pytest_demo_b100.so", _compile_demo)


@pytest.fixture(scope="session")
def small_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """random_dlrm() for batches of 4, of TVM's default code, likewise: to be read or copied, not to be changed."""
    from models import build_plain, random_dlrm

    return _made_once(tmp_path_factory, "small/small_b4.so", lambda folder: build_plain(random_dlrm(), 4, folder))


def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    library = folder / name
    with library.parent.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            make(library.parent)
    return library


def _compile_demo(folder: Path) -> None:
    script = "import sys; from pathlib import Path; import compile; compile.PREBUILT = Path(sys.argv[1]); "
    script += "del sys.argv[:2]; compile.command()"
    options = ["--output-name", "pytest_demo"]
    command = [sys.executable, "-c", script, str(folder), str(ROOT / "compile.py"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "no C compiler found" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> None:
    """Started with nohup or in the background of a script, pytest ignores some, and so does what it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def same_signals_afterwards(signals_as_in_a_terminal: None) -> Iterator[None]:
    """A handler or a mask that a test leaves behind makes a later one miss its Ctrl-C."""
    yield
    handler, blocked = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    assert (handler, blocked) == (signal.default_int_handler, set())


@pytest.fixture(autouse=True)
def same_cores_afterwards() -> Iterator[None]:
    """An executor pins the thread that calls it: what a later test starts must not inherit that."""
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)
