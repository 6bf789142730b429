"""NUMA: the plan from a pasted topology, and the system calls that carry it out, recorded and for real."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest
from sysfs_trees import two_socket_tree, write

from dlrm_tvm.errors import UserError
from dlrm_tvm.machine import numa
from dlrm_tvm.machine.address_range import AddressRange
from dlrm_tvm.machine.numa import MemoryPolicy, NumaPlan, bind_memory, node_memory, plan_numa, prefer_node
from dlrm_tvm.machine.shared_memory import SharedMemory
from dlrm_tvm.machine.topology import Topology, read_topology

GB = 1_000_000_000
CORES = ((0, 1), (2, 3), (32, 33), (31, 63))  # nodes 0, 0, 1, and both: counted to its first core's


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return two_socket_tree(tmp_path)


@pytest.fixture
def machine(tree: Path) -> Topology:
    return read_topology(tree, affinity=range(128))


def plan(
    machine: Topology, node_gb: tuple[float, ...], wanted: str | None = None, cores=CORES, refusal: str | None = None
) -> NumaPlan:
    node_bytes = {node: int(size * GB) for node, size in enumerate(node_gb)}
    return plan_numa(machine, cores, table_bytes=96 * GB, node_bytes=node_bytes, wanted=wanted, refusal=refusal)


def test_tables_are_replicated_where_every_node_can_take_a_copy(machine):
    found = plan(machine, (200, 200))
    assert found.policy == "replicate"
    assert "all 2 copies fit" in found.reason
    assert found.table_copies == (MemoryPolicy((0,)), MemoryPolicy((1,)))
    assert found.instance_nodes == (0, 0, 1, 0)
    assert found.table_copy_of == (0, 0, 1, 0)


def test_only_nodes_that_run_instances_get_a_copy(machine):
    found = plan(machine, (10, 200), cores=((32, 33), (34, 35)))
    assert (found.policy, found.nodes) == ("replicate", (1,))
    assert found.table_copies == (MemoryPolicy((1,)),)
    assert found.table_copy_of == (0, 0)


def test_tables_are_interleaved_where_a_copy_per_node_does_not_fit(machine):
    found = plan(machine, (200, 60))
    assert found.policy == "interleave"
    assert "does not fit in the memory of node 1" in found.reason
    assert found.table_copies == (MemoryPolicy((0, 1)),)
    assert found.table_copy_of == (0, 0, 0, 0)


def test_tables_stay_in_their_files_where_all_nodes_together_are_too_small(machine):
    found = plan(machine, (60, 30))
    assert (found.policy, found.table_copies, found.table_copy_of) == ("local", (), (None,) * 4)
    assert "do not fit in the memory of all nodes" in found.reason


@pytest.mark.parametrize("wanted", numa.POLICIES)
def test_what_is_asked_for_is_done(machine, wanted):
    found = plan(machine, (200, 110), wanted)
    assert (found.policy, found.reason) == (wanted, "as asked")
    assert len(found.table_copies) == {"replicate": 2, "interleave": 1, "local": 0}[wanted]


@pytest.mark.parametrize(
    ("node_gb", "wanted", "said"),
    [
        ((10, 400), "replicate", r"node 0 has 10\.0 GB .* a copy of the tables takes 96\.0 GB. Try --numa interleave"),
        ((10, 20), "replicate", r"node 0 has 10\.0 GB .* Try --numa local"),
        ((10, 20), "interleave", r"all nodes together have 30\.0 GB .* Try --numa local"),
    ],
)
def test_what_is_asked_for_and_does_not_fit_is_refused_with_what_does(machine, node_gb, wanted, said):
    with pytest.raises(UserError, match=said):
        plan(machine, node_gb, wanted)


def test_where_the_kernel_places_no_memory_only_what_was_asked_for_is_refused(machine):
    """Docker's default profile forbids mbind: a plain run must go on without it."""
    found = plan(machine, (200, 200), refusal="Operation not permitted")
    assert (found.policy, found.table_copies, found.table_copy_of) == (None, (), (None,) * 4)
    assert "Operation not permitted" in found.reason and "--cap-add SYS_NICE" in found.reason
    assert plan(machine, (200, 200), "local", refusal="Operation not permitted").policy is None
    with pytest.raises(UserError, match=r"--numa replicate: .*Operation not permitted.*--cap-add SYS_NICE"):
        plan(machine, (200, 200), "replicate", refusal="Operation not permitted")


def test_an_instance_on_a_node_without_memory_uses_one_that_has_some(machine):
    found = plan_numa(machine, CORES, table_bytes=GB, node_bytes={1: 9 * GB, 5: 9 * GB}, wanted=None)
    assert found.instance_nodes == (1, 1, 1, 1)
    assert found.table_copies == (MemoryPolicy((1,)),)


@pytest.mark.parametrize("wanted", [None, "replicate"])
def test_on_one_node_nothing_is_copied_whatever_is_asked_for(tmp_path, wanted):
    write(tmp_path, "sys/devices/system/cpu/online", "0-3")
    topology = read_topology(tmp_path, affinity=range(4))
    for node_bytes in ({0: 9 * GB}, {}):
        found = plan_numa(topology, ((0,), (1,)), table_bytes=GB, node_bytes=node_bytes, wanted=wanted)
        assert (found.policy, found.table_copies, found.table_copy_of) == (None, (), (None, None))
        assert ("changes nothing" in found.reason) == (wanted is not None)


def test_a_refusal_to_place_memory_is_found_out_and_said():
    def forbid(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    assert numa.placing_refusal([0, 1], forbid) == "Operation not permitted"
    assert numa.placing_refusal([0, 1], Recorder()) is None


def test_nodes_without_memory_or_not_allowed_here_are_left_out(tree):
    for node, total in enumerate((9000, 0, 9000)):
        text = f"Node {node} MemTotal: {total} kB\nNode {node} MemFree: {total} kB"
        write(tree, f"sys/devices/system/node/node{node}/meminfo", text)
    assert node_memory(tree).keys() == {0, 2}
    write(tree, "proc/self/status", "Name: x\nMems_allowed_list:\t1-2")
    assert node_memory(tree).keys() == {2}


def test_memory_of_nodes_is_read_from_their_meminfo(tree):
    for node, free in ((0, 1000), (1, 30)):
        text = f"Node {node} MemTotal: 9000 kB\nNode {node} MemFree: {free} kB\n"
        text += (
            f"Node {node} Active(file): 200 kB\nNode {node} Inactive(file):      5 kB\nNode {node} Active(anon): 7 kB"
        )
        write(tree, f"sys/devices/system/node/node{node}/meminfo", text)
    assert node_memory(tree) == {0: 1205 * 1024, 1: 235 * 1024}


class Recorder:
    """In place of the system: what was called, node masks as the nodes in them."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, name: str, *arguments: object) -> None:
        self.calls.append(
            (name, *(nodes_of(value) if isinstance(value, ctypes.Array) else value for value in arguments))
        )


def nodes_of(mask: ctypes.Array) -> list[int]:
    return [64 * word + bit for word, bits in enumerate(mask) for bit in range(64) if bits >> bit & 1]


def test_a_copy_for_one_node_is_bound_to_it_and_one_for_all_is_interleaved():
    recorder = Recorder()
    bind_memory(0x200000, 4096, MemoryPolicy((1,)), recorder)
    bind_memory(0x200000, 8192, MemoryPolicy((0, 1, 70)), recorder)
    assert recorder.calls == [
        ("mbind", 0x200000, 4096, 2, [1], 65, 0),  # MPOL_BIND; a word of 64 nodes and one, as get_nodes() wants it
        ("mbind", 0x200000, 8192, 3, [0, 1, 70], 129, 0),  # MPOL_INTERLEAVE
    ]


def test_a_worker_prefers_its_own_node():
    recorder = Recorder()
    prefer_node(3, recorder)
    assert recorder.calls == [("set_mempolicy", 1, [3], 65)]  # MPOL_PREFERRED


def test_the_kernel_takes_the_calls_and_puts_pages_on_the_node(monkeypatch):
    """On node 0, which every machine has; get_mempolicy tells what the kernel understood."""
    memory = SharedMemory(4096, huge=False)
    try:
        bind_memory(memory.range.address, memory.nbytes, MemoryPolicy((0,)))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            pytest.skip(f"this kernel or container allows no mbind: {error}")
        raise
    memory.range.writable_array[0] = 1
    mode, mask = ctypes.c_int(), (ctypes.c_ulong * 16)()
    by_address = 2  # MPOL_F_ADDR
    monkeypatch.setitem(numa._NUMBERS, "get_mempolicy", 239)
    numa._syscall("get_mempolicy", ctypes.byref(mode), mask, 64 * 16 + 1, memory.range.address, by_address)
    assert (mode.value, nodes_of(mask)) == (2, [0])
    memory.close()


def test_a_node_that_is_not_there_is_an_oserror():
    with pytest.raises(OSError, match="mbind"):
        bind_memory(AddressRange(4096).address, 4096, MemoryPolicy((900,)))
