"""Where the library finds each table: in the model's own file, used in place, or copied beside the library.

    one range of addresses:   [ copied into NAME.params | piece of file A | piece of file B | .. ]
                                table 3, table 7          tables 0, 1, 2     table 4

The kernel adds a table's first element and row * dim to one base address, in 64 bits, whichever file is behind it. Each
file is mapped into the range as one piece, from its first table to its last (machine/address_range.py). A table is used
in place when the kernel can read its rows as they are: float32, a multiple of 16 values, from a 64-byte boundary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..kernels.vectors import LANES, padded
from ..kernels.words import row_words
from ..model.computed_rows import ComputedRows
from ..model.dlrm import Dlrm, Table
from ..model.precision import Numerics, numerics_of
from ..runtime.manifest import Piece, TableRange
from ..runtime.parameters import ALIGNMENT, HUGE_PAGE, TABLES, ParameterSource, array_source
from ..runtime.table_files import FileRegion, file_region, sample_sha256
from .table_conversion import stored_rows


@dataclass(frozen=True, eq=False)
class TableLayout:
    """copied: the tables that go into the parameter file and begin the range, or None; pieces: of the files used in
    place; starts: [T] int64, each table's first element in the range; reasons: (table's name, why it cannot be used in
    place); converted: whether the copied tables are quantized.
    """

    copied: ParameterSource | None
    pieces: tuple[Piece, ...]
    starts: np.ndarray
    num_rows: np.ndarray
    nbytes: int
    reasons: tuple[tuple[str, str], ...]
    converted: bool = False

    @property
    def elements(self) -> int:
        return self.nbytes // 4

    @property
    def info(self) -> ParameterSource:
        """The kernel's table_info: [2, T] int64, first element and number of rows of each table."""
        return array_source("table_info", np.stack([self.starts, self.num_rows]).astype(np.int64))

    @property
    def sources(self) -> tuple[ParameterSource, ...]:
        return (self.info,) if self.copied is None else (self.copied, self.info)

    def table_range(self, parameter_file: str, copied_at: int) -> TableRange:
        """copied_at: where the parameter file holds the copied tables."""
        copied = [] if self.copied is None else [Piece(parameter_file, copied_at, self.copied.nbytes, 0)]
        return TableRange(self.nbytes, (*copied, *self.pieces))


def lay_out_tables(model: Dlrm, *, copy: bool = False, numerics: Numerics | None = None) -> TableLayout:
    """copy: copy all tables into the parameter file, so that the model's own files can be deleted.

    numerics: how rows are stored, by default float32; other rows are converted, and so copied in any case.
    """
    numerics = numerics or numerics_of(model, "fp32")
    converted = numerics.precision != "fp32"
    copy = copy or converted
    reasons = [None if copy else _why_not_in_place(table) for table in model.tables]
    copied = [t for t, reason in enumerate(reasons) if copy or reason is not None]
    in_place = {t: file_region(model.tables[t].rows) for t in range(len(reasons)) if t not in copied}
    copied_starts, end = _copied_starts(model, copied, numerics.precision)
    pieces, range_end = _pieces(list(in_place.values()), end)
    starts = copied_starts | {t: _start_in(pieces, region) for t, region in in_place.items()}
    return TableLayout(
        copied=_copied(model, copied, numerics, end) if copied else None,
        pieces=pieces,
        starts=np.array([starts[t] for t in range(len(reasons))], np.int64),
        num_rows=np.array([table.num_rows for table in model.tables], np.int64),
        nbytes=range_end,
        reasons=tuple((table.name, reason) for table, reason in zip(model.tables, reasons) if reason),
        converted=converted,
    )


def _why_not_in_place(table: Table) -> str | None:
    region = file_region(table.rows)
    if isinstance(table.rows, ComputedRows):
        return f"{table.num_rows:,} rows are computed ({table.rows.origin})"
    if region is None:
        return "its rows are inside the ONNX file, or do not lie one after another"
    if table.rows.dtype != np.dtype("<f4"):
        return f"its rows are {table.rows.dtype}"
    if table.dim % LANES:
        return f"rows of {table.dim} values are widened to {padded(table.dim)}"
    if table.row_weights is not None:
        return "its rows have weights, which are multiplied in"
    if region.offset % ALIGNMENT:
        return f"it begins at byte {region.offset} of its file, not at a multiple of {ALIGNMENT}"
    return None


def _copied_starts(model: Dlrm, copied: Sequence[int], precision: str) -> tuple[dict[int, int], int]:
    """First element of each copied table, by its number, and the byte after the last."""
    starts, end = {}, 0
    for t in copied:
        starts[t] = end // 4
        end += model.tables[t].num_rows * row_words(model.dim, precision) * 4
    return starts, end


def _pieces(regions: Sequence[FileRegion], at: int) -> tuple[tuple[Piece, ...], int]:
    """One piece per file, in the range from byte `at` on, and the byte after the last."""
    pieces = []
    for path in dict.fromkeys(region.path for region in regions):
        at = -(-at // HUGE_PAGE) * HUGE_PAGE
        pieces.append(_piece(path, [region for region in regions if region.path == path], at))
        at += pieces[-1].nbytes
    return tuple(pieces), at


def _piece(path: Path, regions: Sequence[FileRegion], at: int) -> Piece:
    """From the huge page of the file's first table to the end of its last."""
    offset = min(region.offset for region in regions) // HUGE_PAGE * HUGE_PAGE
    nbytes = max(region.offset + region.nbytes for region in regions) - offset
    tables = tuple((region.offset, region.nbytes) for region in regions)
    status = path.stat()
    sample = sample_sha256(path, tables, small_whole=True)
    known = (status.st_size, status.st_mtime_ns, sample, tables, status.st_ctime_ns, status.st_ino)
    return Piece(str(path), offset, nbytes, at, *known)


def _start_in(pieces: Sequence[Piece], region: FileRegion) -> int:
    """The region's first element in the range."""
    piece = next(piece for piece in pieces if piece.file == str(region.path))
    return (piece.at + region.offset - piece.offset) // 4


def _copied(model: Dlrm, copied: Sequence[int], numerics: Numerics, nbytes: int) -> ParameterSource:
    scales = numerics.table_scales

    row_bytes = row_words(model.dim, numerics.precision) * 4

    def chunks(first: int) -> Iterator[np.ndarray]:
        for t in copied:
            table, scale = model.tables[t], None if scales is None else scales[t]
            row, rest = divmod(min(first, table.num_rows * row_bytes), row_bytes)
            first -= row * row_bytes + rest
            for rows in stored_rows(table, numerics.precision, scale, row):
                yield rows.reshape(-1)[rest // 4 :] if rest else rows
                rest = 0

    return ParameterSource(TABLES, "float32", (nbytes // 4,), chunks)
