"""The ONNX file that another engine runs: its inputs, and the check that it is the library's model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..runtime.manifest import Manifest
from .interface import EngineGraph, Feed, check_precision, engine_version

if TYPE_CHECKING:
    from ..symbols.graph import Input, OnnxGraph


def engine_graph(
    engine: str,
    onnx_model: Path | None,
    manifest: Manifest,
    library: str,
    indices_per_bag: float | None = None,
    precision: str | None = None,
) -> EngineGraph:
    """onnx_model: None for the file that the library was compiled from; indices_per_bag: the mean of the inputs, None
    for as many as the graph takes; precision: None for the library's.

    At int8, quantization.py adds the quantized file. Raises UserError where the engine is not installed or lacks the
    precision here, or where the file is missing, is another model, or does not take the library's batches with one
    index per table and item, or as many as it fixes.
    """
    fixed = manifest.model.graph_inputs.indices_per_bag
    if indices_per_bag not in (None, sum(fixed) / len(fixed) if fixed else 1):
        takes = "indices per bag as the graph fixes them" if fixed else "one index per table and item, no bags"
        raise UserError(f"--engine takes {takes}. Leave out --engine or the bags.")
    version = engine_version(engine)
    precision = precision or manifest.precision
    check_precision(engine, precision)
    path = _path(onnx_model, manifest, library)
    # Imported here, as our own library is measured without the ONNX package.
    from ..frontend.reader import read_dlrm
    from ..symbols.graph import OnnxGraph

    if read_dlrm(path).fingerprint != manifest.model.fingerprint:
        raise UserError(f"{path} is not the model of {library}. Compile it, or give the right file by --onnx-model.")
    graph = OnnxGraph(path)
    names = manifest.model.graph_inputs
    feeds = tuple(
        _feed(path, source, manifest) for source in sorted(graph.inputs, key=lambda each: each.name != names.dense)
    )
    return EngineGraph(engine, version, str(path), manifest.batch_size, feeds, _sizes(graph, feeds), precision)


def _path(onnx_model: Path | None, manifest: Manifest, library: str) -> Path:
    given = onnx_model or manifest.onnx_model
    if given is None:
        raise UserError(f"{library} does not say which ONNX file it was compiled from. Give it by --onnx-model.")
    if not Path(given).is_file():
        raise UserError(f"{given}: no such file. Give the ONNX file that {library} was compiled from by --onnx-model.")
    return Path(given).resolve()


def _feed(path: Path, source: Input, manifest: Manifest) -> Feed:
    """The input with its role; whole numbers that are not indices are offsets, also where the graph ignores them."""
    feed, batch = _role(source, manifest), manifest.batch_size
    if feed.role == "unused":
        return feed
    role, fixed = feed.role, source.dims[feed.batch_place]
    if fixed not in (None, batch) and role == "dense":
        raise UserError(
            f"{path} has a batch size of {fixed} fixed in it, the library has {batch}. "
            f"Compile one with --batch-size {fixed}."
        )
    if fixed not in (None, batch + feed.last_offset):
        raise UserError(
            f"{path} takes {fixed} {role} for {batch} items ({source.name}); --engine measures one index per table and "
            "item. Export the model for bags of one."
        )
    return feed


def _role(source: Input, manifest: Manifest) -> Feed:
    card, batch, dtype = manifest.model, manifest.batch_size, str(source.dtype)
    names = card.graph_inputs
    if source.name == names.dense:
        return Feed(source.name, "dense", dtype, (batch, card.num_dense))
    if source.dtype.kind not in "iu":  # of those that are no whole numbers, the dense features alone are in use
        return Feed(source.name, "unused", dtype, tuple(size or batch for size in source.dims))
    stacked = len(source.dims) == 2
    if source.name not in names.indices:
        items = batch + names.last_offset
        shape = (card.num_tables, items) if stacked else (items,)
        return Feed(source.name, "offsets", dtype, shape, last_offset=names.last_offset)
    table = names.indices.index(source.name)
    if names.indices_per_bag:
        shape = (batch, names.indices_per_bag[table]) if stacked else (batch,)
        return Feed(source.name, "indices", dtype, shape, table)
    if names.items_first:
        return Feed(source.name, "indices", dtype, (batch, card.num_tables), items_first=True)
    shape = (card.num_tables, batch) if stacked else (batch,)
    return Feed(source.name, "indices", dtype, shape, None if stacked else table)


def _sizes(graph: OnnxGraph, feeds: tuple[Feed, ...]) -> dict[str, int]:
    """Sizes of the named open dimensions; a name that an exporter used for two sizes stays open."""
    found: dict[str, set[int]] = {}
    shapes = {feed.name: feed.shape for feed in feeds}
    for value in graph.proto.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ())):
            if dim.dim_param:
                found.setdefault(dim.dim_param, set()).add(size)
    return {name: sizes.pop() for name, sizes in found.items() if len(sizes) == 1}
