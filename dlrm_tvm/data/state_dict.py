"""PyTorch weights as an ONNX file that points into them: `compile.py --torch-weights`.

    part         facebookresearch/dlrm   TorchRec's DLRM and DLRM_DCN                MLPerf v2's dump of DLRM_DCN
    bottom MLP   bot_l.0.weight          dense_arch.model._mlp.0._linear.weight      dense_arch.model._mlp.0.weight
    tables       emb_l.0.weight          sparse_arch.(..).embedding_bags.t_cat_0.weight     .. .embedding_bags.0.weight
    cross        -                       inter_arch.crossnet.V_kernels.0, bias.0     inter_arch.crossnet.MLPs.V0.weight
    top MLP      top_l.0.weight          over_arch.model.0._mlp.0._linear.weight     over_arch.model._mlp.0.weight
                                         over_arch.model.1.weight, the last layer

Anything may stand before these names ("model.", "state_dict."), the same before all; what wrappers put in anywhere
("_orig_mod.", of torch.compile) is left out. Shapes tell the rest: which interaction, all widths, the number of tables.
What a state dict does not tell is taken as those programs have it: bags are summed, ReLU on every layer, a sigmoid at
the end (MLPerf v2's model ends in logits and its program takes their sigmoid). Tables of just the sizes of MLPerf v2's
get its numbers of indices per bag, others one. A tensor that has no place in such a model is refused, as is one that is
missing.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..machine.files import write_whole_file
from ..model.interactions import Concat, Dot
from ..model.precision import from_bf16
from .demo_weights import V2_INDICES_PER_BAG, V2_TABLE_ROWS
from .stored_model import StoredLayer, StoredModel, StoredTensor
from .torch_file import TorchTensor, files_of_index, is_index, torch_tensors

_PART = re.compile(
    r"(?P<root>(?:.*\.)?)(?:"
    r"(?P<bottom>bot_l\.\d+|dense_arch\.model\._mlp\.\d+(?:\._linear)?)\.(?P<bottom_kind>weight|bias)|"
    r"(?P<top>top_l\.\d+|over_arch\.model\.(?:0\._mlp\.\d+\._linear|_mlp\.\d+|1))\.(?P<top_kind>weight|bias)|"
    r"(?:emb_l|sparse_arch\.embedding_bag_collection\.embedding_bags)\.(?P<table>[^.]*)\.weight|"
    r"inter_arch\.crossnet\.(?P<cross>(?:[VW]_)?kernels\.\d+|bias\.\d+|MLPs\.[VW]\d+\.(?:weight|bias)))"
)
# Of DataParallel, torch.compile, FSDP, activation checkpointing and TorchRec's DistributedModelParallel.
_WRAPPER = re.compile(r"(?<![^.])(?:module|_orig_mod|_(?:fsdp|checkpoint|dmp)_wrapped_module)\.")
_MARKER = "dlrm_tvm: weights of a PyTorch state dict"
_EXAMPLES = "bot_l.0.weight (facebookresearch/dlrm) or dense_arch.model._mlp.0._linear.weight (TorchRec)"
_NAMED = 3

Tensors = Mapping[str, StoredTensor]


_QUOTIENT = "a quotient-remainder embedding"
_MIXED = "a table of its own dimension with a projection"
_OTHER_TABLES = {".weight_q": _QUOTIENT, ".weight_r": _QUOTIENT, ".embs.weight": _MIXED, ".proj.weight": _MIXED}


def graph_path(path: Path) -> Path:
    """PATH.onnx; of a link, beside what it points to: a graph may not point out of its own folder.

    Revisions in Hugging Face's cache may share the index and not its files, by which its graph is named there."""
    folder, files = files_of_index(path) if is_index(path) else (path.resolve().parent, {})
    if not path.is_symlink() or path.resolve().parent != folder:
        return path.with_name(f"{path.name}.onnx")
    names = b"\0".join(map(os.fsencode, files.values()))
    others = f".{hashlib.sha256(names).hexdigest()[:8]}" if any(name != files[name] for name in files) else ""
    return folder / f"{path.resolve().name}{others}.onnx"


def graph_of_weights(path: Path) -> Path:
    """The ONNX file of the weights at `path`, `graph_path`, written unless it is there already (some 20 KB).

    Raises UserError for weights that do not form a DLRM, and where that file cannot be written or is another's.
    """
    from .dlrm_graph import dlrm_graph  # imports onnx, which is needed only here

    stored = read_weights(path)
    graph = graph_path(path)
    try:
        content = dlrm_graph(stored, name="dlrm", data_name=graph.stem, marker=_MARKER).SerializeToString()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: the name {error.object} is not UTF-8, as ONNX wants. Rename it.") from None
    found = graph.read_bytes() if graph.is_file() else content
    if not found.endswith(content[-len(_MARKER) :]):
        raise UserError(f"{graph}: is there already, and not from --torch-weights, which writes there. Move it away.")
    if found != content or not graph.is_file():
        try:
            write_whole_file(graph, content)
        except OSError as error:
            reason = f"{error.strerror}; an ONNX file that points into the weights has to lie beside them"
            raise UserError(f"{graph}: {reason}. Move them where you may write.") from None
    return graph


def read_weights(path: Path) -> StoredModel:
    """The DLRM whose weights are in the checkpoint at `path`. Raises UserError where they form none: which two tensors
    do not fit, which is missing, which is none of a DLRM's, which layer's is not finite."""
    parts = _parts(path, _unwrapped(path, torch_tensors(path)))
    bottom, top = (_mlp(path, part, parts[part]) for part in ("bottom", "top"))
    tables = _tables(path, parts["table"])
    crossings = _crossings(path, parts["cross"])
    _check_chain(path, bottom)
    for table in tables:
        if table.shape[1:] != (bottom[-1].outputs,):
            raise _misfit(path, table, f"rows of {bottom[-1].outputs} values were wanted", bottom[-1].weight)
    is_torchrec = "over_arch" in top[0].weight.name
    width, rows = (len(tables) + 1) * bottom[-1].outputs, tuple(table.shape[0] for table in tables)
    for crossing in crossings:
        first, last = crossing[0], crossing[-1]
        if (first.inputs, last.outputs) != (width, width) or first.outputs != (
            last.inputs if first is not last else width
        ):
            wanted = f"{width} values of x and {len(tables)} tables in and out were wanted"
            raise _misfit(path, first.weight, wanted, last.weight)
    stored = StoredModel(
        bottom=bottom,
        tables=tables,
        interaction=Concat() if crossings else _interaction(path, bottom[-1], tables, top[0], is_torchrec=is_torchrec),
        top=top,
        crossings=crossings,
        upper_triangle=is_torchrec and not crossings,
        indices_per_bag=V2_INDICES_PER_BAG if crossings and rows == V2_TABLE_ROWS else (),
    )
    if crossings and top[0].inputs != width:
        raise _misfit(path, top[0].weight, f"{width} inputs were wanted", crossings[-1][-1].weight)
    _check_chain(path, top)
    if top[-1].outputs != 1:
        raise UserError(f"{path}: {_called(top[-1].weight)} is the last layer; a DLRM's gives one prediction.")
    folder = graph_path(path).parent
    for layer in (*bottom, *chain.from_iterable(crossings), *top):
        for tensor in filter(None, (layer.weight, layer.bias)):
            _check_finite(path, folder / tensor.file if tensor.file else path, tensor)
    return stored


def _check_finite(path: Path, file: Path, tensor: StoredTensor) -> None:
    """Of a layer. Rows of tables may hold anything: it is their items' predictions that are NaN then."""
    is_bf16 = tensor.dtype == "bfloat16"
    values = np.fromfile(file, "<u2" if is_bf16 else tensor.dtype, math.prod(tensor.shape), offset=tensor.offset)
    values = from_bf16(values) if is_bf16 else values
    if not np.isfinite(values).all():
        at = int(np.isfinite(values).argmin())
        place = [int(each) for each in np.unravel_index(at, tensor.shape)]
        found = f"{_called(tensor)} holds {values[at]} at {place}"
        raise UserError(f"{path}: {found}; finite weights were wanted. Save it anew.")


def _unwrapped(path: Path, tensors: Mapping[str, TorchTensor]) -> dict[str, TorchTensor]:
    """The tensors by their names in the model that was wrapped."""
    names: dict[str, str] = {}
    for name in tensors:
        if (first := names.setdefault(_WRAPPER.sub("", name), name)) != name:
            raise UserError(f"{path}: holds several models, with {first} and {name}. Save one of them.")
    return {plain: tensors[name] for plain, name in names.items()}


def _parts(path: Path, tensors: Mapping[str, TorchTensor]) -> dict[str, dict[str, StoredTensor]]:
    """Per part the tensors by name, the names without what stands before them all."""
    matches = {name: match for name in tensors if (match := _PART.fullmatch(name))}
    roots = dict.fromkeys(match["root"] for match in matches.values())
    if not roots:
        has = f"its tensors are {_few(tensors)}" if any(tensors) else "it has no tensors"
        has = "it is one tensor without a name" if "" in tensors else has
        raise UserError(f"{path}: holds no DLRM, {has}; names such as {_EXAMPLES} were wanted.")
    if len(roots) > 1:
        raise UserError(
            f"{path}: holds several models, {' and '.join(f'{each}*' for each in roots)}. Save one of them."
        )
    (root,) = roots
    parts: dict[str, dict[str, StoredTensor]] = {"bottom": {}, "table": {}, "cross": {}, "top": {}}
    for name, tensor in tensors.items():
        if name in matches:
            part = next(part for part in parts if matches[name][part] is not None)
            parts[part][name] = _plain(path, name, tensor)
        elif form := next((form for ending, form in _OTHER_TABLES.items() if name.endswith(ending)), None):
            raise UserError(
                f"{path}: {name} is part of {form}, whose form its weights do not tell. Export the model to ONNX and "
                "give it by --onnx-model."
            )
        elif name.startswith(root):
            raise UserError(f"{path}: {name} of shape {list(tensor.shape)} is no tensor of a DLRM's layers or tables.")
    return parts


def _plain(path: Path, name: str, tensor: TorchTensor) -> StoredTensor:
    if tensor.dtype not in ("float32", "float16", "bfloat16"):
        raise UserError(
            f"{path}: {name} is {tensor.dtype}; float32, float16 and bfloat16 are read. Save it as float32."
        )
    if not tensor.is_whole:
        raise UserError(f"{path}: {name} is not stored row by row. Save it as tensor.contiguous().")
    return StoredTensor(name, tensor.shape, tensor.offset, tensor.dtype, tensor.file)


def _mlp(path: Path, part: str, found: Tensors) -> tuple[StoredLayer, ...]:
    """Its layers in the order of the numbers in their names, none of which may be missing between."""
    names = sorted({name.rpartition(".")[0] for name in found}, key=_numbers)
    if not names:
        raise UserError(f"{path}: has no {part} MLP, only other parts of a DLRM. {_EXAMPLES} names such.")
    # In a Sequential every other module is an activation.
    step = 1 if "_linear" in names[0] else 2
    for at, name in enumerate(names):
        if _numbers(name)[-1] != at * step and not name.endswith("over_arch.model.1"):
            raise UserError(f"{path}: lacks the layer before {name}; has {_few(names)}.")
    return tuple(_layer(path, found, f"{name}.weight", f"{name}.bias") for name in names)


def _layer(path: Path, found: Tensors, weight: str, bias: str, *, needs_bias: bool = True) -> StoredLayer:
    for name in (weight, bias):
        if name not in found and (needs_bias or name == weight):
            raise UserError(f"{path}: lacks {name}; has {_few(found)}.")
    layer = StoredLayer(found[weight], found.get(bias))
    if len(layer.weight.shape) != 2 or not all(layer.weight.shape):
        raise UserError(f"{path}: {_called(layer.weight)} is no matrix of a layer.")
    if layer.bias is not None and layer.bias.shape not in ((layer.outputs,), (layer.outputs, 1)):
        raise _misfit(path, layer.bias, f"{layer.outputs} values were wanted", layer.weight)
    return layer


def _tables(path: Path, found: Tensors) -> tuple[StoredTensor, ...]:
    """By the numbers that their names end in, 0 and up: the order in the file need not be the model's."""
    keys = {name: _numbers(name.removesuffix(".weight"))[-1:] for name in found}
    numbers = [(number,) for number in range(len(found))]
    if not found or sorted(keys.values()) != numbers:
        has = _few(sorted(found, key=keys.__getitem__)) or "none"
        lacking = [number for (number,) in numbers if (number,) not in keys.values()]
        missing = f", none has {lacking[0]}" if lacking else ""
        wanted = f"names with the numbers 0, 1 and so on at their ends were wanted, as emb_l.0 or t_cat_0{missing}"
        raise UserError(f"{path}: its tables are {has}; {wanted}.")
    for table in found.values():
        if len(table.shape) != 2 or not all(table.shape):
            raise UserError(f"{path}: {_called(table)} is no table of rows.")
    return tuple(found[name] for name in sorted(found, key=keys.__getitem__))


def _crossings(path: Path, found: Tensors) -> tuple[tuple[StoredLayer, ...], ...]:
    """(V, W) or (W,) of each cross layer."""
    layers: dict[int, dict[str, StoredTensor]] = {}
    for name, tensor in found.items():
        kind, number = re.search(r"([VW]?)(?:_?kernels\.|bias\.)?(\d+)(?:\.(?:weight|bias))?$", name).groups()
        is_bias = "bias" in name.rpartition("crossnet.")[2]
        layers.setdefault(int(number), {})[f"{kind or 'W'}{' bias' if is_bias else ''}"] = tensor
    for number in range(len(layers)):
        if number not in layers or not {"W", "W bias"} <= layers[number].keys():
            raise UserError(f"{path}: lacks the weight or bias W of cross layer {number}; has {_few(found)}.")
        weight = layers[number]["W"]
        is_second = "W" in weight.name.rpartition("crossnet.")[2] and weight.shape[0] != weight.shape[-1]
        if is_second and "V" not in layers[number]:
            raise UserError(
                f"{path}: lacks V of cross layer {number}: {_called(weight)} takes {weight.shape[-1]} values, and "
                f"nothing gives them; has {_few(found)}."
            )
    return tuple(
        tuple(
            _layer(path, layers[number], kind, f"{kind} bias", needs_bias=kind == "W")
            for kind in ("V", "W")
            if kind in layers[number]
        )
        for number in sorted(layers)
    )


def _interaction(
    path: Path, bottom: StoredLayer, tables: Sequence[StoredTensor], top: StoredLayer, *, is_torchrec: bool
) -> Dot | Concat:
    """The one that gives as many values as the top MLP takes; TorchRec has one only."""
    kinds = [Dot()] if is_torchrec else [Dot(), Dot(with_self=True), Concat()]
    widths = {kind: kind.num_outputs(len(tables) + 1, bottom.outputs) for kind in kinds}
    fitting = [kind for kind, width in widths.items() if width == top.inputs]
    if len(fitting) > 1:
        both = " and ".join(kind.name for kind in fitting)
        raise UserError(
            f"{path}: {_called(top.weight)} fits the interactions {both}. Export the model to ONNX instead."
        )
    if not fitting:
        given = ", ".join(f"{width} ({kind.name})" for kind, width in widths.items())
        wanted = f"{given} inputs were wanted of x and {len(tables)} tables"
        raise _misfit(path, top.weight, wanted, tables[0])
    return fitting[0]


def _check_chain(path: Path, layers: Sequence[StoredLayer]) -> None:
    for first, second in pairwise(layers):
        if first.outputs != second.inputs:
            raise _misfit(path, second.weight, f"{first.outputs} inputs were wanted", first.weight)


def _misfit(path: Path, tensor: StoredTensor, wanted: str, other: StoredTensor) -> UserError:
    return UserError(f"{path}: {_called(tensor)} does not fit {_called(other)}: {wanted}.")


def _few(names: Iterable[str]) -> str:
    """The first names, for messages: a checkpoint may have hundreds of long ones."""
    first, rest = list(names)[:_NAMED], list(names)[_NAMED:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")


def _called(tensor: StoredTensor) -> str:
    return f"{tensor.name} {list(tensor.shape)}"


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", name))
