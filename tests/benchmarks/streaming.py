"""Batch 1 is bound by streaming the MLPs' weights: the share of that rate, with an item's bytes counted in two ways.

    PYTHONPATH=. python tests/benchmarks/streaming.py __prebuilt/dlrm_avx512_b1.so --duration 4 --cores 1

    all bytes       every layer's weights and biases: multi_instance.py's "weights streamed"
    needed bytes    rows of Wᵀ whose input is not exactly zero; about half of the inputs are zero after a ReLU

The batch-1 kernel skips the other rows, so the first share may exceed 1. For fp32 libraries: others lay weights out in
other ways. Further arguments go to multi_instance.py; the last line is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from dlrm_tvm.data.workload import random_items
from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model import reference
from dlrm_tvm.model.dlrm import Dense, Dlrm
from dlrm_tvm.paths import ROOT
from dlrm_tvm.runtime.artifact import open_artifact

_ITEMS = 256


def main() -> int:
    library, *options = sys.argv[1:]
    manifest = open_artifact(library).manifest
    if (manifest.precision, manifest.batch_size) != ("fp32", 1) or manifest.onnx_model is None:
        raise UserError(f"{library}: a library of compile.py --batch-size 1 in fp32 was wanted.")
    result = measured(library, options)
    needed = needed_weight_bytes(read_dlrm(manifest.onnx_model), *random_items(manifest.model, _ITEMS, instance=0))
    share = result["streamed_fraction"]
    needed_share = share * needed / manifest.model.mlp_bytes
    print(
        f"batch 1     this core streams the weights at {result['stream_gbps']:.1f} GB/s. Ours, as a share of that:\n"
        f"            {share:.0%} counting all {manifest.model.mlp_bytes / 1e6:.1f} MB for every item,\n"
        f"            {needed_share:.0%} counting the {needed / 1e6:.1f} MB whose input is not zero"
    )
    figures = {"stream_gbps": result["stream_gbps"], "share": share, "needed_bytes": needed}
    print(json.dumps({**figures, "needed_share": needed_share, "environment": result["environment"]}))
    return 0


def measured(library: str, options: Sequence[str]) -> dict:
    """What multi_instance.py says of one instance."""
    command = [sys.executable, str(ROOT / "multi_instance.py"), "--model", library, "--num-instances", "1", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError("multi_instance.py failed; see above.")
    return json.loads(done.stdout.splitlines()[-1])


def needed_weight_bytes(model: Dlrm, dense: np.ndarray, indices: np.ndarray) -> float:
    """Bytes of weights that matter for one item, averaged over dense [n, 13] and indices [n, 26]."""
    bottom_bytes, x = _layers(model.bottom, dense.astype(np.float64))
    rows = [table.rows[indices[:, t]].astype(np.float64) for t, table in enumerate(model.tables)]
    top_bytes, _ = _layers(model.top, model.interaction.join(np.stack([x, *rows], axis=1)))
    return bottom_bytes + top_bytes


def _layers(layers: tuple[Dense, ...], x: np.ndarray) -> tuple[float, np.ndarray]:
    """(bytes per item, the last layer's output)"""
    needed = 0.0
    for layer in layers:
        needed += (np.count_nonzero(x) / len(x) * layer.outputs + layer.outputs) * layer.weight.itemsize
        x = reference.mlp((layer,), x)
    return needed, x


if __name__ == "__main__":
    run_script(main)
