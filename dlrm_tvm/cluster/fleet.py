"""The nodes of a run as the driver sees them: an actor on each, asked all at once and heard of every 2 s.

A killed raylet is noticed by Ray after 15 s, a cut cable after 62 s (measured); a node that answers no ping for 10 s is
lost. Calls of a lost node are given up, and nothing waits for it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import UserError, one_line
from ..paths import ROOT
from .node import Node

_PLACE_S = 20.0
_IMPORT_S = 60.0
_PING_EVERY_S, _SILENCE_S = 2.0, 10.0
_LOOK_S = 0.1


@dataclass(eq=False)
class Member:
    """actor: runs a `Node`. offset_s: its clock less ours, by the quickest answer, which took rtt_s."""

    address: str
    cpus: int
    actor: Any
    ping: Any = None
    pinged: float = 0.0
    rtt_s: float = float("inf")
    offset_s: float = 0.0


Answers = dict[Member, tuple[bool, Any]]  # (True, what the node's method gave) or (False, why it failed)


class Fleet:
    """lost: of each node that is, the reason. Raises UserError where the cluster has too few nodes or CPUs."""

    def __init__(self, ray: ModuleType, count: int | None) -> None:
        self._ray = ray
        self.lost: dict[Member, str] = {}
        self.members = self._members(_nodes(ray, count))
        self._set_clocks()

    def _members(self, nodes: list[dict[str, Any]]) -> list[Member]:
        """One actor a bundle, with all of its CPUs. Bundles of one size may lie on any node of it: ask Ray where."""
        from ray.util.placement_group import placement_group_table
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = _placed(self._ray, [_cpus(node) for node in nodes])
        node_of = {node["NodeID"]: node for node in self._ray.nodes()}
        members = []
        for bundle, node_id in sorted(placement_group_table(group)["bundles_to_node_id"].items()):
            node, cpus = node_of[node_id], _cpus(nodes[bundle])
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
            options = {"num_cpus": cpus, "max_concurrency": 8, "scheduling_strategy": strategy}
            actor = self._ray.remote(Node).options(**options).remote(bundle, cpus, os.getcwd())
            members.append(Member(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}", cpus, actor))
        return members

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if member not in self.lost]

    def ask(self, method: str, *arguments: Any, look: Callable[[Answers], object] = lambda _: None) -> Answers:
        """Of each node that lives. look: is called ten times a second with those that came."""
        pending = {getattr(member.actor, method).remote(*arguments): member for member in self.alive}
        answers: Answers = {}
        while pending:
            done, _ = self._ray.wait(list(pending), timeout=_LOOK_S)
            for reference in done:
                self._take(pending.pop(reference), reference, answers)
            self._ping()
            pending = {reference: member for reference, member in pending.items() if member not in self.lost}
            look(answers)
        return answers

    def tell(self, method: str) -> None:
        """All at once, without waiting."""
        for member in self.alive:
            getattr(member.actor, method).remote()

    def _take(self, member: Member, reference: Any, answers: Answers) -> None:
        try:
            answers[member] = True, self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            answers[member] = False, one_line(error.cause)
        except self._ray.exceptions.RayError as error:
            self.lost.setdefault(member, _reason(error))

    def _ping(self) -> None:
        now = time.monotonic()
        for member in self.alive:
            if member.ping is None:
                if now - member.pinged >= _PING_EVERY_S:
                    member.pinged, member.ping = now, member.actor.clock.remote()
            elif self._ray.wait([member.ping], timeout=0)[0]:
                self._take(member, member.ping, {})
                member.ping = None
            elif now - member.pinged > _SILENCE_S:
                self.lost[member] = f"no answer for {_SILENCE_S:g} s"

    def _set_clocks(self) -> None:
        """Wait until all actors are there, and ask each what its clock says, by Cristian's algorithm: the answer was
        given in the middle of the time that it took, give or take half of that."""
        for timeout_s in (_IMPORT_S, *[_SILENCE_S] * 5):
            for member in self.alive:
                sent_at = time.time()
                try:
                    there = self._ray.get(member.actor.clock.remote(), timeout=timeout_s)
                except self._ray.exceptions.RayError as error:
                    self.lost[member] = _start_failure(error)
                    continue
                now = time.time()
                if now - sent_at < member.rtt_s:
                    member.rtt_s, member.offset_s = now - sent_at, there - (now + sent_at) / 2


def _nodes(ray: ModuleType, count: int | None) -> list[dict[str, Any]]:
    """As many as are wanted, those with the most CPUs."""
    nodes = sorted((node for node in ray.nodes() if node["Alive"] and _cpus(node)), key=_cpus, reverse=True)
    if not nodes:
        raise UserError("The cluster has no node with CPUs. Start one: ray start --address HOST:PORT")
    if count is not None and count > len(nodes):
        raise UserError(
            f"--ray-nodes {count}: the cluster has {len(nodes)}. Give as many at most, or start more nodes."
        )
    return nodes[:count]


def _cpus(node: dict[str, Any]) -> int:
    return int(node["Resources"].get("CPU", 0))


def _placed(ray: ModuleType, cpus: list[int]) -> Any:
    """A placement group of whole nodes, each on its own."""
    group = ray.util.placement_group([{"CPU": each} for each in cpus], strategy="STRICT_SPREAD")
    if not group.wait(_PLACE_S):
        free = ray.available_resources().get("CPU", 0)
        raise UserError(
            f"The cluster's CPUs are taken: {free:g} are free, {sum(cpus)} on {len(cpus)} whole nodes were wanted for "
            f"{_PLACE_S:g} s. Wait for its other jobs to end, or give --ray-nodes."
        )
    return group


def _start_failure(error: Exception) -> str:
    """Of an actor whose class cannot be imported Ray gives the traceback as text alone."""
    is_import = re.search(r"\b(ImportError|ModuleNotFoundError)\b", str(error))
    return f"dlrm_tvm does not run from {ROOT} there ({_reason(error)})" if is_import else _reason(error)


def _reason(error: Exception) -> str:
    return one_line(getattr(error, "cause", error)).partition(". ")[0][:200]
