"""The CPU's instructions, those that a library needs, and the clock. An illegal instruction must be impossible.

The names in manifests are those of /proc/cpuinfo. Knows neither TVM nor any model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

from ..errors import UserError
from .topology import online_cpus

BF16_FLAG, VNNI_FLAG = "avx512_bf16", "avx512_vnni"  # multiply-adds of bfloat16 pairs, of four bytes
# The least that a library of ours in a precision needs, for those who may not import kernels/isa.py.
PRECISION_FLAGS = {"fp32": (), "bf16": ("avx512bw", BF16_FLAG), "int8": ("avx2", "fma")}

# LLVM's feature name -> flag in /proc/cpuinfo, for every feature that makes LLVM emit other instructions. The others
# only tune (slow-*, fast-*, prefer-*), or are never emitted unless a program asks for them (pku, shstk, rdseed, which
# was hidden on a Zen 5).
FLAG_OF_FEATURE = {
    "sse": "sse", "sse2": "sse2", "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2",
    "sse4a": "sse4a", "popcnt": "popcnt", "cx16": "cx16", "sahf": "lahf_lm", "movbe": "movbe", "lzcnt": "abm",
    "bmi": "bmi1", "bmi2": "bmi2", "adx": "adx", "aes": "aes",
    "pclmul": "pclmulqdq", "sha": "sha_ni", "gfni": "gfni", "vaes": "vaes", "vpclmulqdq": "vpclmulqdq",
    "f16c": "f16c", "fma": "fma", "fma4": "fma4", "xop": "xop", "tbm": "tbm", "avx": "avx", "avx2": "avx2",
    "avxvnni": "avx_vnni", "avxifma": "avx_ifma", "avxvnniint8": "avx_vnni_int8", "avxneconvert": "avx_ne_convert",
    "avx512f": "avx512f", "avx512cd": "avx512cd", "avx512bw": "avx512bw", "avx512dq": "avx512dq",
    "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi", "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni", "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16", "avx512vp2intersect": "avx512_vp2intersect",
    "amx-tile": "amx_tile", "amx-int8": "amx_int8", "amx-bf16": "amx_bf16", "amx-fp16": "amx_fp16",
    "prfchw": "3dnowprefetch",
    "egpr": "apx", "ndd": "apx", "nf": "apx", "ccmp": "apx", "push2pop2": "apx", "ppx": "apx", "zu": "apx",
}  # fmt: skip


def host_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The flags of this machine's CPU; empty where the file has none (another architecture)."""
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def host_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's own name."""
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def clock_mhz(cpus: Iterable[int]) -> float | None:
    """Mean clock frequency of these cpus now; None where the kernel does not tell each one's.

    Reads files per cpu of the machine, so that it takes milliseconds on large ones.
    """
    try:
        clocks = [each.current for each in psutil.cpu_freq(percpu=True)]
    except (AttributeError, NotImplementedError, OSError):  # how psutil says that it cannot tell
        return None
    online = online_cpus()
    if len(clocks) != len(online):  # one figure for several cpus
        return None
    of_cpu = dict(zip(online, clocks))
    found = [of_cpu[cpu] for cpu in cpus if of_cpu.get(cpu)]
    return sum(found) / len(found) if found else None


def required_flags(llvm_features: Iterable[str]) -> tuple[str, ...]:
    """The flags that a machine needs to run code compiled by LLVM for these features."""
    return tuple(sorted({FLAG_OF_FEATURE[feature] for feature in llvm_features if feature in FLAG_OF_FEATURE}))


def check_host_runs(library: str, needed: Iterable[str], flags: frozenset[str] | None = None) -> None:
    """Raise UserError when this machine lacks an instruction that the library uses."""
    missing = sorted(set(needed) - (host_flags() if flags is None else flags))
    if missing:
        raise UserError(
            f"{library} needs {', '.join(missing)}, which this CPU lacks. "
            "Compile it on this machine, or with --target-cpu set to this machine's CPU."
        )
