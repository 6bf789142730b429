"""The weights' NUMA nodes: a plan, and the system calls that carry it out.

    replicate    a copy of the tables on each node that runs instances; each instance reads its own node's
    interleave   one copy, its pages spread over all nodes: equal bandwidth for all, close to none
    local        no copy: the tables' files, in the page cache of whichever node read them first

The MLPs' weights are few and read by every item, so with more than one node each node has a copy of them in any case.
Knows nothing of files or of TVM. (Linux: set_mempolicy(2), mbind(2), linux/mempolicy.h.)
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from .topology import Topology, parse_cpu_list, system_text

POLICIES = ("replicate", "interleave", "local")

_PREFERRED, _BIND, _INTERLEAVE = 1, 2, 3  # MPOL_*
_NUMBERS = {"mbind": 237, "set_mempolicy": 238}  # x86-64
_MARGIN = 1.05  # workers and page tables need some of a node's memory too


@dataclass(frozen=True)
class MemoryPolicy:
    """The nodes that pages come from: the one, or several in turn."""

    nodes: tuple[int, ...]

    @property
    def mode(self) -> int:
        return _BIND if len(self.nodes) == 1 else _INTERLEAVE


@dataclass(frozen=True)
class NumaPlan:
    """policy: one of POLICIES, None where nothing is placed; reason: for people, empty where nobody asked.

    instance_nodes: the node whose memory each instance uses, that of its first core if it has memory. table_copies: the
    policy of each copy of the tables; table_copy_of: the copy that each instance reads, None for the files.
    """

    policy: str | None
    reason: str
    instance_nodes: tuple[int, ...]
    table_copies: tuple[MemoryPolicy, ...] = ()
    table_copy_of: tuple[int | None, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        """The nodes that run instances."""
        return tuple(sorted(set(self.instance_nodes)))


def plan_numa(
    topology: Topology,
    cores: Sequence[Sequence[int]],
    *,
    table_bytes: int,
    node_bytes: dict[int, int],
    wanted: str | None,
    refusal: str | None = None,
) -> NumaPlan:
    """wanted: the user's choice, None for the best that fits; node_bytes: available memory of each node that has any;
    refusal: the kernel's answer to mbind, None where it is allowed.

    Raises UserError for a wanted policy that is impossible.
    """
    node_of = {thread.cpu: thread.node for thread in topology.threads}
    with_memory = sorted(node_bytes) or [0]
    instance_nodes = tuple(node if node in node_bytes else with_memory[0] for node in (node_of[c[0]] for c in cores))
    alone = NumaPlan(None, "", instance_nodes, (), (None,) * len(instance_nodes))
    if len(with_memory) == 1:
        reason = "this machine has one NUMA node with memory, so --numa changes nothing"
        return replace(alone, reason=reason if wanted else "")
    if refusal is not None:
        return replace(alone, reason=_without_placing(wanted, refusal))
    policy, reason = _choose(wanted, instance_nodes, table_bytes, node_bytes)
    plan = replace(alone, policy=policy, reason=reason)
    if policy == "replicate":
        copies = tuple(MemoryPolicy((node,)) for node in plan.nodes)
        copy_of = tuple(plan.nodes.index(node) for node in instance_nodes)
        return replace(plan, table_copies=copies, table_copy_of=copy_of)
    if policy == "interleave":
        everywhere = MemoryPolicy(tuple(with_memory))
        return replace(plan, table_copies=(everywhere,), table_copy_of=(0,) * len(instance_nodes))
    return plan


def _without_placing(wanted: str | None, refusal: str) -> str:
    remedy = "In a container, start it with --cap-add SYS_NICE"
    if wanted in ("replicate", "interleave"):
        raise UserError(f"--numa {wanted}: the kernel does not let this process place memory ({refusal}). {remedy}.")
    return f"memory lies where it is first touched: the kernel does not let this process place it ({refusal}). {remedy}"


def _choose(
    wanted: str | None, instance_nodes: tuple[int, ...], table_bytes: int, node_bytes: dict[int, int]
) -> tuple[str, str]:
    """(policy, reason)."""
    nodes = sorted(set(instance_nodes))
    short = [node for node in nodes if node_bytes[node] < _MARGIN * table_bytes]
    together = sum(node_bytes.values()) >= _MARGIN * table_bytes
    if wanted == "replicate" and short:
        raise UserError(
            f"--numa replicate: node {short[0]} has {node_bytes[short[0]] / 1e9:,.1f} GB of memory available, a copy "
            f"of the tables takes {table_bytes / 1e9:,.1f} GB. Try --numa {'interleave' if together else 'local'}."
        )
    if wanted == "interleave" and not together:
        raise UserError(
            f"--numa interleave: all nodes together have {sum(node_bytes.values()) / 1e9:,.1f} GB of memory available, "
            f"a copy of the tables takes {table_bytes / 1e9:,.1f} GB. Try --numa local."
        )
    if wanted is not None:
        return wanted, "as asked"
    if not short:
        return "replicate", f"all {len(nodes)} copies fit in memory"
    if together:
        return "interleave", f"a copy does not fit in the memory of node {short[0]}, one over all nodes does"
    return "local", "the tables do not fit in the memory of all nodes together"


def node_memory(root: Path = Path("/")) -> dict[int, int]:
    """Available bytes of each node that has memory and may be used here, clean file pages included."""
    memory = {}
    allowed = re.search(r"^Mems_allowed_list:\s*(\S+)", system_text(root / "proc/self/status"), re.MULTILINE)
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        node, text = int(folder.name[4:]), system_text(folder / "meminfo")
        if allowed and node not in parse_cpu_list(allowed[1]):
            continue
        sizes = {name: int(size) for name, size in re.findall(r"Node \d+ ([\w()]+):\s+(\d+) kB", text)}
        free = ("MemFree", "Active(file)", "Inactive(file)")
        if sizes.get("MemTotal"):
            memory[node] = 1024 * sum(sizes.get(name, 0) for name in free)
    return memory


def placing_refusal(nodes: Sequence[int], call: Callable[..., None] | None = None) -> str | None:
    """The kernel's reason not to place memory on these nodes; None where it does.

    Container run-times forbid mbind and set_mempolicy by default (Docker's seccomp profile: without CAP_SYS_NICE).
    """
    page = mmap.mmap(-1, mmap.PAGESIZE)
    held = ctypes.c_char.from_buffer(page)
    try:
        for node in nodes:
            bind_memory(ctypes.addressof(held), mmap.PAGESIZE, MemoryPolicy((node,)), call or _syscall)
    except OSError as error:
        return str(error.strerror)
    finally:
        del held
        page.close()
    return None


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
