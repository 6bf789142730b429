"""Which ONNX file another engine is to run, what it is fed, and whether it is the library's model at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .manifest import Manifest
from .peer_precision import check_precision
from .peers import Feed, PeerGraph, engine_version

if TYPE_CHECKING:
    from .onnx_graph import Input, OnnxGraph


def peer_graph(
    engine: str,
    onnx_model: Path | None,
    manifest: Manifest,
    library: str,
    indices_per_bag: float = 1,
    precision: str | None = None,
) -> PeerGraph:
    """onnx_model: None for the file that the library was compiled from; precision: None for the library's.

    At int8 it lacks the quantised file, which peer_int8.py makes. Raises UserError where the engine is not installed
    or has no such precision here, or the file is missing, is another model, or cannot be fed the library's batches
    with one index per table and item.
    """
    if indices_per_bag != 1:
        raise UserError("--engine takes one index per table and item, no bags. Leave one of the two out.")
    version = engine_version(engine)
    precision = precision or manifest.precision
    check_precision(engine, precision)
    path = _path(onnx_model, manifest, library)
    # Only peers need them: ours is measured without the ONNX package.
    from .onnx_graph import OnnxGraph
    from .onnx_reader import read_dlrm

    if read_dlrm(path).fingerprint != manifest.model.fingerprint:
        raise UserError(f"{path} is not the model of {library}. Compile it, or give the file that was: --onnx-model.")
    graph = OnnxGraph(path)
    names = manifest.model.graph_inputs
    feeds = tuple(
        _feed(path, source, manifest) for source in sorted(graph.inputs, key=lambda each: each.name != names.dense)
    )
    return PeerGraph(engine, version, str(path), manifest.batch_size, feeds, _sizes(graph, feeds), precision)


def _path(onnx_model: Path | None, manifest: Manifest, library: str) -> Path:
    given = onnx_model or manifest.onnx_model
    if given is None:
        raise UserError(f"{library} does not say which ONNX file it was compiled from. Give it by --onnx-model.")
    if not Path(given).is_file():
        raise UserError(f"{given}: no such file. Give the ONNX file that {library} was compiled from by --onnx-model.")
    return Path(given).resolve()


def _feed(path: Path, source: Input, manifest: Manifest) -> Feed:
    """What role the input plays; whole numbers that are no indices are offsets, if only unused ones."""
    card, batch = manifest.model, manifest.batch_size
    names = card.graph_inputs
    stacked = len(source.dims) == 2
    table = None
    if source.name == names.dense:
        role, shape = "dense", (batch, card.num_dense)
    else:
        role, shape = "offsets", (card.num_tables, batch) if stacked else (batch,)
        if source.name in names.indices:
            role, table = "indices", None if stacked else names.indices.index(source.name)
    fixed = source.dims[0 if role == "dense" else -1]
    if fixed not in (None, batch) and role == "dense":
        raise UserError(
            f"{path} has a batch size of {fixed} fixed in it, the library has {batch}. "
            f"Compile one with --batch-size {fixed}."
        )
    if fixed not in (None, batch):
        raise UserError(
            f"{path} takes {fixed} {role} for {batch} items ({source.name}); --engine measures one index per table and "
            "item. Export the model for bags of one."
        )
    return Feed(source.name, role, str(source.dtype), shape, table)


def _sizes(graph: OnnxGraph, feeds: tuple[Feed, ...]) -> dict[str, int]:
    """Of the named open dimensions; a name that stands for two sizes, as exporters write it, stays open."""
    found: dict[str, set[int]] = {}
    shapes = {feed.name: feed.shape for feed in feeds}
    for value in graph.proto.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ())):
            if dim.dim_param:
                found.setdefault(dim.dim_param, set()).add(size)
    return {name: sizes.pop() for name, sizes in found.items() if len(sizes) == 1}
