"""Where a figure was measured: machine, load, limits, versions, command. Recorded with every result."""

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

from .cpu import host_flags, host_model
from .topology import Topology, format_cpu_list

_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "numpy")
_CPU_FLAGS = re.compile(r"avx2|fma|avx512\w*|avx_vnni|amx_\w+|hypervisor")


def describe_environment(topology: Topology) -> dict[str, object]:
    """JSON-able; what cannot be read is None."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": host_model(),
        "cpu_flags": sorted(flag for flag in host_flags() if _CPU_FLAGS.fullmatch(flag)),
        "hardware_threads": len(topology.threads),
        "physical_cores": topology.num_cores,
        "numa_nodes": topology.num_nodes,
        "l3_mb": round(topology.l3_bytes / 1e6, 1),
        "usable_cpus": format_cpu_list(topology.usable),
        "cpu_quota": topology.quota,
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_huge_pages": _selected(_text("/sys/kernel/mm/transparent_hugepage/enabled")),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "git_commit": _git_commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _selected(text: str | None) -> str | None:
    """ "always [madvise] never" -> "madvise"."""
    found = re.search(r"\[(\w+)\]", text or "")
    return found.group(1) if found else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this checkout, with + when files differ from it; None outside of git."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    describe = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
