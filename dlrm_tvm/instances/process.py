"""A worker as its parent sees it: a process, a pipe each way, the bytes received so far."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from ..errors import UserError
from ..machine.topology import format_cpu_list
from ..paths import module_command
from ..runtime.thread_pool import SHORT_WAIT
from .protocol import STOP_SIGNAL, Assignment

WORKER_COMMAND = module_command("instances.worker")
_READ_BYTES = 1 << 20


class WorkerProcess:
    """One started worker. Start it with SIGINT blocked, which it inherits; `end` must follow, whatever happens."""

    def __init__(self, assignment: Assignment, command: Sequence[str]) -> None:
        self.assignment = assignment
        self._received = bytearray()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=thread_environment(threads=len(assignment.cores)),
            start_new_session=True,
            pass_fds=assignment.inherited,
        )
        self.send(**asdict(assignment))

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Readable when it answers or dies."""
        return self._process.stdout.fileno()

    def send(self, **command: object) -> None:
        with suppress(BrokenPipeError):  # it died: the end of its output says so
            self._process.stdin.write(json.dumps(command).encode() + b"\n")

    def stop(self) -> None:
        """Have the timed loop end now."""
        self._process.send_signal(STOP_SIGNAL)

    def receive(self) -> tuple[dict, bytes] | None:
        """Read once; a whole message (fields, payload) or None. Raises UserError when it failed or died."""
        data = os.read(self.fileno(), _READ_BYTES)
        if not data:
            raise UserError(self._obituary())
        self._received += data
        header_end = self._received.find(b"\n") + 1
        if not header_end:
            return None
        fields = json.loads(self._received[:header_end])
        if len(self._received) < header_end + fields.pop("payload_bytes"):
            return None
        payload = bytes(self._received[header_end:])
        self._received.clear()
        if "error" in fields:
            raise UserError(fields["error"])
        if "crash" in fields:
            raise RuntimeError(f"{self.assignment.title} failed:\n{fields['crash']}")
        return fields, payload

    def close(self) -> None:
        """End of input: it is to leave."""
        with suppress(OSError):
            self._process.stdin.close()

    def end(self, deadline_s: float) -> None:
        """Wait for its end until then (time.monotonic), then kill it."""
        try:
            self._process.wait(max(deadline_s - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _obituary(self) -> str:
        status = self._process.wait()
        cores = format_cpu_list(self.assignment.cores)
        who = f"{self.assignment.title} (process {self.pid}, cores {cores})"
        if status >= 0:
            return f"{who} ended by itself with status {status}; its own messages are above."
        name = signal.Signals(-status).name
        hints = {
            "SIGKILL": " If nobody did that, memory ran out (see dmesg): try fewer instances.",
            "SIGBUS": " A file with tables was cut short while it was mapped, or its disk failed: compile again.",
        }
        hint = hints.get(name, "")
        return f"{who} was killed by {name}; the run was ended, nothing was measured.{hint}"


def thread_environment(threads: int) -> dict[str, str]:
    """This process's, with a pool of the right size, and BLAS libraries on one thread.
    Helpers with cores of their own wait awake, whatever this process has chosen for its own."""
    changes = {
        "TVM_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    kept = {name: value for name, value in os.environ.items() if (name, value) != SHORT_WAIT}
    kept.pop("TVM_BIND_THREADS", None)
    return {**kept, **changes}
