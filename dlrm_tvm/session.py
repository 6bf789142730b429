"""A run made ready: what is measured, on which cores, with its weights in place and its instances waiting.

    settings -> cores, artifact, where the weights lie -> static card -> instances, each of which has run once

Every way of measuring (closed loop, arrivals, LoadGen, sweeps) begins with one of these.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import disturbances
from .arrivals import CLOSED, Arrivals
from .artifact import Artifact, open_artifact
from .assignment import Assignment, QueueEnds
from .cores import choose_cores, spare_cpus
from .environment import describe_environment
from .instances import Instances
from .memory import memory_use
from .numa import NumaPlan, node_memory, placing_refusal, plan_numa
from .peer_graph import peer_graph
from .peer_int8 import with_int8
from .peers import OURS, PeerGraph
from .profile_report import check_profile
from .progress import stability_warnings
from .reference_data import open_reference
from .report import RunReport, line, peak_line, static_card
from .topology import Topology, read_topology
from .weight_copies import TableSetup, WeightCopies, prepared_weights
from .window import overload_warnings

PEAK_SECONDS = 1.0
_STREAM_SECONDS = 0.3
_STREAMED_UP_TO_BATCH = 1  # above, weights are used more than once, and arithmetic is the limit


@dataclass(frozen=True)
class RunSettings:
    """What is run, where, on which inputs. instances: None for as many as there are cores for.

    cores: a list such as "0-3,8", used in its order; indices_per_bag: of random bags, 1 for none.
    spare_core: leave the first core to the caller, on a machine that has more than 4.
    """

    model: Path
    instances: int | None = None
    threads: int = 1
    cores: str | None = None
    hyper_threading: bool = False
    ref_data: Path | None = None
    indices_per_bag: float = 1
    preload: bool = False
    huge_pages: bool = False
    numa: str | None = None
    spare_core: bool = False
    profile: bool = False  # a profile will be asked for
    engine: str = OURS
    onnx_model: Path | None = None  # for another engine; None: what the library was compiled from
    engine_precision: str | None = None  # of another engine; None: the library's


@dataclass(frozen=True)
class Session:
    """Instances that wait, and everything that the report will say of them. cores: per instance, one per thread."""

    settings: RunSettings
    artifact: Artifact
    cores: tuple[tuple[int, ...], ...]
    instances: Instances
    tables: TableSetup
    environment: dict[str, object]
    busiest: tuple[int, float]
    indices_per_bag: float
    other_cpus: tuple[int, ...]  # for the caller: the spare core's, or those without an instance, or all usable ones
    peer: PeerGraph | None = None  # what is measured in the library's place


@contextmanager
def open_session(
    settings: RunSettings, show: Callable[[str], None], queue: QueueEnds | None = None
) -> Iterator[Session]:
    """The session of these settings; `show` gets its static card and what is done for it, a text each.

    queue: what LoadGen is to drive the instances by. Raises UserError where they do not fit the machine, the library
    or the data.
    """
    topology = read_topology()
    spare = spare_cpus(topology) if settings.spare_core and settings.cores is None else frozenset()
    cores = choose_cores(
        replace(topology, usable=topology.usable - spare),
        instances=settings.instances,
        threads=settings.threads,
        hyper_threading=settings.hyper_threading,
        core_list=settings.cores,
    )
    artifact = open_artifact(settings.model)
    indices_per_bag = settings.indices_per_bag
    if settings.ref_data:  # refuses what does not fit
        data = open_reference(settings.ref_data, artifact.manifest.model, outputs_wanted=False)
        indices_per_bag = data.indices_per_bag
    if settings.profile:
        check_profile(artifact.manifest, str(settings.model), indices_per_bag)
    peer = None
    if settings.engine != OURS:
        peer = peer_graph(
            settings.engine,
            settings.onnx_model,
            artifact.manifest,
            str(settings.model),
            indices_per_bag,
            settings.engine_precision,
        )
    environment = describe_environment(topology)
    busiest = disturbances.busiest_core([core for each in cores for core in each])
    plan = _plan_memory(settings, topology, cores, artifact)
    show(static_card(artifact.manifest, str(settings.model), cores, _inputs(settings), indices_per_bag))

    if peer is not None:
        peer = with_int8(peer, artifact.manifest.model, settings.ref_data)
        show(line("engine", f"{peer.title} on {os.path.relpath(peer.path)}, one index per table and item"))
        if peer.calibration:
            show(line("", f"calibrated with {peer.calibration}"))

    def say(label: str, text: str) -> None:
        show(line(label, text))

    with prepared_weights(artifact, plan, preload=settings.preload, huge_pages=settings.huge_pages, say=say) as weights:
        assignments = _assignments(settings, topology, cores, plan, weights, indices_per_bag, queue, peer)
        with Instances(assignments, table_bytes=artifact.manifest.table_range.nbytes) as instances:
            yield Session(
                settings=settings,
                artifact=artifact,
                cores=cores,
                instances=instances,
                tables=weights.setup,
                environment=environment,
                busiest=busiest,
                indices_per_bag=indices_per_bag,
                other_cpus=_other_cpus(topology, cores, spare),
                peer=peer,
            )


def measure(
    session: Session,
    *,
    duration_s: float,
    warmup_s: float,
    show: Callable[[str], None],
    arrivals: Arrivals = CLOSED,
    until_stable: bool = False,
) -> RunReport:
    """Peak, window, memory, peak again, and the streaming rate where the batch is small enough for it to matter.

    until_stable: end the window when throughput is stable, duration_s at the latest.
    """
    instances = session.instances
    peak_before = instances.peak_gflops(PEAK_SECONDS)
    show(peak_line(peak_before))
    run = instances.measure(duration_s=duration_s, warmup_s=warmup_s, arrivals=arrivals, until_stable=until_stable)
    memory = [memory_use(pid) for pid in instances.pids]
    peak_after, stream, interrupted = [], [], run.interrupted
    if not interrupted:
        try:
            peak_after = instances.peak_gflops(PEAK_SECONDS)
            if session.artifact.manifest.batch_size <= _STREAMED_UP_TO_BATCH:
                stream = instances.stream_gbps(_STREAM_SECONDS)
        except KeyboardInterrupt:
            interrupted = True  # the window itself is whole
    overloaded = overload_warnings(run.measurement)
    stable = run.stable and not overloaded if run.stable is not None else None  # a queue that grows is not stable
    warnings = [
        *session.tables.warnings(),
        *_peak_warnings(session),
        *disturbances.load_warnings(session.busiest),
        *disturbances.window_warnings(run.before, run.after),
        *disturbances.other_load_warnings(run.before, run.after),
        *disturbances.stall_warnings(run.measurement.services_ns),
        *([] if arrivals.is_open else disturbances.spread_warnings(run.measurement.batches_per_s)),
        *disturbances.peak_warnings(sum(peak_before), sum(peak_after or peak_before)),
        *stability_warnings(stable, run.interrupted),
        *overloaded,
    ]
    return RunReport(
        manifest=session.artifact.manifest,
        library=str(session.settings.model),
        cores=session.cores,
        measurement=run.measurement,
        memory=memory,
        peak_before_gflops=peak_before,
        peak_after_gflops=peak_after,
        stream_gbps=stream,
        warnings=warnings,
        tables=session.tables,
        environment=session.environment,
        interrupted=interrupted,
        indices_per_bag=session.indices_per_bag,
        arrivals=arrivals,
        stable=stable,
        ref_data=str(session.settings.ref_data) if session.settings.ref_data else None,
        peer=session.peer,
    )


def _peak_warnings(session: Session) -> list[str]:
    ours, peer = session.artifact.manifest.precision, session.peer
    if peer is None or peer.precision == ours:
        return []
    return [
        f"The engine ran at {peer.precision}, the peak is that of the library's {ours}: its share is of another limit. "
        f"Give a library of compile.py --precision {peer.precision}."
    ]


def _other_cpus(topology: Topology, cores: tuple[tuple[int, ...], ...], spare: frozenset[int]) -> tuple[int, ...]:
    taken = {thread.core for thread in topology.threads if any(thread.cpu in each for each in cores)}
    free = {thread.cpu for thread in topology.usable_threads if thread.core not in taken}
    return tuple(sorted(spare or free or topology.usable))


def _inputs(settings: RunSettings) -> str:
    if settings.ref_data:
        return f"items of {settings.ref_data}"
    return "random rows of whole tables, different in every batch"


def _plan_memory(
    settings: RunSettings, topology: Topology, cores: tuple[tuple[int, ...], ...], artifact: Artifact
) -> NumaPlan:
    """On which NUMA nodes the weights are to lie."""
    nodes = node_memory()
    return plan_numa(
        topology,
        cores,
        table_bytes=artifact.manifest.table_range.nbytes,
        node_bytes=nodes,
        wanted=settings.numa,
        refusal=placing_refusal(sorted(nodes)) if len(nodes) > 1 else None,
    )


def _assignments(
    settings: RunSettings,
    topology: Topology,
    cores: Sequence[tuple[int, ...]],
    plan: NumaPlan,
    weights: WeightCopies,
    indices_per_bag: float,
    queue: QueueEnds | None,
    peer: PeerGraph | None,
) -> list[Assignment]:
    return [
        Assignment(
            library=str(settings.model),
            instance=instance,
            instances=len(cores),
            cores=list(each),
            ref_data=str(settings.ref_data) if settings.ref_data else None,
            l3_bytes=topology.l3_bytes,
            parent_pid=os.getpid(),
            indices_per_bag=indices_per_bag,
            tables_fd=weights.of_instance(instance).tables,
            parameters_fd=weights.of_instance(instance).parameters,
            numa_node=None if plan.policy is None else plan.instance_nodes[instance],
            queue=queue,
            peer=None if peer is None else asdict(peer),
        )
        for instance, each in enumerate(cores)
    ]
