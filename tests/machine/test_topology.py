"""Topology from pasted sysfs text, and the cores that instances get on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sysfs_trees import ONLINE_CPU, two_socket_tree, write

from dlrm_tvm.errors import UserError
from dlrm_tvm.machine.cores import choose_cores
from dlrm_tvm.machine.topology import Topology, format_cpu_list, parse_cpu_list, parse_ranges, read_topology


@pytest.fixture
def two_sockets(tmp_path: Path) -> Path:
    return two_socket_tree(tmp_path)


@pytest.fixture
def machine(two_sockets: Path) -> Topology:
    return read_topology(two_sockets, affinity=range(128))


def test_two_socket_machine_is_read(machine: Topology) -> None:
    assert (len(machine.threads), machine.num_cores, machine.num_nodes) == (128, 64, 2)
    last = machine.threads[127]
    assert (last.core, last.node, last.package, last.cache) == (63, 1, 1, 56)
    assert machine.l3_bytes == 32 * 1024**2
    assert machine.quota is None


def test_one_instance_per_core_by_default(machine: Topology) -> None:
    assert choose_cores(machine, instances=None, threads=1) == tuple((core,) for core in range(64))


def test_threads_get_physical_cores_of_their_own(machine: Topology) -> None:
    assert choose_cores(machine, instances=2, threads=4) == ((0, 1, 2, 3), (4, 5, 6, 7))


def test_hyper_threading_uses_both_siblings(machine: Topology) -> None:
    assert choose_cores(machine, instances=2, threads=2, hyper_threading=True) == ((0, 64), (1, 65))
    assert len(choose_cores(machine, instances=None, threads=1, hyper_threading=True)) == 128


@pytest.mark.parametrize("threads", [3, 5, 6, 7, 12, 20])
def test_no_instance_crosses_a_node_when_avoidable(machine: Topology, threads: int) -> None:
    fit_in_nodes = 2 * (32 // threads)
    for cores in choose_cores(machine, instances=fit_in_nodes, threads=threads):
        assert len({core // 32 for core in cores}) == 1


def test_no_instance_crosses_a_cache_when_avoidable(machine: Topology) -> None:
    chosen = choose_cores(machine, instances=16, threads=3)
    assert all(len({core // 8 for core in cores}) == 1 for cores in chosen)


def test_all_cores_are_used_when_an_instance_must_cross(machine: Topology) -> None:
    chosen = choose_cores(machine, instances=3, threads=20)
    assert len({core for cores in chosen for core in cores}) == 60


def test_too_many_instances_names_what_fits(machine: Topology) -> None:
    with pytest.raises(UserError) as error:
        choose_cores(machine, instances=24, threads=4)
    assert str(error.value) == ("24 instances × 4 threads need 96 cores; 64 are usable here. Try --num-instances 16.")
    with pytest.raises(UserError, match=r"1 instance × 65 threads need 65 cores; .* Try --num-threads 64\."):
        choose_cores(machine, instances=None, threads=65)


@pytest.mark.parametrize(
    "instances, threads, options",
    [(3, 65, {"threads": 21}), (64, 65, {"threads": 1}), (65, 65, {"instances": 64, "threads": 1})],
)
def test_what_is_suggested_when_no_instance_fits_does_fit(
    machine: Topology, instances: int, threads: int, options: dict[str, int]
) -> None:
    with pytest.raises(UserError) as error:
        choose_cores(machine, instances=instances, threads=threads)
    suggested = " ".join(f"--num-{name} {value}" for name, value in options.items())
    assert str(error.value).endswith(f"64 are usable here. Try {suggested}.")
    fitting = {"instances": instances, "threads": threads, **options}
    assert len(choose_cores(machine, **fitting)) == fitting["instances"]


def test_affinity_mask_limits_the_choice(two_sockets: Path) -> None:
    topology = read_topology(two_sockets, affinity=[5, 6, 69, 100])
    assert choose_cores(topology, instances=None, threads=1) == ((5,), (6,), (100,))
    with pytest.raises(UserError, match="Core 7 of --cores is not usable here; usable are 5-6,69,100"):
        choose_cores(topology, instances=1, threads=1, core_list="7")


def test_offline_cpu_is_not_a_core(two_sockets: Path) -> None:
    write(two_sockets, f"{ONLINE_CPU}/online", "0-62,64-127")
    topology = read_topology(two_sockets, affinity=range(128))
    assert (127,) in choose_cores(topology, instances=None, threads=1)
    with pytest.raises(UserError, match="Core 63 of --cores is unknown; this machine has 0-62,64-127"):
        choose_cores(topology, instances=1, threads=1, core_list="63")


def test_cgroup_v2_cpuset_and_quota_limit_the_choice(two_sockets: Path) -> None:
    write(two_sockets, "sys/fs/cgroup/user.slice/cpuset.cpus.effective", "8-15")
    write(two_sockets, "sys/fs/cgroup/user.slice/cpu.max", "350000 100000")
    write(two_sockets, "sys/fs/cgroup/user.slice/session-1.scope/cpu.max", "max 100000")
    topology = read_topology(two_sockets, affinity=range(128))
    assert topology.quota == 3.5
    assert choose_cores(topology, instances=None, threads=1) == ((8,), (9,), (10,))
    with pytest.raises(UserError, match=r"need 4 cores; 3 are usable here \(this container's CPU quota is 3\.5\)"):
        choose_cores(topology, instances=4, threads=1)


def test_cgroup_v1_cpuset_and_quota_limit_the_choice(two_sockets: Path) -> None:
    write(two_sockets, "proc/self/cgroup", "4:cpuset:/box\n3:cpu,cpuacct:/docker/not-mounted-here\n0::/")
    write(two_sockets, "sys/fs/cgroup/cpuset/box/cpuset.cpus", "32,33")
    write(two_sockets, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000")
    write(two_sockets, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    topology = read_topology(two_sockets, affinity=range(128))
    assert topology.usable == {32, 33}
    assert choose_cores(topology, instances=None, threads=1) == ((32,),)


def test_unlimited_cgroup_v1_quota_is_none(two_sockets: Path) -> None:
    write(two_sockets, "proc/self/cgroup", "1:cpu:/")
    write(two_sockets, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    write(two_sockets, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert read_topology(two_sockets, affinity=range(128)).quota is None


def test_core_list_overrides_in_the_order_given(machine: Topology) -> None:
    assert choose_cores(machine, instances=2, threads=2, core_list="10-11,3,40") == ((10, 11), (3, 40))
    assert choose_cores(machine, instances=None, threads=1, core_list="7,2") == ((7,), (2,))


@pytest.mark.parametrize(
    "core_list, message",
    [
        ("200", "Core 200 of --cores is unknown; this machine has 0-127."),
        ("1,1", "core 1 is named twice"),
        ("3,67", "3 and 67 are hardware threads of one core. Name one of them, or add --hyper-threading."),
        ("5-2", "'5-2' is neither a core id nor a range"),
        ("a", "'a' is neither a core id nor a range"),
        ("\u0661", "'\u0661' is neither a core id nor a range"),
        ("0-\u00b2", "is neither a core id nor a range"),
        ("9" * 5000, "is neither a core id nor a range"),
        ("0-99999999999", "'0-99999999999' goes beyond 65535"),
        ("65536", "'65536' goes beyond 65535"),
        ("65535", "Core 65535 of --cores is unknown"),
        ("", "--cores names no core"),
        ("1", "2 instances × 1 thread need 2 cores; --cores names 1. Try --num-instances 1."),
    ],
)
def test_bad_core_list_is_one_line(machine: Topology, core_list: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        choose_cores(machine, instances=2, threads=1, core_list=core_list)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_siblings_may_be_listed_with_hyper_threading(machine: Topology) -> None:
    assert choose_cores(machine, instances=1, threads=2, core_list="3,67", hyper_threading=True) == ((3, 67),)


def test_machine_without_numa_or_cache_files_is_read(tmp_path: Path) -> None:
    write(tmp_path, f"{ONLINE_CPU}/online", "0-1")
    topology = read_topology(tmp_path, affinity=[0, 1])
    assert choose_cores(topology, instances=None, threads=2) == ((0, 1),)
    assert topology.l3_bytes == 0


def test_missing_sysfs_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mount /sys"):
        read_topology(tmp_path, affinity=[0])


def test_this_machine_is_read() -> None:
    topology = read_topology()
    assert topology.usable
    assert choose_cores(topology, instances=1, threads=1)


def test_cpu_lists_round_trip() -> None:
    assert parse_cpu_list("0-3,8,10-11") == [0, 1, 2, 3, 8, 10, 11]
    assert format_cpu_list([11, 10, 8, 3, 2, 1, 0]) == "0-3,8,10-11"
    assert parse_cpu_list("") == []


def test_ranges_keep_to_their_limits_and_their_order() -> None:
    limits = {"least": 1, "most": 9, "noun": "a number from 1 up", "of": " of batch"}
    assert parse_ranges("4, 1 - 3,9,4", **limits) == [4, 1, 2, 3, 9, 4]
    assert parse_ranges("1-9*2,1-8x3", **limits) == [1, 2, 4, 8, 1, 3]
    assert parse_ranges("2-9+3, 3 - 4 + 5", **limits) == [2, 5, 8, 3]
    for text, message in {
        "1-8*1": r"'1-8\*1' of batch is neither",
        "1-8+0": r"'1-8\+0' of batch is neither",
        "1-8*": r"'1-8\*' of batch is neither",
        "1-8*2*2": r"'1-8\*2\*2' of batch is neither",
        "1*2": r"'1\*2' of batch is neither",
        "1-64*2": r"'1-64\*2' of batch goes beyond 9",
        "0-3": "'0-3' of batch is neither a number from 1 up nor a range",
        "2,": "'' of batch is neither",
        "": "'' of batch is neither",
        "8-10": "'8-10' of batch goes beyond 9",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_ranges(text, **limits)
