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
from .numerics import Numerics, numerics_of
from .parameters import ALIGNMENT, HUGE_PAGE, TABLES, ParameterSource, array_source
from .plan import row_words
from .table_files import FileRegion, file_region, sample_sha256
from .table_rows import stored_rows


@dataclass(frozen=True, eq=False)
class TableLayout:
    """copied: the tables that go into the parameter file and begin the range, None where there are none;
    pieces: of the files used in place; starts: [T] int64, each table's first element in the range;
    reasons: (table's name, why it is copied) of those that cannot be used in place; converted: whether those copied
    are in a narrower precision.
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
    """copy: take all tables into the parameter file, so that the model's own files can go.

    numerics: what rows are stored in, by default float32; others are converted, which is a copy whatever `copy` says.
    """
    numerics = numerics or numerics_of(model, "fp32")
    copy = copy or numerics.precision != "fp32"
    regions = [None if copy else file_region(table.rows) for table in model.tables]
    reasons = [None if copy else _why_not_in_place(table, region) for table, region in zip(model.tables, regions)]
    here = [t for t in range(len(regions)) if not copy and reasons[t] is None]
    copied = [t for t in range(len(regions)) if t not in here]
    words = row_words(model.dim, numerics.precision)
    starts = np.zeros(len(regions), np.int64)
    end = 0
    for t in copied:
        starts[t] = end // 4
        end += model.tables[t].num_rows * words * 4
    steps = numerics.table_steps
    parts = [(model.tables[t], None if steps is None else steps[t]) for t in copied]
    source = _copied(parts, numerics.precision, end) if copied else None
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
        converted=numerics.precision != "fp32",
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


def _copied(tables: Sequence[tuple[Table, float | None]], precision: str, nbytes: int) -> ParameterSource:
    """tables: each with its step, if it has one."""

    def chunks() -> Iterator[np.ndarray]:
        for table, step in tables:
            yield from stored_rows(table, precision, step)

    return ParameterSource(TABLES, "float32", (nbytes // 4,), chunks)
