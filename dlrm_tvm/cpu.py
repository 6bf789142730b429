"""Which instructions a CPU has, and which ones a library needs: an illegal instruction must be impossible.

The names in manifests are those of /proc/cpuinfo. Knows neither TVM nor any model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .errors import UserError

# LLVM's feature name -> flag in /proc/cpuinfo, for every feature that makes LLVM emit other instructions. What is not
# here either tunes (slow-*, fast-*, prefer-*) or is never emitted unless a program asks for it (pku, shstk, mwaitx).
FLAG_OF_FEATURE = {
    "sse": "sse", "sse2": "sse2", "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2",
    "sse4a": "sse4a", "popcnt": "popcnt", "cx16": "cx16", "sahf": "lahf_lm", "movbe": "movbe", "lzcnt": "abm",
    "bmi": "bmi1", "bmi2": "bmi2", "adx": "adx", "rdrnd": "rdrand", "rdseed": "rdseed", "aes": "aes",
    "pclmul": "pclmulqdq", "sha": "sha_ni", "gfni": "gfni", "vaes": "vaes", "vpclmulqdq": "vpclmulqdq",
    "f16c": "f16c", "fma": "fma", "fma4": "fma4", "xop": "xop", "tbm": "tbm", "avx": "avx", "avx2": "avx2",
    "avxvnni": "avx_vnni", "avxifma": "avx_ifma", "avxvnniint8": "avx_vnni_int8", "avxneconvert": "avx_ne_convert",
    "avx512f": "avx512f", "avx512cd": "avx512cd", "avx512bw": "avx512bw", "avx512dq": "avx512dq",
    "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi", "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni", "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16", "avx512vp2intersect": "avx512_vp2intersect",
    "amx-tile": "amx_tile", "amx-int8": "amx_int8", "amx-bf16": "amx_bf16", "amx-fp16": "amx_fp16",
    "movdiri": "movdiri", "movdir64b": "movdir64b", "prfchw": "3dnowprefetch", "fsgsbase": "fsgsbase",
    "egpr": "apx", "ndd": "apx", "nf": "apx", "ccmp": "apx", "push2pop2": "apx", "ppx": "apx", "zu": "apx",
}  # fmt: skip


def host_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The flags of this machine's CPU; empty where the file has none (another architecture)."""
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def host_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name as it calls itself."""
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def required_flags(llvm_features: Iterable[str]) -> tuple[str, ...]:
    """The flags that a machine needs to run code which LLVM made for these features."""
    return tuple(sorted({FLAG_OF_FEATURE[feature] for feature in llvm_features if feature in FLAG_OF_FEATURE}))


def check_host_runs(library: str, needed: Iterable[str], flags: frozenset[str] | None = None) -> None:
    """Raise UserError when this machine lacks an instruction that the library uses."""
    missing = sorted(set(needed) - (host_flags() if flags is None else flags))
    if missing:
        raise UserError(
            f"{library} needs {', '.join(missing)}, which this CPU lacks. "
            "Compile it on this machine, or with --target-cpu set to this machine's CPU."
        )
