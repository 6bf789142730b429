"""Data to score a model with, read in chunks: inputs, and reference outputs or labels where the file has them.

    kind                     keys or records                                            reference  labels
    MLPerf-style npz         X_int [N,13] log(1+x), X_cat [N,26], torch_res, target     yes        yes
    the graph's own inputs   dense_x, indices, offsets (as the ONNX graph names them),  yes        if target
                             pred (or none, for inputs alone), target or none;
                             bags of any lengths
    Criteo npz (day_23)      X_int raw counts, X_cat, y                                 no         yes
    Criteo binary            40 int32: label, 13 counts, 26 categories                  no         yes
    MLPerf v2's day          three files, see multi_hot.py                              no         yes
    parquet                  see parquet.py                                             if there   if there

The kind is recognised by content, not by the file's name; MLPerf v2's files alone are found by theirs. Criteo files are
those written by facebookresearch/dlrm: `data_utils.py` sets negative counts to 0 and saves float64 arrays,
`data_loader_terabyte.py` takes log(x + 1) in float32 and writes the binary, of one half of day 23. How a whole day is
cut: splits.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..machine.files import check_regular
from ..model.bags import Bags, join_bags
from .chunks import Chunk, ReferenceData, as_float32, as_labels, check_fingerprint, log_counts, pieces
from .graph_inputs import open_graph_inputs
from .multi_hot import day_files, open_multi_hot
from .npz import NpyHeader, NpzStream, is_npz, read_arrays, read_headers, require, require_keys
from .parquet import is_parquet, open_parquet
from .splits import SCORED_ITEMS, halves

if TYPE_CHECKING:
    from ..model.card import ModelCard

_MLPERF_KEYS = ("X_int", "X_cat", "torch_res", "target")
_CRITEO_KEYS = ("X_int", "X_cat", "y")
_CRITEO_DENSE, _CRITEO_TABLES = 13, 26
_RECORD_INTS = 1 + _CRITEO_DENSE + _CRITEO_TABLES
_RECORD_BYTES = 4 * _RECORD_INTS
_FINGERPRINT_KEY = "model_fingerprint"


def open_reference(
    path: str | Path,
    card: ModelCard,
    *,
    split: str | None = None,
    first_item: int = 0,
    max_items: int | None = None,
    for_calibration: bool = False,
    outputs_wanted: bool = True,
    outputs_optional: bool = False,
    max_ind_range: int | None = None,
) -> ReferenceData:
    """Recognise the file and check keys, shapes and dtypes against the model; values are not read yet.

    split: one of `splits.SPLITS`, or None for what MLPerf scores (for_calibration: calibrates on) where the file is one
    that MLPerf cuts, and for all items where not. Of it at most `max_items` are read, from `first_item` on.
    outputs_wanted: refuse outputs recorded for another model, and recorded inputs without any; else such inputs are
    read. outputs_optional: the former are refused, the latter are read. max_ind_range: take indices modulo it. Raises
    UserError for anything that does not fit, OSError for a missing file.
    """
    path = Path(path)
    if max_items is not None and max_items < 1:
        raise UserError(f"--max-items {max_items}: give at least 1.")
    if first_item < 0:
        raise UserError(f"--first-item {first_item}: give 0 or more.")
    if max_ind_range is not None and max_ind_range < 1:
        raise UserError(f"--max-ind-range {max_ind_range}: give at least 1.")
    opened = _open(path, card, outputs_wanted=outputs_wanted, outputs_optional=outputs_optional)
    data = replace(opened, max_ind_range=max_ind_range)
    return data.part(split, for_calibration=for_calibration, first_item=first_item, max_items=max_items)


def read_inputs(
    path: str | Path,
    card: ModelCard,
    max_items: int,
    *,
    for_calibration: bool = False,
    max_ind_range: int | None = None,
) -> tuple[np.ndarray, np.ndarray | Bags]:
    """Checked inputs of the first `max_items` items, or of all: dense [n, D] float32, indices [n, T] int64 or bags."""
    part = {"max_items": max_items, "for_calibration": for_calibration, "max_ind_range": max_ind_range}
    data = open_reference(path, card, outputs_wanted=False, **part)
    chunks = list(data)
    dense = np.concatenate([c.dense for c in chunks])
    if chunks[0].bags is not None:
        return dense, join_bags([c.bags for c in chunks])
    return dense, np.concatenate([c.indices for c in chunks])


def _open(path: Path, card: ModelCard, *, outputs_wanted: bool, outputs_optional: bool) -> ReferenceData:
    """All items of the file."""
    day = day_files(path)
    for each in day or (path,):
        check_regular(each, "a file of items")
    if day:
        return open_multi_hot(day, card)
    if is_parquet(path):
        return open_parquet(path, card, outputs_wanted=outputs_wanted, outputs_optional=outputs_optional)
    if not is_npz(path):
        return _open_binary(path, card)
    headers = read_headers(path)
    names = card.graph_inputs
    graph_keys = {names.dense, *names.indices, *names.offsets, "pred"}
    if outputs_wanted:
        _check_fingerprint(path, headers, card)
    if headers.keys() & {*_MLPERF_KEYS, *_CRITEO_KEYS} - {"target"}:
        return _open_mlperf(path, headers, card, outputs_optional=outputs_optional)
    if headers.keys() & graph_keys:
        needed = outputs_wanted and not outputs_optional
        return open_graph_inputs(path, headers, card, outputs_wanted=needed)
    raise UserError(
        f"{path}: keys {', '.join(headers) or 'none'}; want {', '.join(_MLPERF_KEYS)}, or "
        f"{', '.join(_CRITEO_KEYS)}, or the model's inputs {', '.join(sorted(graph_keys))}."
    )


def _open_mlperf(
    path: Path, headers: dict[str, NpyHeader], card: ModelCard, *, outputs_optional: bool
) -> ReferenceData:
    """X_int and X_cat with torch_res and target, or with y as Criteo's preprocessing writes it."""
    is_criteo = "y" in headers and not headers.keys() & {"torch_res", "target"}
    keys = _CRITEO_KEYS if is_criteo else _MLPERF_KEYS
    if outputs_optional and not is_criteo:
        keys = (*keys[:2], *(key for key in keys[2:] if key in headers))
    require_keys(path, headers, keys)
    num_items = headers["X_int"].num_rows
    # Raw counts are integers or float64. log(1 + x) is never stored as integers, so integers would be counts.
    require(path, "X_int", headers, (num_items, card.num_dense), kinds="iuf" if is_criteo else "f")
    require(path, "X_cat", headers, (num_items, len(card.table_rows)), kinds="iuf" if is_criteo else "iu")
    for key in keys[2:]:
        require(path, key, headers, (num_items,), kinds="f" if key == "torch_res" else "iufb")
    label = next((key for key in ("y", "target") if key in keys), None)

    def read(items: range) -> Iterator[Chunk]:
        with NpzStream(path, keys) as stream:
            stream.skip_rows(items.start)
            for piece in pieces(items):
                start, rows = piece.start, stream.next_rows(len(piece))
                dense = log_counts(rows["X_int"]) if is_criteo else as_float32(rows["X_int"])
                reference = as_float32(rows["torch_res"].reshape(-1)) if "torch_res" in keys else None
                labels = as_labels(path, label, rows[label].reshape(-1), start) if label else None
                yield Chunk(dense, _as_indices(path, rows["X_cat"], start), reference, labels)

    kind = "Criteo npz (raw counts)" if is_criteo else "MLPerf-style npz"
    is_day = is_criteo and "counts" not in headers  # Kaggle's week in one file has them, and is cut in no such halves
    splits = halves(num_items, "test", "val") if is_day else {}
    any_item = all(headers[key].is_stored and not headers[key].by_columns for key in keys)
    return ReferenceData(
        path,
        kind,
        range(num_items),
        has_reference="torch_res" in keys,
        has_labels=label is not None,
        _card=card,
        _read=read,
        splits=splits,
        borders=None if any_item else (),
    )


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

    def read(items: range) -> Iterator[Chunk]:
        for piece in pieces(items):  # read, not mapped: a file cut short meanwhile would end the process
            rows = np.fromfile(path, "<i4", len(piece) * _RECORD_INTS, offset=piece.start * _RECORD_BYTES)
            if rows.size < len(piece) * _RECORD_INTS:
                raise UserError(f"{path}: became shorter while it was read. Leave it in peace, or copy it again.")
            rows = rows.reshape(-1, _RECORD_INTS)
            labels = as_labels(path, "label", rows[:, 0], piece.start)
            counts, categories = rows[:, 1 : 1 + _CRITEO_DENSE], rows[:, 1 + _CRITEO_DENSE :]
            yield Chunk(log_counts(counts), categories.astype(np.int64), None, labels)

    num_items = num_bytes // _RECORD_BYTES
    splits = {"test": range(num_items)} if num_items == SCORED_ITEMS else {}
    return ReferenceData(path, "Criteo binary", range(num_items), False, True, card, read, splits=splits)


def _as_indices(path: Path, categories: np.ndarray, start: int) -> np.ndarray:
    """Row numbers as int64; facebookresearch/dlrm stores them as float64, which must be whole numbers."""
    with np.errstate(invalid="ignore"):
        indices = categories.astype(np.int64)
    if categories.dtype.kind == "f" and (indices != categories).any():
        item, table = np.argwhere(indices != categories)[0]
        raise UserError(
            f"{path}: X_cat of item {start + item}, table {table} is {categories[item, table]}, not a row number."
        )
    return indices


def _check_fingerprint(path: Path, headers: dict[str, NpyHeader], card: ModelCard) -> None:
    if _FINGERPRINT_KEY in headers:
        check_fingerprint(path, card, str(read_arrays(path, [_FINGERPRINT_KEY])[_FINGERPRINT_KEY]))
