"""Ctrl-C where it may not tear a message in two."""

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
