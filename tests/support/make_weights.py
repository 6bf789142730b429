"""Record the checkpoints in tests/weights/: small DLRMs saved by PyTorch, with the outputs PyTorch gives.

    python tests/support/make_weights.py          needs torch 2.13, safetensors and numpy; seconds

NAME.pt or NAME.safetensors for each of `CHECKPOINTS`, and NAME.npz with what their models compute: dense [9, 5]; of
each table T one_T [9] and bags_T, offsets_T as torch.nn.EmbeddingBag takes them; pred_one and pred_bags [9], the
probabilities of both. The names of modules are those of facebookresearch/dlrm's dlrm_s_pytorch.py, of TorchRec's
models/dlrm.py, modules/mlp.py and modules/crossnet.py, and of the dump that MLPerf v2's submitters make.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parents[1] / "weights"
ITEMS, DENSE, DIM, ROWS = 9, 5, 16, (40, 7, 300, 3, 11, 2, 2, 2, 2, 2, 6)
WIDTH = DIM * (len(ROWS) + 1)


def mlp(widths: tuple[int, ...], last: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(widths), 2 - len(widths)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU() if number else last]
    return nn.Sequential(*layers)


class Dlrm(nn.Module):
    """facebookresearch/dlrm's names; interaction: dot, dot_self or cat."""

    def __init__(self, interaction: str) -> None:
        super().__init__()
        vectors = len(ROWS) + 1
        pairs = {"dot": (vectors - 1) * vectors // 2, "dot_self": (vectors + 1) * vectors // 2}
        self.interaction = interaction
        self.emb_l = nn.ModuleList([nn.EmbeddingBag(rows, DIM, mode="sum") for rows in ROWS])
        self.bot_l = mlp((DENSE, 12, DIM), nn.ReLU())
        self.top_l = mlp((DIM + pairs[interaction] if interaction in pairs else WIDTH, 20, 1), nn.Sigmoid())

    def forward(self, dense: Tensor, indices: list[Tensor], offsets: list[Tensor]) -> Tensor:
        x = self.bot_l(dense)
        vectors = torch.stack([x, *(bag(i, o) for bag, i, o in zip(self.emb_l, indices, offsets))], dim=1)
        if self.interaction == "cat":
            return self.top_l(vectors.flatten(1))
        reach = 1 if self.interaction == "dot_self" else 0
        products = vectors @ vectors.transpose(1, 2)
        i, j = torch.tensor([(i, j) for i in range(len(ROWS) + 1) for j in range(i + reach)]).T
        return self.top_l(torch.cat([x, products[:, i, j]], dim=1))


class Perceptron(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self._linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self._linear(x))


class Mlp(nn.Module):
    def __init__(self, *widths: int) -> None:
        super().__init__()
        self._mlp = nn.Sequential(*(Perceptron(*each) for each in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        return self._mlp(x)


class CrossNet(nn.Module):
    """rank: None for full rank, whose biases are [N, 1]."""

    def __init__(self, layers: int, rank: int | None) -> None:
        super().__init__()

        def several(*shape: int) -> nn.ParameterList:
            return nn.ParameterList([nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5) for _ in range(layers)])

        self.rank = rank
        if rank is None:
            self.kernels = several(WIDTH, WIDTH)
            self.bias = several(WIDTH, 1)
        else:
            self.W_kernels, self.V_kernels = several(WIDTH, rank), several(rank, WIDTH)
            self.bias = several(WIDTH)

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for layer, bias in enumerate(self.bias):
            if self.rank is None:
                x = x0 * (x @ self.kernels[layer].T + bias[:, 0]) + x
            else:
                x = x0 * (x @ self.V_kernels[layer].T @ self.W_kernels[layer].T + bias) + x
        return x


class TorchRec(nn.Module):
    """TorchRec's names of DLRM (layers 0) and DLRM_DCN; ends in logits."""

    def __init__(self, layers: int = 0, rank: int | None = None) -> None:
        super().__init__()
        bags = {f"t_cat_{t}": nn.EmbeddingBag(rows, DIM, mode="sum") for t, rows in enumerate(ROWS)}
        self.sparse_arch = nn.Module()
        self.sparse_arch.embedding_bag_collection = nn.Module()
        self.sparse_arch.embedding_bag_collection.embedding_bags = nn.ModuleDict(bags)
        self.dense_arch = nn.Module()
        self.dense_arch.model = Mlp(DENSE, 12, DIM)
        self.inter_arch = nn.Module()
        if layers:
            self.inter_arch.crossnet = CrossNet(layers, rank)
        vectors = len(ROWS) + 1
        inputs = WIDTH if layers else DIM + (vectors - 1) * vectors // 2
        self.over_arch = nn.Module()
        self.over_arch.model = nn.Sequential(Mlp(inputs, 20, 10), nn.Linear(10, 1))
        self.has_crossnet = layers > 0

    def forward(self, dense: Tensor, indices: list[Tensor], offsets: list[Tensor]) -> Tensor:
        x = self.dense_arch.model(dense)
        bags = self.sparse_arch.embedding_bag_collection.embedding_bags.values()
        vectors = torch.stack([x, *(bag(i, o) for bag, i, o in zip(bags, indices, offsets))], dim=1)
        if self.has_crossnet:
            return self.over_arch.model(self.inter_arch.crossnet(vectors.flatten(1)))
        i, j = torch.triu_indices(len(ROWS) + 1, len(ROWS) + 1, offset=1)
        dots = (vectors @ vectors.transpose(1, 2))[:, i, j]
        return self.over_arch.model(torch.cat([x, dots], dim=1))


def dumped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """TorchRec's names as MLPerf v2's submitters rename them."""
    names = {}
    for name in state:
        new = name.replace("t_cat_", "").replace(".V_kernels.", ".MLPs.V").replace(".W_kernels.", ".MLPs.W")
        if "MLPs" in new:
            new += ".weight"
        if ".crossnet.bias." in new:
            new = new.replace(".bias.", ".MLPs.W") + ".bias"
        if "over_arch.model.1." in new:
            new = new.replace("model.1.", "model._mlp.4.")
        elif "_mlp" in new:
            number = int(new.split("_mlp.")[1].split(".")[0])
            new = new.replace("over_arch.model.0.", "over_arch.model.")
            new = new.replace(f"_mlp.{number}._linear", f"_mlp.{2 * number}")
        names[new] = state[name]
    return names


def seeded(make, *arguments) -> nn.Module:
    torch.manual_seed(len(arguments) + len(make.__name__))
    return make(*arguments).eval()


def checkpoint(model: nn.Module) -> dict:
    """What dlrm_s_pytorch.py --save-model writes: NumPy numbers and an optimizer's state among the rest."""
    optimizer = torch.optim.Adagrad(model.parameters())
    numbers = {"epoch": 0, "iter": 7, "test_acc": np.float64(0.78), "train_loss": 0.5, "test_auc": np.float32(0.8)}
    return {**numbers, "state_dict": model.state_dict(), "opt_state_dict": optimizer.state_dict()}


def outputs(model: nn.Module) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    arrays = {"dense": rng.random((ITEMS, DENSE), np.float32) * 3}
    lengths = [rng.integers(0, 5, ITEMS) for _ in ROWS]
    for t, (rows, length) in enumerate(zip(ROWS, lengths)):
        arrays[f"one_{t}"] = rng.integers(0, rows, ITEMS)
        arrays[f"bags_{t}"] = rng.integers(0, rows, length.sum())
        arrays[f"offsets_{t}"] = np.cumsum(length) - length
    per_table = {
        key: [torch.from_numpy(arrays[f"{key}_{t}"]) for t in range(len(ROWS))] for key in ("one", "bags", "offsets")
    }
    dense = torch.from_numpy(arrays["dense"])
    with torch.no_grad():
        for key, offsets in (("one", [torch.arange(ITEMS)] * len(ROWS)), ("bags", per_table["offsets"])):
            found = model(dense, per_table[key], offsets)[:, 0]
            arrays[f"pred_{key}"] = (torch.sigmoid(found) if isinstance(model, TorchRec) else found).numpy()
    return arrays


def main() -> None:
    dot, cat, own = seeded(Dlrm, "dot"), seeded(Dlrm, "cat"), seeded(Dlrm, "dot_self")
    rec, low, full = seeded(TorchRec), seeded(TorchRec, 3, 6), seeded(TorchRec, 1)
    prefixed = OrderedDict((f"model.{name}", value) for name, value in low.state_dict().items())
    half = cat.to(torch.bfloat16).float()  # its values are bfloat16's, and so are those of its outputs' weights
    for name, model in {
        "dlrm_dot": dot, "dlrm_cat_bf16": half, "dlrm_dot_self": own, "torchrec_dot": rec,
        "torchrec_dcn": low, "torchrec_full_rank": full,
    }.items():  # fmt: skip
        np.savez_compressed(FOLDER / f"{name}.npz", **outputs(model))
    torch.save(checkpoint(dot), FOLDER / "dlrm_dot.pt")
    torch.save(
        {"model": {key: value.bfloat16() for key, value in half.state_dict().items()}}, FOLDER / "dlrm_cat_bf16.pt"
    )
    save_file(own.state_dict(), FOLDER / "dlrm_dot_self.safetensors", {"format": "pt"})
    torch.save(dict(rec.named_parameters()), FOLDER / "torchrec_dot.pt")
    torch.save(prefixed, FOLDER / "torchrec_dcn.pt")
    save_file(dumped(low.state_dict()), FOLDER / "torchrec_dcn.safetensors")
    torch.save(full.state_dict(), FOLDER / "torchrec_full_rank.pt")
    # What is refused.
    small = {"bot_l.0.weight": torch.ones(4, 3), "bot_l.0.bias": torch.ones(4)}
    torch.save(small, FOLDER / "refused_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(3, 2), FOLDER / "refused_module.pt")
    torch.save({**small, "bot_l.0.weight": torch.ones(3, 4).T}, FOLDER / "refused_transposed.pt")
    torch.save({**small, "bot_l.0.weight": torch.ones(4, 3).to_sparse()}, FOLDER / "refused_sparse.pt")
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), FOLDER / "refused_torchscript.pt")


if __name__ == "__main__":
    main()
