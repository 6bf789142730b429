"""PyTorch compiled by Inductor or by AMD's zentorch, weights frozen: what the ONNX file holds as a module.

    fp32, bf16   torch.compile of the module in that dtype; freezing makes weights constants and packs them once
    int8         PyTorch 2 Export quantization of the layers by torchao, static and calibrated; what stays floating
                 point is bf16 where the CPU has it
    zentorch     the same module and freezing, by its own backend

(PyTorch's tutorials on Inductor for CPUs and on PT2E with X86InductorQuantizer; zentorch's README.) Lookups and dots
stay in floating point at int8, as in quantization.py.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._inductor import config as inductor
from torch._inductor import select_algorithm

from ..frontend.reader import read_dlrm
from ..machine.cpu import BF16_FLAG, VNNI_FLAG, host_flags
from ..model.dlrm import Dlrm, Table
from ..model.layers import Dense
from .interface import EngineGraph, OpenEngine

_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class DlrmModule(nn.Module):
    """forward(dense [n, D] float32, indices [all of an item's, n] int64) -> [n] of the tables' dtype.

    Each table's indices lie one after another, and lookups take a row of them: zentorch's take no others.
    """

    def __init__(self, model: Dlrm) -> None:
        super().__init__()
        numbers = model.graph_inputs.indices_per_bag or (1,) * len(model.tables)
        self.columns = [slice(end - number, end) for number, end in zip(numbers, accumulate(numbers))]
        self.bottom, self.top = _mlp(model.bottom), _mlp(model.top)
        self.tables = nn.ParameterList(nn.Parameter(_rows(table), requires_grad=False) for table in model.tables)
        self.means = [table.pooling == "mean" for table in model.tables]
        self.wraps = [table.wraps > 0 for table in model.tables]
        self.crossings = nn.ModuleList(map(_mlp, getattr(model.interaction, "crossings", ())))
        self.dots = hasattr(model.interaction, "pairs")
        if self.dots:
            self.register_buffer("pairs", torch.tensor(model.interaction.pairs(model.num_vectors)).T)
        self.clamp = model.clamp

    def forward(self, dense: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        x = self.bottom(dense.to(self.tables[0].dtype))
        vectors = [x, *(self._bag(table, indices) for table in range(len(self.tables)))]
        if self.dots:
            z = torch.stack(vectors, 1)
            joined = torch.cat([x, torch.bmm(z, z.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]], 1)
        else:
            first = joined = torch.cat(vectors, 1)
            for crossing in self.crossings:
                joined = first * crossing(joined) + joined
        pred = self.top(joined)[:, 0]
        return pred if self.clamp is None else pred.clamp(*self.clamp)

    def _bag(self, table: int, indices: torch.Tensor) -> torch.Tensor:
        rows, columns = self.tables[table], self.columns[table]
        picked = indices[columns] % len(rows) if self.wraps[table] else indices[columns]
        if columns.stop - columns.start == 1:
            return nn.functional.embedding(picked[0], rows)
        found = nn.functional.embedding(picked.reshape(-1), rows).reshape(*picked.shape, -1)
        return found.mean(0) if self.means[table] else found.sum(0)


def _mlp(layers: Sequence[Dense]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for layer in layers:
        modules.append(nn.Linear(layer.inputs, layer.outputs))
        modules[-1].weight = nn.Parameter(_tensor(layer.weight), requires_grad=False)
        modules[-1].bias = nn.Parameter(_tensor(layer.bias), requires_grad=False)
        modules += [_ACTIVATIONS[layer.activation]()] if layer.activation in _ACTIVATIONS else []
    return nn.Sequential(*modules)


def _rows(table: Table) -> torch.Tensor:
    rows = table.rows if isinstance(table.rows, np.ndarray) else table.rows[np.arange(table.num_rows)]
    return _tensor(rows if table.row_weights is None else rows * table.row_weights[:, None])


def _tensor(array: np.ndarray) -> torch.Tensor:
    """In the array's memory, which nobody writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of memory that cannot be written
        return torch.from_numpy(np.ascontiguousarray(array))


def open_pytorch(graph: EngineGraph, threads: int, cores: Sequence[int]) -> OpenEngine:
    """Compiled on the first run, for one batch size. Importing and compiling take the better part of a minute."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    logging.disable(logging.WARNING)  # torchao names the GPU libraries that it does not find
    inductor.freezing = inductor.max_autotune = True
    inductor.compile_threads = 1  # no helpers that outlive the compiling
    inductor.max_autotune_report_choices_stats = select_algorithm.PRINT_AUTOTUNE = False
    module = DlrmModule(read_dlrm(graph.path)).eval()
    mixed = graph.precision == "int8" and BF16_FLAG in host_flags()
    if graph.precision == "bf16":
        module = module.to(torch.bfloat16)
    if graph.precision == "int8":
        with np.load(graph.quantized) as arrays:
            bags = [arrays[f"bags_{table}"] for table in range(len(module.tables))] if "bags_0" in arrays else None
            sample = _tensors(arrays["dense"], bags or arrays["indices"])
        module = _quantized(module, *sample, graph.batch_size)
    if graph.engine == "zentorch":
        import zentorch  # noqa: F401
    backend = "zentorch" if graph.engine == "zentorch" else "inductor"
    compiled = torch.compile(module, backend=backend, dynamic=False)
    output = [torch.empty(0)]

    def run(inputs: Any) -> None:
        output[0] = compiled(*inputs)

    def run_mixed(inputs: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output[0] = compiled(*inputs)

    return OpenEngine(_tensors, run_mixed if mixed else run, lambda: output[0].float().numpy())


def _tensors(dense: np.ndarray, indices: np.ndarray | Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies, as DlrmModule takes them; indices [n, T], or per table [n * number]."""
    if not isinstance(indices, np.ndarray):
        indices = np.concatenate([each.reshape(len(dense), -1) for each in indices], axis=1)
    return torch.tensor(dense), torch.tensor(np.ascontiguousarray(indices.T), dtype=torch.int64)


def _quantized(module: nn.Module, dense: torch.Tensor, indices: torch.Tensor, batch: int) -> nn.Module:
    """Calibrated with dense [items, D], indices [T, items]; the last batch is filled up from the beginning."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config(reduce_range=VNNI_FLAG not in host_flags())
    quantizer = x86.X86InductorQuantizer().set_module_type_qconfig(nn.Linear, config)
    rows = [torch.arange(begin, begin + batch) % len(dense) for begin in range(0, len(dense), batch)]
    exported = torch.export.export(module, (dense[rows[0]], indices[:, rows[0]])).module()
    prepared = prepare_pt2e(exported, quantizer)
    for each in rows:
        prepared(dense[each], indices[:, each])
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return converted
