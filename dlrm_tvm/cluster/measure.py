"""multi_instance.py --ray: the same run on every node at once, through each node's own script.

    connect -> place -> check all nodes -> start all scripts -> ready -> go -> outcomes -> sum

A node that is lost during the run ends it for all: what came is printed, without a sum. Ctrl-C gives partial figures.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..bench.options import arrivals_of, duration_s, run_settings
from ..console import VERSION, Bar, line
from ..errors import UserError, printable
from ..instances.interrupts import noted_interrupts
from .connection import connected
from .fleet import Answers, Fleet, Member
from .report import ClusterReport, NodeReport

NODE_FLAGS = (
    "model", "num_instances", "num_threads", "duration", "warmup", "cores", "hyper_threading", "ref_data",
    "max_ind_range", "indices_per_bag", "preload", "huge_pages", "numa", "arrivals", "rate", "burst", "profile",
    "engine", "onnx_model", "engine_precision",
)  # fmt: skip
_DRIVER_FLAGS = ("ray", "ray_nodes", "arrival_seed", "output", "quiet")
_PARTIAL_S = 20.0  # they come within 5 s where nodes are not overloaded


def check_cluster_flags(args: argparse.Namespace) -> None:
    """Raises UserError for flags that are of one machine."""
    for name, value in vars(args).items():
        if name not in (*NODE_FLAGS, *_DRIVER_FLAGS) and value is not None and value is not False:
            raise UserError(f"--{name.replace('_', '-')} is for one machine. Leave it or --ray out.")


def measure_cluster(args: argparse.Namespace, show: Callable[[str], None]) -> ClusterReport:
    """Raises UserError where nothing was measured: an address, a cluster or nodes that do not do."""
    with connected(args.ray) as ray:
        with Bar("waiting for nodes"):
            fleet = Fleet(ray, args.ray_nodes)
        try:
            with Bar("checking the nodes"):
                facts = _checked(fleet, args)
            for number, member in enumerate(fleet.members):
                show(line(f"node {number}", f"{facts[member]['host']} at {member.address}, {member.cpus} CPUs"))
            with Bar("starting on the nodes"):
                seed = arrivals_of(args).seed if args.arrivals == "poisson" else None
                started = fleet.ask("start", _words(args, len(fleet.members)), seed)
                _all_or_none(started, fleet, "could not start")
            return _run(fleet, facts, duration_s(args), show)
        finally:
            fleet.ask("end")


def _checked(fleet: Fleet, args: argparse.Namespace) -> dict[Member, dict[str, Any]]:
    answers = fleet.ask("check", VERSION, asdict(run_settings(args)))
    first = next((fields for is_good, fields in answers.values() if is_good), None)
    for member, (is_good, fields) in answers.items():
        for key, what in (("build", "build"), ("library_sha256", "library")):
            if is_good and fields[key] != first[key]:
                reason = f"{args.model} is of another {what} ({fields[key][:12]}, not {first[key][:12]})"
                answers[member] = is_good, fields = False, f"{reason}: copy library, manifest and parameters anew"
    return _all_or_none(answers, fleet, "cannot take part")


def _all_or_none(answers: Answers, fleet: Fleet, what: str) -> dict[Member, Any]:
    """Raises UserError after a line for each node that did not answer well."""
    bad = {member: text for member, (is_good, text) in answers.items() if not is_good} | fleet.lost
    for member in fleet.members:
        if member in bad:
            print(printable(f"node {member.address}: {bad[member]}"), file=sys.stderr)
    if bad:
        raise UserError(f"{len(bad)} of {len(fleet.members)} nodes {what}; nothing was measured.")
    return {member: fields for member, (_, fields) in answers.items()}


def _run(
    fleet: Fleet, facts: dict[Member, dict[str, Any]], duration: float, show: Callable[[str], None]
) -> ClusterReport:
    stopped_at = None
    with noted_interrupts() as interrupts:

        def look(answers: Answers) -> None:
            nonlocal stopped_at
            is_whole = all(is_good and not told["interrupted"] for is_good, told in answers.values())
            if stopped_at is None and (interrupts.seen or fleet.lost or not is_whole):
                stopped_at = time.monotonic()
                fleet.tell("interrupt")
            if stopped_at is not None and time.monotonic() - stopped_at > _PARTIAL_S:
                silent = set(fleet.alive) - answers.keys()
                fleet.lost.update(dict.fromkeys(silent, f"no figures within {_PARTIAL_S:g} s"))

        show(line("start", "all nodes are ready and begin"))
        fleet.tell("go")
        with Bar("measuring on the nodes", duration):
            answers = fleet.ask("outcome", look=look)
    nodes = []
    for member in fleet.members:
        is_good, told = answers.get(member) or (False, fleet.lost[member])  # figures count, whatever came of it later
        found, clock = (told, "") if is_good else (None, told), (member.offset_s, member.rtt_s / 2)
        host, warnings = facts[member]["host"], facts[member]["warnings"]
        nodes.append(NodeReport(member.address, host, *found, tuple(warnings), *clock))
    return ClusterReport(tuple(nodes), duration)


def _words(args: argparse.Namespace, nodes: int) -> list[str]:
    """What each node's script is given: a rate is that of all of them together."""
    words = ["--quiet"]
    for name in NODE_FLAGS:
        flag, value = "--" + name.replace("_", "-"), getattr(args, name)
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            value = value / nodes if name == "rate" else value
            words.append(f"{flag}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    return words
