"""The inputs and outputs that an export was checked with, under the ONNX graph's own names: small, so read whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..model.bags import Bags, bags_of_arrays, bags_of_one, check_bags
from .chunks import Chunk, ReferenceData, as_float32, as_labels, pieces
from .npz import NpyHeader, read_arrays, require, require_keys

if TYPE_CHECKING:
    from ..model.card import ModelCard


def open_graph_inputs(
    path: Path, headers: dict[str, NpyHeader], card: ModelCard, *, outputs_wanted: bool = True
) -> ReferenceData:
    """The inputs and outputs that an export was checked with; small, so read whole. outputs_wanted: refuse inputs
    without outputs and labels.

    Indices are stacked, [T, n] or [n, T], or an array per table, and so are offsets. Without offsets in the graph or in
    the file, every bag holds one index, or as many as the graph fixes in arrays [n, number] of each table.
    """
    names, num_tables = card.graph_inputs, len(card.table_rows)
    offsets_keys = names.offsets if any(name in headers for name in names.offsets) else ()
    outputs = tuple(key for key in ("pred", "target") if key in headers)
    outputs = outputs or (("pred",) if outputs_wanted else ())
    require_keys(path, headers, (names.dense, *names.indices, *offsets_keys, *outputs))
    num_items = headers[names.dense].num_rows
    require(path, names.dense, headers, (num_items, card.num_dense), kinds="f")
    for key in outputs:
        require(path, key, headers, (num_items,), kinds="f" if key == "pred" else "iufb")
    num_indices = _require_indices(path, headers, card, num_items, has_offsets=bool(offsets_keys))
    if offsets_keys:
        _require_tables(path, offsets_keys, headers, num_tables, num_items + names.last_offset)

    def read(items: range) -> Iterator[Chunk]:
        arrays = read_arrays(path, (names.dense, *names.indices, *offsets_keys, *outputs))
        bags = _bags_of(path, arrays, card, offsets_keys, num_items)
        dense = as_float32(arrays[names.dense])
        pred = as_float32(arrays["pred"].reshape(-1)) if "pred" in outputs else None
        labels = as_labels(path, "target", arrays["target"].reshape(-1), 0) if "target" in outputs else None
        indices = np.stack(bags.indices, axis=1).astype(np.int64) if bags.of_one else None
        for piece in pieces(items):
            part = slice(piece.start, piece.stop)
            own = [None if each is None else each[part] for each in (pred, labels)]
            lookups = (None, bags.part(part.start, part.stop)) if indices is None else (indices[part], None)
            yield Chunk(dense[part], lookups[0], *own, lookups[1])

    per_bag = num_indices / (num_tables * max(num_items, 1))
    has = ["pred" in outputs, "target" in outputs]
    return ReferenceData(path, "the graph's own inputs", range(num_items), *has, card, read, per_bag, borders=())


def _require_indices(path: Path, headers: dict, card: ModelCard, num_items: int, *, has_offsets: bool) -> int:
    """Check them against the graph's form, and give their number."""
    names, tables = card.graph_inputs, len(card.table_rows)
    if not names.indices_per_bag:
        if names.items_first:
            require(path, names.indices[0], headers, (num_items, tables), kinds="iu")
            return num_items * tables
        return _require_tables(path, names.indices, headers, tables, None if has_offsets else num_items)
    for name, number in zip(names.indices, names.indices_per_bag):
        one_each = number == 1 and headers[name].shape == (num_items,)
        require(path, name, headers, (num_items,) if one_each else (num_items, number), kinds="iu")
    return num_items * sum(names.indices_per_bag)


def _require_tables(
    path: Path, names: tuple[str, ...], headers: dict[str, NpyHeader], num_tables: int, length: int | None
) -> int:
    """Check for one array [num_tables, length], or one [length] per table (None: any). Gives the number of values."""
    stacked = len(names) == 1 and (num_tables > 1 or len(headers[names[0]].shape) == 2)
    total = 0
    for name in names:
        found = headers[name].shape
        own = length if length is not None else (found[-1] if found else 0)
        require(path, name, headers, (num_tables, own) if stacked else (own,), kinds="iu")
        total += own * (num_tables if stacked else 1)
    return total


def _bags_of(path: Path, arrays: dict[str, np.ndarray], card: ModelCard, offsets: tuple, num_items: int) -> Bags:
    names, num_tables = card.graph_inputs, len(card.table_rows)

    def per_table(keys: tuple[str, ...]) -> list[np.ndarray]:
        return [row for key in keys for row in arrays[key].reshape(num_tables // len(keys), -1)]

    try:
        if names.indices_per_bag:
            return bags_of_arrays([arrays[name] for name in names.indices], num_items, names.indices_per_bag)
        if names.items_first:
            return bags_of_one(arrays[names.indices[0]].reshape(num_items, num_tables))
        starts = per_table(offsets) if offsets else [np.arange(num_items)] * num_tables
        return check_bags(per_table(names.indices), starts, num_items, num_tables, last=names.last_offset and offsets)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
