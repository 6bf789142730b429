"""Sizes of a core's caches: of this machine from sysfs, of other CPUs from a table by LLVM's names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .topology import size_bytes, system_text

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Caches:
    """In bytes. l1d, l2: of a core, as rules use them. l3, for the record: the whole of a last level where sysfs shows
    it, a core's share where the table gives it, 0 where it is not known."""

    l1d: int
    l2: int
    l3: int = 0


# LLVM's -mcpu -> caches, by the vendors' manuals (AMD PPRs, Intel's optimization reference manual); L3 per core of the
# larger server models.
_KNOWN = {
    "znver2": Caches(32 * _KIB, 512 * _KIB, 4 * _MIB),
    "znver3": Caches(32 * _KIB, 512 * _KIB, 4 * _MIB),
    "znver4": Caches(32 * _KIB, 1 * _MIB, 4 * _MIB),
    "znver5": Caches(48 * _KIB, 1 * _MIB, 4 * _MIB),
    "haswell": Caches(32 * _KIB, 256 * _KIB, 2560 * _KIB),
    "broadwell": Caches(32 * _KIB, 256 * _KIB, 2560 * _KIB),
    "skylake-avx512": Caches(32 * _KIB, 1 * _MIB, 1408 * _KIB),
    "cascadelake": Caches(32 * _KIB, 1 * _MIB, 1408 * _KIB),
    "cooperlake": Caches(32 * _KIB, 1 * _MIB, 1408 * _KIB),
    "icelake-server": Caches(48 * _KIB, 1280 * _KIB, 1536 * _KIB),
    "sapphirerapids": Caches(48 * _KIB, 2 * _MIB, 1920 * _KIB),
    "emeraldrapids": Caches(48 * _KIB, 2 * _MIB, 5 * _MIB),
    "graniterapids": Caches(48 * _KIB, 2 * _MIB, 4 * _MIB),
    "sierraforest": Caches(32 * _KIB, 1 * _MIB, 768 * _KIB),  # 4 MB of L2 for four cores
}
SERVER_CPUS = {
    "amd": tuple(cpu for cpu in _KNOWN if cpu.startswith("znver")),
    "intel": tuple(cpu for cpu in _KNOWN if not cpu.startswith("znver")),
}
_ANY = Caches(32 * _KIB, 512 * _KIB, 1 * _MIB)  # the least of the servers above, L3 aside


def caches_of(cpu: str) -> Caches:
    """Of a CPU by LLVM's name; small ones for a name that is not in the table."""
    return _KNOWN.get(cpu, _ANY)


def host_caches(root: str | Path = "/") -> Caches | None:
    """Of this machine's first cpu; None where sysfs does not show its L1 and L2, as in some virtual machines."""
    sizes: dict[str, int] = {}
    for index in sorted((Path(root) / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level = system_text(index / "level")
        if system_text(index / "type") != "Instruction":
            sizes[level] = size_bytes(system_text(index / "size"))
    if not (sizes.get("1") and sizes.get("2")):
        return None
    return Caches(sizes["1"], sizes["2"], sizes.get("3", 0))
