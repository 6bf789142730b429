"""Record the exports in tests/exports/: PyTorch's own exporters on a small DLRM, with the outputs PyTorch gives.

    python tests/support/make_exports.py [NAME ...]          needs torch 2.13, onnx and onnxscript; a minute

Writes NAME.onnx and NAME.npz for each of `EXPORTS`. The npz holds, for each pattern of bags, PATTERN.dense [n, 5],
PATTERN.offsets_T and PATTERN.indices_T of each table T as torch.nn.EmbeddingBag takes them, and PATTERN.pred [n], what
PyTorch computed from them. The patterns' sizes are not those that the model was traced with.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch.export import Dim
from torch.onnx.symbolic_helper import parse_args
from torch_dlrm import Shape, TorchDlrm

FOLDER = Path(__file__).resolve().parents[1] / "exports"
# name of a pattern -> items, least and most indices of a bag
PATTERNS = {"one_index": (6, 1, 1), "bags": (9, 0, 4), "long_bags": (5, 0, 12)}


@dataclass(frozen=True)
class Export:
    """form: "legacy" (TorchScript), "aten" (the same with ATen nodes as torch 1.6 wrote them) or "dynamo"
    (torch.export). inputs: "stacked" ([T, n] offsets and indices), "lists" (one of each per table), "mixed" (stacked
    offsets, indices per table), "gather" (no offsets) or "multihot" (no offsets, indices [n, number] of each table).
    fixed: static shapes. batch, bag: items and indices per bag when traced; hot: those of each table of "multihot"."""

    form: str
    opset: int
    shape: Shape = field(default_factory=Shape)
    inputs: str = "stacked"
    fixed: bool = False
    batch: int = 4
    bag: int = 1
    hot: tuple[int, ...] = ()
    options: dict = field(default_factory=dict)


MEAN, SELF, CAT = Shape(pooling="mean"), Shape(interaction="dot_self"), Shape(interaction="cat")
WEIGHTED, CLAMPED = Shape(weighted=True), Shape(threshold=0.4)
DEEP = Shape(bottom=(9, 7, 6), top=(12, 8, 5), dim=8, table_rows=(5, 30, 4, 9, 2), sigmoid_bottom=-1, sigmoid_top=1)
CROSS = Shape(interaction="cross", ranks=(3, 3, 3), sigmoid_top=None)
WIDE = replace(CROSS, ranks=(None, 5), bias_at="VW", sigmoid_top=-1, table_rows=(7, 11, 3, 5), dim=8)
LAST = replace(CROSS, last_offset=True)
MODULES = Shape(modules=True)
HOT = {"inputs": "multihot", "hot": (3, 1, 4)}
EXPORTS = {
    "op9_aten": Export("aten", 9, fixed=True),
    "op9_aten_mean_self": Export("aten", 9, Shape(pooling="mean", interaction="dot_self"), fixed=True, bag=3),
    "op9_aten_clamped": Export("aten", 9, CLAMPED, inputs="lists", fixed=True),
    "op10_unrolled": Export("legacy", 10, fixed=True),
    "op10_unrolled_mean": Export("legacy", 10, MEAN, fixed=True, bag=2),
    "op11_stacked": Export("legacy", 11),
    "op11_fixed_bags": Export("legacy", 11, fixed=True, bag=3),
    "op11_mean_one_item": Export("legacy", 11, MEAN, fixed=True, batch=1),
    "op11_unfolded": Export("legacy", 11, SELF, options={"do_constant_folding": False}),
    "op11_cat_mixed": Export("legacy", 11, CAT, inputs="mixed"),
    "op12_gather": Export("legacy", 12, inputs="gather"),
    "op13_lists": Export("legacy", 13, inputs="lists"),
    "op14_clamped": Export("legacy", 14, CLAMPED),
    "op16_weighted_lists": Export("legacy", 16, WEIGHTED, inputs="lists"),
    "op17_mean": Export("legacy", 17, MEAN),
    "op17_deep": Export("legacy", 17, DEEP),
    "op17_no_sigmoid": Export("legacy", 17, Shape(sigmoid_top=None, interaction="dot_self"), inputs="mixed"),
    "op20_self_lists": Export("legacy", 20, SELF, inputs="lists"),
    "op18_mean_weights_inputs": Export("legacy", 18, MEAN, options={"keep_initializers_as_inputs": True}),
    "dynamo18_fixed": Export("dynamo", 18, fixed=True),
    "dynamo18_one_item": Export("dynamo", 18, fixed=True, batch=1),
    "dynamo18_stacked": Export("dynamo", 18),
    "dynamo18_mean_fixed_bags": Export("dynamo", 18, MEAN, fixed=True, bag=3),
    "dynamo18_mean": Export("dynamo", 18, MEAN),
    "dynamo18_weighted": Export("dynamo", 18, WEIGHTED, inputs="lists"),
    "dynamo18_clamped_self": Export("dynamo", 18, Shape(threshold=0.2, interaction="dot_self"), inputs="mixed"),
    "dynamo18_cat": Export("dynamo", 18, CAT, fixed=True),
    "dynamo18_unoptimised": Export("dynamo", 18, options={"optimize": False}),
    "dynamo20_deep_lists": Export("dynamo", 20, DEEP, inputs="lists"),
    "dynamo20_gather": Export("dynamo", 20, inputs="gather"),
    "op13_cross_multihot": Export("legacy", 13, CROSS, **HOT),
    "op17_cross_multihot_fixed": Export("legacy", 17, CROSS, fixed=True, **HOT),
    "op17_cross_mean_multihot": Export("legacy", 17, replace(CROSS, pooling="mean"), **HOT),
    "op17_cross_full_rank": Export("legacy", 17, WIDE),
    "op17_cross_last_stacked": Export("legacy", 17, LAST),
    "op13_cross_last_lists": Export("legacy", 13, LAST, inputs="lists"),
    "op11_cross_last_fixed": Export("legacy", 11, LAST, fixed=True, bag=2),
    "dynamo18_cross_multihot": Export("dynamo", 18, CROSS, **HOT),
    "dynamo20_cross_multihot_fixed": Export("dynamo", 20, WIDE, fixed=True, inputs="multihot", hot=(2, 3, 1, 6)),
    "dynamo18_cross_last_stacked": Export("dynamo", 18, LAST),
    "dynamo18_cross_last_lists": Export("dynamo", 18, LAST, inputs="lists"),
    "dynamo18_cross_last_fixed": Export("dynamo", 18, LAST, fixed=True, bag=3),
    "op11_multihot_modules": Export("legacy", 11, MODULES, **HOT),
    "op17_mean_multihot_modules": Export("legacy", 17, replace(MODULES, pooling="mean"), **HOT),
    "dynamo18_mean_multihot_modules": Export("dynamo", 18, replace(MODULES, pooling="mean"), **HOT),
    "dynamo20_multihot_modules_padding": Export("dynamo", 20, replace(MODULES, padding=1), **HOT),
    "dynamo18_padding_lists": Export("dynamo", 18, Shape(padding=0), inputs="lists"),
    "dynamo18_padding_last_fixed": Export("dynamo", 18, Shape(padding=-1, last_offset=True), fixed=True, bag=3),
    "op17_cat_widths": Export("legacy", 17, replace(CAT, dims=(2, 4, 7))),
    "dynamo18_cross_lists": Export("dynamo", 18, CROSS, inputs="lists"),
}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name in sys.argv[1:] or EXPORTS:
        model = TorchDlrm(EXPORTS[name].shape).eval()
        path = FOLDER / f"{name}.onnx"
        export(model, EXPORTS[name], path)
        np.savez_compressed(path.with_suffix(".npz"), **record(model, EXPORTS[name]))
        print(f"{name:28} {path.stat().st_size:8,} bytes, opset {onnx.load(path).opset_import[0].version}")


def export(model: TorchDlrm, how: Export, path: Path) -> None:
    arguments, names, dynamic = _arguments(how)
    if how.form == "dynamo":
        shapes = None if how.fixed else dynamic
        options = {"dynamo": True, "dynamic_shapes": shapes, "external_data": False, "verbose": False}
    else:
        axes = {} if how.fixed else _dynamic_axes(names, how)
        options = {"dynamo": False, "dynamic_axes": axes}
    if how.form == "aten":
        options |= {"keep_initializers_as_inputs": True}
    with _aten_as_torch_1_6_wrote_it(how.form == "aten"):
        torch.onnx.export(
            model,
            arguments,
            str(path),
            input_names=names,
            output_names=["pred"],
            opset_version=how.opset,
            **options,
            **how.options,
        )
    _tidy(path, standard_domain=how.form == "aten")


def record(model: TorchDlrm, how: Export) -> dict[str, np.ndarray]:
    """The patterns' inputs and PyTorch's outputs; only those that a graph without offsets takes."""
    recorded = {}
    patterns = {"multihot": (7, how.hot, how.hot)} if how.hot else PATTERNS
    for name, (items, least, most) in patterns.items():
        if how.inputs == "gather" and most > 1:
            continue
        dense, offsets, indices = random_bags(how.shape, items, least, most)
        with torch.no_grad():
            pred = model(torch.from_numpy(dense), *_as_given(how, offsets, indices))
        recorded |= {f"{name}.dense": dense, f"{name}.pred": pred.numpy()[:, 0]}
        recorded |= {f"{name}.offsets_{t}": column for t, column in enumerate(offsets)}
        recorded |= {f"{name}.indices_{t}": column for t, column in enumerate(indices)}
    return recorded


def _as_given(how: Export, offsets: list[np.ndarray], indices: list[np.ndarray]) -> tuple:
    """offsets, indices as the model takes them."""
    tensors = [torch.from_numpy(column) for column in indices]
    if how.inputs == "multihot":
        return None, [column.reshape(-1, number) for column, number in zip(tensors, how.hot)]
    if how.inputs == "gather":
        return None, tensors
    if how.shape.last_offset:
        offsets = [np.append(column, len(rows)) for column, rows in zip(offsets, indices)]
    return [torch.from_numpy(column) for column in offsets], tensors


def random_bags(
    shape: Shape, items: int, least: int | Sequence[int], most: int | Sequence[int], seed: int = 7
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """(dense [items, num_dense] float32, offsets and indices of each table); every table has its own bags, of a number
    of indices from least to most, each one for all tables or one per table."""
    rng = np.random.default_rng(seed)
    dense = rng.uniform(-2, 2, (items, shape.num_dense)).astype(np.float32)
    tables = (len(shape.table_rows), items)
    if isinstance(least, Sequence):
        least, most = (np.reshape(each, (-1, 1)) for each in (least, most))
    lengths = rng.integers(least, np.add(most, 1), tables)
    offsets = list(np.cumsum(lengths, axis=1) - lengths)
    indices = [rng.integers(0, rows, total) for rows, total in zip(shape.table_rows, lengths.sum(axis=1))]
    return dense, offsets, indices


def _arguments(how: Export) -> tuple[tuple, list[str], tuple]:
    """(what the model is traced with, names of the inputs, their dynamic dimensions for torch.export)."""
    tables = range(len(how.shape.table_rows))
    dense = torch.randn(how.batch, how.shape.num_dense)
    indices = [torch.randint(0, rows, (how.batch * how.bag,)) for rows in how.shape.table_rows]
    ends = how.batch * how.bag + (1 if how.shape.last_offset else 0)
    offsets = [torch.arange(0, ends, how.bag) for _ in tables]
    batch = Dim("batch", min=2)
    stacked = how.inputs == "stacked"
    totals = {1: Dim("total", min=2)} if stacked else [{0: Dim(f"total_{t}", min=2)} for t in tables]
    index_names = ["indices"] if stacked else [f"indices_{t}" for t in tables]
    index_values = torch.stack(indices) if stacked else indices
    if how.inputs == "gather":
        return (dense, None, indices), ["dense_x", *index_names], ({0: batch}, None, [{0: batch} for _ in tables])
    if how.inputs == "multihot":
        hot = [torch.randint(0, rows, (how.batch, number)) for rows, number in zip(how.shape.table_rows, how.hot)]
        return (dense, None, hot), ["dense_x", *index_names], ({0: batch}, None, [{0: batch} for _ in tables])
    each = how.inputs == "lists"
    offset_names = [f"offsets_{t}" for t in tables] if each else ["offsets"]
    starts = batch + 1 if how.shape.last_offset else batch
    shapes = ({0: batch}, [{0: starts} for _ in tables] if each else {1: starts}, totals)
    names = ["input.1", "lS_o", "lS_i"] if how.form == "aten" and stacked else ["dense_x", *offset_names, *index_names]
    return (dense, offsets if each else torch.stack(offsets), index_values), names, shapes


def _dynamic_axes(names: Sequence[str], how: Export) -> dict[str, dict[int, str]]:
    axes = {name: {1 if name in ("offsets", "indices") else 0: "batch_size"} for name in names}
    return axes | {"pred": {0: "batch_size"}}


@contextmanager
def _aten_as_torch_1_6_wrote_it(wanted: bool) -> Iterator[None]:
    """embedding_bag and index as ATen nodes: inputs and attributes as torch 1.6's symbolic_opset9.py gave them."""

    @parse_args("v", "v", "v", "i", "i", "i", "v", "i", "i")
    def embedding_bag(g, weight, indices, offsets, scale_grad, mode, sparse, factors, include_last, padding):
        numbers = {
            "scale_grad_by_freq_i": scale_grad,
            "mode_i": mode,
            "sparse_i": sparse,
            "include_last_offset_i": include_last,
        }
        inputs = (weight, indices, offsets)
        return g.op("org.pytorch.aten::ATen", *inputs, operator_s="embedding_bag", outputs=4, **numbers)

    def index(g, data, indices):
        parts = list(indices.node().inputs())
        return g.op("org.pytorch.aten::ATen", data, *parts, operator_s="index")

    if not wanted:
        yield
        return
    for name, symbolic in (("aten::embedding_bag", embedding_bag), ("aten::index", index)):
        torch.onnx.register_custom_op_symbolic(name, symbolic, 9)
    try:
        yield
    finally:
        for name in ("aten::embedding_bag", "aten::index"):
            torch.onnx.unregister_custom_op_symbolic(name, 9)


def _tidy(path: Path, *, standard_domain: bool) -> None:
    """Leave out the stack traces of this machine, nine tenths of a file by torch.export.

    standard_domain: torch 1.6 put ATen nodes into ONNX's own domain; today's torch writes org.pytorch.aten.
    """
    model = onnx.load(path)
    _forget_traces(model.graph)
    if standard_domain:
        for node in model.graph.node:
            node.domain = "" if node.op_type == "ATen" else node.domain
        kept = [opset for opset in model.opset_import if opset.domain == ""]
        del model.opset_import[:]
        model.opset_import.extend(kept)
    onnx.save(model, path)


def _forget_traces(graph: onnx.GraphProto) -> None:
    del graph.metadata_props[:]
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _forget_traces(attribute.g)


if __name__ == "__main__":
    main()
