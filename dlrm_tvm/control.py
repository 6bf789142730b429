"""The child's end of a process that is started with pipes: commands as JSON lines, answers as a line and raw bytes."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

STOP_SIGNAL = signal.SIGUSR1  # the parent's "stop now and hand over what you have"
_PR_SET_PDEATHSIG = 1


class Control:
    """The two pipes to the parent."""

    def __init__(self) -> None:
        self._commands = os.fdopen(os.dup(0), "rb")
        self._results = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what TVM or a library prints must not end up among the results

    def receive(self) -> dict | None:
        """The next command; None when the parent has closed the pipe."""
        line = self._commands.readline()
        return json.loads(line) if line else None

    def reply(self, payload: bytes | memoryview = b"", **fields: object) -> None:
        self._results.write(json.dumps({**fields, "payload_bytes": len(payload)}).encode() + b"\n")
        self._results.write(payload)
        self._results.flush()


def die_with_parent(parent_pid: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel kill this process when its parent ends, however that ends; costs the timed loop nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, by) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit("the parent ended before this worker was ready")
