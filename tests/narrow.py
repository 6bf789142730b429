"""bf16 and int8 for tests: which CPUs run them, numbers as words of 32 bits, rounding by a library not ours;
whole networks.

word of bf16: 2 numbers, of int8: 4; arrays of words are float32 whatever they hold
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from dlrm_tvm.cpu import host_flags
from dlrm_tvm.model import Dlrm
from dlrm_tvm.numerics import NEEDED_FLAGS, Numerics, numerics_of

NARROW = ("bf16", "int8")
VALUES = {"fp32": 1, "bf16": 2, "int8": 4}  # per word


def needs(precision: str) -> pytest.MarkDecorator:
    """Skips where the CPU lacks an instruction of that precision."""
    missing = sorted({"avx512f", *NEEDED_FLAGS[precision]} - host_flags())
    return pytest.mark.skipif(bool(missing), reason=f"{precision} needs {', '.join(missing)}, which this CPU lacks")


def narrow_cases(*arguments: tuple) -> list:
    """pytest parameters that begin with a precision, each skipped where the CPU lacks it."""
    return [pytest.param(*each, marks=needs(each[0])) for each in arguments]


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 -> the nearest bfloat16 as float32, by ml_dtypes."""
    return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def words_of(values: np.ndarray, precision: str) -> np.ndarray:
    """[.., columns] -> [.., columns / values per word] float32: bf16 rounds, int8 takes whole numbers -128 .. 255."""
    if precision == "fp32":
        return np.ascontiguousarray(values, np.float32)
    if precision == "bf16":
        return np.ascontiguousarray(values, np.float32).astype(ml_dtypes.bfloat16).view(np.float32)
    return np.ascontiguousarray(np.asarray(values).astype(np.int64) & 255).astype(np.uint8).view(np.float32)


def values_of(words: np.ndarray, precision: str, *, unsigned: bool = False) -> np.ndarray:
    """The inverse: float32 numbers, for int8 those of the signed bytes."""
    if precision == "fp32":
        return words
    dtype = ml_dtypes.bfloat16 if precision == "bf16" else np.uint8 if unsigned else np.int8
    return np.ascontiguousarray(words).view(dtype).astype(np.float32)


def byte_order(columns: np.ndarray) -> np.ndarray:
    """[.., columns] in the order in which int8 packs leave them: in 32 columns, quarter by quarter of both halves."""
    halves = columns.reshape(*columns.shape[:-1], -1, 2, 4, 4)
    return halves.swapaxes(-3, -2).reshape(columns.shape)


def dynamic(model: Dlrm, precision: str) -> Numerics:
    """A precision's numbers that need no data."""
    from dlrm_tvm.table_rows import table_steps

    return numerics_of(model, precision, table_steps(model) if precision == "int8" else None)


def network_of(model: Dlrm, numerics: Numerics, batch: int, *, every: int = 4) -> Callable[..., np.ndarray]:
    """The model compiled, tiles of 5 items at most; f as models.library_in_memory gives it. every: of RowFetch."""
    from models import library_in_memory

    from dlrm_tvm import lower
    from dlrm_tvm.kernels.gather import RowFetch
    from dlrm_tvm.schedules import NetworkSchedule, default_dense
    from dlrm_tvm.target import cpu_target

    cpu, mr = cpu_target(None), min(batch, 5)
    return library_in_memory(
        lower.lower_tuned(
            model, batch, NetworkSchedule(mr, 2, RowFetch(every=every, locality=2)),
            lambda layer: default_dense(mr, layer.outputs, cpu.registers, layer.unit),
            cpu, lower.Dump(None), numerics=numerics,
        )
    )  # fmt: skip
