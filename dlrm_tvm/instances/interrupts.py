"""Ctrl-C where it may neither tear a message in two nor lose a process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupts:
    """Whether Ctrl-C was seen, and a descriptor that is readable then."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.seen = False


@contextmanager
def noted_interrupts() -> Iterator[Interrupts]:
    """While this lasts the first Ctrl-C is noted; the second one raises."""
    reading, writing = os.pipe()
    interrupts = Interrupts(reading)

    def note(number: int, frame: object) -> None:
        if interrupts.seen:
            raise KeyboardInterrupt
        interrupts.seen = True
        os.write(writing, b"!")

    previous: Callable | int | None = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)
        os.close(reading)
        os.close(writing)


@contextmanager
def interrupts_blocked(*others: signal.Signals) -> Iterator[set[signal.Signals]]:
    """No Ctrl-C, and none of the other signals, between starting a process and knowing of it: what a handler raises
    while Python forks is ignored. A blocked signal stays blocked over exec: workers never see a Ctrl-C; the parent
    decides. Gives the mask from before, for children that shall see them."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *others})
    try:
        yield previous
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
