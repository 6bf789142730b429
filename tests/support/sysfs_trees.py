"""Pasted /sys and /proc trees of machines that are not here."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

ONLINE_CPU = "sys/devices/system/cpu"


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text + "\n")


def two_socket_tree(root: Path) -> Path:
    """2 × 32 cores with SMT, siblings k and k + 64, one node per socket, an L3 of 32 MiB for every 8 cores."""
    write(root, f"{ONLINE_CPU}/online", "0-127")
    write(root, "sys/devices/system/node/node0/cpulist", "0-31,64-95")
    write(root, "sys/devices/system/node/node1/cpulist", "32-63,96-127")
    write(root, "sys/devices/system/node/possible", "0-1")
    write(root, "proc/self/cgroup", "0::/user.slice/session-1.scope")
    for cpu in range(128):
        core = cpu % 64
        ccx = core // 8 * 8
        folder = f"{ONLINE_CPU}/cpu{cpu}"
        write(root, f"{folder}/topology/thread_siblings_list", f"{core},{core + 64}")
        write(root, f"{folder}/topology/physical_package_id", str(core // 32))
        write(root, f"{folder}/topology/core_id", str(core % 32))
        write(root, f"{folder}/cache/index0/level", "1")
        write(root, f"{folder}/cache/index3/level", "3")
        write(root, f"{folder}/cache/index3/size", "32768K")
        write(root, f"{folder}/cache/index3/shared_cpu_list", f"{ccx}-{ccx + 7},{ccx + 64}-{ccx + 71}")
    return root


def meminfo(root: Path, *, total_kb: int, available_kb: int = 0, swap_kb: int = 0) -> None:
    """As much of it as psutil asks for."""
    sizes = {"MemTotal": total_kb, "MemFree": 5, "MemAvailable": available_kb, "SwapTotal": swap_kb, "SwapFree": 0}
    others = ("Buffers", "Cached", "Shmem", "Active", "Inactive")
    write(
        root,
        "proc/meminfo",
        "\n".join(f"{name}: {size} kB" for name, size in {**sizes, **dict.fromkeys(others, 0)}.items()),
    )


def read_by_psutil(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil reads the tree's /proc, as our own code does."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(root / "proc"))
