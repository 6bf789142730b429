"""Time per part of a call: the CPU's time stamp counter, read between the parts of a thread's work.

    start:      last = now                        ticks = [0] * parts
    lap(part):  ticks[part] += now - last;        last = now

Every tick between start and the last lap belongs to exactly one part, so the parts add up to the thread's time. `now`
is rdtsc (llvm.readcyclecounter), which counts at a constant rate whatever the core's frequency. It does not wait for
instructions in flight, so a border is off by some 100 cycles, which one lap gains and the next loses. A part must take
many times that.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T


class Stopwatch:
    """Emits one thread's stamps. ticks: int64 [tasks, len(parts) + 1]; row `task` gets the ticks of each part, then the
    counter at the start, which tells its rate.
    """

    def __init__(self, parts: Sequence[str], ticks, task) -> None:
        self._parts, self._ticks, self._task = parts, ticks, task
        # One more than the parts, for the last stamp. The row itself shares cache lines with other threads' rows.
        self._sums = T.alloc_buffer((len(parts) + 1,), "int64", scope="local")

    def start(self) -> None:
        for at in range(len(self._parts)):
            T.buffer_store(self._sums, T.int64(0), [at])
        T.buffer_store(self._sums, _now(), [len(self._parts)])
        T.buffer_store(self._ticks, self._sums[len(self._parts)], [self._task, len(self._parts)])

    def lap(self, part: str) -> None:
        at, last = self._parts.index(part), len(self._parts)
        now = T.bind(_now())
        T.buffer_store(self._sums, self._sums[at] + (now - self._sums[last]), [at])
        T.buffer_store(self._sums, now, [last])

    def stop(self) -> None:
        for at in range(len(self._parts)):
            T.buffer_store(self._ticks, self._sums[at], [self._task, at])


def _now():
    """Not a pure intrinsic: two reads give two numbers."""
    return T.call_llvm_intrin("int64", "llvm.readcyclecounter")
