"""The CPU to compile for: an LLVM name checked to exist, and the instructions that its code may use."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import tvm
from tvm.target import codegen

from .cpu import FLAG_OF_FEATURE, host_flags, required_flags
from .errors import UserError
from .kernels.dense import REGISTERS, REGISTERS_AVX2

# How LLVM's names of instruction sets begin; those that cpu.py has no flag for are switched off.
_INSTRUCTION_SETS = ("amx-", "avx", "cmpccxadd", "movrs", "raoint", "sha", "sm3", "sm4", "sse")


@dataclass(frozen=True, eq=False)
class CpuTarget:
    """cpu: LLVM's -mcpu; flags: what /proc/cpuinfo must show where the code runs; is_host: made for this machine."""

    cpu: str
    tvm_target: tvm.target.Target
    flags: tuple[str, ...]
    is_host: bool

    def has(self, flag: str) -> bool:
        return flag in self.flags

    @property
    def registers(self) -> int:
        """How many vectors of 16 float32 its registers hold; 0 where it lacks what our kernels are made of."""
        if self.has("avx512f"):
            return REGISTERS
        return REGISTERS_AVX2 if self.has("avx2") and self.has("fma") else 0


def cpu_target(name: str | None) -> CpuTarget:
    """The target called `name`, or this host's. Raises UserError for a name that LLVM does not know.

    LLVM itself takes any name and falls back to generic code with a message. A virtual machine may hide instructions
    that its CPU model has; for this host such features are switched off, so that its code runs here.
    """
    host = codegen.llvm_get_system_cpu()
    cpu = host if name is None else name
    if not codegen.llvm_is_valid_cpu(cpu, codegen.llvm_get_system_triple()):
        known = [str(entry) for entry in codegen.llvm_get_cpu_archlist(tvm.target.Target("llvm"))]
        near = difflib.get_close_matches(cpu, known, n=3, cutoff=0.5) or ["znver4", "sapphirerapids", "icelake-server"]
        raise UserError(f"--target-cpu {cpu} is not a CPU that LLVM knows. Try {', '.join(near)}.")
    options = {"kind": "llvm", "mcpu": cpu, "num-cores": 1}
    hidden = _hidden_features(tvm.target.Target(options), on_host=cpu == host)
    if hidden:
        options["mattr"] = [f"-{feature}" for feature in hidden]
    target = tvm.target.Target(options)
    features = {str(feature) for feature in codegen.llvm_get_cpu_features(target)} - set(hidden)
    return CpuTarget(cpu, target, required_flags(features), cpu == host)


def _hidden_features(target: tvm.target.Target, *, on_host: bool) -> list[str]:
    """What LLVM must not use: instructions that no flag of ours stands for, and on this host those it does not show."""
    features = sorted(str(feature) for feature in codegen.llvm_get_cpu_features(target))
    unknown = [f for f in features if f.startswith(_INSTRUCTION_SETS) and f not in FLAG_OF_FEATURE]
    flags = host_flags() if on_host else frozenset(FLAG_OF_FEATURE.values())
    return unknown + [f for f in features if f in FLAG_OF_FEATURE and FLAG_OF_FEATURE[f] not in flags]
