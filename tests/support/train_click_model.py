"""Train a small DLRM on synthetic clicks: what reduced precision is judged on, as random weights have no AUC to lose.

    PYTHONPATH=. python tests/support/train_click_model.py FOLDER [--model v2]
                                    needs torch 2.13; on one core three minutes, v2 about twenty

Leaves in FOLDER
    click.onnx         MLPerf's MLPs, 26 tables of dimension 128 and at most 1,000 rows; exported by PyTorch itself.
                       v2: DLRM-DCNv2, MLPerf's three cross layers of rank 512 and its bags of 1 to 100 indices
    heldout.npz        65,536 items of the day after the last one trained on, with PyTorch's outputs and the clicks
    calibration.npz    16,384 items of the days trained on, likewise
The npz files are of the MLPerf-style kind, v2's have the graph's own inputs. One pass over the items, as MLPerf's own
reference models were trained.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from click_data import NUM_DENSE, TABLE_ROWS, ClickItems, draw_day, join, multi_hot
from torch import nn
from torch_dlrm import Shape, TorchDlrm

from dlrm_tvm.data.demo_weights import DEMOS, DemoModel, index_names
from dlrm_tvm.data.metrics import auc
from dlrm_tvm.errors import run_script
from dlrm_tvm.frontend.reader import read_dlrm

TRAINING_DAYS = 8
ITEMS_PER_DAY = 65_536
CALIBRATION_ITEMS = 16_384
_BATCH = 1024
_PEAK_RATE, _WARMUP_SHARE = 1e-3, 0.1
_ITEMS_PER_CALL = 512


def new_model(kind: DemoModel) -> TorchDlrm:
    """Untrained, initialised as facebookresearch/dlrm does (dlrm_s_pytorch.py, create_mlp and create_emb), cross layers
    as TorchRec does (torchrec/modules/crossnet.py, LowRankCrossNet): no weight of ours."""
    cross = {"interaction": "cross", "ranks": kind.ranks} if kind.ranks else {}
    shape = Shape(NUM_DENSE, TABLE_ROWS, kind.bottom[-1], bottom=kind.bottom[1:-1], top=kind.top[1:-1], **cross)
    model = TorchDlrm(shape)
    for layer in (*model.bot, *model.top, *model.emb):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=(2 / (layer.in_features + layer.out_features)) ** 0.5)
            nn.init.normal_(layer.bias, std=(1 / layer.out_features) ** 0.5)
        elif isinstance(layer, nn.EmbeddingBag):
            bound = layer.num_embeddings**-0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            layer.sparse = False  # Adam takes no sparse gradients, and tables as small as these gain nothing by them
    for first, second in model.crossings:
        nn.init.xavier_normal_(first.weight)
        nn.init.xavier_normal_(second.weight)
        nn.init.zeros_(second.bias)
    return model


def train(model: TorchDlrm, days: list[ClickItems]) -> float:
    """One pass, day after day, the items of each shuffled; mean log loss of the last 100 batches."""
    batches = sum(len(day.labels) // _BATCH for day in days)
    warmup = max(1, int(_WARMUP_SHARE * batches))
    optimizer = torch.optim.Adam(model.parameters(), lr=_PEAK_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (batches - step) / (batches - warmup))
    )
    losses = []
    for dense, indices, labels in _batches(model, days):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(_logits(model, dense, indices), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-100:]))


def predict(model: TorchDlrm, items: ClickItems) -> np.ndarray:
    """[n] float32: PyTorch's own outputs, sigmoid included."""
    parts = [slice(start, start + _ITEMS_PER_CALL) for start in range(0, len(items.labels), _ITEMS_PER_CALL)]
    with torch.inference_mode():
        outputs = [torch.sigmoid(_logits(model, *_tensors(model, items, part)[:2])) for part in parts]
    return torch.cat(outputs).numpy()


def export(model: TorchDlrm, kind: DemoModel, path: Path) -> None:
    """Stacked indices and one index per table, plain Gathers, or indices [batch, number] of each table, Gathers and
    ReduceSums: as a model that is served this way is exported."""
    dense, names = torch.zeros(4, NUM_DENSE), index_names(kind)
    indices = torch.zeros(len(TABLE_ROWS), 4, dtype=torch.int64)
    if kind.indices_per_bag:
        indices = [torch.zeros(4, number, dtype=torch.int64) for number in kind.indices_per_bag]
    batch = {name: {0 if kind.indices_per_bag else 1: "batch"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        torch.onnx.export(
            model,
            (dense, None, indices),
            str(path),
            input_names=["dense_x", *names],
            output_names=["pred"],
            dynamic_axes={"dense_x": {0: "batch"}, **batch, "pred": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


def save_items(path: Path, kind: DemoModel, items: ClickItems, predictions: np.ndarray, fingerprint: str) -> None:
    if kind.indices_per_bag:
        bags = [bag.astype(np.int16) for bag in multi_hot(items.categories)]
        recorded = {"dense_x": items.dense, **dict(zip(index_names(kind), bags)), "pred": predictions}
    else:
        recorded = {"X_int": items.dense, "X_cat": items.categories.astype(np.int16), "torch_res": predictions}
    np.savez_compressed(path, **recorded, target=items.labels, model_fingerprint=np.array(fingerprint))


def _batches(model: TorchDlrm, days: list[ClickItems]) -> Iterator[tuple[torch.Tensor, list, torch.Tensor]]:
    rng = np.random.default_rng(1)
    for day in days:
        order = rng.permutation(len(day.labels))
        for start in range(0, len(order) - _BATCH + 1, _BATCH):
            yield _tensors(model, day, order[start : start + _BATCH])


def _tensors(
    model: TorchDlrm, items: ClickItems, part: slice | np.ndarray
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """dense [n, 13], indices of each table [n] or [n, number], labels [n] float32."""
    categories = items.categories[part]
    indices = multi_hot(categories) if len(model.crossings) else list(np.ascontiguousarray(categories.T))
    labels = items.labels[part].astype(np.float32)
    return torch.from_numpy(items.dense[part]), [torch.from_numpy(each) for each in indices], torch.from_numpy(labels)


def _logits(model: TorchDlrm, dense: torch.Tensor, indices: list[torch.Tensor]) -> torch.Tensor:
    """What the last sigmoid takes, [n]: the loss of a logit keeps its gradient where a float32 sigmoid is 0 or 1."""
    bags = [_bag(table.weight, each) for table, each in zip(model.emb, indices)]
    return model.top[:-1](model.interact(model.bot(dense), bags))[:, 0]


def _bag(rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The rows of indices [n], or their sums over [n, number]."""
    if indices.dim() == 1:
        return nn.functional.embedding(indices, rows)
    return nn.functional.embedding_bag(indices, rows, mode="sum")


def _sample(days: list[ClickItems], count: int) -> ClickItems:
    """Every k-th item of all days, `count` in all: no day is left out."""
    joined = join(days)
    kept = np.arange(count) * (len(joined.labels) // count)
    return ClickItems(joined.dense[kept], joined.categories[kept], joined.labels[kept], joined.logits[kept])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the three files go")
    parser.add_argument("--model", choices=DEMOS, default="v1")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the order of sums, and with it every weight, depends on the number of threads
    kind = DEMOS[args.model]
    days = [draw_day(day, ITEMS_PER_DAY) for day in range(TRAINING_DAYS)]
    heldout = draw_day(TRAINING_DAYS, ITEMS_PER_DAY)
    start = time.perf_counter()
    model = new_model(kind)
    loss = train(model, days)
    training_s = time.perf_counter() - start
    model.eval()
    export(model, kind, args.folder / "click.onnx")
    fingerprint = read_dlrm(args.folder / "click.onnx").fingerprint
    predictions = predict(model, heldout)
    save_items(args.folder / "heldout.npz", kind, heldout, predictions, fingerprint)
    calibration = _sample(days, CALIBRATION_ITEMS)
    save_items(args.folder / "calibration.npz", kind, calibration, predict(model, calibration), fingerprint)
    found, best = auc(heldout.labels, predictions), auc(heldout.labels, heldout.logits)
    print(f"AUC on the day held out {found:.4f} (of the truth itself {best:.4f}), trained for {training_s:.0f} s")
    result = {"auc": found, "truth_auc": best, "training_log_loss": loss, "training_s": round(training_s, 1)}
    print(json.dumps(result | {"clicks": float(heldout.labels.mean()), "items": len(heldout.labels)}))
    return 0


if __name__ == "__main__":
    run_script(main)
