"""What one worker is to be, as its parent tells it: one JSON line, and descriptors that it inherits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QueueEnds:
    """Inherited descriptors of what LoadGen drives an instance by, and the sample library's SampleSpec as JSON."""

    queue_fd: int
    samples_fd: int
    completions_fd: int
    spec: dict


@dataclass(frozen=True)
class Assignment:
    """What one worker is to be: the first line it reads. `cores`: one cpu id per thread."""

    library: str
    instance: int
    instances: int
    cores: list[int]
    ref_data: str | None
    l3_bytes: int
    parent_pid: int
    indices_per_bag: float = 1  # of random bags, or the mean in ref_data
    tables_fd: int | None = None  # inherited descriptors of shared memory that holds the weights; see SharedCopies
    parameters_fd: int | None = None
    numa_node: int | None = None  # None: the machine has one
    queue: QueueEnds | None = None  # None: LoadGen has no part in the run
    board_fd: int | None = None  # of the ProgressBoard
    peer: dict | None = None  # a PeerGraph that another engine is to run in the library's place

    @property
    def inherited(self) -> tuple[int, ...]:
        queue = (self.queue.queue_fd, self.queue.samples_fd, self.queue.completions_fd) if self.queue else ()
        return tuple(fd for fd in (self.tables_fd, self.parameters_fd, self.board_fd, *queue) if fd is not None)

    @property
    def title(self) -> str:
        return f"Instance {self.instance}"

    @staticmethod
    def from_json(fields: dict) -> Assignment:
        return Assignment(**fields | {"queue": fields["queue"] and QueueEnds(**fields["queue"])})
