"""Ours beside ONNX Runtime and OpenVINO: the demo graph, one core, one thread, fp32, the same inputs.

    make bench                                   or  PYTHONPATH=. python tests/benchmarks/bench.py --batches 1,100

Compiles the library for every batch size, checks every engine's outputs against the NumPy reference (a wrong one gets
no number), then measures in turns: in each round and at each batch size every engine has one slice, in an order that
changes from round to round, with the core's peak measured before and after. Each engine is a process of its own on
the same core (engine_worker.py says why). Leaves nothing; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from engine_process import ROOT, EngineProcess
from results import NAMES, Row, Slice, as_json, rows, table
from streaming import needed_weight_bytes

from dlrm_tvm import reference
from dlrm_tvm.demo import demo_dlrm, demo_model_path
from dlrm_tvm.environment import describe_environment
from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.manifest import describe
from dlrm_tvm.model import Dlrm
from dlrm_tvm.topology import Topology, read_topology
from dlrm_tvm.workload import items_to_rotate, random_items

TOLERANCE = 1e-5
_CHECKED_ITEMS = 512  # at least; whole batches
_MIN_L3_BYTES = 32 << 20  # rows touched are four times this, or four times the real cache where that is larger


@dataclass(frozen=True)
class Inputs:
    """dense [N, 13] float32, indices [N, 26] int64: every batch size cuts its batches from the same N items."""

    dense: np.ndarray
    indices: np.ndarray


@dataclass(frozen=True)
class Measured:
    slices: list[Slice]
    stream_gbps: list[float]  # one per round; empty without batch 1


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
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
    engines, core = check(args, topology)
    model = demo_dlrm(args.table_rows)
    inputs = make_inputs(model, max(args.batches), topology)
    print(static_card(model, inputs, core), flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dlrm_bench_")))
        np.save(folder / "dense.npy", inputs.dense)
        np.save(folder / "indices.npy", inputs.indices)
        stack.callback(remove_libraries, args.output_name)
        libraries = {batch: compile_library(batch, args) for batch in args.batches}
        graphs = dict.fromkeys(args.batches, demo_model_path(args.table_rows))
        processes = {}
        for engine in engines:
            models = libraries if engine == "ours" else graphs
            process = stack.enter_context(EngineProcess(engine, core=core, models=models, inputs=folder))
            if announce(engine, process.open()):
                processes[engine] = process
        errors = check_outputs(processes, args.batches, model, inputs)
        measured = measure(processes, errors, args)
    results = rows(measured.slices, errors, model.flops_per_item)
    print(f"\n{table(results)}")
    streaming = batch_1_streaming(results, measured, model, inputs)
    environment = describe_environment(topology)
    print(json.dumps({
        "model": model.name, "core": core, "rounds": args.rounds, "seconds": args.seconds,
        "peak_gflops": median(each.peak_gflops for each in measured.slices) if measured.slices else None,
        "results": as_json(results), "batch_1_streaming": streaming, "environment": environment,
    }))  # fmt: skip
    return 0 if max(errors.values()) <= TOLERANCE else 1


def check(args: argparse.Namespace, topology: Topology) -> tuple[list[str], int]:
    """The engines to run and the core; refuses what cannot run before anything slow."""
    engines = args.engines.split(",")
    unknown = [engine for engine in engines if engine not in NAMES]
    if unknown or "ours" not in engines:
        raise UserError(f"--engines {args.engines}: ours and any of the others were wanted, from {', '.join(NAMES)}.")
    core = min(topology.usable) if args.core is None else args.core
    if core not in topology.usable:
        raise UserError(f"--core {core} is not usable here; usable are {sorted(topology.usable)}.")
    if args.rounds < 1 or args.seconds <= 0:
        raise UserError("--rounds and --seconds must be more than 0.")
    return engines, core


def make_inputs(model: Dlrm, largest_batch: int, topology: Topology) -> Inputs:
    """So many random items that their rows do not fit into the last-level cache, the same for all engines."""
    card = describe(model)
    items = items_to_rotate(card, largest_batch, max(topology.l3_bytes, _MIN_L3_BYTES))
    return Inputs(*random_items(card, items, instance=0))


def static_card(model: Dlrm, inputs: Inputs, core: int) -> str:
    touched = len(inputs.dense) * model.gather_bytes_per_item
    return "\n".join([
        f"{model.name}, fp32, one thread on core {core}",
        f"  per item    {model.flops_per_item / 1e6:.2f} MFLOP, {model.gather_bytes_per_item / 1e3:.1f} kB of rows",
        f"  weights     MLPs {model.mlp_bytes / 1e6:.1f} MB, tables {model.table_bytes / 1e6:,.1f} MB",
        f"  inputs      {len(inputs.dense):,} random items in turn, {touched / 1e6:,.0f} MB of table rows",
    ])  # fmt: skip


def compile_library(batch: int, args: argparse.Namespace) -> Path:
    """Through compile.py's own command line. Raises UserError with its words when it fails."""
    options = {"batch-size": batch, "output-name": args.output_name, "demo-table-rows": args.table_rows}
    command = [sys.executable, "compile.py", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"compile.py failed (status {done.returncode}): {done.stderr.strip()}")
    result = json.loads(done.stdout.splitlines()[-1])
    kernels = f"{result['tuned_kernels']} kernels tuned, {result['untuned_kernels']} by rule"
    print(f"  compiled    batch {batch}: {kernels}, {result['compile_s']:.1f} s", flush=True)
    return Path(result["library"])


def remove_libraries(name: str) -> None:
    for path in (ROOT / "__prebuilt").glob(f"{name}_b[0-9]*"):
        path.unlink()


def announce(engine: str, version: str | None) -> bool:
    """Say which engine takes part; whether it does."""
    if version is None:
        print(f"  {engine:<12}skipped: not installed (pip install -r requirements-dev.txt)", flush=True)
    else:
        print(f"  {engine:<12}{f'TVM {version}' if engine == 'ours' else version}", flush=True)
    return version is not None


def check_outputs(
    processes: dict[str, EngineProcess], batches: tuple[int, ...], model: Dlrm, inputs: Inputs
) -> dict[tuple[int, str], float]:
    """The largest absolute error of every (batch, engine) against the NumPy reference."""
    counts = {batch: -(-_CHECKED_ITEMS // batch) for batch in batches}
    items = max(batch * count for batch, count in counts.items())
    wanted = reference.predict(model, inputs.dense[:items], inputs.indices[:items])
    errors = {}
    for batch, count in counts.items():
        for engine, process in processes.items():
            error = np.abs(process.predict(batch, count) - wanted[: batch * count]).max()
            errors[batch, engine] = float(error) if np.isfinite(error) else float("inf")
    return errors


def measure(
    processes: dict[str, EngineProcess], errors: dict[tuple[int, str], float], args: argparse.Namespace
) -> Measured:
    """All rounds; only engines whose outputs were right take part."""
    slices: list[Slice] = []
    streams: list[float] = []
    peak_seconds = min(args.seconds / 4, 0.1)
    ours = processes["ours"]
    peak_before = ours.peak_gflops(peak_seconds)
    for number in range(args.rounds):
        for batch in args.batches:
            for engine in turns(list(processes), number):
                if not errors[batch, engine] <= TOLERANCE:
                    continue
                items_per_s = processes[engine].items_per_s(batch, args.seconds)
                peak_after = ours.peak_gflops(peak_seconds)
                slices.append(Slice(engine, batch, items_per_s, max(peak_before, peak_after)))
                peak_before = peak_after
        if 1 in args.batches:
            streams.append(ours.stream_gbps(peak_seconds))
    return Measured(slices, streams)


def turns(engines: list[str], number: int) -> list[str]:
    """Another one begins in every round: none always follows the same one."""
    first = number % len(engines)
    order = engines[first:] + engines[:first]
    return order if number // len(engines) % 2 == 0 else order[::-1]


def batch_1_streaming(results: list[Row], measured: Measured, model: Dlrm, inputs: Inputs) -> dict | None:
    """Print and return what of the measured streaming rate batch 1 reaches; None where it was not measured."""
    row = next((row for row in results if (row.batch_size, row.engine) == (1, "ours")), None)
    if row is None or row.items_per_s is None:
        return None
    stream = max(measured.stream_gbps)
    needed = needed_weight_bytes(model, inputs.dense[:256], inputs.indices[:256])
    share, needed_share = (row.items_per_s * size / stream / 1e9 for size in (model.mlp_bytes, needed))
    print(
        f"\nbatch 1     this core streams the weights at {stream:.1f} GB/s. Ours, as a share of that:\n"
        f"            {share:.0%} counting all {model.mlp_bytes / 1e6:.1f} MB for every item,\n"
        f"            {needed_share:.0%} counting the {needed / 1e6:.1f} MB whose input is not zero (others it skips)"
    )
    return {"stream_gbps": stream, "share": share, "needed_bytes": needed, "needed_share": needed_share}


if __name__ == "__main__":
    run_script(main)
