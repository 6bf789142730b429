"""The CPU to compile for: a name that LLVM knows, and the instructions that the code may use."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.target import codegen

from ..errors import UserError
from ..kernels.isa import FAMILIES, Family, family_for
from ..machine.caches import SERVER_CPUS, Caches, caches_of, host_caches
from ..machine.cpu import FLAG_OF_FEATURE, host_flags, required_flags

# Prefixes of LLVM's names of instruction sets; sets that machine/cpu.py has no flag for are switched off.
_INSTRUCTION_SETS = ("amx-", "avx", "cmpccxadd", "movrs", "raoint", "sha", "sm3", "sm4", "sse")


@dataclass(frozen=True, eq=False)
class CpuTarget:
    """cpu: LLVM's -mcpu; flags: those of /proc/cpuinfo that the code needs; is_host: it is this machine's CPU;
    by_number: what LLVM calls this machine's CPU by its model number, where that is another name."""

    cpu: str
    tvm_target: tvm.target.Target
    flags: tuple[str, ...]
    is_host: bool
    by_number: str | None = None

    def has(self, flag: str) -> bool:
        return flag in self.flags

    def find_family(self, precision: str, *, tiles: bool = False) -> Family | None:
        """The instructions of our kernels of a precision; None if this CPU lacks them."""
        return family_for(self.flags, precision, tiles=tiles)

    def family(self, precision: str) -> Family:
        """The same. Raises UserError if this CPU lacks them."""
        family = self.find_family(precision)
        if family is not None:
            return family
        if precision == "fp32":
            raise UserError(
                f"{self.cpu} has neither AVX-512 nor AVX2 with FMA, which the tuned kernels are made of. "
                "Compile with --tuning-log-file none, or --target-cpu of a CPU that has it."
            )
        *_, simplest = (family for family in FAMILIES if family.precision == precision)
        missing = ", ".join(flag for flag in simplest.flags if not self.has(flag))
        raise UserError(
            f"--precision {precision} needs {missing}, which {'this CPU' if self.is_host else self.cpu} lacks. "
            "Use --precision fp32, or --target-cpu of a CPU that has it."
        )

    def layer_family(self, words: str, precision: str) -> Family:
        """Of a layer that takes such words (words.py) in a network of this precision, on vectors."""
        network = self.family(precision)
        return network if words == network.takes else self.family(words)

    @property
    def caches(self) -> Caches:
        """This machine's as sysfs has them; other CPUs' by name."""
        return (host_caches() if self.is_host else None) or caches_of(self.cpu)


def cpu_target(name: str | None) -> CpuTarget:
    """The target called `name`, or this host's. Raises UserError for a name that LLVM does not know.

    LLVM itself takes any name and falls back to generic code. A virtual machine may hide instructions of its CPU
    model; for this host they are switched off, so that the code runs here.
    """
    host = host_cpu()
    cpu = host if name is None else name
    if not codegen.llvm_is_valid_cpu(cpu, codegen.llvm_get_system_triple()):
        known = [str(entry) for entry in codegen.llvm_get_cpu_archlist(tvm.target.Target("llvm"))]
        near = difflib.get_close_matches(cpu, known, n=3, cutoff=0.5) or ["znver4", "sapphirerapids", "icelake-server"]
        raise UserError(f"--target-cpu {cpu} is not a CPU that LLVM knows. Try {', '.join(near)}.")
    options = _options(cpu)
    features = _features(cpu)
    hidden = _hidden_features(features, on_host=cpu == host)
    if hidden:
        options["mattr"] = [f"-{feature}" for feature in hidden]
    numbered = codegen.llvm_get_system_cpu()
    other = numbered if cpu == host != numbered else None
    return CpuTarget(cpu, tvm.target.Target(options), required_flags(features - set(hidden)), cpu == host, other)


def host_cpu() -> str:
    """LLVM's name of this machine's CPU, which it takes from the model number.

    A hypervisor may give another model's number (a Granite Rapids calls itself a Rocket Lake), and LLVM may be older
    than the CPU. Where our kernels would miss instructions that the machine has, it is the server CPU of the same
    vendor that has most of the machine's flags, and of those the one that has the fewest others.
    """
    named, flags = codegen.llvm_get_system_cpu(), host_flags()
    of_kernels = flags & {flag for family in FAMILIES for flag in family.flags}
    if of_kernels <= set(required_flags(_features(named))):
        return named
    vendor = codegen.llvm_get_system_x86_vendor()
    needed = {cpu: set(required_flags(_features(cpu))) for cpu in SERVER_CPUS.get(vendor, ())}
    return max(needed, key=lambda cpu: (len(needed[cpu] & flags), -len(needed[cpu] - flags)), default=named)


def _options(cpu: str) -> dict[str, Any]:
    return {"kind": "llvm", "mcpu": cpu, "num-cores": 1}


def _features(cpu: str) -> set[str]:
    return {str(feature) for feature in codegen.llvm_get_cpu_features(tvm.target.Target(_options(cpu)))}


def _hidden_features(names: set[str], *, on_host: bool) -> list[str]:
    """Features that LLVM must not use: those that no flag of ours stands for, and on this host those it hides."""
    features = sorted(names)
    unknown = [f for f in features if f.startswith(_INSTRUCTION_SETS) and f not in FLAG_OF_FEATURE]
    flags = host_flags() if on_host else frozenset(FLAG_OF_FEATURE.values())
    return unknown + [f for f in features if f in FLAG_OF_FEATURE and FLAG_OF_FEATURE[f] not in flags]
