"""One compilation from ONNX file to library: PHASES below is the list, in the order in which they run.

Each phase takes the frozen job (job.py) and returns it with its own result filled in. With --precision auto those from
"choose instructions" to "judge accuracy" are repeated for each candidate; of those that pass the accuracy gate the
fastest is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..console import Bar, show
from ..data.demo import DEMOS, demo_model_path
from ..data.state_dict import graph_of_weights, graph_path
from ..errors import FoundWantingError, UserError, printable
from ..model.dlrm import Dlrm
from ..paths import DEFAULT_LOG
from ..runtime.artifact import open_artifact
from ..runtime.table_files import expect_single_rows
from ..schedules.layer_probe import probe_blocks
from ..schedules.machine_model import MachineModel, measure_machine
from ..schedules.rules import DEFAULT_CODE, NetworkSchedule, Probed, choose_schedules
from ..schedules.target import cpu_target
from ..schedules.tile_rules import tile_schedules
from ..schedules.tuning_log import read_log
from . import dump, summary
from .conversion_journal import NoRoomError, conversion_journal
from .instructions import AVX512, check_target, choose_family, families_to_time
from .job import Job
from .library_writer import check_compiler, check_room, put_in_place, stage, staging_directory
from .lower import build, lower
from .options import CompileSettings
from .plan import layer_shapes, plan_network
from .precision_choice import candidates, choose_numerics, judge_on
from .ranking import items_per_second
from .table_conversion import stored_bytes
from .table_layout import lay_out_tables
from .verify import verify


def find_target(job: Job) -> Job:
    check_compiler()
    cpu = cpu_target(job.settings.target_cpu)
    check_target(job.settings, cpu)
    return replace(job, cpu=cpu)


def read(job: Job) -> Job:
    known = job.settings.torch_weights is None or graph_path(job.settings.torch_weights).exists()
    path = _model_file(job.settings)
    try:
        model = job.reader(path)
        check_finite(model)
    except UserError:
        if not known:  # written just now, of weights that are refused
            path.unlink(missing_ok=True)
        raise
    for table in model.tables:
        expect_single_rows(table.rows)
    return replace(job, onnx_model=path, model=model)


def _model_file(settings: CompileSettings) -> Path:
    """The ONNX file; one of weights and the demo model's are written if need be."""
    if settings.torch_weights is not None:
        return graph_of_weights(settings.torch_weights)
    return settings.onnx_model or demo_model_path(settings.demo_table_rows, DEMOS[settings.demo or "v1"])


def check_finite(model: Dlrm) -> None:
    """MLP weights must be finite: kernels skip inputs that are zero, which is only right when 0 * w is 0."""
    for number, layer in enumerate(model.layers):
        if not (np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all()):
            raise UserError(f"{model.name}: layer {number} has weights that are not finite. Export the model anew.")


def choose_precision(job: Job) -> Job:
    """The precisions to try, and for "auto" the gate, whose data is looked at before the slow part."""
    settings = job.settings
    found = candidates(job.cpu, settings.precision)
    judge = None
    if settings.precision == "auto":
        judge = judge_on(job.model, settings.ref_data, settings.min_auc_ratio, settings.max_ind_range)
    return replace(job, candidates=found, judge=judge)


def choose_instructions(job: Job) -> Job:
    settings = job.settings
    isa = AVX512 if settings.tuning_log_file is None else settings.isa  # TVM's default code has no tiles
    return replace(job, isa=choose_family(job.cpu, job.precision, isa, settings.batch_size, job.model))


def check_disk(job: Job) -> Job:
    """Before tables are read to be converted. In fp32 the layout decides how many are copied; see lay_out."""
    nbytes = stored_bytes(job.model, job.precision)
    if job.precision != "fp32":
        check_room(job.settings.directory, nbytes - job.kept_bytes)
    return replace(job, stored_bytes=nbytes)


def choose_scales(job: Job) -> Job:
    calibration = job.settings.calibration_data if job.precision == "int8" else None
    how = {"family": job.family, "max_ind_range": job.settings.max_ind_range, "journal": job.journal}
    return replace(job, numerics=choose_numerics(job.model, job.precision, calibration, **how))


def lay_out(job: Job) -> Job:
    tables = lay_out_tables(job.model, copy=job.settings.copy_tables, numerics=job.numerics)
    check_room(job.settings.directory, 0 if tables.copied is None else tables.copied.nbytes - job.kept_bytes)
    return replace(job, tables=tables)


def look_at_machine(job: Job) -> Job:
    """Rates are measured where the library will run, for kernels of ours whose schedules are still to be chosen."""
    wanted = job.settings.tuning_log_file is not None and job.schedules is None and not job.family.tiles
    machine = MachineModel(job.cpu.caches)
    if wanted and job.cpu.is_host and job.runs_here and not machine.keeps(job.weight_bytes):
        machine = measure_machine(job.cpu, job.family, job.weight_bytes)
    return replace(job, machine=machine)


def choose(job: Job) -> Job:
    """Raises UserError where the target has neither AVX-512 nor AVX2 with FMA."""
    log, precision = job.settings.tuning_log_file, job.numerics.precision
    if log is None:
        return replace(job, schedules=DEFAULT_CODE)
    layers = layer_shapes(job.model, job.numerics, job.family)
    if job.family.tiles:
        return replace(job, schedules=tile_schedules(layers, job.settings.batch_size, job.machine.caches))

    def probe(start: NetworkSchedule) -> Probed:
        if job.machine.peak_gflops is None:
            return Probed(start)
        return probe_blocks(layers, start, job.settings.batch_size, job.cpu, precision, job.weight_bytes)

    chosen = choose_schedules(
        read_log(log, must_exist=log != DEFAULT_LOG),
        layers,
        cpu=job.cpu.cpu,
        batch=job.settings.batch_size,
        registers=job.cpu.family(precision).registers,
        precision=precision,
        block_items=job.machine.block_items(job.model, job.numerics, layers),
        l2=job.machine.caches.l2,
        probe=probe,
    )
    return replace(job, schedules=chosen)


def plan(job: Job) -> Job:
    chosen = job.schedules
    if chosen.is_default:
        return job
    planned = plan_network(
        job.model,
        job.settings.batch_size,
        chosen.network,
        chosen.dense.__getitem__,
        job.tables.elements,
        job.numerics,
        job.family,
    )
    return replace(job, planned=planned)


def verify_staged(job: Job) -> Job:
    if not job.runs_here:
        return job
    return replace(job, verification=verify(open_artifact(job.staged, whole_tables=False), job.model, job.numerics))


def judge_accuracy(job: Job) -> Job:
    return job if job.judge is None else replace(job, verdict=job.judge(job.staged))


@dataclass(frozen=True)
class Phase:
    """fills: the job's field with its result; says: lines for people; dumps: file name -> text for --dump-ir, or None
    where there is nothing to show."""

    name: str
    run: Callable[[Job], Job]
    fills: str
    says: Callable[[Job], list[str]] = lambda job: []
    dumps: Mapping[str, Callable[[Job], str | None]] = field(default_factory=dict)


_MODEL = (
    Phase("find target", find_target, "cpu"),
    Phase("read", read, "model", dumps={"1_model.json": dump.model}),
    Phase("choose precision", choose_precision, "candidates", summary.card),
)
_NUMBERS = (
    Phase("choose instructions", choose_instructions, "isa"),
    Phase("check disk", check_disk, "stored_bytes", summary.conversion),
    Phase("choose scales", choose_scales, "numerics", summary.numerics, {"2_numerics.json": dump.numerics}),
    Phase("lay out tables", lay_out, "tables", summary.tables, {"3_tables.json": dump.tables}),
)
_CODE = (
    Phase("look at machine", look_at_machine, "machine", summary.machine),
    Phase("choose schedules", choose, "schedules", summary.schedules, {"4_schedules.json": dump.schedules}),
    Phase("plan", plan, "planned", dumps={"5_plan.txt": dump.plan}),
    Phase("lower", lower, "module", dumps={"6_tir.py": dump.tir, "7_relax.py": dump.relax}),
    Phase("build", build, "executable", dumps={"8_assembly.s": dump.assembly}),
)
_FILES = (
    Phase("stage", stage, "staged"),
    Phase("verify", verify_staged, "verification", dumps={"9_verification.json": dump.verification}),
    Phase("judge accuracy", judge_accuracy, "verdict", summary.verdict),
)
_WRITE = (Phase("write", put_in_place, "library", summary.written),)

PHASES = (*_MODEL, *_NUMBERS, *_CODE, *_FILES, *_WRITE)


def compile_model(job: Job) -> Job:
    """The job with its library in place, verified; nothing is left behind on failure.

    Raises UserError for whatever a phase refuses, and where no candidate passes the gate. One that the disk has no room
    for beside the others is left out.
    """
    job, made, no_room = _run(job, _MODEL), [], None
    with ExitStack() as stagings:
        for candidate in _candidates(job):
            try:
                made.append(_staged(candidate, stagings))
            except NoRoomError as error:
                if job.judge is None:
                    raise
                no_room = error
                _say(candidate, partial(summary.left_out, reason=error))
        if not made:
            raise no_room
        if not any(candidate.accepted for candidate in made):
            data = job.settings.ref_data or "the demo data"
            raise FoundWantingError(f"no precision keeps to the AUC ratio on {data}: nothing was written.")
        return _run(made[0] if job.judge is None else _fastest(made), _WRITE)


def _candidates(job: Job) -> Iterator[Job]:
    """For "auto" in each precision that is to be tried, with each family of instructions worth timing; each dumps to a
    directory of its own."""
    settings = job.settings
    if job.judge is None:
        yield replace(job, precision=job.candidates.precisions[0])
        return
    for precision in job.candidates.precisions:
        for family in families_to_time(job.cpu, precision, settings.isa, settings.batch_size, job.model):
            folder = settings.dump_ir and settings.dump_ir / f"{precision}_{family.name}"
            yield replace(job, precision=precision, isa=family, settings=replace(settings, dump_ir=folder))


def _staged(job: Job, stagings: ExitStack) -> Job:
    settings = job.settings
    if job.judge is None and (job.precision != "fp32" or settings.copy_tables):  # candidates share no files
        journal = conversion_journal(settings.directory, job.file_name, job.model, job.precision)
        job = replace(job, journal=stagings.enter_context(journal))
        _say(job, summary.resumed)
    job = _run(job, _NUMBERS + _CODE)
    staging = stagings.enter_context(staging_directory(settings.directory))
    return _run(replace(job, staging=staging), _FILES)


def _fastest(made: list[Job]) -> Job:
    """Of those that pass the gate."""
    accepted = [job for job in made if job.accepted]
    rates = items_per_second([job.staged for job in accepted], made[0].cpu.caches.l3)
    ranked = {job.label: None for job in made} | {job.label: round(rate, 1) for job, rate in zip(accepted, rates)}
    fastest = replace(accepted[rates.index(max(rates))], items_per_s=ranked)
    _say(fastest, summary.ranking)
    return fastest


def numbers_chosen(job: Job) -> Job:
    """The job up to its tables' layout, in its one precision: all that a search for schedules needs."""
    job = _run(job, _MODEL)
    return _run(replace(job, precision=job.candidates.precisions[0]), _NUMBERS)


def machine_code(job: Job) -> Job:
    """A job with numerics, tables and schedules up to its executable, in memory only."""
    return build(lower(plan(job)))


def _run(job: Job, phases: tuple[Phase, ...]) -> Job:
    """Phases whose result was given beforehand are left out."""
    for phase in phases:
        if getattr(job, phase.fills) is not None:
            continue
        job.progress(phase.name)
        with Bar(f"{phase.name} ({PHASES.index(phase) + 1} of {len(PHASES)})"):
            job = phase.run(job)
            _say(job, phase.says)
            if job.settings.dump_ir is not None:  # texts take time: LLVM makes the assembly anew
                for name, text in phase.dumps.items():
                    dump.write(job.settings.dump_ir, name, text(job))
    return job


def _say(job: Job, lines: Callable[[Job], list[str]]) -> None:
    if not job.quiet and (said := lines(job)):
        show("\n".join(map(printable, said)))
