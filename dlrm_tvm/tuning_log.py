"""The tuning log: a text file with one JSON object per line, one line per tuned kernel. Later lines win.

    {"kernel": "dense_fp32_relu", "shape": "mr=10 k=1024 n=1024", "precision": "fp32", "cpu": "znver4",
     "schedule": {"nr": 32, "unroll": 1}, "time_us": 18.1, "share_of_peak": 0.98, "tvm": "0.27.0", "date": "2026-11-23"}

Knows nothing of kernels: a schedule is a handful of named integers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import UserError


@dataclass(frozen=True)
class Record:
    """One kernel's chosen schedule; time_us: of one call, share_of_peak: beside the peak measured around it."""

    kernel: str
    shape: str
    precision: str
    cpu: str
    schedule: dict[str, int]
    time_us: float
    share_of_peak: float
    tvm: str
    date: str

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class TuningLog:
    """The records of one file; none where the file does not exist."""

    path: Path
    records: tuple[Record, ...]

    def find(self, kernel: str, shape: str, cpu: str) -> Record | None:
        """The latest record for this kernel and shape: of this CPU, else of another one."""
        found = [record for record in self.records if (record.kernel, record.shape) == (kernel, shape)]
        of_this_cpu = [record for record in found if record.cpu == cpu]
        return (of_this_cpu or found or [None])[-1]


def read_log(path: Path, *, must_exist: bool) -> TuningLog:
    """Raises UserError, with the line's number, on a line that is not a record."""
    if not path.is_file():
        if must_exist:
            raise UserError(f"{path}: no such tuning log. Make one with --tune, or use --tuning-log-file none.")
        return TuningLog(path, ())
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; a tuning log is. Give --tuning-log-file another path.") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = Record(**json.loads(line))
            if not all(isinstance(value, int) for value in record.schedule.values()):
                raise ValueError("a schedule is made of integers")
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: line {number} is not a tuning record ({error}). Remove it, or tune anew."
            ) from None
        records.append(record)
    return TuningLog(path, tuple(records))


def append(path: Path, record: Record) -> None:
    """Add one line in one write, so that an interruption leaves whole lines only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(record.to_line())
