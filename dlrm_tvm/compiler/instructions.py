"""Which instruction family a library is made of: what the CPU has, what the kernel grants, and what --isa asks for."""

from __future__ import annotations

from ..errors import UserError
from ..kernels.isa import GENERIC, Family
from ..machine.tile_state import TILE_FLAGS, tile_refusal
from ..model.dlrm import Dlrm
from ..model.ranges import why_not_in_parts
from ..schedules.target import CpuTarget
from .options import ISAS, CompileSettings

AUTO, AVX512, AMX = ISAS
# The least batches at which tiles won on an Emerald Rapids core (EXPERIMENTS.md, 2026-11-30; half of them, three
# quarters in fp32, did not or were not tried). Within twice that, --precision auto times both.
LEAST_TILE_BATCH = {"fp32": 16, "bf16": 4, "int8": 8}


def check_target(settings: CompileSettings, cpu: CpuTarget) -> None:
    """Raises UserError for what the CPU can do for no model at all, before one is read or generated."""
    for flag, runs in (("--precision auto", settings.precision == "auto"), ("--tune", settings.tune)):
        if runs and not cpu.is_host:
            raise UserError(f"{flag} measures on this machine, which is not a {cpu.cpu}. Leave out --target-cpu.")
    if settings.tuning_log_file is not None:  # else TVM's default code, which runs on any CPU
        cpu.family("fp32" if settings.precision == "auto" else settings.precision)
    if settings.isa == AMX:
        _refuse_amx(_why_no_tiles_at_all(cpu))


def choose_family(cpu: CpuTarget, precision: str, isa: str, batch: int, model: Dlrm) -> Family:
    """GENERIC if the CPU runs TVM's default code alone. Raises UserError if AMX is asked for and cannot be had."""
    reason = why_no_tiles(cpu, precision, model)
    if isa == AMX:
        _refuse_amx(reason)
    tiles = isa == AMX or (isa == AUTO and reason is None and batch >= LEAST_TILE_BATCH[precision])
    return cpu.find_family(precision, tiles=tiles) or GENERIC


def families_to_time(cpu: CpuTarget, precision: str, isa: str, batch: int, model: Dlrm) -> list[Family]:
    """choose_family's, and the other one of --isa auto where the batch is so small that either may be faster."""
    chosen = choose_family(cpu, precision, isa, batch, model)
    large = batch >= 2 * LEAST_TILE_BATCH[precision]
    if isa != AUTO or large or why_no_tiles(cpu, precision, model) is not None:
        return [chosen]
    return [chosen, choose_family(cpu, precision, AVX512 if chosen.tiles else AMX, batch, model)]


def why_no_tiles(cpu: CpuTarget, precision: str, model: Dlrm) -> str | None:
    """Why a model cannot run on AMX's tiles; None where it can. Of this machine the kernel is asked."""
    refusal = _why_no_tiles_at_all(cpu)
    if refusal is None and precision == "fp32":
        return why_not_in_parts(model)
    return refusal


def _why_no_tiles_at_all(cpu: CpuTarget) -> str | None:
    missing = [flag for flag in TILE_FLAGS if not cpu.has(flag)]
    if missing:
        return f"{cpu.cpu} lacks {', '.join(missing)}"
    return tile_refusal() if cpu.is_host else None


def _refuse_amx(reason: str | None) -> None:
    if reason is not None:
        raise UserError(f"--isa amx: {reason}. Leave --isa out, or give --isa avx512.")
