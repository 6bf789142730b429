"""Data to score a model with: inputs, and whatever is known of their outputs, read in chunks.

    kind                     keys or records                                            reference  labels
    MLPerf-style npz         X_int [N,13] log(1+x), X_cat [N,26], torch_res, target     yes        yes
    the graph's own inputs   dense_x, indices, offsets (as the ONNX graph names them),  yes        no
                             pred; bags of any lengths
    Criteo npz (day_23)      X_int raw counts, X_cat, y                                 no         yes
    Criteo binary            40 int32: label, 13 counts, 26 categories                  no         yes

The kind is told by content, not by the file's name. Criteo files are what facebookresearch/dlrm leaves:
`data_utils.py` sets negative counts to 0 and saves float64 arrays, `data_loader_terabyte.py` takes log(x + 1) in
float32 and writes the binary. MLPerf's test set is the first half of day 23, 89,137,319 items: all of
terabyte_processed_test.bin, but only the head of day_23_reordered.npz (--max-items 89137319).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .bags import Bags, check_bags, join_bags
from .errors import UserError
from .npz_stream import NpyHeader, NpzStream, is_npz, read_arrays, read_headers, require, require_keys

if TYPE_CHECKING:
    from .manifest import ModelCard

CHUNK_ITEMS = 32768

_MLPERF_KEYS = ("X_int", "X_cat", "torch_res", "target")
_CRITEO_KEYS = ("X_int", "X_cat", "y")
_CRITEO_DENSE, _CRITEO_TABLES = 13, 26
_RECORD_INTS = 1 + _CRITEO_DENSE + _CRITEO_TABLES
_RECORD_BYTES = 4 * _RECORD_INTS
_FINGERPRINT_KEY = "model_fingerprint"


class Chunk(NamedTuple):
    """dense [n, D] float32, indices [n, T] int64, reference [n] float32 or None, labels [n] uint8 0/1 or None.

    Where items have bags of other than one index, `bags` holds those and indices is None.
    """

    dense: np.ndarray
    indices: np.ndarray | None
    reference: np.ndarray | None
    labels: np.ndarray | None
    bags: Bags | None = None

    @property
    def lookups(self) -> tuple:
        """What a model takes after dense: indices, or for bags indices and offsets per table."""
        return (self.indices,) if self.bags is None else (self.bags.indices, self.bags.offsets)


@dataclass(frozen=True)
class ReferenceData:
    """An opened file; iterating reads it from the start, checked, `CHUNK_ITEMS` items at a time.

    Iterating raises UserError for values the model cannot take: an index outside its table (table, item, value),
    a dense value that is not finite, a label that is not 0 or 1, offsets that are no bags.
    indices_per_bag: 1, or the mean over all bags.
    """

    path: Path
    kind: str
    num_items: int
    has_reference: bool
    has_labels: bool
    _card: ModelCard
    _read: Callable[[int], Iterator[Chunk]]
    indices_per_bag: float = 1

    def __iter__(self) -> Iterator[Chunk]:
        start = 0
        for chunk in self._read(self.num_items):
            _check_values(self.path, self._card, chunk, start)
            yield chunk
            start += len(chunk.dense)


def open_reference(
    path: str | Path, card: ModelCard, *, max_items: int | None = None, outputs_wanted: bool = True
) -> ReferenceData:
    """Recognise the file and check keys, shapes and dtypes against the model; no values are read yet.

    max_items: read at most so many. outputs_wanted: refuse outputs recorded for another model; without it the inputs
    of such a file may be read. Raises UserError for anything that does not fit; OSError for a missing file.
    """
    path = Path(path)
    if max_items is not None and max_items < 1:
        raise UserError(f"--max-items {max_items}: give at least 1.")
    if not is_npz(path):
        data = _open_binary(path, card)
    else:
        headers = read_headers(path)
        names = card.graph_inputs
        graph_keys = {names.dense, *names.indices, *names.offsets, "pred"}
        if outputs_wanted:
            _check_fingerprint(path, headers, card)
        if headers.keys() & {*_MLPERF_KEYS, *_CRITEO_KEYS}:
            data = _open_mlperf(path, headers, card)
        elif headers.keys() & graph_keys:
            data = _open_graph_inputs(path, headers, card)
        else:
            raise UserError(
                f"{path}: keys {', '.join(headers) or 'none'}; want {', '.join(_MLPERF_KEYS)}, or "
                f"{', '.join(_CRITEO_KEYS)}, or the model's inputs {', '.join(sorted(graph_keys))}."
            )
    if not data.num_items:
        raise UserError(f"{path}: holds no items.")
    return replace(data, num_items=min(data.num_items, max_items or data.num_items))


def read_inputs(path: str | Path, card: ModelCard, max_items: int) -> tuple[np.ndarray, np.ndarray | Bags]:
    """The first `max_items` items' inputs, or all: dense [n, D] float32, indices [n, T] int64 or bags, checked."""
    chunks = list(open_reference(path, card, max_items=max_items, outputs_wanted=False))
    dense = np.concatenate([c.dense for c in chunks])
    if chunks[0].bags is not None:
        return dense, join_bags([c.bags for c in chunks])
    return dense, np.concatenate([c.indices for c in chunks])


def _open_mlperf(path: Path, headers: dict[str, NpyHeader], card: ModelCard) -> ReferenceData:
    """X_int and X_cat with either torch_res and target, or, as Criteo's preprocessing leaves it, y."""
    is_criteo = "y" in headers and not headers.keys() & {"torch_res", "target"}
    keys = _CRITEO_KEYS if is_criteo else _MLPERF_KEYS
    require_keys(path, headers, keys)
    num_items = headers["X_int"].num_rows
    # Raw counts come as integers or float64; log(1 + x) never comes as integers, so those would be counts.
    require(path, "X_int", headers, (num_items, card.num_dense), kinds="iuf" if is_criteo else "f")
    require(path, "X_cat", headers, (num_items, len(card.table_rows)), kinds="iuf" if is_criteo else "iu")
    for key in keys[2:]:
        require(path, key, headers, (num_items,), kinds="f" if key == "torch_res" else "iufb")

    def read(limit: int) -> Iterator[Chunk]:
        with NpzStream(path, keys) as stream:
            for start in range(0, limit, CHUNK_ITEMS):
                rows = stream.next_rows(min(CHUNK_ITEMS, limit - start))
                dense = log_counts(rows["X_int"]) if is_criteo else rows["X_int"].astype(np.float32)
                reference = None if is_criteo else rows["torch_res"].reshape(-1).astype(np.float32)
                labels = _as_labels(path, keys[-1], rows[keys[-1]].reshape(-1), start)
                yield Chunk(dense, _as_indices(path, rows["X_cat"], start), reference, labels)

    kind = "Criteo npz (raw counts)" if is_criteo else "MLPerf-style npz"
    return ReferenceData(path, kind, num_items, not is_criteo, True, card, read)


def _open_binary(path: Path, card: ModelCard) -> ReferenceData:
    num_bytes = path.stat().st_size
    if not num_bytes or num_bytes % _RECORD_BYTES:
        raise UserError(
            f"{path}: {num_bytes} bytes; want an npz, or Criteo records of 40 int32 ({_RECORD_BYTES} bytes)."
        )
    if (card.num_dense, len(card.table_rows)) != (_CRITEO_DENSE, _CRITEO_TABLES):
        raise UserError(
            f"{path}: Criteo records have {_CRITEO_DENSE} dense values and {_CRITEO_TABLES} categories; "
            f"the model takes {card.num_dense} and {len(card.table_rows)}. Use data made for this model."
        )

    def read(limit: int) -> Iterator[Chunk]:
        records = np.memmap(path, "<i4", "r").reshape(-1, _RECORD_INTS)
        for start in range(0, limit, CHUNK_ITEMS):
            rows = records[start : min(start + CHUNK_ITEMS, limit)]
            labels = _as_labels(path, "label", rows[:, 0], start)
            counts, categories = rows[:, 1 : 1 + _CRITEO_DENSE], rows[:, 1 + _CRITEO_DENSE :]
            yield Chunk(log_counts(counts), categories.astype(np.int64), None, labels)

    return ReferenceData(path, "Criteo binary", num_bytes // _RECORD_BYTES, False, True, card, read)


def _open_graph_inputs(path: Path, headers: dict[str, NpyHeader], card: ModelCard) -> ReferenceData:
    """What an export was checked with; small, so read whole.

    Indices are stacked [T, n] or an array per table, offsets likewise; without offsets (in the graph or in the file)
    every bag holds one index.
    """
    names, num_tables = card.graph_inputs, len(card.table_rows)
    offsets_keys = names.offsets if any(name in headers for name in names.offsets) else ()
    require_keys(path, headers, (names.dense, *names.indices, *offsets_keys, "pred"))
    num_items = headers[names.dense].num_rows
    require(path, names.dense, headers, (num_items, card.num_dense), kinds="f")
    require(path, "pred", headers, (num_items,), kinds="f")
    num_indices = _require_tables(path, names.indices, headers, num_tables, None if offsets_keys else num_items)
    if offsets_keys:
        _require_tables(path, offsets_keys, headers, num_tables, num_items)

    def read(limit: int) -> Iterator[Chunk]:
        arrays = read_arrays(path, (names.dense, *names.indices, *offsets_keys, "pred"))
        bags = _bags_of(path, arrays, names.indices, offsets_keys, num_items, num_tables)
        dense, pred = arrays[names.dense].astype(np.float32), arrays["pred"].reshape(-1).astype(np.float32)
        indices = np.stack(bags.indices, axis=1).astype(np.int64) if bags.of_one else None
        for start in range(0, limit, CHUNK_ITEMS):
            part = slice(start, min(start + CHUNK_ITEMS, limit))
            if indices is None:
                yield Chunk(dense[part], None, pred[part], None, bags.part(part.start, part.stop))
            else:
                yield Chunk(dense[part], indices[part], pred[part], None)

    per_bag = num_indices / (num_tables * max(num_items, 1))
    return ReferenceData(path, "the graph's own inputs", num_items, True, False, card, read, per_bag)


def _require_tables(
    path: Path, names: tuple[str, ...], headers: dict[str, NpyHeader], num_tables: int, length: int | None
) -> int:
    """One array [num_tables, length], or one [length] per table (None: any length); how many values in all."""
    stacked = len(names) == 1 and (num_tables > 1 or len(headers[names[0]].shape) == 2)
    total = 0
    for name in names:
        found = headers[name].shape
        own = length if length is not None else (found[-1] if found else 0)
        require(path, name, headers, (num_tables, own) if stacked else (own,), kinds="iu")
        total += own * (num_tables if stacked else 1)
    return total


def _bags_of(
    path: Path, arrays: dict[str, np.ndarray], indices: tuple, offsets: tuple, num_items: int, num_tables: int
) -> Bags:
    def per_table(names: tuple[str, ...]) -> list[np.ndarray]:
        return [row for name in names for row in arrays[name].reshape(num_tables // len(names), -1)]

    starts = per_table(offsets) if offsets else [np.arange(num_items)] * num_tables
    try:
        return check_bags(per_table(indices), starts, num_items, num_tables)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def log_counts(counts: np.ndarray) -> np.ndarray:
    """MLPerf's dense features: log(1 + x) in float32, negative counts taken as 0 (see the module's docstring)."""
    with np.errstate(over="ignore"):  # beyond float32: infinite, which is refused later
        return np.log(np.maximum(counts, 0).astype(np.float32) + np.float32(1))


def _as_indices(path: Path, categories: np.ndarray, start: int) -> np.ndarray:
    """Row numbers as int64; dlrm's own files hold them as float64, of which only whole numbers are row numbers."""
    with np.errstate(invalid="ignore"):
        indices = categories.astype(np.int64)
    if categories.dtype.kind == "f" and (indices != categories).any():
        item, table = np.argwhere(indices != categories)[0]
        raise UserError(
            f"{path}: X_cat of item {start + item}, table {table} is {categories[item, table]}, not a row number."
        )
    return indices


def _as_labels(path: Path, key: str, labels: np.ndarray, start: int) -> np.ndarray:
    odd = np.flatnonzero((labels != 0) & (labels != 1))
    if len(odd):
        raise UserError(f"{path}: {key} of item {start + odd[0]} is {labels[odd[0]]}; labels are 0 or 1.")
    return labels.astype(np.uint8)


def _check_values(path: Path, card: ModelCard, chunk: Chunk, start: int) -> None:
    if outside := _first_outside(chunk, card.table_rows):
        item, table, index = outside
        raise UserError(
            f"{path}: item {start + item} takes row {index} of table {table} "
            f"({card.table_names[table]}), which has {card.table_rows[table]} rows. Use data made for this model."
        )
    if not np.isfinite(chunk.dense).all():
        item, column = np.argwhere(~np.isfinite(chunk.dense))[0]
        value = chunk.dense[item, column]
        raise UserError(f"{path}: dense value {column} of item {start + item} is {value}; want finite numbers.")
    if chunk.reference is not None and not np.isfinite(chunk.reference).all():
        item = np.flatnonzero(~np.isfinite(chunk.reference))[0]
        raise UserError(f"{path}: the reference output of item {start + item} is {chunk.reference[item]}.")


def _first_outside(chunk: Chunk, table_rows: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(item, table, index) of an index that its table does not have."""
    if chunk.bags is not None:
        return chunk.bags.first_outside(table_rows)
    outside = (chunk.indices < 0) | (chunk.indices >= np.array(table_rows))
    if not outside.any():
        return None
    item, table = np.argwhere(outside)[0]
    return int(item), int(table), int(chunk.indices[item, table])


def _check_fingerprint(path: Path, headers: dict[str, NpyHeader], card: ModelCard) -> None:
    if _FINGERPRINT_KEY not in headers:
        return
    recorded = str(read_arrays(path, [_FINGERPRINT_KEY])[_FINGERPRINT_KEY])
    if recorded != card.fingerprint:
        raise UserError(
            f"{path}: its outputs were recorded for another model (fingerprint {recorded[:12]}); the library holds "
            f"{card.name} ({card.fingerprint[:12]}). Give --ref-data recorded for {card.name}."
        )
