"""What the nodes measured -> lines for people, one JSON object. Items/s are added up; percentiles never are.

window spread = the latest opening of a node's window - the earliest, by the driver's clock
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..console import line, percentiles_text
from ..errors import FOUND_WANTING, interrupted_status

_MOST_SPREAD = 0.01  # of the duration


@dataclass(frozen=True)
class NodeReport:
    """One node. fields: of its script's JSON line; None where none came, for this reason.

    ahead_s: its clock less the driver's, give or take within_s.
    """

    address: str
    host: str
    fields: dict[str, Any] | None
    reason: str
    warnings: tuple[str, ...]
    ahead_s: float
    within_s: float

    def to_json(self) -> dict[str, Any]:
        known = {"address": self.address, "host": self.host, "node_warnings": list(self.warnings)}
        return {**known, "lost": self.reason or None, **(self.fields or {})}


@dataclass(frozen=True)
class ClusterReport:
    nodes: tuple[NodeReport, ...]
    duration_s: float

    @property
    def told(self) -> list[NodeReport]:
        """Those that have figures."""
        return [node for node in self.nodes if node.fields is not None]

    @property
    def interrupted(self) -> bool:
        return any(node.fields["interrupted"] for node in self.told)

    @property
    def missing(self) -> int:
        return len(self.nodes) - len(self.told)

    @property
    def items_per_s(self) -> float | None:
        """None where a node is missing: a sum of the others would be of another cluster."""
        return None if self.missing else sum(node.fields["items_per_s"] for node in self.nodes)

    @property
    def spread_ms(self) -> float | None:
        opened = [node.fields["window_opened_at"] - node.ahead_s for node in self.told]
        return (max(opened) - min(opened)) * 1e3 if len(opened) > 1 else None

    @property
    def within_ms(self) -> float:
        """Of the spread: the two least certain clocks."""
        return sum(sorted(node.within_s for node in self.nodes)[-2:]) * 1e3

    @property
    def warnings(self) -> list[str]:
        found = [f"node {number}: {each}" for number, node in enumerate(self.nodes) for each in node.warnings]
        if self.spread_ms is not None and self.spread_ms > _MOST_SPREAD * self.duration_s * 1e3:
            found.append(
                f"The windows opened {self.spread_ms:,.0f} ms apart, more than 1 % of {self.duration_s:g} s: some "
                "nodes ran while others did not. Try a longer --duration."
            )
        return found

    @property
    def status(self) -> int:
        return FOUND_WANTING if self.missing else interrupted_status() if self.interrupted else 0

    def text(self) -> str:
        lines = [each for number, node in enumerate(self.nodes) for each in _node_lines(number, node)]
        if self.spread_ms is not None:
            lines.append(line("windows", f"opened within {self.spread_ms:.1f} ms, give or take {self.within_ms:.1f}"))
        if self.missing:
            lines.append(line("throughput", f"no sum: {self.missing} of {len(self.nodes)} nodes have no figures"))
        else:
            rates = f"{self.items_per_s:,.0f} items/s, the sum of {len(self.nodes)} nodes"
            lines.append(line("throughput", rates + " (interrupted)" * self.interrupted))
        return "\n".join([*lines, *(f"Warning: {each}" for each in self.warnings)])

    def to_json(self) -> dict[str, Any]:
        return {
            "items_per_s": self.items_per_s,
            "duration_s": self.duration_s,
            "window_spread_ms": self.spread_ms,
            "window_spread_within_ms": self.within_ms,
            "interrupted": self.interrupted,
            "warnings": self.warnings,
            "nodes": [node.to_json() for node in self.nodes],
        }


def _node_lines(number: int, node: NodeReport) -> list[str]:
    label, fields = f"node {number}", node.fields
    if fields is None:
        return [line(label, f"{node.host} at {node.address}: no figures ({node.reason})")]
    rate = f"{fields['items_per_s']:,.0f} items/s  {percentiles_text(fields['latency_ms'], 'p50', 'p99')} ms"
    seed = "" if fields["arrival_seed"] is None else f"  arrival seed {fields['arrival_seed']}"
    own = [f"Warning: {label}: {each}" for each in fields["warnings"]]
    return [line(label, f"{node.host}  {rate}  {fields['peak_fraction']:.3f} of peak{seed}"), *own]
