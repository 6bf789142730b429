"""Which precisions other engines have, on which CPUs, and how far their predictions may be from the model's.

    engine         fp32   bf16                        int8
    ONNX Runtime   yes    no kernels on CPUs          dynamic quantisation of the layers' weights
    OpenVINO       yes    its own, with avx512_bf16   NNCF's post-training quantisation

An engine that would run in another precision than it was asked for is refused: its number would be of something else.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Set

from .cpu import host_flags
from .errors import UserError
from .numerics import INSTRUCTION_FLAG

FP32_TOLERANCE = 1e-4  # of two fp32 programs, which add up in different orders
# Of the mean absolute error of a probability. Measured on the demo, 2026-11-25: OpenVINO bf16 0.0015; ONNX Runtime int8
# 0.005, OpenVINO int8 0.005; a wrong kernel is off by 0.1 and more.
MEAN_ERROR = {"fp32": 0.0, "bf16": 0.01, "int8": 0.02}
_STANDARD_ERRORS = 3


def refusal(engine: str, precision: str, flags: Set[str] | None = None) -> str | None:
    """Why the engine cannot run in this precision here; None where it can. flags: this CPU's, of /proc/cpuinfo."""
    if precision == "bf16" and engine == "onnxruntime":
        return "ONNX Runtime has no bf16 on CPUs."
    needed = INSTRUCTION_FLAG["bf16"]
    if precision == "bf16" and needed not in (host_flags() if flags is None else flags):
        return f"OpenVINO at bf16 needs {needed}, which this CPU lacks: it would run at fp32 and not say so."
    if precision == "int8" and engine == "openvino" and importlib.util.find_spec("nncf") is None:
        return "OpenVINO at int8 needs NNCF, which is not installed. Type: pip install -r requirements-dev.txt"
    return None


def check_precision(engine: str, precision: str, flags: Set[str] | None = None) -> None:
    """Raises UserError with the refusal, and what to type in its place."""
    reason = refusal(engine, precision, flags)
    if reason is None:
        return
    if precision == "bf16":
        others = "fp32 or int8" if engine == "openvino" else "fp32 or int8, or --engine openvino"
        reason += f" Give --engine-precision {others}."
    raise UserError(reason)


def mean_error_limit(items: int, *precisions: str) -> float:
    """Of the mean absolute difference over so many items between programs of these precisions.

    The mean of a few items scatters; it may be more by three of its standard errors, an error's spread being about
    its mean.
    """
    return sum(MEAN_ERROR[each] for each in precisions) * (1 + _STANDARD_ERRORS / math.sqrt(items))
