"""The nodes of a run as the driver sees them: an actor on each, asked all at once and heard of every 2 s.

A killed raylet is noticed by Ray after 15 s, a cut cable after 62 s (measured); a node that answers no ping for 10 s is
lost. Calls of a lost node are given up, and nothing waits for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..errors import UserError, one_line
from .connection import away

_PLACE_S = 20.0
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
    heard: float = field(default_factory=time.monotonic)
    rtt_s: float = float("inf")
    offset_s: float = 0.0


Answers = dict[Member, tuple[bool, Any]]  # (True, what the node's method gave) or (False, why it failed)


class Fleet:
    """lost: of each node that is, the reason. Raises UserError where the cluster has too few nodes or CPUs."""

    def __init__(self, ray: ModuleType, count: int | None) -> None:
        self._ray = ray
        nodes = _nodes(ray, count)
        self._group = _placed(ray, [cpus for _, cpus in nodes])
        self.lost: dict[Member, str] = {}
        self.members = self._members(nodes)
        self.set_clocks()

    def _members(self, nodes: list[tuple[str, int]]) -> list[Member]:
        """One actor a bundle, with all of its CPUs. Bundles of one size may lie on any node of it: ask Ray where."""
        from ray.util.placement_group import placement_group_table
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        where = placement_group_table(self._group)["bundles_to_node_id"]
        address_of = {node["NodeID"]: _name(node) for node in self._ray.nodes()}
        remote = self._ray.remote(away("cluster.node", "Node"))
        members = []
        for bundle, (_, cpus) in enumerate(nodes):
            strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
            options = {"num_cpus": cpus, "max_concurrency": 8, "max_restarts": 0, "max_task_retries": 0}
            actor = remote.options(scheduling_strategy=strategy, **options).remote(cpus, os.getcwd())
            members.append(Member(address_of[where[bundle]], cpus, actor))
        return members

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if member not in self.lost]

    def ask(self, method: str, *arguments: Any, look: Callable[[Answers], object] = lambda _: None) -> Answers:
        """Of each node that lives. look: is called ten times a second with those that came."""
        pending = {member.actor.call.remote(method, *arguments): member for member in self.alive}
        answers: Answers = {}
        while pending:
            done, _ = self._ray.wait(list(pending), timeout=_LOOK_S)
            for reference in done:
                self._take(pending.pop(reference), reference, answers)
            self._ping()
            for reference in [each for each, member in pending.items() if member in self.lost]:
                del pending[reference]
            look(answers)
        return answers

    def tell(self, method: str) -> None:
        """All at once, without waiting."""
        for member in self.alive:
            member.actor.call.remote(method)

    def _take(self, member: Member, reference: Any, answers: Answers) -> None:
        try:
            answers[member] = self._ray.get(reference)
            member.heard = time.monotonic()
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
            elif now - max(member.heard, member.pinged) > _SILENCE_S:
                self.lost[member] = f"no answer for {_SILENCE_S:g} s"

    def set_clocks(self) -> None:
        """Wait until all actors are there, and ask each what its clock says, by Cristian's algorithm: the answer was
        given in the middle of the time that it took, give or take half of that."""
        for timeout_s in (_PLACE_S * 3, *[_SILENCE_S] * 5):
            for member in self.alive:
                sent_at = time.time()
                try:
                    there = self._ray.get(member.actor.clock.remote(), timeout=timeout_s)
                except self._ray.exceptions.RayError as error:
                    self.lost[member] = _reason(error)
                    continue
                now, member.heard = time.time(), time.monotonic()
                if now - sent_at < member.rtt_s:
                    member.rtt_s, member.offset_s = now - sent_at, there - (now + sent_at) / 2


def _nodes(ray: ModuleType, count: int | None) -> list[tuple[str, int]]:
    """(address, CPUs) of as many nodes as are wanted, those with the most."""
    nodes = [(_name(node), int(node["Resources"].get("CPU", 0))) for node in ray.nodes() if node["Alive"]]
    nodes = sorted((node for node in nodes if node[1]), key=lambda node: -node[1])
    if not nodes:
        raise UserError("The cluster has no node with CPUs. Start one: ray start --address HOST:PORT")
    if count is not None and count > len(nodes):
        raise UserError(
            f"--ray-nodes {count}: the cluster has {len(nodes)}. Give as many at most, or start more nodes."
        )
    return nodes[:count]


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def _placed(ray: ModuleType, cpus: list[int]) -> Any:
    """A placement group of whole nodes, each on its own."""
    group = ray.util.placement_group([{"CPU": each} for each in cpus], strategy="STRICT_SPREAD")
    if not group.wait(_PLACE_S):
        free = ray.available_resources().get("CPU", 0)
        ray.util.remove_placement_group(group)
        raise UserError(
            f"The cluster's CPUs are taken: {free:g} are free, {sum(cpus)} on {len(cpus)} whole nodes were wanted for "
            f"{_PLACE_S:g} s. Wait for its other jobs to end, or give --ray-nodes."
        )
    return group


def _reason(error: Exception) -> str:
    return one_line(error).partition(". ")[0][:200]
