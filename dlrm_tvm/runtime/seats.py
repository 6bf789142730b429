"""One seat per calling thread for what TVM ties to a thread, and a gate that closes at the interpreter's exit.

    seats = Seats(threads, make)
    seat = seats.mine()             # make() on the thread's first call
    seat.call(function, ..)         # function(what make() gave, ..)

A signal handler, or what is run when garbage is collected, may call within a call of its own thread, whose memory is in
use: such a call is refused. A thread that computes when the interpreter ends would come back into a Python that is
gone, and abort the process. So each call holds its seat's lock, and whatever else calls TVM holds `making`; at exit
they are all taken, once those calls have ended, and never given back: other threads wait for ever, the main one may
call on.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock, local
from typing import Any
from weakref import WeakSet

from ..errors import UserError

_pool = local()  # size: of this thread's pool, which all executors that it calls share; forks: before it was made
_forks = 0  # between the first process of ours and this one
# Of one seat at a time: pools are told apart by the threads that appear. Meanwhile garbage may be collected, and TVM's
# objects let go.
making = RLock()


@dataclass(eq=False)
class Seat:
    """held: what make() gave; lock: of the calling thread, held during a call, as `in_use` says."""

    held: Any
    forks: int
    lock: RLock = field(default_factory=RLock)
    in_use: bool = False

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(held, *arguments). Raises UserError within a call."""
        with self.lock:
            if self.in_use:
                raise UserError(
                    "this call came in the middle of another one of the same thread, as from a signal handler. Call "
                    "the model in a thread of its own there."
                )
            self.in_use = True
            try:
                return function(self.held, *arguments)
            finally:
                self.in_use = False


_seats: WeakSet[Seat] = WeakSet()


class Seats:
    """threads: of each seat's pool; make(): what the calling thread needs, with its pool placed."""

    def __init__(self, threads: int, make: Callable[[], Any]) -> None:
        self._threads, self._make, self._local = threads, make, local()

    def mine(self) -> Seat:
        """The calling thread's. Raises UserError where its pool has another size, or died in a fork."""
        seat = getattr(self._local, "seat", None)
        return seat if seat is not None and seat.forks == _forks else self._take()

    def _take(self) -> Seat:
        size, forks = getattr(_pool, "size", self._threads), getattr(_pool, "forks", _forks)
        if max(size, self._threads) > 1 and forks != _forks:
            raise UserError(
                f"this process was forked by a thread whose models use {size} threads, which did not come along. "
                "Start processes by spawn, call the model in a new thread, or load it with threads=1."
            )
        if size != self._threads:
            raise UserError(f"this thread's models use {size} threads: load with threads={size}, or in another thread.")
        with making:
            seat = Seat(self._make(), _forks)
            _seats.add(seat)
        _pool.size, _pool.forks = self._threads, _forks  # only now: where placing failed, another size may be tried
        self._local.seat = seat
        return seat


def let_go(owned: dict[str, Any]) -> None:
    """Empty it: TVM's objects too come back into Python when they are freed."""
    with making:
        owned.clear()


@atexit.register
def _close() -> None:
    """Daemon threads may still be calling: others have been waited for."""
    making.acquire()
    for seat in list(_seats):
        seat.lock.acquire()


def _after_fork() -> None:
    """In the child there is one thread, whose locks may be held by threads that are no more."""
    global _forks, making
    _forks += 1
    making = RLock()
    _seats.clear()


os.register_at_fork(after_in_child=_after_fork)
