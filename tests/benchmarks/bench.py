"""Ours beside ONNX Runtime and OpenVINO: the demo graph, one core, one thread, the same inputs, precision by precision.

    make bench                                   or  PYTHONPATH=. python tests/benchmarks/bench.py --batches 1,100

Compiles the library for every precision and batch size, checks every engine's outputs against the NumPy reference (a
wrong one gets no number), then measures in turns (rounds.py), with the core's peak measured before and after each
slice by our library of that precision. Peers run in the same precision, by their own means (dlrm_tvm/peers.py); those
that have none are left out. Each engine is a process of its own on the same core (engine_worker.py says why). Leaves
nothing; the last line is JSON.

Outputs are right within 1e-5 at fp32, and within 0.01 (bf16) or 0.02 (int8) of the fp32 reference on average.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from engine_process import EngineProcess
from engines import int8_file, why_not
from libraries import compile_library, remove_libraries
from results import NAMES, Row, as_json, rows, table
from rounds import Contest, Inputs, Measured, check_outputs, measure
from streaming import batch_1_streaming

from dlrm_tvm.cpu import host_flags
from dlrm_tvm.demo import demo_dlrm, demo_model_path
from dlrm_tvm.environment import describe_environment
from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.manifest import describe
from dlrm_tvm.model import Dlrm
from dlrm_tvm.numerics import INSTRUCTION_FLAG, PRECISIONS
from dlrm_tvm.topology import Topology, read_topology
from dlrm_tvm.workload import items_to_rotate, random_items

_MIN_L3_BYTES = 32 << 20  # rows touched are four times this, or four times the real cache where that is larger


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--precisions", help=f"of {','.join(PRECISIONS)}; default: those this CPU has instructions for")
    parser.add_argument("--batches", type=sizes, default="1,16,100,400,2048", help="batch sizes; default %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one engine's slice; default %(default)s")
    parser.add_argument("--table-rows", type=int, default=10_000, help="the demo tables' cap; default %(default)s")
    parser.add_argument("--core", type=int, help="cpu id to run on; default: the first usable one")
    parser.add_argument("--engines", default=",".join(NAMES), help="ours and any of the others; default %(default)s")
    parser.add_argument("--output-name", default="bench", help="of the libraries, removed at the end; default bench")
    return parser.parse_args()


def sizes(text: str) -> tuple[int, ...]:
    values = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{min(values)} is less than 1")
    return values


def main() -> int:
    args = parse_args()
    topology = read_topology()
    precisions, engines, core = check(args, topology)
    model = demo_dlrm(args.table_rows)
    inputs = make_inputs(model, max(args.batches), topology)
    print(static_card(model, inputs, precisions, core), flush=True)
    results, streaming, peaks = [], None, {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dlrm_bench_")))
        np.save(folder / "dense.npy", inputs.dense)
        np.save(folder / "indices.npy", inputs.indices)
        stack.callback(remove_libraries, args.output_name, precisions)
        # All before the first is measured: what cannot be compiled costs no measurement.
        libraries = {precision: compile_libraries(precision, args) for precision in precisions}
        graph = demo_model_path(args.table_rows)
        contest = Contest(engines, args.batches, args.rounds, args.seconds, core, model, graph, inputs, folder)
        for precision in precisions:
            found, measured = bench(precision, libraries[precision], contest)
            print(f"\n{table(found)}\n", flush=True)
            results += found
            peaks[precision] = median(each.peak_gflops for each in measured.slices) if measured.slices else None
            if precision == "fp32":
                streaming = batch_1_streaming(found, measured.stream_gbps, model, inputs)
    print(json.dumps({
        "model": model.name, "precisions": precisions, "core": core, "rounds": args.rounds, "seconds": args.seconds,
        "peak_gflops": peaks, "results": as_json(results), "batch_1_streaming": streaming,
        "environment": describe_environment(topology),
    }))  # fmt: skip
    return 0 if all(row.is_right for row in results) else 1


def check(args: argparse.Namespace, topology: Topology) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """The precisions and engines to run and the core; refuses what cannot run before anything slow."""
    engines = tuple(args.engines.split(","))
    unknown = [engine for engine in engines if engine not in NAMES]
    if unknown or "ours" not in engines:
        raise UserError(f"--engines {args.engines}: ours and any of the others were wanted, from {', '.join(NAMES)}.")
    core = min(topology.usable) if args.core is None else args.core
    if core not in topology.usable:
        raise UserError(f"--core {core} is not usable here; usable are {sorted(topology.usable)}.")
    if args.rounds < 1 or args.seconds <= 0:
        raise UserError("--rounds and --seconds must be more than 0.")
    return choose_precisions(args.precisions, host_flags()), engines, core


def choose_precisions(wanted: str | None, flags: frozenset[str]) -> tuple[str, ...]:
    """Those wanted, or all that a CPU of these flags has instructions for."""
    able = tuple(each for each in PRECISIONS if each not in INSTRUCTION_FLAG or INSTRUCTION_FLAG[each] in flags)
    if wanted is None:
        return able
    precisions = tuple(dict.fromkeys(wanted.split(",")))
    for each in precisions:
        if each not in PRECISIONS:
            raise UserError(f"--precisions {wanted}: {each or 'nothing'} is none of {', '.join(PRECISIONS)}.")
        if each not in able:
            raise UserError(f"--precisions {wanted}: {each} needs {INSTRUCTION_FLAG[each]}, which this CPU lacks.")
    return precisions


def make_inputs(model: Dlrm, largest_batch: int, topology: Topology) -> Inputs:
    """So many random items that their rows do not fit into the last-level cache, the same for all engines."""
    card = describe(model)
    items = items_to_rotate(card, largest_batch, max(topology.l3_bytes, _MIN_L3_BYTES))
    return Inputs(*random_items(card, items, instance=0))


def static_card(model: Dlrm, inputs: Inputs, precisions: tuple[str, ...], core: int) -> str:
    touched = len(inputs.dense) * model.gather_bytes_per_item
    return "\n".join([
        f"{model.name}, {', '.join(precisions)}, one thread on core {core}; bytes of its fp32 form:",
        f"  per item    {model.flops_per_item / 1e6:.2f} MFLOP, {model.gather_bytes_per_item / 1e3:.1f} kB of rows",
        f"  weights     MLPs {model.mlp_bytes / 1e6:.1f} MB, tables {model.table_bytes / 1e6:,.1f} MB",
        f"  inputs      {len(inputs.dense):,} random items in turn, {touched / 1e6:,.0f} MB of table rows",
    ])  # fmt: skip


def compile_libraries(precision: str, args: argparse.Namespace) -> dict[int, Path]:
    return {
        batch: compile_library(precision, batch, name=args.output_name, table_rows=args.table_rows)
        for batch in args.batches
    }


def bench(precision: str, libraries: dict[int, Path], contest: Contest) -> tuple[list[Row], Measured]:
    """All engines that have this precision, opened, checked and measured."""
    with ExitStack() as stack:
        processes = open_engines(precision, libraries, contest, stack)
        errors = check_outputs(processes, contest)
        right = {key for key, error in errors.items() if error.are_right(precision)}
        measured = measure(processes, right, contest)
    return rows(measured.slices, errors, precision, contest.model.flops_per_item), measured


def open_engines(
    precision: str, libraries: dict[int, Path], contest: Contest, stack: ExitStack
) -> dict[str, EngineProcess]:
    """Those that have this precision here, which is said, as is why others have not."""
    processes = {}
    for engine in contest.engines:
        version, reason = None, why_not(engine, precision)
        if reason is None:
            models = libraries if engine == "ours" else dict.fromkeys(contest.batches, contest.graph)
            quantized = int8_file(engine, contest.graph, describe(contest.model)) if precision == "int8" else None
            options = {"core": contest.core, "models": models, "inputs": contest.folder, "quantized": quantized}
            processes[engine] = stack.enter_context(EngineProcess(engine, precision, **options))
            version = processes[engine].open()
        shown = f"skipped: {reason}" if reason else f"TVM {version}" if engine == "ours" else version
        print(f"  {engine:<12}{precision}: {shown}", flush=True)
    return processes


if __name__ == "__main__":
    run_script(main)
