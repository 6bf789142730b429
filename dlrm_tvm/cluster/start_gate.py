"""The script on a node, as its actor starts it: it opens its session, says that it is ready, and waits for one line.

actor    starts the script with --start-gate, Ctrl-C blocked (as in all of an actor's threads), pipes as streams
script   unblocks it, opens its session, prints READY
actor    writes one line: the run begins. Its end, that of the pipe and that of the raylet end the script
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import suppress

import psutil

from ..instances.protocol import die_with_parent

READY = '{"start_gate": "ready"}'
_LOOK_S = 1.0


class StartGate:
    """From its making on, this process ends with its parent and with the raylet of this pid."""

    def __init__(self, raylet_pid: int) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as what a shell starts with & has it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        die_with_parent(os.getppid())
        threading.Thread(target=_end_with, args=(raylet_pid,), daemon=True).start()

    def wait(self) -> None:
        """Return at the line; leave at the pipe's end."""
        print(READY, flush=True)
        if not os.read(0, 1):
            sys.exit("The start was called off.")


def _end_with(raylet_pid: int) -> None:
    """As a thread: end at once, for nobody reads figures any more. Instances die with this process."""
    pipe = select.poll()
    pipe.register(0, 0)  # nothing but its end
    with suppress(psutil.NoSuchProcess):
        raylet = psutil.Process(raylet_pid)
        while not pipe.poll(_LOOK_S * 1000) and raylet.is_running() and raylet.status() != psutil.STATUS_ZOMBIE:
            pass
    os.write(2, b"The raylet that this ran under is gone.\n")
    os._exit(1)
