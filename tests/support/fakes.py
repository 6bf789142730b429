"""Instances of the stand-in worker: real processes and pipes around an engine of known speed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dlrm_tvm.instances.group import Instances
from dlrm_tvm.instances.protocol import Assignment
from dlrm_tvm.paths import ROOT

FAKE_WORKER = ROOT / "tests" / "support" / "fake_worker.py"
MS = 1_000_000
CORES = sorted(os.sched_getaffinity(0))


def assignments(count: int) -> list[Assignment]:
    return [
        Assignment(
            library="none.so",
            instance=instance,
            instances=count,
            cores=(CORES[instance % len(CORES)],),
            ref_data=None,
            l3_bytes=1 << 20,
            parent_pid=os.getpid(),
        )
        for instance in range(count)
    ]


def fakes(count: int, call_ms: float = 2.0, fault: str = "") -> Instances:
    return Instances(assignments(count), (sys.executable, str(FAKE_WORKER), str(call_ms), fault))


def is_alive(pid: int) -> bool:
    """A zombie that a container's init does not reap is not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
