"""The environment of a measurement, recorded with every result: machine, load, limits, versions, command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from ..paths import ROOT
from .cpu import clock_mhz, host_flags, host_model
from .memory import limit_bytes, total_bytes
from .topology import Topology, format_cpu_list

_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "numpy")
_PACKAGES_NOT_NEEDED = ("onnxruntime", "openvino", "mlcommons-loadgen")  # recorded where they are installed
_CPU_FLAGS = re.compile(r"avx2|fma|avx512\w*|avx_vnni|amx_\w+|hypervisor")


def describe_environment(topology: Topology, root: Path = Path("/")) -> dict[str, object]:
    """JSON-able; what cannot be read is None. MB are 10^6 bytes. cpu_mhz: the usable cpus' mean clock as it is now.

    root: where /proc and /sys are, for pasted trees; psutil has its own idea of that (psutil.PROCFS_PATH).
    """
    flags = host_flags(root / "proc/cpuinfo")
    memory, swap = total_bytes()
    clock = clock_mhz(topology.usable)
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": host_model(root / "proc/cpuinfo"),
        "cpu_mhz": None if clock is None else round(clock),
        "cpu_flags": sorted(flag for flag in flags if _CPU_FLAGS.fullmatch(flag)),
        "virtual_machine": _virtual_machine(root, flags),
        "hardware_threads": len(topology.threads),
        "physical_cores": topology.num_cores,
        "smt": {"1": True, "0": False}.get(_text(root / "sys/devices/system/cpu/smt/active")),
        "numa_nodes": topology.num_nodes,
        "l3_mb": round(topology.l3_bytes / 1e6, 1),
        "usable_cpus": format_cpu_list(topology.usable),
        "cpu_quota": topology.quota,
        "memory_total_mb": _mb(memory),
        "memory_limit_mb": _mb(limit_bytes(root)),
        "swap_total_mb": _mb(swap),
        "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_huge_pages": _selected(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": _versions(),
        "git_commit": _git_commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _virtual_machine(root: Path, flags: frozenset[str]) -> str | None:
    """The hypervisor's maker or type, "unknown" where only the CPU says that there is one; None on bare metal, or where
    nothing can be read."""
    if "hypervisor" not in flags:
        return _text(root / "sys/hypervisor/type")  # Xen, where the CPU has no such flag
    return _text(root / "sys/hypervisor/type") or _text(root / "sys/class/dmi/id/sys_vendor") or "unknown"


def _mb(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6, 1)


def _selected(text: str | None) -> str | None:
    """ "always [madvise] never" -> "madvise"."""
    found = re.search(r"\[(\w+)\]", text or "")
    return found.group(1) if found else None


def _versions() -> dict[str, str | None]:
    others = {package: version for package in _PACKAGES_NOT_NEEDED if (version := _version(package))}
    return {package: _version(package) for package in _PACKAGES} | others


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this checkout, with + for changed files; None outside of git."""
    if not (ROOT / ".git").exists():
        return None
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
