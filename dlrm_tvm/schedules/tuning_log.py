"""The tuning log: a text file with one JSON object per line, one line per tuned kernel. Later lines win.

    {"kernel": "dense_fp32_relu", "shape": "mr=10 k=1024 n=1024", "precision": "fp32", "cpu": "znver4",
     "schedule": {"nr": 32, "unroll": 1}, "time_us": 18.1, "share_of_peak": 0.98, "tvm": "0.27.0", "date": "2026-11-23"}

Knows nothing of kernels: a schedule is a handful of named integers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import UserError
from ..runtime.typed_json import parse, read_as

_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class Record:
    """A kernel's schedule; time_us: of one call; share_of_peak: of the peak measured right before and after it.

    Both None: the rule's schedule, for which a search had no time."""

    kernel: str
    shape: str
    precision: str
    cpu: str
    schedule: dict[str, int]
    time_us: float | None
    share_of_peak: float | None
    tvm: str
    date: str

    @property
    def is_measured(self) -> bool:
        return self.share_of_peak is not None

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class TuningLog:
    """The records of a file; empty where it does not exist."""

    path: Path
    records: tuple[Record, ...]

    def find(self, kernel: str, shape: str, cpu: str) -> Record | None:
        """The latest record of this kernel and shape on this CPU: those of another say nothing about it."""
        wanted = (kernel, shape, cpu)
        found = [record for record in self.records if (record.kernel, record.shape, record.cpu) == wanted]
        return found[-1] if found else None


def read_log(path: Path, *, must_exist: bool) -> TuningLog:
    """Raises UserError, with the line's number, on a line that is not a record."""
    if not path.is_file():
        if must_exist:
            raise UserError(f"{path}: no such tuning log. Make one with --tune, or use --tuning-log-file none.")
        return TuningLog(path, ())
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} is larger than any tuning log. Give --tuning-log-file another path.")
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; a tuning log is. Give --tuning-log-file another path.") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return TuningLog(path, tuple(_record(path, number, line) for number, line in numbered))


def _record(path: Path, number: int, line: str) -> Record:
    try:
        return read_as(Record, parse(line), "it")
    except ValueError as error:
        raise UserError(f"{path}: line {number} is not a tuning record ({error}). Remove it, or tune anew.") from None


def check_appendable(path: Path) -> None:
    """Makes the file where it is missing. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; a file to append to was wanted. Give --tuning-log-file another."
        ) from None


def append(path: Path, record: Record) -> None:
    """Add one line in one write: an interruption leaves whole lines only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(record.to_line())
