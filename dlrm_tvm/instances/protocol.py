"""What parent and worker say to each other: an assignment, one JSON line with inherited descriptors; then commands."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import dataclass

STOP_SIGNAL = signal.SIGUSR1  # "end the timed loop now and reply"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class QueueEnds:
    """Inherited descriptors by which LoadGen drives an instance, and the sample library's SampleSpec as JSON.

    completions_fd: one end of the pipe of records, the instances' writing end or the driver's reading end.
    """

    queue_fd: int
    bell_fd: int
    samples_fd: int
    completions_fd: int
    spec: dict

    @property
    def inherited(self) -> tuple[int, ...]:
        return (self.queue_fd, self.bell_fd, self.samples_fd, self.completions_fd)


@dataclass(frozen=True)
class Assignment:
    """One worker's task: the first line it reads. `cores`: one cpu id per thread."""

    library: str
    instance: int
    instances: int
    cores: tuple[int, ...]
    ref_data: str | None
    l3_bytes: int
    parent_pid: int
    indices_per_bag: float = 1  # the mean over all bags
    bag_lengths: tuple[int, ...] | None = None  # of random bags, per table; None: one index each, or ref_data's
    tables_fd: int | None = None  # inherited descriptors of shared memory that holds the weights; see SharedCopies
    parameters_fd: int | None = None
    numa_node: int | None = None  # None: the machine has one
    queue: QueueEnds | None = None  # None: a run without LoadGen
    board_fd: int | None = None  # of the ProgressBoard
    max_ind_range: int | None = None  # of ref_data's indices
    other_engine: dict | None = None  # fields of an EngineGraph: another engine runs it in the library's place

    @property
    def inherited(self) -> tuple[int, ...]:
        queue = self.queue.inherited if self.queue else ()
        return tuple(fd for fd in (self.tables_fd, self.parameters_fd, self.board_fd, *queue) if fd is not None)

    @property
    def title(self) -> str:
        return f"Instance {self.instance}"


class Control:
    """The two pipes to the parent."""

    def __init__(self) -> None:
        self._commands = os.fdopen(os.dup(0), "rb")
        self._results = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # output of TVM or of another library must not get into the results

    def receive(self) -> dict | None:
        """The next command; None when the parent has closed the pipe."""
        line = self._commands.readline()
        return json.loads(line) if line else None

    def reply(self, payload: bytes | memoryview = b"", **fields: object) -> None:
        self._results.write(json.dumps({**fields, "payload_bytes": len(payload)}).encode() + b"\n")
        self._results.write(payload)
        self._results.flush()


def die_with_parent(parent_pid: int, by: signal.Signals = signal.SIGKILL) -> None:
    """The kernel kills this process when its parent ends, however that ends; costs the timed loop nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, by) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit("the parent ended before this worker was ready")
