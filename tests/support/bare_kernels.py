"""TIR functions around single kernels, for tests: emit, compile, call."""

from __future__ import annotations

import numpy as np
import tvm_ffi
from models import aligned, unoptimized
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from dlrm_tvm.schedules import target
from dlrm_tvm.schedules.passes import compile_kernels


def kernel(name: str, sizes: dict[str, tuple[int, str]], body):
    """A TIR function of flat buffers; body(buffers by name) emits what it does."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        body({buffer: T.arg(buffer, T.buffer((size,), dtype)) for buffer, (size, dtype) in sizes.items()})
    return builder.get()


def compiled(functions: list, *, optimized: bool = True):
    """One module of all the functions, each under its own name; optimized: see models.unoptimized."""
    named = {function.attrs["global_symbol"]: function for function in functions}
    cpu = target.cpu_target(None)
    return compile_kernels(named, cpu if optimized else unoptimized(cpu))


def call(function, *arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays after the call."""
    copies = [aligned(array) for array in arrays]
    function(*(tvm_ffi.from_dlpack(copy) for copy in copies))
    return copies
