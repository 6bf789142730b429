"""Dlrm -> library: the whole lowering as one list of phases, each dumped on request.

    plan     schedules chosen, weights packed                      (plan.py, schedules.py)
    tir      a TIR function for the network, and one for bags      (kernels/network.py)
    relax    `main` and `bags` that call them, with the peak loops beside them, and `profile` on request
    build    TVM's own passes and LLVM

or, without tuned schedules, TVM's operators and default code generation in place of the first three (plain.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tvm
from tvm import relax, tirx

from .errors import UserError
from .kernels.network import bag_network, network, profile_network
from .kernels.network_plan import NetworkPlan
from .kernels.peak import PeakLoop, stream_read
from .manifest import Part
from .model import Dlrm
from .numerics import Numerics, numerics_of
from .parameters import ParameterSource, array_source
from .parts import parts_of
from .plain import plain_network
from .plan import plan_network
from .schedules import NetworkSchedule
from .table_layout import TableLayout, lay_out_tables
from .target import CpuTarget

INPUTS = ("dense", "indices")  # of `main`
BAG_INPUTS = ("dense", "indices", "offsets")  # of `bags`
OUTPUTS = ("pred",)


@dataclass(frozen=True, eq=False)
class Lowered:
    """executable: ready to be exported; tables: where its first parameter lies; mlp: its last one.

    parts: those that its function `profile` times; none where it has no such function.
    """

    executable: relax.VMExecutable
    tables: TableLayout
    mlp: ParameterSource
    peak_flops_per_round: int
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Dump:
    """Writes the IR after each phase to `directory`; None writes nothing."""

    directory: Path | None

    def write(self, phase: str, text) -> None:
        """text: a function, so that nothing is printed for nothing."""
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / phase).write_text(text())


def lower_tuned(
    model: Dlrm,
    batch: int,
    schedule: NetworkSchedule,
    dense_schedule,
    target: CpuTarget,
    dump: Dump,
    tables: TableLayout | None = None,
    profile: bool = False,
    numerics: Numerics | None = None,
) -> Lowered:
    """Our kernels. tables: where the model's tables will lie; by default in place where they can. profile: whether the
    library gets the function `profile` too, which takes about as long to compile as `main`. numerics: what it computes
    in, by default float32; the tables are laid out for it.

    Raises UserError where the target has neither AVX-512 nor AVX2 with FMA.
    """
    if not target.registers:
        raise UserError(
            f"{target.cpu} has neither AVX-512 nor AVX2 with FMA, which the tuned kernels are made of. "
            "Compile with --tuning-log-file none, or --target-cpu of a CPU that has it."
        )
    numerics = numerics or numerics_of(model, "fp32")
    tables = tables or lay_out_tables(model, numerics=numerics)
    planned = plan_network(model, batch, schedule, dense_schedule, tables.elements, numerics)
    dump.write("1_plan.txt", lambda: f"{planned.plan}\n")
    functions = {"main": network(planned.plan), "bags": bag_network(planned.plan)}
    if profile:
        functions["profile"] = profile_network(planned.plan)
    dump.write("2_tir.py", lambda: "\n".join(function.script() for function in functions.values()))
    module = _relax_module(planned.plan, functions)
    lowered = _build(module, planned.mlp, tables, target, dump, numerics.precision)
    return replace(lowered, parts=parts_of(model, planned.plan) if profile else ())


def lower_plain(model: Dlrm, batch: int, target: CpuTarget, dump: Dump, tables: TableLayout | None = None) -> Lowered:
    """TVM's default code generation, no schedules of ours."""
    tables = tables or lay_out_tables(model)
    module, mlp = plain_network(model, batch, tables.elements)
    return _build(module, mlp, tables, target, dump)


def _relax_module(plan: NetworkPlan, functions: dict) -> tvm.IRModule:
    """`main`, `bags` and what else there is, each of which calls its TIR function with its own arguments."""
    total = tirx.Var("total", "int64")  # indices of all bags together
    tables = plan.num_tables
    dense = {"dense": ((plan.batch, plan.num_dense), "float32")}
    one_hot = {"indices": ((plan.batch, tables), "int64")}
    inputs = {
        "main": one_hot,
        "bags": {"indices": ((total,), "int64"), "offsets": ((tables, plan.batch + 1), "int64")},
        "profile": one_hot,
    }
    pred = relax.TensorType((plan.batch,), "float32")
    outputs = {"profile": [pred, relax.TensorType((plan.tiles, len(plan.parts) + 1), "int64")]}
    parameters = {
        "tables": ((plan.table_elements,), "float32"),
        "table_info": ((2, tables), "int64"),
        "mlp": ((plan.mlp_elements,), "float32"),
    }
    builder = relax.BlockBuilder()
    for name, function in functions.items():
        shapes = {**dense, **inputs[name], **parameters}
        arguments = [relax.Var(each, relax.TensorType(*shape)) for each, shape in shapes.items()]
        kernel = builder.add_func(function.without_attr("global_symbol"), function.attrs["global_symbol"])
        with builder.function(name, arguments):
            with builder.dataflow():
                out = builder.emit_output(relax.call_tir(kernel, arguments, out_ty=outputs.get(name, pred)))
            builder.emit_func_output(out)
    return builder.get()


def _build(
    module: tvm.IRModule, mlp: np.ndarray, tables: TableLayout, target: CpuTarget, dump: Dump, precision: str = "fp32"
) -> Lowered:
    """The loops that measure the hardware travel with the library, so that measuring needs no compiler."""
    peak = PeakLoop(precision, target.registers)
    for function in (peak.function(), stream_read(mlp.size, target.registers)):
        module[function.attrs["global_symbol"]] = function
    dump.write("3_relax.py", lambda: module.script())
    executable = relax.build(module, target=target.tvm_target)
    dump.write("4_assembly.s", lambda: executable.mod.imports[0].inspect_source("asm"))
    return Lowered(executable, tables, array_source("mlp", mlp), peak.flops_per_round)
