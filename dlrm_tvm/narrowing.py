"""compile.py's step from a model to the numbers that its library computes in: what the CPU has, what the data gives.

check_precision   the instructions are there, the model has kernels
narrow            table steps from a pass over the tables; activation steps from calibration data, if it is given
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from .calibration import calibrate
from .errors import UserError
from .model import Dlrm
from .numerics import NEEDED_FLAGS, Numerics, numerics_of, unsupported
from .target import CpuTarget


def missing_flags(precision: str, cpu: CpuTarget) -> list[str]:
    """What /proc/cpuinfo would have to show of this CPU and does not."""
    return [flag for flag in NEEDED_FLAGS[precision] if not cpu.has(flag)]


def check_precision(model: Dlrm, precision: str, cpu: CpuTarget) -> None:
    """Raises UserError where the CPU lacks a precision's instructions, or the model has no kernels of it."""
    missing = missing_flags(precision, cpu)
    if missing:
        where = "this CPU" if cpu.is_host else f"{cpu.cpu}"
        raise UserError(
            f"--precision {precision} needs {', '.join(missing)}, which {where} lacks. "
            "Use --precision fp32, or --target-cpu of a CPU that has it."
        )
    reason = unsupported(model, precision)
    if reason is not None:
        raise UserError(f"{model.name} cannot be compiled with --precision {precision}: {reason}. Use bf16 or fp32.")


def narrow(model: Dlrm, precision: str, calibration: Path | None) -> Numerics:
    """The numbers of a precision for this model. calibration: int8's activation steps are found on this file's items;
    without it each row has its own.

    Raises UserError for tables that are not finite, and for a file that does not fit the model.
    """
    if precision != "int8":
        return numerics_of(model, precision)
    from .table_rows import table_steps

    try:
        with _progress(model.table_bytes) as bar:
            numerics = numerics_of(model, precision, table_steps(model, bar.update))
    except ValueError as error:
        raise UserError(f"{model.name}: {error}. Use --precision bf16, or export the model anew.") from None
    return numerics if calibration is None else calibrate(model, numerics, calibration)


def _progress(nbytes: int) -> tqdm:
    """Shown on a terminal, where reading the tables takes longer than a moment."""
    return tqdm(total=nbytes, desc="table steps", unit="B", unit_scale=True, delay=1, leave=False, disable=None)
