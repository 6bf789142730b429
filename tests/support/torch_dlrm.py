"""A small DLRM in PyTorch, written from the paper's picture: what the recorded exports and their outputs come from.

    dense [B, num_dense] -- bottom MLP -- x --+
    bags of indices -- EmbeddingBag k ------- interaction -- top MLP -- pred [B, 1]

Needs torch, which the project itself never does. Only `make_exports.py` and tests that skip without torch import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """What is built. sigmoid_bottom, sigmoid_top: which layer has a sigmoid in place of ReLU, -1 the last, None none.

    weighted: per-sample weights that a constant vector [rows] of each table gives; threshold: predictions are clamped
    to [threshold, 1 - threshold]. ranks: of the cross layers of interaction "cross", None for full rank; bias_at: which
    of "V" and "W" have a bias. last_offset: EmbeddingBag's include_last_offset; padding: its padding_idx. dims: of each
    table in place of `dim`, for "cat". modules: bags of a fixed number are EmbeddingBag's, without offsets.
    """

    num_dense: int = 5
    table_rows: tuple[int, ...] = (7, 11, 3)
    dim: int = 4
    bottom: tuple[int, ...] = (6,)
    top: tuple[int, ...] = (8,)
    interaction: str = "dot"
    pooling: str = "sum"
    sigmoid_bottom: int | None = None
    sigmoid_top: int | None = -1
    weighted: bool = False
    threshold: float | None = None
    seed: int = 0
    ranks: tuple[int | None, ...] = ()
    bias_at: str = "W"
    last_offset: bool = False
    padding: int | None = None
    dims: tuple[int, ...] = ()
    modules: bool = False

    @property
    def top_inputs(self) -> int:
        count = len(self.table_rows) + 1
        return {
            "dot": self.dim + count * (count - 1) // 2,
            "dot_self": self.dim + count * (count + 1) // 2,
            "cat": self.dim + sum(self.dims or (self.dim,) * len(self.table_rows)),
            "cross": self.dim * count,
        }[self.interaction]


class TorchDlrm(nn.Module):
    """forward(dense, offsets, indices): the last two [T, n] tensors or sequences of T tensors [n]; offsets None: one
    index per bag by a plain embedding lookup, or of indices [n, number] a sum over that number."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        torch.manual_seed(shape.seed)
        self.shape = shape
        self.bot = _mlp((shape.num_dense, *shape.bottom, shape.dim), shape.sigmoid_bottom, last_relu=True)
        self.top = _mlp((shape.top_inputs, *shape.top, 1), shape.sigmoid_top, last_relu=False)
        pooled = {"sparse": True, "mode": shape.pooling, "include_last_offset": shape.last_offset}
        pooled |= {} if shape.padding is None else {"padding_idx": shape.padding}
        dims = shape.dims or (shape.dim,) * len(shape.table_rows)
        self.emb = nn.ModuleList([nn.EmbeddingBag(*size, **pooled) for size in zip(shape.table_rows, dims)])
        for table in self.emb:
            nn.init.uniform_(table.weight, -0.7, 0.7)
        factors = [nn.Parameter(torch.rand(rows) + 0.5) for rows in shape.table_rows] if shape.weighted else []
        self.row_weights = nn.ParameterList(factors)
        self.crossings = nn.ModuleList([_crossing(shape.top_inputs, rank, shape.bias_at) for rank in shape.ranks])

    def forward(self, dense: Tensor, offsets: Tensor | Sequence[Tensor] | None, indices: Tensor | Sequence[Tensor]):
        x = self.bot(dense)
        bags = [self.bag(t, offsets, indices[t]) for t in range(len(self.emb))]
        pred = self.top(self.interact(x, bags))
        threshold = self.shape.threshold
        return pred if threshold is None else torch.clamp(pred, min=threshold, max=1 - threshold)

    def bag(self, t: int, offsets: Tensor | Sequence[Tensor] | None, indices: Tensor) -> Tensor:
        if offsets is None and self.shape.modules:
            return self.emb[t](indices)
        if offsets is None:
            rows = nn.functional.embedding(indices, self.emb[t].weight)
            pooled = {"sum": torch.sum, "mean": torch.mean}[self.shape.pooling]
            return rows if indices.dim() == 1 else pooled(rows, dim=1)
        factors = self.row_weights[t].gather(0, indices) if self.shape.weighted else None
        return self.emb[t](indices, offsets[t], per_sample_weights=factors)

    def interact(self, x: Tensor, bags: list[Tensor]) -> Tensor:
        joined = torch.cat([x, *bags], dim=1)
        if self.shape.interaction == "cat":
            return joined
        if self.shape.interaction == "cross":
            x = joined
            for crossing in self.crossings:
                x = joined * crossing(x) + x
            return x
        vectors = joined.view(x.shape[0], -1, x.shape[1])
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        reach = 1 if self.shape.interaction == "dot_self" else 0
        pairs = [(i, j) for i in range(len(bags) + 1) for j in range(i + reach)]
        i, j = torch.tensor(pairs).T.contiguous()
        return torch.cat([x, products[:, i, j]], dim=1)


def _crossing(width: int, rank: int | None, bias_at: str) -> nn.Sequential:
    """W (V x), or W x of full rank."""
    widths = (width, width) if rank is None else (width, rank, width)
    names = "W" if rank is None else "VW"
    layers = [nn.Linear(*fan, bias=name in bias_at) for fan, name in zip(pairwise(widths), names)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return nn.Sequential(*layers)


def _mlp(widths: Sequence[int], sigmoid_layer: int | None, *, last_relu: bool) -> nn.Sequential:
    """Linear layers of `widths` with ReLU between, a sigmoid after layer `sigmoid_layer`."""
    layers: list[nn.Module] = []
    count = len(widths) - 1
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(fan_in, fan_out))
        nn.init.normal_(layers[-1].weight, std=(1.5 / fan_in) ** 0.5)
        if sigmoid_layer is not None and i == sigmoid_layer % count:
            layers.append(nn.Sigmoid())
        elif last_relu or i < count - 1:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
