"""Gives the calling thread's TVM pool its size, and every thread of it, the calling one included, its own core.

What     An extension over the wheel's thread pool. `place_threads([3, 4])` leaves the calling thread on core 3 and
         the pool's one worker on core 4, and proves it from /proc/self/task; `size_pool(2)` only makes it two
         threads, which may run wherever the calling thread may.
Version  apache-tvm 0.27.0.post1 (src/runtime/threading_backend.cc, thread_pool.cc).
Why      The wheel chooses cores by itself when a pool is first used: the first ones of the machine, whatever
         taskset or a container said, so that N processes all land on core 0 and up. `runtime.config_threadpool`
         with mode -2 (one core per thread) places the workers as told, but lets the calling thread, which computes
         the first share of every parallel region, wander over the whole set. It also does nothing at all, in
         silence, where the environment has TVM_BIND_THREADS=0 or a pool of another size exists already.
Delete   when config_threadpool pins the calling thread too (threading_backend.cc, SetAffinity: "main thread will
         have free migration on needed cores") and reports a failure; then call it directly.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_ONE_CORE_PER_THREAD = -2  # ThreadGroup::kSpecifyOneCorePerThread
_TASKS = Path("/proc/self/task")


def place_threads(cores: Sequence[int]) -> None:
    """Make the calling thread's pool as many threads as `cores`, thread i on cores[i] alone; 0 is the caller.

    Threads of the process that are not the pool's stay where they are. TVM keeps one pool per calling thread, so call
    this from the thread that will run the model, before its first run.
    Raises ValueError for an empty list or a core named twice, OSError when this process may not use cores[0],
    RuntimeError when afterwards a core lacks its thread, or the pool was used before in another size.
    """
    cores = [int(core) for core in cores]
    if not cores or len(set(cores)) != len(cores):
        raise ValueError(f"one different core per thread is needed, not {cores}")
    with _binding_enabled():
        _configure(cores)
    os.sched_setaffinity(0, cores[:1])
    allowed = [_allowed_cores(thread) for thread in _thread_ids()]
    missing = [core for core in cores if [core] not in allowed]
    if missing:
        raise RuntimeError(f"TVM left no thread on core {missing[0]}; its threads may use {allowed}")


def size_pool(threads: int) -> None:
    """Make the calling thread's pool that many threads, all free to run where the calling thread is.

    Raises RuntimeError when the pool was used before in a smaller size.
    """
    mask = sorted(os.sched_getaffinity(0))
    before = _thread_ids()
    try:
        _configure([mask[thread % len(mask)] for thread in range(threads)])
    finally:
        for thread in [0, *(_thread_ids() - before)]:  # 0: the calling thread
            os.sched_setaffinity(thread, mask)


def _configure(cores: list[int]) -> None:
    from tvm_ffi import get_global_func  # TVM's run-time library must be loaded: `import tvm` does it, for one

    get_global_func("runtime.config_threadpool")(_ONE_CORE_PER_THREAD, len(cores), [str(core) for core in cores])
    size = get_global_func("runtime.NumThreads")()
    if size != len(cores):
        raise RuntimeError(
            f"this thread's TVM pool has {size} threads and cannot grow to {len(cores)}: TVM fixes its size at the "
            "first use; use the larger number first, or another thread"
        )


@contextmanager
def _binding_enabled() -> Iterator[None]:
    """TVM_BIND_THREADS=0 would make config_threadpool pin nothing; TVM reads it anew at every call."""
    before = os.environ.pop("TVM_BIND_THREADS", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["TVM_BIND_THREADS"] = before


def _thread_ids() -> set[int]:
    return {int(task.name) for task in _TASKS.iterdir()}


def _allowed_cores(thread: int) -> list[int]:
    """Read from /proc and not from sched_getaffinity: the same evidence that anyone outside the process sees."""
    try:
        status = (_TASKS / str(thread) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended since it was listed
        return []
    ranges = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE).group(1)
    cores = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    return cores
