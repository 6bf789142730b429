#!/usr/bin/env python3
"""Run a compiled library as N pinned instances at once and measure them together.

Reads the library that compile.py left (.so, parameters, manifest); leaves nothing. Prints what is to be measured and
the peak of exactly these cores, then throughput, latency, share of the peak and memory; the last line is JSON.
Ctrl-C ends the run early and prints what was measured so far.

    python multi_instance.py --num-instances 2 --duration 4
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from dlrm_tvm import disturbances
from dlrm_tvm.artifact import Artifact, open_artifact
from dlrm_tvm.cores import choose_cores
from dlrm_tvm.environment import describe_environment
from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.instances import Instances
from dlrm_tvm.memory import memory_use
from dlrm_tvm.numa import POLICIES, NumaPlan, node_memory, placing_refusal, plan_numa
from dlrm_tvm.reference_data import open_reference
from dlrm_tvm.report import RunReport, line, peak_line, results_json, results_text, static_card
from dlrm_tvm.topology import Topology, read_topology
from dlrm_tvm.weight_copies import TableSetup, WeightCopies, prepared_weights
from dlrm_tvm.worker import Assignment

DEFAULT_MODEL = Path(os.path.relpath(Path(__file__).parent / "__prebuilt" / "dlrm_avx512_b100.so"))
PEAK_SECONDS = 1.0
STREAM_SECONDS = 0.3
MAX_SECONDS = 86_400
STREAMED_UP_TO_BATCH = 1  # above, weights are used more than once, and arithmetic is the limit


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="SO", help="default: %(default)s")
    parser.add_argument("--num-instances", type=count, metavar="N", help="default: as many as there are cores for")
    parser.add_argument("--num-threads", type=count, default=1, metavar="T", help="of each instance; default 1")
    parser.add_argument("--duration", type=float, default=10.0, metavar="S", help="timed window; default 10 s")
    parser.add_argument("--warmup", type=float, default=2.0, metavar="S", help="before it; default 2 s")
    parser.add_argument("--cores", metavar="LIST", help="use these, in this order, such as 0-3,8,10-11")
    parser.add_argument("--hyper-threading", action="store_true", help="use all hardware threads of a core, not one")
    parser.add_argument("--ref-data", type=Path, metavar="FILE", help="take inputs from it; default: random rows")
    parser.add_argument("--indices-per-bag", type=count, metavar="P", help="random bags of P rows; default 1: no bags")
    parser.add_argument("--preload", action="store_true", help="read the tables into memory first, in parallel")
    parser.add_argument(
        "--huge-pages",
        action="store_true",
        help="copy the tables into shared memory of huge pages, if the kernel has any",
    )
    parser.add_argument(
        "--numa", choices=POLICIES, help="where tables lie on several nodes; default: the best that fits"
    )
    args = parser.parse_args()
    check_seconds("--duration", args.duration)
    check_seconds("--warmup", args.warmup)
    if args.duration == 0:
        raise UserError("--duration 0: more than 0 seconds were wanted.")
    if args.indices_per_bag and args.ref_data:
        raise UserError(f"--indices-per-bag makes random bags, {args.ref_data} has its own: give one of the two.")
    args.indices_per_bag = args.indices_per_bag or 1
    return args


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def check_seconds(option: str, value: float) -> None:
    if not 0 <= value <= MAX_SECONDS:  # a NaN is neither
        raise UserError(f"{option} {value:g}: 0 to {MAX_SECONDS} seconds (a day) were wanted.")


def main() -> int:
    args = parse_args()
    topology = read_topology()
    cores = choose_cores(
        topology,
        instances=args.num_instances,
        threads=args.num_threads,
        hyper_threading=args.hyper_threading,
        core_list=args.cores,
    )
    artifact = open_artifact(args.model)
    if args.ref_data:  # refuses what does not fit
        data = open_reference(args.ref_data, artifact.manifest.model, outputs_wanted=False)
        args.indices_per_bag = data.indices_per_bag
    environment = describe_environment(topology)
    busiest = disturbances.busiest_core([core for each in cores for core in each])

    inputs = f"items of {args.ref_data}" if args.ref_data else "random rows of whole tables, different in every batch"
    plan = plan_memory(args, topology, cores, artifact)
    print(static_card(artifact.manifest, str(args.model), cores, inputs, args.indices_per_bag), flush=True)
    with (
        prepared_weights(artifact, plan, preload=args.preload, huge_pages=args.huge_pages, say=say) as weights,
        Instances(assignments(args, topology, cores, plan, weights)) as instances,
    ):
        report = measure(instances, args, artifact, cores, environment, busiest, weights.setup)
    print(results_text(report))
    print(json.dumps(results_json(report)), flush=True)
    return 1 if report.interrupted else 0


def plan_memory(
    args: argparse.Namespace, topology: Topology, cores: tuple[tuple[int, ...], ...], artifact: Artifact
) -> NumaPlan:
    """On which NUMA nodes the weights are to lie."""
    nodes = node_memory()
    return plan_numa(
        topology,
        cores,
        table_bytes=artifact.manifest.table_range.nbytes,
        node_bytes=nodes,
        wanted=args.numa,
        refusal=placing_refusal(sorted(nodes)) if len(nodes) > 1 else None,
    )


def say(label: str, text: str) -> None:
    print(line(label, text), flush=True)


def assignments(
    args: argparse.Namespace,
    topology: Topology,
    cores: tuple[tuple[int, ...], ...],
    plan: NumaPlan,
    weights: WeightCopies,
) -> list[Assignment]:
    return [
        Assignment(
            library=str(args.model),
            instance=instance,
            instances=len(cores),
            cores=list(each),
            ref_data=str(args.ref_data) if args.ref_data else None,
            l3_bytes=topology.l3_bytes,
            parent_pid=os.getpid(),
            indices_per_bag=args.indices_per_bag,
            tables_fd=weights.of_instance(instance).tables,
            parameters_fd=weights.of_instance(instance).parameters,
            numa_node=None if plan.policy is None else plan.instance_nodes[instance],
        )
        for instance, each in enumerate(cores)
    ]


def measure(
    instances: Instances,
    args: argparse.Namespace,
    artifact: Artifact,
    cores: tuple[tuple[int, ...], ...],
    environment: dict[str, object],
    busiest: tuple[int, float],
    setup: TableSetup,
) -> RunReport:
    """Peak, window, memory, peak again, and the streaming rate where the batch is small enough for it to matter."""
    peak_before = instances.peak_gflops(PEAK_SECONDS)
    print(peak_line(peak_before), flush=True)
    run = instances.measure(duration_s=args.duration, warmup_s=args.warmup)
    memory = [memory_use(pid) for pid in instances.pids]
    peak_after, stream, interrupted = [], [], run.interrupted
    if not interrupted:
        try:
            peak_after = instances.peak_gflops(PEAK_SECONDS)
            if artifact.manifest.batch_size <= STREAMED_UP_TO_BATCH:
                stream = instances.stream_gbps(STREAM_SECONDS)
        except KeyboardInterrupt:
            interrupted = True  # the window itself is whole
    warnings = [
        *setup.warnings(),
        *disturbances.load_warnings(busiest),
        *disturbances.window_warnings(run.before, run.after),
        *disturbances.spread_warnings(run.measurement.batches_per_s),
        *disturbances.peak_warnings(sum(peak_before), sum(peak_after or peak_before)),
    ]
    return RunReport(
        manifest=artifact.manifest,
        library=str(args.model),
        cores=cores,
        measurement=run.measurement,
        memory=memory,
        peak_before_gflops=peak_before,
        peak_after_gflops=peak_after,
        stream_gbps=stream,
        warnings=warnings,
        tables=setup,
        environment=environment,
        interrupted=interrupted,
        indices_per_bag=args.indices_per_bag,
    )


if __name__ == "__main__":
    run_script(main)
