"""Tables of many gigabytes beside small ones: the whole network and lookups alone, on several kinds of pages.

    PYTHONPATH=. python tests/benchmarks/big_tables.py --table-rows 2500000 --pages cache,shmem --fetch 4:2,0:2

Everything runs in one process on one core, variants in random order within each round, each beside the peak measured
right before and after it. `small` is the demo model with tables capped at 10,000 rows: what the others are held
against. pages: `4k` the page cache mapped by small pages, `cache` as multi_instance.py maps it, `shmem` and `hugetlb`
as --huge-pages copies it (`hugetlb` only where enough were set aside: sysctl vm.nr_hugepages). fetch: every:locality
of kernels/gather.py, on the first kind of pages; 0 fetches nothing. Leaves the generated model; last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import tvm
import tvm_ffi

from dlrm_tvm.compiler.job import Job
from dlrm_tvm.compiler.options import CompileSettings
from dlrm_tvm.compiler.pipeline import compile_model
from dlrm_tvm.compiler.plan import layer_shapes
from dlrm_tvm.data.demo import demo_dlrm
from dlrm_tvm.data.workload import items_to_rotate, random_items
from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.kernels.embedding_bag import BagShape, bag_prefetch, embedding_bag
from dlrm_tvm.kernels.gather import Prefetch
from dlrm_tvm.machine.address_range import writable_view
from dlrm_tvm.machine.environment import describe_environment
from dlrm_tvm.machine.memory import available_bytes
from dlrm_tvm.machine.numa import NumaPlan
from dlrm_tvm.machine.topology import read_topology
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.runtime.artifact import Artifact, open_artifact
from dlrm_tvm.runtime.executor import Executor
from dlrm_tvm.runtime.residency import table_memory
from dlrm_tvm.runtime.weight_copies import WeightCopies
from dlrm_tvm.schedules import target
from dlrm_tvm.schedules.rules import LayerShape, Schedules, default_dense, default_network

BATCH = 100
SMALL_ROWS = 10_000
PAGES = ("4k", "cache", "shmem", "hugetlb")
PEAK_SECONDS = 0.05
LOOKUP_ITEMS = 4  # items of a tile whose bags are pooled together, in the lookups alone


@dataclass(frozen=True)
class Variant:
    """run(): one call on the next inputs; flops: of a call, None for lookups alone; lookups: rows a call reads."""

    name: str
    run: Callable[[], object]
    flops: int | None
    lookups: int


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--table-rows", type=int, default=2_500_000, help="cap of the big tables; default %(default)s")
    parser.add_argument("--pages", default="cache", help=f"of {', '.join(PAGES)}; default %(default)s")
    parser.add_argument("--fetch", default="4:2", help="every:locality, several with commas; default %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a variant's slice; default %(default)s")
    parser.add_argument("--core", type=int, help="cpu id to run on; default: the last usable one")
    args = parser.parse_args()
    args.pages = args.pages.split(",")
    if not set(args.pages) <= set(PAGES):
        raise UserError(f"--pages {','.join(args.pages)}: of {', '.join(PAGES)} were wanted.")
    args.fetch = [Prefetch(*map(int, each.split(":"))) for each in args.fetch.split(",")]
    return args


def main() -> int:
    args = parse_args()
    topology = read_topology()
    core = max(topology.usable) if args.core is None else args.core
    os.sched_setaffinity(0, [core])
    big, small = demo_dlrm(args.table_rows), demo_dlrm(SMALL_ROWS)
    print(f"{big.table_bytes / 1e9:.2f} GB of tables beside {small.table_bytes / 1e9:.2f}, one thread on core {core}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dlrm_big_tables_")))
        variants, peak = open_variants(stack, args, big, small, folder, topology.l3_bytes)
        shares, rates = measure(variants, peak, args)
    results = [summary(variant, shares[variant.name], rates[variant.name]) for variant in variants]
    for each in results:
        print(each["text"])
    environment = describe_environment(topology)
    print(json.dumps({"table_gb": big.table_bytes / 1e9, "results": results, "environment": environment}))
    return 0


def open_variants(
    stack: ExitStack, args: argparse.Namespace, big: Dlrm, small: Dlrm, folder: Path, l3_bytes: int
) -> tuple[list[Variant], Executor]:
    """All variants, and an executor to measure the peak with."""
    control = Executor(open_artifact(compiled(small, args.fetch[0], folder, "small")), cores=this_core())
    variants = [network_variant("small", control, l3_bytes)]
    libraries = {fetch: compiled(big, fetch, folder, f"big{at}") for at, fetch in enumerate(args.fetch)}
    for at, (pages, (fetch, library)) in enumerate(itertools.product(args.pages, libraries.items())):
        if at >= len(args.fetch) and fetch != args.fetch[0]:
            continue
        artifact = on_pages(stack, library, pages)
        name = f"big {pages} fetch {fetch.every}:{fetch.locality}"
        variants.append(network_variant(name, Executor(artifact, cores=this_core()), l3_bytes))
        if fetch == args.fetch[0]:
            variants.append(lookup_variant(f"lookups {pages}", artifact))
    return variants, control


def this_core() -> list[int]:
    return [max(os.sched_getaffinity(0))]


def compiled(model: Dlrm, fetch: Prefetch, folder: Path, name: str) -> Path:
    """The library of the rules' schedules with this fetching, checked as compile.py checks it."""
    registers = target.cpu_target(None).family("fp32").registers
    network = replace(default_network(BATCH, registers), prefetch=fetch)

    def dense(layer: LayerShape):
        return default_dense(network.mr, layer.outputs, registers)

    schedules = Schedules.given(network, dense, layer_shapes(model))
    settings = CompileSettings(batch_size=BATCH, output_name=name, directory=folder)
    return compile_model(Job(settings, quiet=True, model=model, schedules=schedules)).library


def on_pages(stack: ExitStack, library: Path, pages: str) -> Artifact:
    """The library's tables on that kind of pages, all in memory. Raises UserError where they cannot be had."""
    artifact = open_artifact(library, whole_tables=True)
    if pages == "4k":
        artifact.tables.advise(mmap.MADV_NOHUGEPAGE)
    if pages in ("4k", "cache"):
        read_all(artifact)
        return artifact
    memory = table_memory(artifact, available_bytes())
    one_node = NumaPlan(None, None, "", (0,), (), (None,))
    copies = stack.enter_context(WeightCopies(artifact, one_node, huge_pages=True, memory=memory))
    (text,) = copies.setup.copies
    print(f"  {text}")
    if (pages == "hugetlb") != ("hugetlb" in text):
        raise UserError(f"--pages {pages}: this is not what the kernel granted. Set vm.nr_hugepages accordingly.")
    return open_artifact(library, copies=copies.of_instance(0))


def read_all(artifact: Artifact) -> None:
    """Touch a value of every small page."""
    float(artifact.parameters[0][:: mmap.PAGESIZE // 4].sum())


def network_variant(name: str, executor: Executor, l3_bytes: int) -> Variant:
    card = executor.artifact.manifest.model
    items = 4 * items_to_rotate(card, BATCH, l3_bytes)
    dense, indices = random_items(card, items, instance=0)
    batches = [executor.prepare(dense[at : at + BATCH], indices[at : at + BATCH]) for at in range(0, items, BATCH)]
    turn = itertools.cycle(batches)
    return Variant(name, lambda: executor.run(next(turn)), BATCH * card.flops_per_item, BATCH * card.num_tables)


def lookup_variant(name: str, artifact: Artifact) -> Variant:
    """Bags of one random row pooled, and nothing else: what a row costs when nothing hides it but its prefetch."""
    card, cpu = artifact.manifest.model, target.cpu_target(None)
    shape = BagShape(BATCH, card.dim, artifact.parameters[0].size, (False,) * card.num_tables)
    module = tvm.IRModule({"embedding_bag_fp32": embedding_bag(shape, LOOKUP_ITEMS, bag_prefetch(card.dim))})
    function = tvm.compile(module, target=cpu.tvm_target)["embedding_bag_fp32"]
    tables, info = (tvm_ffi.from_dlpack(writable_view(array)) for array in artifact.parameters[:2])
    starts = np.arange(card.num_tables)[:, None] * BATCH + np.arange(BATCH + 1)
    offsets, pooled, wrong = map(
        tensor, (starts, np.zeros(BATCH * card.num_tables * card.dim, np.float32), np.zeros(BATCH, np.int64))
    )
    _, indices = random_items(card, 60 * BATCH, instance=1)
    sets = [tensor(part.T.reshape(-1)) for part in np.split(indices, 60)]
    turn = itertools.cycle(sets)
    return Variant(
        name, lambda: function(next(turn), offsets, tables, info, pooled, wrong), None, BATCH * card.num_tables
    )


def tensor(values: np.ndarray):
    raw = mmap.mmap(-1, values.nbytes)
    array = np.frombuffer(raw, values.dtype).reshape(values.shape)
    array[...] = values
    return tvm_ffi.from_dlpack(array)


def measure(variants: list[Variant], peak: Executor, args: argparse.Namespace) -> tuple[dict, dict]:
    """Per variant and round: the share of the peak around it (None for lookups), and ns per row looked up."""
    rng = np.random.default_rng(2)
    shares = {variant.name: [] for variant in variants}
    rates = {variant.name: [] for variant in variants}
    before = peak.peak_gflops(PEAK_SECONDS)
    for _ in range(args.rounds):
        for at in rng.permutation(len(variants)):
            variant, calls = variants[at], 0
            variant.run()
            start = perf_counter()
            while (elapsed := perf_counter() - start) < args.seconds:
                variant.run()
                calls += 1
            after = peak.peak_gflops(PEAK_SECONDS)
            rates[variant.name].append(elapsed / calls / variant.lookups * 1e9)
            if variant.flops is not None:
                shares[variant.name].append(calls * variant.flops / elapsed / 1e9 / max(before, after))
            before = after
    return shares, rates


def summary(variant: Variant, shares: list[float], rates: list[float]) -> dict:
    """Medians and quartiles."""
    fields: dict = {"name": variant.name}
    text = f"  {variant.name:<26}"
    if shares:
        fields["share"], fields["share_best"] = median(shares), max(shares)
        low, high = np.percentile(shares, [25, 75])
        text += f"share of peak {median(shares):.3f}  ({low:.3f}..{high:.3f}, best {max(shares):.3f})"
    else:
        fields["ns_per_row"] = median(rates)
        low, high = np.percentile(rates, [25, 75])
        text += f"{median(rates):.1f} ns per row  ({low:.1f}..{high:.1f}, best {min(rates):.1f})"
    return fields | {"text": text}


if __name__ == "__main__":
    run_script(main)
