"""The timed loops: batch after batch, or a batch per arrival, until the clock says stop."""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..runtime.executor import Batch

_SPIN_NS = 200_000  # before an arrival: a sleep ends up to 0.1 ms late
_SLEEP_NS = 50_000_000


@dataclass
class StopClock:
    """When the timed loop ends. The signal handler moves it, at no cost to the loop."""

    stop_ns: int = 0
    interrupted: bool = False

    def set(self, stop_ns: int) -> None:
        self.stop_ns = stop_ns
        if self.interrupted:  # looked at after setting: a signal in between is not lost
            self.stop_ns = 0

    def reset(self) -> None:
        """The loop is over: a stop was for it, not for the next one."""
        self.interrupted = False

    def interrupt(self, *_: object) -> None:
        self.interrupted = True
        self.stop_ns = 0


def wait_until(begin_ns: int) -> None:
    """Sleep most of the way, then spin: all instances leave this barrier within microseconds."""
    while (left_ns := begin_ns - time.perf_counter_ns()) > 0:
        if left_ns > 2_000_000:
            time.sleep((left_ns - 1_000_000) / 1e9)


def timed_loop(
    run: Callable[[Batch], object], batches: list[Batch], clock: StopClock, arrivals_ns: list[int] | None = None
) -> tuple[int, array, int]:
    """Run batch after batch until the clock says stop: (start, end of each batch, end of all), ns.

    arrivals_ns: when each is to begin, at the earliest; None: at once.
    """
    started_ns = time.perf_counter_ns()
    if arrivals_ns is None:
        ends_ns = closed_loop(run, batches, clock)
        return started_ns, ends_ns, ends_ns[-1]
    return started_ns, open_loop(run, batches, clock, arrivals_ns), time.perf_counter_ns()


def open_loop(run: Callable[[Batch], object], batches: list[Batch], clock: StopClock, arrivals_ns: list[int]) -> array:
    """A batch per arrival, in order, none before its time. What is left when the clock says stop is not run."""
    now = time.perf_counter_ns
    ends_ns = array("q")
    for batch, arrival_ns in zip(itertools.cycle(batches), arrivals_ns):
        while (left_ns := arrival_ns - now()) > 0 and clock.stop_ns:
            if left_ns > _SPIN_NS:  # short sleeps: Ctrl-C moves the clock but ends no sleep
                time.sleep(min(left_ns - _SPIN_NS, _SLEEP_NS) / 1e9)
        if now() >= clock.stop_ns:
            break
        run(batch)
        ends_ns.append(now())
    return ends_ns


def closed_loop(run: Callable[[Batch], object], batches: list[Batch], clock: StopClock) -> array:
    """The call, one look at the clock and eight bytes per batch: an overhead of about 0.15 µs."""
    now = time.perf_counter_ns
    ends_ns = array("q")
    append = ends_ns.append
    for batch in itertools.cycle(batches):
        run(batch)
        end_ns = now()
        append(end_ns)
        if end_ns >= clock.stop_ns:
            break
    return ends_ns
