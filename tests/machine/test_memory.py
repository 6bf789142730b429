"""Memory: of the machine and its cgroups from pasted trees, of a process against the kernel's own rollup."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import pytest
from sysfs_trees import meminfo, read_by_psutil, write

from dlrm_tvm.machine.memory import available_bytes, memory_use, swapped_bytes, total_bytes

GB = 1_000_000_000


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    meminfo(tmp_path, total_kb=24_000_000, available_kb=20_000_000)
    read_by_psutil(tmp_path, monkeypatch)
    write(tmp_path, "proc/self/cgroup", "0::/service/dlrm")
    return tmp_path


def limit(root: Path, folder: str, most: str, used: int, cached: int) -> None:
    write(root, f"sys/fs/cgroup/{folder}/memory.max", most)
    write(root, f"sys/fs/cgroup/{folder}/memory.current", str(used))
    write(
        root, f"sys/fs/cgroup/{folder}/memory.stat", f"anon 1\nactive_file {cached}\ninactive_file 0\ninactive_anon 9"
    )


def test_available_memory_is_the_systems_where_no_group_limits_it(machine):
    assert available_bytes(machine) == 20_000_000 * 1024
    limit(machine, "service/dlrm", "max", 5 * GB, 0)
    assert available_bytes(machine) == 20_000_000 * 1024


def test_available_memory_is_what_the_tightest_group_has_left_with_its_clean_pages(machine):
    limit(machine, "service/dlrm", str(8 * GB), 5 * GB, 2 * GB)
    limit(machine, "service", str(9 * GB), 8 * GB, 1 * GB)
    assert available_bytes(machine) == 2 * GB


def test_available_memory_knows_the_older_groups(machine):
    write(machine, "proc/self/cgroup", "4:memory:/docker/x")
    folder = "sys/fs/cgroup/memory/docker/x"
    for name, text in {"limit_in_bytes": 6 * GB, "usage_in_bytes": GB, "stat": "active_file 0"}.items():
        write(machine, f"{folder}/memory.{name}", str(text))
    assert available_bytes(machine) == 5 * GB


def test_clean_pages_of_the_groups_below_count_in_the_older_groups(machine):
    write(machine, "proc/self/cgroup", "4:memory:/docker/x")
    stat = f"active_file 0\ninactive_file 0\ntotal_inactive_file {2 * GB}\ntotal_active_file {GB}"
    for name, text in {"limit_in_bytes": 6 * GB, "usage_in_bytes": 5 * GB, "stat": stat}.items():
        write(machine, f"sys/fs/cgroup/memory/docker/memory.{name}", str(text))
    assert available_bytes(machine) == 4 * GB


def test_this_machines_memory_is_read():
    assert 0 < available_bytes() < 1 << 50


def test_swap_is_counted_in_bytes_and_as_nothing_where_the_kernel_does_not_count(machine, recwarn):
    assert (total_bytes(), swapped_bytes()) == ((24_000_000 * 1024, 0), (0, 0))
    assert not recwarn.list
    write(machine, "proc/vmstat", "nr_free_pages 9\npswpin 12\npswpout 34\npswpinx 5")
    assert swapped_bytes() == (12 * 4096, 34 * 4096)


def test_without_meminfo_nothing_is_known(tmp_path, monkeypatch):
    read_by_psutil(tmp_path, monkeypatch)
    assert (total_bytes(), swapped_bytes()) == ((None, None), (0, 0))


def rollup(pid: int) -> dict[str, int]:
    """/proc/PID/smaps_rollup in bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def test_a_process_uses_what_the_kernels_rollup_of_its_mappings_says():
    """Pages that are shared in half: a child that only waits maps them too."""
    shared = mmap.mmap(-1, 64 << 20)
    shared.write(bytes(64 << 20))
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        total = sum(shared[at] for at in range(0, 64 << 20, 4096))
        os.write(writing, b"!")
        while True:
            os.read(reading, total)
    try:
        os.read(reading, 1)
        tolerance, before = 4 << 20, {}
        # Read between two that agree: a child of an earlier test that ends meanwhile leaves its half to us.
        while abs(before.get("Pss", 0) - (wanted := rollup(os.getpid()))["Pss"]) > tolerance:
            before, use = wanted, memory_use(os.getpid())
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert use.pss_bytes == pytest.approx(wanted["Pss"], abs=tolerance)
    assert use.private_bytes == pytest.approx(wanted["Private_Clean"] + wanted["Private_Dirty"], abs=tolerance)
    assert use.shared_bytes == use.pss_bytes - use.private_bytes > 32 << 20


def test_memory_of_a_process_that_is_gone_is_an_os_error():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(OSError, match=f"memory of process {child}"):
        memory_use(child)
