"""DLRM recommenders on CPUs at the limit of the chip.

from dlrm_tvm import load
model = load("__prebuilt/dlrm_avx512_b100.so")
pred = model(dense, indices)            # [n, 13] float32, [n, 26] integers -> [n] float32
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runtime.executor import Executor

__all__ = ["load"]


def load(library: str, *, threads: int = 1) -> Executor:
    """Open a compiled library with its manifest and parameters; milliseconds, copies nothing.

    library: path of the `.so` that compile.py left. threads: how many threads a call uses.
    Raises UserError (a ValueError) when a file is missing, does not belong, or needs another CPU.
    """
    from .runtime.artifact import open_artifact

    artifact = open_artifact(library)
    from .runtime.executor import Executor  # imports TVM, which what is refused should not wait for

    return Executor(artifact, threads=threads)
