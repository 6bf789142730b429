"""Plan -> TIR -> Relax -> machine code.

    TIR      a function for the network, one for bags, on request both with time stamps     (network/functions.py)
    Relax    `main`, `bags`, `profile` and `profile_bags`, which call them, and the peak loops beside them
    build    passes (passes.py) and LLVM

Without kernels of ours TVM's operators stand in for the first two (lower_default.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import tvm
from tvm import relax, tirx

from ..kernels.peak import MAX_THREADS, PeakLoop, stream_read
from ..kernels.tile_unit import ask_for_tiles
from ..model.precision import PRECISIONS
from ..network.functions import bag_network, network, profile_network
from ..network.plan import NetworkPlan
from ..runtime.manifest import peak_name
from ..runtime.parameters import array_source
from ..schedules.passes import kernel_pipeline
from .job import Job
from .lower_default import plain_network

INPUTS = ("dense", "indices")  # of `main`
BAG_INPUTS = ("dense", "indices", "offsets")  # of `bags`
OUTPUTS = ("pred",)


def lower(job: Job) -> Job:
    """The plan as a module, and the MLPs' packed weights as a parameter."""
    if job.planned is None:
        functions: dict[str, tirx.PrimFunc] = {}
        module, mlp = plain_network(job.model, job.settings.batch_size, job.tables.elements)
    else:
        functions = _tir_functions(job.planned.plan, job.settings.profile)
        module, mlp = _relax_module(job.planned.plan, functions), job.planned.mlp
    # Measuring needs no compiler: the loops that measure the hardware travel with the library.
    helpers = [loop.function() for loop in (peak_loop(job), *other_peaks(job).values())]
    helpers.append(stream_read(mlp.size, job.family))
    if job.family.tiles and not job.family.emulated:
        helpers.append(ask_for_tiles(MAX_THREADS))
    for helper in helpers:
        module[helper.attrs["global_symbol"]] = helper
    return replace(job, functions=functions, module=module, mlp=array_source("mlp", mlp))


def build(job: Job) -> Job:
    passes = "default" if job.planned is None else kernel_pipeline()
    return replace(job, executable=relax.build(job.module, target=job.cpu.tvm_target, tir_pipeline=passes))


def peak_loop(job: Job) -> PeakLoop:
    return PeakLoop(job.family)


def other_peaks(job: Job) -> dict[str, PeakLoop]:
    """By precision, of the fastest instructions for those at which another engine may run in the library's place."""
    families = {each: job.cpu.find_family(each, tiles=job.family.tiles) for each in PRECISIONS if each != job.precision}
    return {each: PeakLoop(family, peak_name(each)) for each, family in families.items() if family}


def _tir_functions(plan: NetworkPlan, profile: bool) -> dict[str, tirx.PrimFunc]:
    """profile: with the functions `profile` and `profile_bags` too, which take about as long to compile again."""
    functions = {"main": network(plan), "bags": bag_network(plan)}
    if profile:
        functions |= {"profile": profile_network(plan), "profile_bags": bag_network(plan, profiled=True)}
    return functions


def _relax_module(plan: NetworkPlan, functions: Mapping[str, tirx.PrimFunc]) -> tvm.IRModule:
    """A Relax function of the same name for each TIR function, which calls it with its own arguments."""
    builder = relax.BlockBuilder()
    for name, function in functions.items():
        arguments = [relax.Var(each, type_) for each, type_ in _argument_types(plan, name).items()]
        kernel = builder.add_func(function.without_attr("global_symbol"), function.attrs["global_symbol"])
        with builder.function(name, arguments):
            with builder.dataflow():
                out = builder.emit_output(relax.call_tir(kernel, arguments, out_ty=_output_types(plan, name)))
            builder.emit_func_output(out)
    return builder.get()


def _argument_types(plan: NetworkPlan, function: str) -> dict[str, relax.TensorType]:
    total = tirx.Var("total", "int64")  # indices of all bags together
    one_per_table = {"indices": ((plan.batch, plan.num_tables), "int64")}
    bags = {"indices": ((total,), "int64"), "offsets": ((plan.num_tables, plan.batch + 1), "int64")}
    shapes = {
        "dense": ((plan.batch, plan.num_dense), "float32"),
        **(bags if "bags" in function else one_per_table),
        "tables": ((plan.table_elements,), "float32"),
        "table_info": ((2, plan.num_tables), "int64"),
        "mlp": ((plan.mlp_elements,), "float32"),
    }
    return {name: relax.TensorType(*shape) for name, shape in shapes.items()}


def _output_types(plan: NetworkPlan, function: str) -> relax.TensorType | list[relax.TensorType]:
    pred = relax.TensorType((plan.batch,), "float32")
    if "profile" not in function:
        return pred
    return [pred, relax.TensorType((plan.tiles, len(plan.parts) + 1), "int64")]  # time stamps of each tile
