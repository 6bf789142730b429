"""accuracy.py --predictions: two actors of a local Ray cluster beside two processes, on the same two cores, in turns.

    PYTHONPATH=.:tests/support python tests/benchmarks/ray_scoring.py --model __prebuilt/dlrm_avx512_b100.so

Prints items/s of both, from the first shard's beginning to the last one's end, and the median of their ratios. Wants
ray, two cores and a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ray_nodes import ray_cluster
from scripts import CORES, read_result

from dlrm_tvm.paths import DEFAULT_LIBRARY, ROOT
from dlrm_tvm.runtime.artifact import open_artifact


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_LIBRARY)
    parser.add_argument("--items", type=int, default=2_000_000, help="in all (default: %(default)s)")
    parser.add_argument("--shard-items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder, ray_cluster() as cluster:
        files = [save(Path(folder) / f"half_{half}.bin", args.model, args.items // 2, half) for half in (0, 1)]
        common = ["--model", args.model, "--shard-items", args.shard_items, "--quiet", "--ref-data"]
        for turn in range(args.rounds):
            alone = [
                start(["taskset", "-c", core], *common, file, "--predictions", f"{folder}/alone_{turn}_{core}")
                for core, file in zip(CORES, files)
            ]
            processes = sum(items_per_s(each) for each in alone)
            out = f"{folder}/ray_{turn}"
            actors = items_per_s(start([], *common, *files, "--predictions", out, "--ray", cluster.address))
            ratios.append(actors / processes)
            print(f"2 processes {processes:12,.0f} items/s   2 actors {actors:12,.0f} items/s   {ratios[-1]:.3f}")
    print(f"median of {len(ratios)} ratios: {statistics.median(ratios):.3f}")
    return 0


def save(path: Path, library: Path, items: int, seed: int) -> Path:
    """Criteo's binary, of random rows of whole tables."""
    rng, rows = np.random.default_rng(seed), open_artifact(library).manifest.model.table_rows
    parts = [
        rng.integers(0, 2, (items, 1)),
        rng.integers(0, 99, (items, 13)),
        rng.integers(0, rows, (items, len(rows))),
    ]
    np.hstack(parts).astype("<i4").tofile(path)
    return path


def start(prefix: list, *words: object) -> subprocess.Popen:
    command = [*prefix, sys.executable, ROOT / "accuracy.py", *words]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)


def items_per_s(process: subprocess.Popen) -> float:
    out, _ = process.communicate()
    return read_result(out)["items_per_s"]


if __name__ == "__main__":
    sys.exit(main())
