"""A table's rows as the kernels read them, converted in a stream: constant memory whatever the table's size.

    fp32    the values, widened with zeros to whole vectors
    bf16    two to a word                               half of the bytes
    int8    four to a word, in steps of the table's own: its largest magnitude / 127, found in a pass of its own

A table's row weights are multiplied in. Rows are read, not mapped, where they lie in a file: whatever is mapped counts
as this process's memory until the kernel takes it away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .kernels.forms import column_order
from .model import Dlrm, Table
from .plan import row_words
from .quantize import steps_of, to_bf16, to_int8
from .table_files import file_region

_CHUNK_BYTES = 16 << 20


def stored_bytes(model: Dlrm, precision: str) -> int:
    """What all tables take in a precision."""
    return sum(table.num_rows for table in model.tables) * row_words(model.dim, precision) * 4


def table_steps(model: Dlrm, done: Callable[[int], object] = lambda nbytes: None) -> np.ndarray:
    """[T] float32: int8's step of each table. done(nbytes) is called as bytes of tables have been read.

    Raises ValueError for a table with a value that is not finite: no step fits it.
    """
    largest = np.zeros(len(model.tables), np.float32)
    for number, table in enumerate(model.tables):
        for rows in _weighted_rows(table):
            largest[number] = np.maximum(largest[number], np.abs(rows).max(initial=0))  # unlike max(), keeps a NaN
            done(rows.nbytes)
        if not np.isfinite(largest[number]):
            raise ValueError(f"table {table.name} has values that are not finite")
    return steps_of(largest)


def stored_rows(table: Table, precision: str, step: float | None = None) -> Iterator[np.ndarray]:
    """The rows as words: float32 arrays [some rows, row_words]. step: of an int8 table."""
    words = row_words(table.dim, precision)
    for rows in _weighted_rows(table):
        if precision == "bf16":
            rows = to_bf16(rows)
        elif precision == "int8":
            rows = to_int8(rows, step)
        width = words * 4 // rows.itemsize
        if table.dim != width:
            rows = np.pad(rows, ((0, 0), (0, width - table.dim)))
        if precision == "int8":
            rows = rows[:, column_order(precision, width)]
        yield np.ascontiguousarray(rows).view(np.float32)


def _weighted_rows(table: Table) -> Iterator[np.ndarray]:
    """[some rows, dim] float32, some MB at a time."""
    step = max(1, _CHUNK_BYTES // max(1, 4 * table.dim))
    for at, rows in _rows_in_order(table, step):
        yield rows if table.row_weights is None else rows * table.row_weights[at : at + step, None]


def _rows_in_order(table: Table, step: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, rows [up to step, dim] float32)"""
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
