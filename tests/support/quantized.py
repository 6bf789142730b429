"""bf16 and int8 for tests: which CPUs run them, numbers as words of 32 bits, rounding by a library not ours;
whole networks.

word of bf16: 2 numbers, of int8 and bytes: 4; arrays of words are float32 whatever they hold
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from dlrm_tvm.kernels.isa import (
    AMX_BF16,
    AMX_FP32,
    AMX_INT8,
    AVX2_INT8,
    AVX512,
    AVX512_BF16,
    AVX512_VNNI,
    Family,
    family_for,
)
from dlrm_tvm.kernels.tile_dense import PANEL
from dlrm_tvm.machine.cpu import PRECISION_FLAGS, host_flags
from dlrm_tvm.model import reference, reference_quantized
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.precision import Numerics, numerics_of

QUANTIZED = ("bf16", "int8")
# Models of random_dlrm that every family serves, beside each one's own.
SHAPES = {
    "no hidden bottom": {"bottom": (), "top": (24,)},
    "no hidden top": {"top": ()},
    "with itself": {"interaction": "dot_self"},
    "concatenated": {"interaction": "cat", "dim": 20},
    "concatenated, no hidden top": {"interaction": "cat", "top": ()},
    "signed x": {"bottom_activation": "none"},
    "sigmoid inside": {"sigmoid_layer": 0, "top": (24, 16)},
}
VALUES = {"fp32": 1, "bf16": 2, "int8": 4, "bytes": 4}  # per word
FAMILY = {"fp32": AVX512, "bf16": AVX512_BF16, "int8": AVX512_VNNI, "bytes": AVX2_INT8}


def needs(precision: str) -> pytest.MarkDecorator:
    """Skips where the CPU lacks an instruction of FAMILY's."""
    return _needs_flags(precision, FAMILY[precision].flags)


def needs_library(precision: str) -> pytest.MarkDecorator:
    """Skips where no library of that precision runs."""
    return _needs_flags(precision, PRECISION_FLAGS[precision])


def _needs_flags(precision: str, flags: tuple[str, ...]) -> pytest.MarkDecorator:
    missing = sorted(set(flags) - host_flags())
    return pytest.mark.skipif(bool(missing), reason=f"{precision} needs {', '.join(missing)}, which this CPU lacks")


def quantized_cases(*arguments: tuple) -> list:
    """pytest parameters that begin with a precision, each skipped where the CPU lacks it."""
    return [pytest.param(*each, marks=needs(each[0])) for each in arguments]


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 -> the nearest bfloat16 as float32, by ml_dtypes."""
    return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def words_of(values: np.ndarray, precision: str) -> np.ndarray:
    """[.., columns] -> [.., columns / values per word] float32: bf16 rounds, others take whole numbers -128 .. 255."""
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


def dynamic(model: Dlrm, precision: str, first_layer: str = "fp32", family: Family | None = None) -> Numerics:
    """A precision's numbers that need no data. family: of int8; this CPU's on vectors."""
    from dlrm_tvm.compiler.table_conversion import table_scales

    if precision != "int8":
        return numerics_of(model, precision, first_layer=first_layer)
    family = family or family_for(host_flags(), "int8", tiles=False) or AVX512_VNNI
    how = {"first_layer": first_layer, "largest_weight": family.largest_weight}
    return numerics_of(model, precision, table_scales(model), **how)


def static(model: Dlrm, first_layer: str = "fp32", family: Family | None = None) -> Numerics:
    """int8 with activation scales found on 500 random items. family: as of dynamic."""
    from models import random_batch

    from dlrm_tvm.compiler.calibration import _largest, with_ranges

    items = random_batch(model, 500, seed=9)
    return with_ranges(model, dynamic(model, "int8", first_layer, family), _largest(model, *items), "random items")


def on_tiles(model: Dlrm, numerics: Numerics, batch: int, mr: int) -> Callable[..., np.ndarray]:
    """The model compiled for AMX, emulated: blocks of 4 tiles of mr items."""
    from models import library_in_memory

    from dlrm_tvm.compiler.plan import layer_shapes
    from dlrm_tvm.kernels.dense import DenseSchedule
    from dlrm_tvm.kernels.gather import Prefetch
    from dlrm_tvm.schedules.rules import NetworkSchedule, Schedules

    isa = replace({"fp32": AMX_FP32, "bf16": AMX_BF16, "int8": AMX_INT8}[numerics.precision], emulated=True)
    network = NetworkSchedule(mr, 4, Prefetch(every=4, locality=2))
    schedules = Schedules.given(network, lambda _: DenseSchedule(PANEL, 1), layer_shapes(model, numerics, isa))
    return library_in_memory(model, batch, schedules, numerics, isa)


def network_of(model: Dlrm, numerics: Numerics, batch: int, *, every: int = 4) -> Callable[..., np.ndarray]:
    """The model compiled, tiles of 5 items at most; f as models.library_in_memory gives it. every: of Prefetch."""
    from models import library_in_memory, schedules_of

    from dlrm_tvm.kernels.gather import Prefetch
    from dlrm_tvm.schedules.rules import NetworkSchedule

    network = NetworkSchedule(min(batch, 5), 2, Prefetch(every=every, locality=2))
    return library_in_memory(model, batch, schedules_of(model, batch, network, numerics=numerics), numerics)


def check_one_hot_and_in_bags(
    run: Callable[..., np.ndarray],
    model: Dlrm,
    numerics: Numerics,
    batch: int,
    agree: Callable[[np.ndarray, np.ndarray], None],
    within: float | None = 0.05,
) -> None:
    """run, of on_tiles or network_of, against NumPy in the same numbers, as agree wants it; bags also `within` so much
    of float64, None for no matter.

    One-hot and then on bags, on one thread and on two.
    """
    from models import flat_bags, random_bags, random_batch

    dense, indices = random_batch(model, batch)
    for threads in (1, 2):
        agree(run(dense, indices, threads), reference_quantized.predict(model, numerics, dense, indices))
    bags, offsets = random_bags(model, batch)
    flat, begins = flat_bags(bags, offsets, batch)
    wanted = reference_quantized.predict(model, numerics, dense, bags, offsets)
    for threads in (1, 2):
        got = run(dense, flat, threads, offsets=begins)
        agree(got, wanted)
    if within is not None:
        assert np.abs(got - reference.predict(model, dense, bags, offsets)).max() < within
