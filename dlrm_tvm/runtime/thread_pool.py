"""Loads `__patches/thread_placement.py`, which is no part of the package: it extends TVM's wheel."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType

from ..errors import UserError
from ..paths import PATCHES

_PATCH = PATCHES / "thread_placement.py"

# How often TVM's helpers ask for work before they sleep. Its own 300,000 keep a core busy for 0.1 s after every call, a
# shared one for longer; on a benchmark's own cores they may. Read once, by the process's first pool.
SHORT_WAIT = ("TVM_THREAD_POOL_SPIN_COUNT", "1000")


def place_threads(threads: int, cores: Sequence[int] | None = None) -> None:
    """Make the calling thread's TVM pool `threads` threads; with `cores`, the i-th on cores[i], the caller 0th.

    Without `cores` they may run wherever the calling thread may, whose own affinity stays as it is, and sleep between
    calls unless the environment says otherwise.
    Raises ValueError, OSError or RuntimeError when that cannot be done; see the patch.
    """
    if cores is None:
        if threads > 1:
            os.environ.setdefault(*SHORT_WAIT)
        _patch().size_pool(threads)
    elif len(cores) != threads:
        raise ValueError(f"{threads} threads need {threads} cores, got {len(cores)}")
    else:
        _patch().place_threads(cores)


def usable_cores() -> int:
    """How many cores the process may use, whether or not the calling thread has been put on one."""
    return max(len(os.sched_getaffinity(pid)) for pid in (0, os.getpid()))


def verify_confined(cores: Sequence[int]) -> None:
    """Raise RuntimeError if any thread of this process, of whatever library, may leave `cores`."""
    for thread in os.listdir("/proc/self/task"):
        allowed = os.sched_getaffinity(int(thread))
        if not allowed <= set(cores):
            raise RuntimeError(f"thread {thread} may use cores {sorted(allowed)}, outside of {list(cores)}")


@cache
def _patch() -> ModuleType:
    from . import tvm_alone  # noqa: F401, which loads what the patch calls

    spec = importlib.util.spec_from_file_location("thread_placement", _PATCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_threads(threads: int, cores: Sequence[int] | None) -> None:
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise UserError(f"{threads!r} threads: a number of at least 1 was wanted.")
    if cores is None and threads > (most := usable_cores()):
        cores_are = "1 core is" if most == 1 else f"{most} cores are"
        raise UserError(f"{threads} threads: {cores_are} usable here. Load with threads={most} at most.")
