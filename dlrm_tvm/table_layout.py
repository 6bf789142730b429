"""Where each table of a model will lie for its library: in its own file, used in place, or copied.

    one range of addresses:   [ copied into NAME.params | piece of file A | piece of file B | .. ]
                                table 3, table 7          tables 0, 1, 2     table 4

The kernel adds a table's first element and row * dim to one base address, in 64 bits, so it does not matter whose file
is behind an address: every file's part with tables is mapped as one piece into the range (address_range.py). A table
is used in place when its rows are what the kernel reads: float32, a multiple of 16 values, from a 64-byte boundary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .kernels.vectors import LANES, padded
from .manifest import Piece, TableRange
from .model import Dlrm, Table
from .parameters import ALIGNMENT, HUGE_PAGE, TABLES, ParameterSource, array_source
from .table_files import FileRegion, file_region, sample_sha256

_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class TableLayout:
    """copied: the tables that go into the parameter file and begin the range, None where there are none;
    pieces: of the files used in place; starts: [T] int64, each table's first element in the range;
    reasons: (table's name, why it is copied) of those that cannot be used in place.
    """

    copied: ParameterSource | None
    pieces: tuple[Piece, ...]
    starts: np.ndarray
    num_rows: np.ndarray
    nbytes: int
    reasons: tuple[tuple[str, str], ...]

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


def lay_out_tables(model: Dlrm, *, copy: bool = False) -> TableLayout:
    """copy: take all tables into the parameter file, so that the model's own files can go."""
    regions = [None if copy else file_region(table.rows) for table in model.tables]
    reasons = [None if copy else _why_not_in_place(table, region) for table, region in zip(model.tables, regions)]
    here = [t for t in range(len(regions)) if not copy and reasons[t] is None]
    copied = [t for t in range(len(regions)) if t not in here]
    dim = padded(model.dim)
    starts = np.zeros(len(regions), np.int64)
    end = 0
    for t in copied:
        starts[t] = end // 4
        end += model.tables[t].num_rows * dim * 4
    source = _copied([model.tables[t] for t in copied], dim, end) if copied else None
    pieces, end = _pieces([regions[t] for t in here], end)
    for t in here:
        piece = next(piece for piece in pieces if piece.file == str(regions[t].path))
        starts[t] = (piece.at + regions[t].offset - piece.offset) // 4
    return TableLayout(
        copied=source,
        pieces=pieces,
        starts=starts,
        num_rows=np.array([table.num_rows for table in model.tables], np.int64),
        nbytes=end,
        reasons=tuple((table.name, reason) for table, reason in zip(model.tables, reasons) if reason),
    )


def _why_not_in_place(table: Table, region: FileRegion | None) -> str | None:
    if region is None:
        return "its rows are not in a file of their own layout"
    if table.rows.dtype != np.dtype("<f4"):
        return f"its rows are {table.rows.dtype}"
    if table.dim % LANES:
        return f"rows of {table.dim} values are widened to {padded(table.dim)}"
    if table.row_weights is not None:
        return "its rows have weights, which are multiplied in"
    if region.offset % ALIGNMENT:
        return f"it begins at byte {region.offset} of its file, not at a multiple of {ALIGNMENT}"
    return None


def _pieces(regions: Sequence[FileRegion], at: int) -> tuple[tuple[Piece, ...], int]:
    """One piece per file, from the huge page of its first table to the end of its last, from byte `at` on; the end."""
    pieces = []
    for path in dict.fromkeys(region.path for region in regions):
        mine = [region for region in regions if region.path == path]
        offset = min(region.offset for region in mine) // HUGE_PAGE * HUGE_PAGE
        nbytes = max(region.offset + region.nbytes for region in mine) - offset
        at = -(-at // HUGE_PAGE) * HUGE_PAGE
        status = path.stat()
        tables = tuple((region.offset, region.nbytes) for region in mine)
        sample = sample_sha256(path, tables)
        pieces.append(Piece(str(path), offset, nbytes, at, status.st_size, status.st_mtime_ns, sample, tables))
        at += nbytes
    return tuple(pieces), at


def _copied(tables: Sequence[Table], dim: int, nbytes: int) -> ParameterSource:
    def chunks() -> Iterator[np.ndarray]:
        for table in tables:
            yield from _padded_rows(table, dim)

    return ParameterSource(TABLES, "float32", (nbytes // 4,), chunks)


def _rows_in_order(table: Table, step: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, rows [up to step, dim] float32). Read, not mapped, where they lie in a file: whatever
    is mapped counts as this process's memory until the kernel takes it away."""
    region = file_region(table.rows)
    if region is None:
        for at in range(0, table.num_rows, step):
            yield at, np.asarray(table.rows[at : at + step], np.float32)
        return
    with region.path.open("rb") as file:
        file.seek(region.offset)
        for at in range(0, table.num_rows, step):
            count = min(step, table.num_rows - at) * table.dim
            rows = np.fromfile(file, table.rows.dtype, count)
            yield at, np.asarray(rows.reshape(-1, table.dim), np.float32)


def _padded_rows(table: Table, dim: int) -> Iterator[np.ndarray]:
    """The table's rows as the kernel reads them, some MB at a time: weighted, and widened with zeros to `dim`."""
    step = max(1, _CHUNK_BYTES // max(1, 4 * dim))
    for at, rows in _rows_in_order(table, step):
        if table.row_weights is not None:
            rows = rows * table.row_weights[at : at + step, None]
        yield np.ascontiguousarray(np.pad(rows, ((0, 0), (0, dim - table.dim))) if dim != table.dim else rows)
