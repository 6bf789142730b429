"""A run made ready: planned, its weights in place, its instances waiting.

    settings -> cores -> artifact -> inputs -> memory -> engine -> plan -> static card -> weights -> instances

Every way of measuring (closed loop, arrivals, LoadGen, sweeps) begins with one of these.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..console import line
from ..data.reference_data import open_reference
from ..data.workload import bag_lengths, mean_length
from ..engines.graph import engine_graph
from ..engines.interface import OURS, EngineGraph
from ..engines.quantization import with_int8
from ..instances.group import Instances
from ..instances.protocol import Assignment, QueueEnds
from ..machine.cores import choose_cores, spare_cpus
from ..machine.environment import describe_environment
from ..machine.numa import NumaPlan, node_memory, placing_refusal, plan_numa
from ..machine.os_counters import busiest_core
from ..machine.topology import Topology, read_topology
from ..model.card import ModelCard
from ..runtime.artifact import Artifact, open_artifact
from ..runtime.manifest import Manifest
from ..runtime.weight_copies import TableSetup, WeightCopies, prepared_weights
from .card import engine_card, static_card
from .profile import check_profile


@dataclass(frozen=True)
class RunSettings:
    """One run as it was asked for. instances: None for as many as there are cores for.

    cores: a list such as "0-3,8", used in its order; indices_per_bag: of random bags, of each table or one number for
    all, 1 for none; None: as the model's graph fixes them.
    spare_core: leave the first core to the caller, on a machine that has more than 4.
    """

    model: Path
    instances: int | None = None
    threads: int = 1
    cores: str | None = None
    hyper_threading: bool = False
    ref_data: Path | None = None
    max_ind_range: int | None = None  # of its indices
    indices_per_bag: tuple[int, ...] | None = None
    preload: bool = False
    huge_pages: bool = False
    numa: str | None = None
    spare_core: bool = False
    profile: bool = False  # a profile will be asked for
    engine: str = OURS
    onnx_model: Path | None = None  # for another engine; None: what the library was compiled from
    engine_precision: str | None = None  # of another engine; None: the library's


@dataclass(frozen=True)
class Placement:
    """cores: per instance, one per thread; spare: the hardware threads left to the caller."""

    topology: Topology
    cores: tuple[tuple[int, ...], ...]
    spare: frozenset[int]

    @property
    def other_cpus(self) -> tuple[int, ...]:
        """For the caller: the spare core's, or those of cores without an instance, or all usable ones."""
        taken = {thread.core for thread in self.topology.threads if any(thread.cpu in each for each in self.cores)}
        free = {thread.cpu for thread in self.topology.usable_threads if thread.core not in taken}
        return tuple(sorted(self.spare or free or self.topology.usable))


@dataclass(frozen=True)
class RunPlan:
    """All that is decided and known before anything is started.

    indices_per_bag: the mean over all bags of the inputs; memory: the NUMA nodes of the weights; other_engine: what is
    measured in the library's place; busiest: the run's busiest core before the start, and its share.
    """

    settings: RunSettings
    placement: Placement
    artifact: Artifact
    indices_per_bag: float
    memory: NumaPlan
    other_engine: EngineGraph | None
    environment: dict[str, object]
    busiest: tuple[int, float]

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest

    @property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        return self.placement.cores


@dataclass(frozen=True)
class Session:
    """Instances that wait; tables: what was done to have them in memory."""

    plan: RunPlan
    instances: Instances
    tables: TableSetup


@contextmanager
def open_session(
    settings: RunSettings, show: Callable[[str], None], queue: QueueEnds | None = None
) -> Iterator[Session]:
    """The session of these settings; `show` gets its static card and what is done for it, a text each.

    queue: what LoadGen is to drive the instances by. Raises UserError where they do not fit the machine, the library
    or the data.
    """
    plan = plan_run(settings)
    inputs = (settings.ref_data, settings.max_ind_range, plan.indices_per_bag)
    show(static_card(plan.manifest, str(settings.model), plan.cores, *inputs))
    if plan.other_engine:  # its int8 graph is made here, which takes its time
        engine = with_int8(plan.other_engine, plan.manifest.model, settings.ref_data, settings.max_ind_range)
        show(engine_card(engine))
        plan = replace(plan, other_engine=engine)
    options = {"preload": settings.preload, "huge_pages": settings.huge_pages}
    with prepared_weights(plan.artifact, plan.memory, **options, say=lambda *said: show(line(*said))) as weights:
        assignments = _assignments(plan, weights, queue)
        with Instances(assignments, table_bytes=plan.manifest.table_range.nbytes) as instances:
            yield Session(plan, instances, weights.setup)


def plan_run(settings: RunSettings) -> RunPlan:
    """Whatever can be refused is refused here. Raises UserError."""
    placement = _place(settings)
    artifact = open_artifact(settings.model)
    indices_per_bag = mean_indices_per_bag(settings, artifact.manifest.model)
    if settings.profile:
        check_profile(artifact.manifest, str(settings.model))
    return RunPlan(
        settings=settings,
        placement=placement,
        artifact=artifact,
        indices_per_bag=indices_per_bag,
        memory=_plan_memory(settings, placement, artifact.manifest),
        other_engine=_choose_engine(settings, artifact.manifest, indices_per_bag),
        environment=describe_environment(placement.topology),
        busiest=busiest_core([core for each in placement.cores for core in each]),
    )


def _place(settings: RunSettings) -> Placement:
    topology = read_topology()
    spare = spare_cpus(topology) if settings.spare_core and settings.cores is None else frozenset()
    cores = choose_cores(
        replace(topology, usable=topology.usable - spare),
        instances=settings.instances,
        threads=settings.threads,
        hyper_threading=settings.hyper_threading,
        core_list=settings.cores,
    )
    return Placement(topology, cores, spare)


def mean_indices_per_bag(settings: RunSettings, model: ModelCard) -> float:
    """Of the file where one is given. Raises UserError where the model takes no such inputs."""
    random = mean_length(bag_lengths(model, settings.indices_per_bag))
    data = settings.ref_data and open_reference(settings.ref_data, model, outputs_wanted=False)
    return data.indices_per_bag if data else random


def _plan_memory(settings: RunSettings, placement: Placement, manifest: Manifest) -> NumaPlan:
    nodes = node_memory()
    return plan_numa(
        placement.topology,
        placement.cores,
        table_bytes=manifest.table_range.nbytes,
        node_bytes=nodes,
        wanted=settings.numa,
        refusal=placing_refusal(sorted(nodes)) if len(nodes) > 1 else None,
    )


def _choose_engine(settings: RunSettings, manifest: Manifest, indices_per_bag: float) -> EngineGraph | None:
    if settings.engine == OURS:
        return None
    return engine_graph(
        settings.engine,
        settings.onnx_model,
        manifest,
        str(settings.model),
        indices_per_bag,
        settings.engine_precision,
    )


def _assignments(plan: RunPlan, weights: WeightCopies, queue: QueueEnds | None) -> list[Assignment]:
    settings, engine = plan.settings, plan.other_engine
    lengths = None if settings.ref_data else bag_lengths(plan.manifest.model, settings.indices_per_bag)
    return [
        Assignment(
            library=str(settings.model),
            instance=instance,
            instances=len(plan.cores),
            cores=cores,
            ref_data=str(settings.ref_data) if settings.ref_data else None,
            max_ind_range=settings.max_ind_range,
            l3_bytes=plan.placement.topology.l3_bytes,
            parent_pid=os.getpid(),
            indices_per_bag=plan.indices_per_bag,
            bag_lengths=lengths,
            tables_fd=weights.of_instance(instance).tables,
            parameters_fd=weights.of_instance(instance).parameters,
            numa_node=None if plan.memory.policy is None else plan.memory.instance_nodes[instance],
            queue=queue,
            other_engine=None if engine is None else asdict(engine),
        )
        for instance, cores in enumerate(plan.cores)
    ]
