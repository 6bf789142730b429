"""A sweep made ready: flags against each other, files, cores, model, data, an earlier state; then the libraries.

    spec -> combinations that fit -> libraries, missing ones compiled -> rounds

Everything that can be wrong is found here, before the first window; compiling, the slow part, comes last.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from .artifact import open_artifact
from .cores import choose_cores
from .cpu import host_model
from .environment import describe_environment
from .errors import UserError
from .manifest import Manifest
from .peer_graph import peer_graph
from .peer_precision import check_precision
from .peers import OURS, TITLES, engine_version
from .reference_data import open_reference
from .session import RunSettings
from .sweep_files import check_not_read, check_outputs, files_of_library, files_of_model
from .sweep_libraries import (
    difference_lines,
    ensure_default,
    ensure_libraries,
    kernel_counts,
    name_libraries,
    sweep_name,
)
from .sweep_plan import (
    AUTO,
    Combination,
    Planned,
    SweepSpec,
    auto_combinations,
    expand,
    parse_spec,
    shuffled_rounds,
)
from .sweep_report import combination_json
from .sweep_results import Outcome
from .sweep_state import State, check_same, read_state
from .topology import Topology, read_topology

_OVERHEAD_S = 4.0  # of a run: starting the instances, and the peak before and after


@dataclass(frozen=True)
class SweepSettings:
    """What is swept. run: everything else of each run; its instances and threads are those of keys left out.

    compile_model: whether the demo is compiled where run.model is missing; state: None for NAME.sweep.json beside
    the libraries, NAME.ENGINE.sweep.json of another engine, NAME.ENGINE.PRECISION.sweep.json where that has a precision
    of its own; seed: None draws one.
    """

    spec: str
    run: RunSettings
    duration_s: float
    warmup_s: float
    repeats: int = 3
    seed: int | None = None
    max_latency_ms: float | None = None
    csv: Path | None = None
    state: Path | None = None
    plot: Path | None = None
    resume: bool = False
    compile_model: bool = False

    @property
    def state_path(self) -> Path:
        engine = "" if self.run.engine == OURS else f".{self.run.engine}"
        engine += f".{self.run.engine_precision}" if self.run.engine_precision else ""
        return self.state or self.run.model.with_name(f"{sweep_name(self.run.model)}{engine}.sweep.json")

    @property
    def files(self) -> dict[str, Path | None]:
        """What is written, by the option that names it."""
        return {"--json": self.state_path, "--csv": self.csv, "--plot": self.plot}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sweep that can begin. done: runs that a resumed one has already; facts: what its JSON says beside figures."""

    planned: Sequence[Planned]
    libraries: dict[int, Path]
    done: Sequence[Outcome]
    facts: dict[str, object]


def prepare(settings: SweepSettings, show: Callable[[str], None]) -> Prepared:
    """All checks, then the libraries. Raises UserError for whatever cannot be measured."""
    spec = None if settings.spec == AUTO else parse_spec(settings.spec)
    _check_contradictions(settings, spec)
    run = settings.run
    state = _earlier_state(settings)
    topology = read_topology()
    cores = _usable_cores(settings.run, topology)
    _check_engine(run)
    if settings.compile_model:
        ensure_default(settings.run.model, show)
    base = open_artifact(settings.run.model).manifest
    indices_per_bag = run.indices_per_bag
    if run.ref_data:
        indices_per_bag = open_reference(run.ref_data, base.model, outputs_wanted=False).indices_per_bag
    combinations, left_out = _combinations(settings, spec, topology, cores, base)
    fixed = _fixed_settings(settings, combinations, base, topology)
    if state:
        check_same(settings.state_path, state, fixed)
    batches = sorted({one.batch for one in combinations})
    if run.engine != OURS:
        for batch in batches:  # a file may fix one
            manifest = replace(base, batch_size=batch)
            peer_graph(run.engine, run.onnx_model, manifest, str(run.model), indices_per_bag, run.engine_precision)
    libraries = name_libraries(run.model, base, batches)
    beside = chain.from_iterable(files_of_library(path) for path in libraries.values())
    check_not_read(settings.files, [*files_of_model(base, run.onnx_model), *beside])
    ensure_libraries(run.model, base, libraries, show)
    manifests = {batch: open_artifact(path).manifest for batch, path in libraries.items()}
    fixed["library_sha256"] = {str(batch): manifest.library_sha256 for batch, manifest in manifests.items()}
    if state:
        check_same(settings.state_path, state, fixed)
    seed = _seed(settings, state)
    facts = {
        "sweep": settings.spec,
        "model": base.model.name,
        "precision": run.engine_precision or base.precision,
        "engine": run.engine,
        "engine_version": _engine_version(run.engine),
        "libraries": {str(batch): str(path) for batch, path in libraries.items()},
        "kernels": {str(batch): kernel_counts(manifest) for batch, manifest in manifests.items()},
        "seed": seed,
        "repeats": settings.repeats,
        "duration_s": settings.duration_s,
        "warmup_s": settings.warmup_s,
        "left_out": [combination_json(one) for one in left_out],
        "settings": fixed,
        "environment": describe_environment(topology),
        "earlier_environments": state.environments if state else [],
    }
    done = state.measured if state else []
    planned = shuffled_rounds(combinations, repeats=settings.repeats, seed=seed)
    left = len(set(planned) - {outcome.planned for outcome in done})
    _announce(settings, facts, combinations, left_out, left, show)
    for line in difference_lines(manifests):
        show(line)
    return Prepared(planned, libraries, done, facts)


def check_files(settings: SweepSettings) -> None:
    """What can be known of them before the state is locked and the library is opened."""
    run = settings.run
    check_not_read(settings.files, [*files_of_library(run.model), run.ref_data, run.onnx_model])
    check_outputs(settings.files, resume=settings.resume)


def heading(facts: Mapping[str, object]) -> str:
    """What was measured: the engine is named where it is not ours."""
    engine = facts["engine"]
    by = "" if engine == OURS else f", {TITLES[engine]} {facts['engine_version']}"
    return f"{facts['model']}, {facts['precision']}{by}"


def _earlier_state(settings: SweepSettings) -> State | None:
    state = read_state(settings.state_path) if settings.resume else None
    if state and settings.seed not in (None, state.seed):
        raise UserError(f"{settings.state_path} has the seed {state.seed}: leave --sweep-seed or --resume out.")
    return state


def _seed(settings: SweepSettings, state: State | None) -> int:
    if state:
        return state.seed
    return secrets.randbelow(1_000_000) if settings.seed is None else settings.seed


def _check_contradictions(settings: SweepSettings, spec: SweepSpec | None) -> None:
    """Flags of a single run that the sweep would have to overrule."""
    fixed = {"instances": settings.run.instances is not None, "threads": settings.run.threads != 1}
    for key in fixed:
        if fixed[key] and (spec is None or getattr(spec, key)):
            raise UserError(f"--sweep chooses {key}, --num-{key} too: give one of the two.")


def _engine_version(engine: str) -> str | None:
    """None: ours, whose libraries are known by their sha256. Raises UserError where it is not installed."""
    return None if engine == OURS else engine_version(engine)


def _check_engine(run: RunSettings) -> None:
    """What needs no library, which may have to be compiled first; peer_graph says the rest."""
    _engine_version(run.engine)
    if run.engine_precision:
        check_precision(run.engine, run.engine_precision)
    if run.engine != OURS and run.indices_per_bag != 1:
        raise UserError("--engine takes one index per table and item, no bags. Leave --indices-per-bag out.")
    if run.onnx_model and not run.onnx_model.is_file():
        raise UserError(f"--onnx-model {run.onnx_model}: no such file. Give the one that the library is compiled from.")


def _usable_cores(run: RunSettings, topology: Topology) -> int:
    """Raises UserError for a --cores that cannot be used."""
    flags = {"hyper_threading": run.hyper_threading, "core_list": run.cores}
    return len(choose_cores(topology, instances=None, threads=1, **flags))


def _combinations(
    settings: SweepSettings, spec: SweepSpec | None, topology: Topology, cores: int, base: Manifest
) -> tuple[list[Combination], list[Combination]]:
    """Those that fit this machine, and those left out. Raises UserError where none fits."""
    run = settings.run
    if spec is None:
        return auto_combinations(cores, repeats=settings.repeats, seconds_each=_seconds_each(settings)), []

    def fitting(instances: int | None, threads: int) -> int | None:
        try:
            flags = {"hyper_threading": run.hyper_threading, "core_list": run.cores}
            return len(choose_cores(topology, instances=instances, threads=threads, **flags))
        except UserError:
            return None

    single_run = SweepSpec(run.instances and (run.instances,), (run.threads,), (base.batch_size,))
    found, left_out = expand(spec, single_run=single_run, fitting=fitting)
    if not found:
        raise UserError(
            f"--sweep {settings.spec}: every combination needs more than the {cores} cores that are usable here. "
            'Try --sweep "instances=1;threads=1", or --sweep auto.'
        )
    return found, left_out


def _fixed_settings(
    settings: SweepSettings, combinations: Sequence[Combination], base: Manifest, topology: Topology
) -> dict[str, object]:
    """What must be the same for runs to be comparable: JSON-able, with keys as their messages name them."""
    run = {
        key: str(value.resolve()) if isinstance(value, Path) else value for key, value in asdict(settings.run).items()
    }
    machine = describe_environment(topology)
    for key in ("model", "instances", "threads"):
        del run[key]
    return {
        "model_fingerprint": base.model.fingerprint,
        "precision": base.precision,
        "cpu": host_model(),
        "cpu_flags": machine["cpu_flags"],
        "l3_mb": machine["l3_mb"],
        "usable_cpus": sorted(topology.usable),
        "engine_version": _engine_version(settings.run.engine),
        "duration_s": settings.duration_s,
        "warmup_s": settings.warmup_s,
        "combinations": [[one.instances, one.threads, one.batch] for one in sorted(combinations)],
        **run,
    }


def _announce(
    settings: SweepSettings,
    facts: dict[str, object],
    combinations: Sequence[Combination],
    left_out: Sequence[Combination],
    runs: int,
    show: Callable[[str], None],
) -> None:
    """What is about to be measured, in so many runs, and what is not."""
    minutes = runs * _seconds_each(settings) / 60
    show(f"{heading(facts)}: {len(combinations)} combinations × {settings.repeats} rounds")
    show(f"  placements  {_placements(combinations)}")
    show(f"  batches     {', '.join(map(str, sorted({one.batch for one in combinations})))}")
    if left_out:
        cores = "hardware threads" if settings.run.hyper_threading else "cores"
        show(f"  left out    {len(left_out)} that need more {cores} than are usable here: {_placements(left_out)}")
    show(f"  order       random, seed {facts['seed']}; {runs} runs, about {max(minutes, 1):.0f} min")
    show(f"  kept in     {settings.state_path}, after every run")


def _placements(combinations: Sequence[Combination]) -> str:
    """As instances × threads, the first ten."""
    found = [f"{count} × {threads}" for count, threads in dict.fromkeys((c.instances, c.threads) for c in combinations)]
    return ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")


def _seconds_each(settings: SweepSettings) -> float:
    return settings.warmup_s + settings.duration_s + _OVERHEAD_S
