"""On which NUMA node weights lie, as a plan and as the system calls that carry it out.

    replicate    one copy of the tables on each node that runs instances, each instance reads its own node's
    interleave   one copy, its pages dealt out over all nodes: equal bandwidth for all, nobody close
    local        no copy: the tables' files, in the page cache of whichever node read them first

The MLPs' weights are few and read by every item, so with more than one node each node has a copy of them in any case.
Knows nothing of files or of TVM. (Linux: set_mempolicy(2), mbind(2), linux/mempolicy.h.)
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .topology import Topology

POLICIES = ("replicate", "interleave", "local")

_PREFERRED, _BIND, _INTERLEAVE = 1, 2, 3  # MPOL_*
_NUMBERS = {"mbind": 237, "set_mempolicy": 238, "get_mempolicy": 239}  # x86-64
_MARGIN = 1.05  # of a node's memory: workers and page tables want some too


@dataclass(frozen=True)
class MemoryPolicy:
    """Where pages come from: the one node, or all of several in turn."""

    nodes: tuple[int, ...]

    @property
    def mode(self) -> int:
        return _BIND if len(self.nodes) == 1 else _INTERLEAVE


@dataclass(frozen=True)
class NumaPlan:
    """wanted: what the user asked for; policy: one of POLICIES, None on a machine of one node; reason: for people.

    instance_nodes: for each instance the node of its first core.
    table_copies: the policy of each copy of the tables; table_copy_of: which of them each instance reads, None: none.
    """

    wanted: str | None
    policy: str | None
    reason: str
    instance_nodes: tuple[int, ...]
    table_copies: tuple[MemoryPolicy, ...] = ()
    table_copy_of: tuple[int | None, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        """Those that run instances."""
        return tuple(sorted(set(self.instance_nodes)))


def plan_numa(
    topology: Topology,
    cores: Sequence[Sequence[int]],
    *,
    table_bytes: int,
    node_bytes: dict[int, int],
    wanted: str | None,
) -> NumaPlan:
    """wanted: what the user asks for, None for the best that fits; node_bytes: available memory of each node."""
    node_of = {thread.cpu: thread.node for thread in topology.threads}
    instance_nodes = tuple(node_of[each[0]] for each in cores)
    count = len(instance_nodes)
    if topology.num_nodes == 1:
        reason = "this machine has one NUMA node, so --numa changes nothing"
        return NumaPlan(wanted, None, reason, instance_nodes, (), (None,) * count)
    nodes = tuple(sorted(set(instance_nodes)))
    short = [node for node in nodes if node_bytes.get(node, 0) < _MARGIN * table_bytes]
    together = sum(node_bytes.values()) >= _MARGIN * table_bytes
    policy, reason = wanted, "as asked"
    if wanted is None:
        policy, reason = _best(short, together, nodes)
    if policy == "replicate":
        copies = tuple(MemoryPolicy((node,)) for node in nodes)
        return NumaPlan(
            wanted, policy, reason, instance_nodes, copies, tuple(nodes.index(node) for node in instance_nodes)
        )
    if policy == "interleave":
        everywhere = MemoryPolicy(tuple(sorted(node_bytes)))
        return NumaPlan(wanted, policy, reason, instance_nodes, (everywhere,), (0,) * count)
    return NumaPlan(wanted, policy, reason, instance_nodes, (), (None,) * count)


def _best(short: list[int], together: bool, nodes: tuple[int, ...]) -> tuple[str, str]:
    if not short:
        return "replicate", f"all {len(nodes)} copies fit in memory"
    if together:
        return "interleave", f"a copy does not fit in the memory of node {short[0]}, one over all nodes does"
    return "local", "the tables do not fit in the memory of all nodes together"


def node_memory(root: Path = Path("/")) -> dict[int, int]:
    """Bytes that each node can give, clean file pages included: from its meminfo."""
    memory = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        text = (folder / "meminfo").read_text()
        sizes = {name: int(size) for name, size in re.findall(r"Node \d+ ([\w()]+):\s+(\d+) kB", text)}
        free = ("MemFree", "Active(file)", "Inactive(file)")
        memory[int(folder.name[4:])] = 1024 * sum(sizes.get(name, 0) for name in free)
    return memory


def _syscall(name: str, *arguments: object) -> None:
    """Raises OSError as the kernel says."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(_NUMBERS[name]), *(_argument(value) for value in arguments)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def _argument(value: object) -> object:
    return ctypes.c_ulong(value) if isinstance(value, int) else value


def bind_memory(address: int, nbytes: int, policy: MemoryPolicy, call: Callable[..., None] = _syscall) -> None:
    """mbind: pages of these addresses, when first touched, come from the policy's nodes. Raises OSError."""
    mask = _mask(policy.nodes)
    call("mbind", address, nbytes, policy.mode, mask, _bits(mask), 0)


def prefer_node(node: int, call: Callable[..., None] = _syscall) -> None:
    """set_mempolicy: what this thread, and threads it starts, touch first comes from `node` while that has any."""
    mask = _mask((node,))
    call("set_mempolicy", _PREFERRED, mask, _bits(mask))


def _mask(nodes: Sequence[int]) -> ctypes.Array:
    """The kernel's node mask: an array of unsigned long, bit n for node n."""
    words = (ctypes.c_ulong * (max(nodes) // 64 + 1))()
    for node in nodes:
        words[node // 64] |= 1 << (node % 64)
    return words


def _bits(mask: ctypes.Array) -> int:
    """maxnode: one more than the bits, as the kernel subtracts one (mm/mempolicy.c, get_nodes)."""
    return 64 * len(mask) + 1
