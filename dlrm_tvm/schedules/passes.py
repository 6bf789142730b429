"""TVM's passes that our kernels need, from TIR to what LLVM takes.

TVM's own list for TIR (s_tir.pipeline) has fifty passes, most for GPUs and for schedules of blocks. On kernels that are
written out, with flat buffers and explicit vectors, they change nothing and take two thirds of the time to build: 14 s
instead of 5 for fp32 on a Zen 3, 33 instead of 6 for int8 on AMX, for the same instructions but for some ten of
thousands (2026-11-30). TVM's default code generation needs TVM's list.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from .target import CpuTarget

_NAME = "dlrm_tvm"


def kernel_pipeline() -> str:
    """The name under which TVM knows the list, from this call on."""
    register_tir_pipeline(_NAME, lambda: (_lower, finalize_host_passes, finalize_device_passes))
    return _NAME


def compile_kernels(functions: Mapping[str, tirx.PrimFunc], cpu: CpuTarget) -> tvm.runtime.Executable:
    """Kernels alone, by their names."""
    return tvm.compile(tvm.IRModule(functions), target=cpu.tvm_target, tir_pipeline=kernel_pipeline())


@tvm.transform.module_pass(opt_level=0)
def _lower(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    passes = [
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),  # the one block around each function
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),  # of loops and indices, where that is enough
        tirx.transform.StorageRewrite(),
        tirx.transform.StmtSimplify(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
    ]
    return tvm.ir.transform.Sequential(passes)(module)
