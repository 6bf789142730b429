"""The recorded environment, from pasted /proc and /sys trees."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from sysfs_trees import meminfo, read_by_psutil, two_socket_tree, write

from dlrm_tvm.machine.environment import describe_environment
from dlrm_tvm.machine.topology import read_topology


@pytest.fixture(autouse=True)
def procfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_by_psutil(tmp_path, monkeypatch)


CPUINFO = "processor : 0\nmodel name : AMD EPYC 7763\nflags : fpu avx2 fma hypervisor sse"


def environment(root: Path) -> dict[str, object]:
    described = describe_environment(read_topology(root, affinity=range(128)), root)
    json.dumps(described)
    return described


def test_everything_is_read_from_the_tree(tmp_path: Path) -> None:
    root = two_socket_tree(tmp_path)
    write(root, "proc/cpuinfo", CPUINFO)
    meminfo(root, total_kb=24_000_000, swap_kb=2_000_000)
    write(root, "sys/devices/system/cpu/smt/active", "1")
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance")
    write(root, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    write(root, "sys/class/dmi/id/sys_vendor", "QEMU")
    write(root, "sys/fs/cgroup/user.slice/memory.max", "8000000000")
    write(root, "sys/fs/cgroup/user.slice/session-1.scope/memory.max", "max")
    seen = environment(root)
    assert seen["cpu"] == "AMD EPYC 7763"
    assert seen["cpu_flags"] == ["avx2", "fma", "hypervisor"]
    assert (seen["smt"], seen["virtual_machine"], seen["governor"]) == (True, "QEMU", "performance")
    assert (seen["hardware_threads"], seen["physical_cores"], seen["numa_nodes"]) == (128, 64, 2)
    assert (seen["memory_total_mb"], seen["swap_total_mb"], seen["memory_limit_mb"]) == (24576, 2048, 8000)
    assert seen["transparent_huge_pages"] == "madvise"


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    root = two_socket_tree(tmp_path)
    write(root, "proc/cpuinfo", "processor : 0")
    seen = environment(root)
    for key in ("smt", "virtual_machine", "memory_total_mb", "swap_total_mb", "memory_limit_mb", "governor"):
        assert seen[key] is None


def test_a_hypervisor_that_does_not_name_itself_is_unknown(tmp_path: Path) -> None:
    root = two_socket_tree(tmp_path)
    write(root, "proc/cpuinfo", CPUINFO)
    assert environment(root)["virtual_machine"] == "unknown"


def test_a_limit_of_the_older_cgroups_counts_and_its_largest_number_is_none(tmp_path: Path) -> None:
    root = two_socket_tree(tmp_path)
    write(root, "proc/cpuinfo", CPUINFO)
    write(root, "proc/self/cgroup", "4:memory:/docker/abc\n0::/")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert environment(root)["memory_limit_mb"] is None
    write(root, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "4000000000")
    assert environment(root)["memory_limit_mb"] == 4000


def test_versions_of_other_engines_are_recorded_where_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if package in ("openvino", "apache-tvm-ffi"):
            raise metadata.PackageNotFoundError
        return "1.5"

    monkeypatch.setattr(metadata, "version", version)
    root = two_socket_tree(tmp_path)
    write(root, "proc/cpuinfo", CPUINFO)
    needed = {"apache-tvm": "1.5", "apache-tvm-ffi": None, "numpy": "1.5"}
    assert environment(root)["versions"] == needed | {"onnxruntime": "1.5", "mlcommons-loadgen": "1.5"}
