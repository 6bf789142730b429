"""A sweep made ready: flags against each other, cores, engines, model, data, an earlier state; then the libraries.

    spec -> combinations that can be measured here -> libraries, missing ones compiled -> rounds

Every mistake is found here, before the first window; compiling, the slow part, comes last.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from ..bench.options import check_ours_only
from ..bench.session import RunSettings, mean_indices_per_bag
from ..engines.graph import engine_graph
from ..engines.interface import OURS, TITLES, engine_version, refusal
from ..errors import UserError
from ..machine.cores import choose_cores
from ..machine.cpu import PRECISION_FLAGS, host_flags
from ..machine.environment import describe_environment
from ..machine.files import check_not_read
from ..machine.topology import Topology, read_topology
from ..model.precision import PRECISIONS
from ..runtime.artifact import files_of_library, open_artifact
from ..runtime.manifest import Manifest
from .libraries import (
    Kind,
    difference_lines,
    ensure_default,
    ensure_libraries,
    kernel_counts,
    name_libraries,
)
from .options import SweepSettings, check_contradictions
from .plan import (
    AUTO,
    Combination,
    Planned,
    SweepSpec,
    auto_combinations,
    expand,
    parse_spec,
    placements_text,
    shuffled_rounds,
)
from .report import combination_json
from .results import Outcome
from .state import State, check_known, check_same, read_state

_MACHINE = ("cpu", "cpu_flags", "l3_mb", "usable_cpus")  # must be the same for runs to be comparable


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sweep that can begin. base: the manifest of --model; left_out: reason -> combinations that cannot be measured.

    engines: with the versions of all but ours; manifests: by the libraries' labels; fixed: what a resumed sweep must
    have in common with its earlier part, `state`.
    """

    settings: SweepSettings
    base: Manifest
    combinations: list[Combination]
    left_out: dict[str, list[Combination]]
    engines: dict[str, str | None]
    libraries: dict[Kind, Path]
    manifests: dict[str, Manifest]
    fixed: dict[str, object]
    environment: dict[str, object]
    seed: int
    state: State | None

    @property
    def planned(self) -> list[Planned]:
        return shuffled_rounds(self.combinations, repeats=self.settings.repeats, seed=self.seed)

    @property
    def done(self) -> list[Outcome]:
        return self.state.measured if self.state else []

    @property
    def pending(self) -> list[Planned]:
        done = {outcome.planned for outcome in self.done}
        return [planned for planned in self.planned if planned not in done]

    @property
    def precisions(self) -> list[str]:
        """At which something runs."""
        single = self.settings.run.engine_precision or self.base.precision
        named = {one.precision or single for one in self.combinations}
        return [precision for precision in PRECISIONS if precision in named]

    @property
    def heading(self) -> str:
        return heading(self.base.model.name, self.precisions, self.engines)

    @property
    def facts(self) -> dict[str, object]:
        """What the JSON says beside figures. precision, engine and engine_version are None where there are several."""
        left_out = [{**combination_json(one), "reason": why} for why, each in self.left_out.items() for one in each]
        return {
            "sweep": self.settings.spec,
            "model": self.base.model.name,
            "precision": _only(self.precisions),
            "engine": _only(self.engines),
            "engine_version": _only(self.engines.values()),
            "engine_versions": self.engines,
            "libraries": {kind.label(self.base): str(path) for kind, path in self.libraries.items()},
            "kernels": {label: kernel_counts(manifest) for label, manifest in self.manifests.items()},
            "seed": self.seed,
            "repeats": self.settings.repeats,
            "duration_s": self.settings.duration_s,
            "warmup_s": self.settings.warmup_s,
            "left_out": left_out,
            "settings": self.fixed,
            "environment": self.environment,
            "earlier_environments": self.state.environments if self.state else [],
        }


def heading(model: str, precisions: Sequence[str], engines: Mapping[str, str | None]) -> str:
    """What is measured. Ours is named only beside other engines."""
    titles = [f"{TITLES[engine]} {version}" for engine, version in engines.items() if engine != OURS]
    return ", ".join([model, *precisions, *([OURS] if titles and OURS in engines else []), *titles])


def _only(values: Iterable[str | None]) -> str | None:
    """The one value; None of several."""
    first, *others = values
    return None if others else first


def prepare(settings: SweepSettings, show: Callable[[str], None]) -> Prepared:
    """All checks, then the libraries. Raises UserError for whatever cannot be measured."""
    run, state, topology = settings.run, _earlier_state(settings), read_topology()
    base, combinations, left_out = _find(settings, topology, show)
    named = dict.fromkeys(one.engine or run.engine for one in combinations)
    engines = {engine: None if engine == OURS else engine_version(engine) for engine in named}
    environment = describe_environment(topology)
    fixed = {**_fixed_settings(settings, base, environment), "engine_version": engines}
    fixed["combinations"] = [list(combination_json(one).values()) for one in sorted(combinations)]
    if state:
        check_same(settings.state_path, state, fixed)
        check_known(settings.state_path, state, combinations)
    libraries = name_libraries(run.model, base, sorted({Kind.of(one, base) for one in combinations}))
    read = chain.from_iterable(files_of_library(path, run.onnx_model) for path in (run.model, *libraries.values()))
    check_not_read(settings.files, read)
    ensure_libraries(run.model, base, libraries, show)
    manifests = {kind.label(base): open_artifact(path).manifest for kind, path in libraries.items()}
    fixed["library_sha256"] = {label: manifest.library_sha256 for label, manifest in manifests.items()}
    if state:
        check_same(settings.state_path, state, fixed)
    seed = state.seed if state else secrets.randbelow(1_000_000) if settings.seed is None else settings.seed
    prepared = Prepared(
        settings, base, combinations, left_out, engines, libraries, manifests, fixed, environment, seed, state
    )
    _announce(prepared, show)
    return prepared


def _earlier_state(settings: SweepSettings) -> State | None:
    state = read_state(settings.state_path) if settings.resume else None
    if state and settings.seed not in (None, state.seed):
        raise UserError(f"{settings.state_path} has the seed {state.seed}: leave --sweep-seed or --resume out.")
    return state


def _find(
    settings: SweepSettings, topology: Topology, show: Callable[[str], None]
) -> tuple[Manifest, list[Combination], dict[str, list[Combination]]]:
    """--model's manifest, what can be measured, what is left out. All is checked but the libraries' files.

    The demo is compiled where it is the default and missing.
    """
    run = settings.run
    spec = SweepSpec() if settings.spec == AUTO else parse_spec(settings.spec)
    check_contradictions(settings, spec)
    place = partial(choose_cores, topology, hyper_threading=run.hyper_threading, core_list=run.cores)
    cores = len(place(instances=None, threads=1))  # refuses --cores that cannot be used
    _check_engines(run, spec)
    if settings.compile_model:
        ensure_default(run.model, show)
    base = open_artifact(run.model).manifest
    combinations, left_out = _combinations(settings, spec, place, cores, base)
    _check_inputs(run, base, combinations)
    return base, combinations, left_out


def _check_engines(run: RunSettings, spec: SweepSpec) -> None:
    """What needs no library, which may have to be compiled first; engine_graph says the rest."""
    others = [engine for engine in spec.engine or (run.engine,) if engine != OURS]
    if not others and run.onnx_model:
        raise UserError("--onnx-model is what another engine runs. Name one in --sweep too: engine=ours,onnxruntime.")
    if not others:
        return
    if run.engine != OURS:
        engine_version(run.engine)
    if any(number != 1 for number in run.indices_per_bag or ()):
        raise UserError("--engine takes one index per table and item, no bags. Leave --indices-per-bag out.")
    check_ours_only(run, others[0])
    if run.onnx_model and not run.onnx_model.is_file():
        raise UserError(f"--onnx-model {run.onnx_model}: no such file. Give the one that the library is compiled from.")


def _check_inputs(run: RunSettings, base: Manifest, combinations: Sequence[Combination]) -> None:
    """Raises UserError where the model takes no items of --ref-data, or an engine's file no batches of a size."""
    indices_per_bag = mean_indices_per_bag(run, base.model)
    asked = ((one.engine or run.engine, one.batch, one.precision or run.engine_precision) for one in combinations)
    for engine, batch, precision in dict.fromkeys(asked):
        if engine != OURS:
            manifest = replace(base, batch_size=batch)
            engine_graph(engine, run.onnx_model, manifest, str(run.model), indices_per_bag, precision)


def _combinations(
    settings: SweepSettings, spec: SweepSpec, place: Callable[..., tuple], cores: int, base: Manifest
) -> tuple[list[Combination], dict[str, list[Combination]]]:
    """Those that can be measured here, and those left out by reason. Raises UserError where none can."""
    run = settings.run
    if settings.spec == AUTO:
        return auto_combinations(cores, repeats=settings.repeats, seconds_each=settings.seconds_each), {}

    def fitting(instances: int | None, threads: int) -> int | None:
        try:
            return len(place(instances=instances, threads=threads))
        except UserError:
            return None

    single_run = SweepSpec(run.instances and (run.instances,), (run.threads,), (base.batch_size,))
    fits, too_large = expand(spec, single_run=single_run, fitting=fitting)
    if not fits:
        raise UserError(
            f"--sweep {settings.spec}: every combination needs more than the {cores} cores that are usable here. "
            'Try --sweep "instances=1;threads=1", or --sweep auto.'
        )
    units = "hardware threads" if run.hyper_threading else "cores"
    left_out = {f"{placements_text(too_large)} need more {units} than are usable here": too_large} if too_large else {}
    found = []
    for one in fits:
        reason = _refusal(one, run, base)
        (left_out.setdefault(reason, []) if reason else found).append(one)
    if not found:
        raise UserError(f"--sweep {settings.spec}: nothing can be measured. {' '.join(left_out)}")
    return found, left_out


def _refusal(one: Combination, run: RunSettings, base: Manifest) -> str | None:
    """Why an engine or a precision that the sweep names cannot run here. A single run's are refused elsewhere."""
    if one.engine is None and one.precision is None:
        return None
    engine, precision = one.engine or run.engine, one.precision or base.precision
    lacking = sorted(set(PRECISION_FLAGS[precision]) - host_flags())
    if lacking:
        return f"{precision} needs {' and '.join(lacking)}, which this CPU lacks."
    try:
        return None if engine == OURS or not engine_version(engine) else refusal(engine, precision)
    except UserError as error:  # not installed
        return str(error)


def _fixed_settings(settings: SweepSettings, base: Manifest, environment: Mapping[str, object]) -> dict[str, object]:
    """What must be the same for runs to be comparable: JSON-able, keys as messages name them."""
    run = asdict(settings.run)
    for key in ("model", "instances", "threads"):  # the libraries' checksums and the combinations say them
        del run[key]
    if run["indices_per_bag"] is not None:
        run["indices_per_bag"] = list(run["indices_per_bag"])  # as JSON gives it back
    return {
        "model_fingerprint": base.model.fingerprint,
        "precision": base.precision,
        "duration_s": settings.duration_s,
        "warmup_s": settings.warmup_s,
        **{key: environment[key] for key in _MACHINE},
        **{key: str(value.resolve()) if isinstance(value, Path) else value for key, value in run.items()},
    }


def _announce(prepared: Prepared, show: Callable[[str], None]) -> None:
    """What is about to be measured, in how many runs, and what is not."""
    settings, combinations, runs = prepared.settings, prepared.combinations, len(prepared.pending)
    show(
        f"{prepared.heading}: {len(combinations)} combinations × {settings.repeats} round{'s' * (settings.repeats > 1)}"
    )
    show(f"  placements  {placements_text(combinations)}")
    show(f"  batches     {', '.join(map(str, sorted({one.batch for one in combinations})))}")
    for reason, left_out in prepared.left_out.items():
        show(f"  left out    {len(left_out)}: {reason}")
    minutes = max(runs * settings.seconds_each / 60, 1)
    show(f"  order       random, seed {prepared.seed}; {runs} runs, about {minutes:.0f} min")
    show(f"  kept in     {settings.state_path}, after every run")
    for line in difference_lines(prepared.manifests):
        show(line)
