"""Make __data/demo_data_small.npz and __data/demo_v2_data_small.npz: demo inputs, what PyTorch predicts for them, and
labels drawn from that.

    PYTHONPATH=. python tests/support/make_demo_data.py [--demo v2]    # with torch 2.13, numpy, onnx; not a test

The models here are plain torch.nn (EmbeddingBag, Linear) with the demo models' weights; of dlrm_tvm only the weights
and the inputs are used, so that the outputs are an independent reference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dlrm_tvm.data.demo import DEMO_TABLE_ROWS, demo_bags, demo_dlrm, demo_inputs, demo_reference
from dlrm_tvm.data.demo_weights import DEMOS, index_names
from dlrm_tvm.data.metrics import auc
from dlrm_tvm.errors import run_script
from dlrm_tvm.model.dlrm import Dense, Dlrm

NUM_ITEMS = {"v1": 32768, "v2": 4096}
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


class TorchDlrmV2(nn.Module):
    """DLRM-DCNv2 as torchrec's DLRM_DCN and LowRankCrossNet define it: V without, W with a bias, on [x, bags]."""

    def __init__(self, weights: Dlrm) -> None:
        super().__init__()
        self.bottom, self.top = mlp(weights.bottom), mlp(weights.top)
        self.crossings = nn.ModuleList(
            nn.Sequential(*(linear(layer, bias=at == 1) for at, layer in enumerate(crossing)))
            for crossing in weights.interaction.crossings
        )
        self.bags = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(torch.from_numpy(np.array(table.rows)), mode="sum")
            for table in weights.tables
        )

    def forward(self, dense: torch.Tensor, *indices: torch.Tensor) -> torch.Tensor:
        """dense [n, 13] float32, indices [n, number] int64 of each table -> [n]."""
        first = x = torch.cat([self.bottom(dense), *(bag(each) for bag, each in zip(self.bags, indices))], dim=1)
        for crossing in self.crossings:
            x = first * crossing(x) + x
        return self.top(x)[:, 0]


def linear(layer: Dense, *, bias: bool = True) -> nn.Linear:
    made = nn.Linear(layer.inputs, layer.outputs, bias=bias)
    made.weight.data = torch.from_numpy(np.array(layer.weight))
    if bias:
        made.bias.data = torch.from_numpy(np.array(layer.bias))
    return made


def mlp(layers: tuple[Dense, ...]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for layer in layers:
        modules += [linear(layer), {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[layer.activation]()]
    return nn.Sequential(*modules)


def predict(model: nn.Module, dense: np.ndarray, *indices: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        starts = range(0, len(dense), ITEMS_PER_CALL)
        parts = [slice(start, start + ITEMS_PER_CALL) for start in starts]
        outputs = [model(*(torch.from_numpy(each[part]) for each in (dense, *indices))) for part in parts]
    return torch.cat(outputs).numpy()


def draw_labels(probabilities: np.ndarray) -> np.ndarray:
    """A click with each item's probability, from raw generator words: [n] int8."""
    words = np.random.PCG64(LABEL_SEED).random_raw(len(probabilities)) >> np.uint64(32)
    return (words < (probabilities.astype(np.float64) * 2**32).astype(np.uint64)).astype(np.int8)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demo", choices=DEMOS, default="v1")
    parser.add_argument("--output", type=Path, help="default: the file that is shipped")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    torch.set_num_threads(1)
    model, items = DEMOS[args.demo], NUM_ITEMS[args.demo]
    output = args.output or demo_reference(model)
    weights = demo_dlrm(DEMO_TABLE_ROWS, model)
    if args.demo == "v1":
        dense, indices = demo_inputs(items, seed=INPUT_SEED)
        predictions = predict(TorchDlrm(weights).eval(), dense, indices)
        arrays = {"X_int": dense, "X_cat": indices.astype(np.int16), "torch_res": predictions}
    else:
        dense, bags = demo_bags(items, seed=INPUT_SEED)
        predictions = predict(TorchDlrmV2(weights).eval(), dense, *bags)
        named = {name: each.astype(np.int16) for name, each in zip(index_names(model), bags)}
        arrays = {"dense_x": dense, **named, "pred": predictions}
    labels = draw_labels(predictions)
    np.savez_compressed(
        output,
        **arrays,
        target=labels,
        model_fingerprint=np.array(weights.fingerprint),
        torch_version=np.array(torch.__version__),
    )
    summary = {
        "file": output.name,
        "bytes": output.stat().st_size,
        "items": items,
        "clicks": int(labels.sum()),
        "auc": auc(labels, predictions),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "fingerprint": weights.fingerprint,
    }
    print(f"{output}: {items} items, {summary['clicks']} clicks, AUC {summary['auc']:.4f}")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    run_script(main)
