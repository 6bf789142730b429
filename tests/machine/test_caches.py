"""Cache sizes from pasted sysfs trees, and from the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from sysfs_trees import write

from dlrm_tvm.machine.caches import Caches, caches_of, host_caches


def tree(root: Path, *caches: tuple[str, str, str]) -> Path:
    """caches: (level, type, size), in sysfs's order."""
    for number, (level, kind, size) in enumerate(caches):
        folder = f"sys/devices/system/cpu/cpu0/cache/index{number}"
        for name, text in (("level", level), ("type", kind), ("size", size)):
            write(root, f"{folder}/{name}", text)
    return root


def test_sizes_are_those_of_data_and_of_both(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        ("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "307200K"),
    )  # fmt: skip
    assert host_caches(root) == Caches(48 << 10, 2 << 20, 300 << 20)


def test_a_machine_that_hides_its_caches_has_none(tmp_path: Path) -> None:
    assert host_caches(tmp_path) is None
    assert host_caches(tree(tmp_path, ("1", "Data", "32K"))) is None


@pytest.mark.parametrize("cpu, l2", [("znver3", 512), ("znver4", 1024), ("emeraldrapids", 2048), ("x86-64-v4", 512)])
def test_other_cpus_have_the_caches_of_their_name(cpu: str, l2: int) -> None:
    assert caches_of(cpu).l2 == l2 << 10
