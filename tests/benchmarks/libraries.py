"""Our libraries for the benchmark: one per precision and batch size, compiled by compile.py, removed afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from engine_process import ROOT

from dlrm_tvm.errors import UserError


def compile_library(precision: str, batch: int, *, name: str, table_rows: int) -> Path:
    """Through compile.py's own command line. Raises UserError with its words when it fails."""
    options = {
        "precision": precision,
        "batch-size": batch,
        "output-name": f"{name}_{precision}",
        "demo-table-rows": table_rows,
    }
    command = [sys.executable, "compile.py", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"compile.py failed (status {done.returncode}): {done.stderr.strip()}")
    result = json.loads(done.stdout.splitlines()[-1])
    kernels = f"{result['tuned_kernels']} kernels tuned, {result['untuned_kernels']} by rule"
    print(f"  compiled    {precision}, batch {batch}: {kernels}, {result['compile_s']:.1f} s", flush=True)
    return Path(result["library"])


def remove_libraries(name: str, precisions: tuple[str, ...]) -> None:
    for precision in precisions:
        for path in (ROOT / "__prebuilt").glob(f"{name}_{precision}_b[0-9]*"):
            path.unlink()
