"""Make __data/demo_data_small.npz: demo inputs, what PyTorch predicts for them, labels drawn from that.

    PYTHONPATH=. python tests/make_demo_data.py        # with torch 2.13, numpy, onnx; not part of the test suite

The model here is plain torch.nn (EmbeddingBag, Linear) with the demo model's weights; of dlrm_tvm only the weights and
the inputs are used, so that the outputs are an independent reference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dlrm_tvm.demo import DEMO_REFERENCE, DEMO_TABLE_ROWS, demo_dlrm, demo_inputs
from dlrm_tvm.errors import run_script
from dlrm_tvm.metrics import auc
from dlrm_tvm.model import Dense, Dlrm

NUM_ITEMS = 32768
INPUT_SEED = 2024
LABEL_SEED = 2025
ITEMS_PER_CALL = 512


class TorchDlrm(nn.Module):
    """DLRM as facebookresearch/dlrm defines it: MLPs, embedding bags (sum), dots of pairs below the diagonal."""

    def __init__(self, weights: Dlrm) -> None:
        super().__init__()
        self.bottom = mlp(weights.bottom)
        self.top = mlp(weights.top)
        self.bags = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(torch.from_numpy(np.array(table.rows)), mode="sum")
            for table in weights.tables
        )

    def forward(self, dense: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """dense [n, 13] float32, indices [n, 26] int64 -> [n]."""
        x = self.bottom(dense)
        offsets = torch.arange(len(dense))
        rows = [bag(indices[:, t].contiguous(), offsets) for t, bag in enumerate(self.bags)]
        z = torch.stack([x, *rows], dim=1)
        products = torch.bmm(z, z.transpose(1, 2))
        i, j = torch.tril_indices(z.shape[1], z.shape[1], offset=-1)
        return self.top(torch.cat([x, products[:, i, j]], dim=1))[:, 0]


def mlp(layers: tuple[Dense, ...]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for layer in layers:
        linear = nn.Linear(layer.inputs, layer.outputs)
        linear.weight.data = torch.from_numpy(np.array(layer.weight))
        linear.bias.data = torch.from_numpy(np.array(layer.bias))
        modules += [linear, {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[layer.activation]()]
    return nn.Sequential(*modules)


def predict(model: TorchDlrm, dense: np.ndarray, indices: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        starts = range(0, len(dense), ITEMS_PER_CALL)
        parts = [slice(start, start + ITEMS_PER_CALL) for start in starts]
        outputs = [model(torch.from_numpy(dense[part]), torch.from_numpy(indices[part])) for part in parts]
    return torch.cat(outputs).numpy()


def draw_labels(probabilities: np.ndarray) -> np.ndarray:
    """A click with each item's probability, from raw generator words: [n] int8."""
    words = np.random.PCG64(LABEL_SEED).random_raw(len(probabilities)) >> np.uint64(32)
    return (words < (probabilities.astype(np.float64) * 2**32).astype(np.uint64)).astype(np.int8)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=DEMO_REFERENCE, help="default: %(default)s")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    torch.set_num_threads(1)
    weights = demo_dlrm(DEMO_TABLE_ROWS)
    dense, indices = demo_inputs(NUM_ITEMS, seed=INPUT_SEED)
    predictions = predict(TorchDlrm(weights).eval(), dense, indices)
    labels = draw_labels(predictions)
    np.savez_compressed(
        args.output,
        X_int=dense,
        X_cat=indices.astype(np.int16),
        torch_res=predictions,
        target=labels,
        model_fingerprint=np.array(weights.fingerprint),
        torch_version=np.array(torch.__version__),
    )
    summary = {
        "file": args.output.name,
        "bytes": args.output.stat().st_size,
        "items": NUM_ITEMS,
        "clicks": int(labels.sum()),
        "auc": auc(labels, predictions),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "fingerprint": weights.fingerprint,
    }
    print(f"{args.output}: {NUM_ITEMS} items, {summary['clicks']} clicks, AUC {summary['auc']:.4f}")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    run_script(main)
