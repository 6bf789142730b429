"""MLPerf v2's Criteo day: three files, any of which, or their folder, names them. Read as memory maps, never whole.

    day_23_dense.npy            [N, 13] float32, logarithms already
    day_23_labels.npy           [N, 1] int32, 0 or 1
    day_23_sparse_multi_hot.npz members 0.npy, 1.npy ..: [N, indices per bag] int32 of each table, uncompressed

(python/multihot_criteo.py of recommendation/dlrm_v2/pytorch in the mlcommons/inference repository; written by
torchrec_dlrm/scripts of facebookresearch/dlrm.) Bags of a table all have one length. Pages are checked by no CRC.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..machine.memory import let_go
from ..model.bags import Bags
from .chunks import Chunk, ReferenceData, as_float32, as_labels, pieces
from .npz import NpyHeader, map_members, map_npy, require
from .splits import halves

if TYPE_CHECKING:
    from ..model.card import ModelCard

# MLPerf's debugging data have _debug or _sample at the end.
_NAME = re.compile(r"(.*)_(?:(?:dense|labels)(_\w+)?\.npy|sparse_multi_hot(_\w+)?\.npz)")
_SCORED_DAY = "day_23"


def day_files(path: Path) -> tuple[Path, Path, Path] | None:
    """(dense, labels, indices) of the day that a file or a folder names; None for a path of another kind.

    Raises UserError where one of the three is missing, and for a folder with several days and not day 23.
    """
    if path.is_dir():
        path = _of_folder(path)
    name = _NAME.fullmatch(path.name)
    if name is None:
        return None
    day, *suffixes = name.groups()
    suffix = next(filter(None, suffixes), "")
    dense, labels, indices = (
        path.with_name(f"{day}_{part}{suffix}{ending}")
        for part, ending in (("dense", ".npy"), ("labels", ".npy"), ("sparse_multi_hot", ".npz"))
    )
    for each in (dense, labels, indices):
        if path.is_file() and not each.is_file():
            raise UserError(f"{each}: no such file. {path.name} needs it beside it: MLPerf v2's data are three files.")
    return dense, labels, indices


def _of_folder(folder: Path) -> Path:
    found = sorted(folder.glob("*_sparse_multi_hot*.npz"))
    scored = [each for each in found if each.name.startswith(f"{_SCORED_DAY}_")]
    if len(found) == 1 or len(scored) == 1:
        return (scored or found)[0]
    has = f"has {len(found)} such files and not one of {_SCORED_DAY}" if found else "has none"
    wanted = f"{_SCORED_DAY}_sparse_multi_hot.npz of MLPerf v2's data was wanted in it"
    raise UserError(f"{folder}: a folder; {wanted}, but it {has}. Name a file.")


def open_multi_hot(files: tuple[Path, Path, Path], card: ModelCard) -> ReferenceData:
    """Check the three files' shapes and dtypes against each other and the model."""
    dense_file, labels_file, indices_file = files
    dense, labels = map_npy(dense_file), map_npy(labels_file)
    num_items, tables = len(dense) if dense.ndim else 0, len(card.table_rows)
    _require(dense_file, dense, (num_items, card.num_dense), kinds="f")
    _require(labels_file, labels, (num_items,), kinds="iufb")
    members = map_members(indices_file)
    if members.keys() != {str(table) for table in range(tables)}:
        has = f"{len(members)} members, {', '.join(members)}"
        raise UserError(f"{indices_file}: {has}; 0 to {tables - 1} were wanted, one for each table of this model.")
    rows_of = [members[str(table)] for table in range(tables)]
    for table, rows in enumerate(rows_of):
        hot = rows.shape[-1] if rows.ndim == 2 else 1
        _require(indices_file, rows, (num_items, hot), kinds="iu", key=f"{table}.npy")
    hots = [rows.shape[1] for rows in rows_of]

    def read(items: range) -> Iterator[Chunk]:
        for piece in pieces(items):
            part = slice(piece.start, piece.stop)
            bags = Bags(
                tuple(rows[part].reshape(-1) for rows in rows_of),
                tuple(np.arange(len(piece) + 1) * hot for hot in hots),
            )
            of_one = bags.of_one
            yield Chunk(
                as_float32(dense[part]),
                np.stack(bags.indices, axis=1).astype(np.int64) if of_one else None,
                None,
                as_labels(labels_file, "the label", labels[part].reshape(-1), piece.start),
                None if of_one else bags,
            )
            for array in (dense, labels, *rows_of):  # or all that is read counts as memory in the end
                let_go(array)

    return ReferenceData(
        indices_file,
        "MLPerf v2's multi-hot day",
        range(num_items),
        has_reference=False,
        has_labels=True,
        _card=card,
        _read=read,
        indices_per_bag=sum(hots) / tables,
        splits=halves(num_items, "val", "test"),
        files=files,
    )


def _require(path: Path, array: np.ndarray, shape: tuple[int, ...], *, kinds: str, key: str = "its array") -> None:
    require(path, key, {key: NpyHeader(array.shape, array.dtype, False)}, shape, kinds=kinds)
