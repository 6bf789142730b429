"""An engine's process as the benchmark sees it: start it, ask it, see it gone. engine_worker.py is the other end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from dlrm_tvm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("engine_worker.py")
_ONE_THREAD = {name: "1" for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class EngineProcess:
    """One engine opened for all batch sizes. Use as a context manager: leaving it ends the process.

    models: what to open per batch size. inputs: folder with dense.npy and indices.npy. quantized: a peer's int8 file.
    """

    def __init__(
        self,
        engine: str,
        precision: str,
        *,
        core: int,
        models: dict[int, Path],
        inputs: Path,
        quantized: str | None = None,
    ) -> None:
        self.engine = engine
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        kept = {name: value for name, value in os.environ.items() if name != "TVM_BIND_THREADS"}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**kept, **_ONE_THREAD, "TVM_USE_RUNTIME_LIB": "1", "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is the benchmark's to handle
        )
        self._assignment = {
            "engine": engine,
            "precision": precision,
            "quantized": quantized,
            "core": core,
            "batches": list(models),
            "models": {str(batch): str(path) for batch, path in models.items()},
            "inputs": str(inputs),
            "parent_pid": os.getpid(),
        }

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):  # it died before it read its last command
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def open(self) -> str | None:
        """Have it open its models: the engine's version, or None when the engine is not installed."""
        fields, _ = self._ask(self._assignment)
        return fields.get("version")

    def predict(self, batch: int, batches: int) -> np.ndarray:
        """[batches * batch] float32, of the first items of the set."""
        return np.frombuffer(self._ask({"do": "predict", "batch": batch, "batches": batches})[1], np.float32)

    def items_per_s(self, batch: int, seconds: float) -> float:
        return self._ask({"do": "slice", "batch": batch, "seconds": seconds})[0]["calls_per_s"] * batch

    def peak_gflops(self, seconds: float) -> float:
        return self._ask({"do": "peak", "seconds": seconds})[0]["rate"]

    def stream_gbps(self, seconds: float) -> float:
        return self._ask({"do": "stream", "seconds": seconds})[0]["rate"]

    def _ask(self, command: dict) -> tuple[dict, bytes]:
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise UserError(f"{self.engine}: its process ended with status {self._process.wait()}; see above.")
        fields = json.loads(line)
        if "error" in fields:
            raise UserError(fields["error"])
        if "crash" in fields:
            raise RuntimeError(f"{self.engine} failed:\n{fields['crash']}")
        return fields, self._process.stdout.read(fields["payload_bytes"])
