"""A worker whose engine is a stand-in of known service time: the real worker.py around it, no TVM.

python fake_worker.py CALL_MS [fault]      fault: no-open, crash, nan, hang, hang-open
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from dlrm_tvm.errors import UserError
from dlrm_tvm.instances.protocol import Assignment
from dlrm_tvm.instances.worker import main

CALL_MS = float(sys.argv[1])
FAULT = sys.argv[2] if len(sys.argv) > 2 else ""
PEAK_GFLOPS, STREAM_GBPS = 100.0, 40.0


class FakeEngine:
    """Ten items a batch; every call takes CALL_MS of wall time."""

    batch_size = 10
    artifact = SimpleNamespace(
        manifest=SimpleNamespace(
            model=SimpleNamespace(num_dense=13, table_rows=(100,) * 26, gather_bytes_per_item=26 * 512)
        )
    )

    def prepare(self, dense: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return dense, indices

    def run(self, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        until = time.perf_counter() + CALL_MS / 1e3
        while time.perf_counter() < until:
            time.sleep(0)
        return np.full(self.batch_size, np.nan if FAULT == "nan" else 0.5, np.float32)

    def peak_gflops(self, seconds: float) -> float:
        time.sleep(1000 if FAULT == "hang" else seconds)
        return PEAK_GFLOPS

    def stream_gbps(self, seconds: float) -> float:
        return STREAM_GBPS


def open_engine(assignment: Assignment) -> FakeEngine:
    print("a library's chatter on stdout must not disturb the protocol")
    if FAULT == "no-open":
        raise UserError(f"{assignment.library} needs avx512_vnni, which this CPU lacks.")
    if FAULT == "hang-open":
        time.sleep(1000)
    if FAULT == "crash":
        raise ZeroDivisionError("our own bug")
    return FakeEngine()


if __name__ == "__main__":
    main(open_engine)
