"""A table's rows as the kernels read them, converted in a stream: constant memory whatever the table's size.

    fp32    the values, padded with zeros to whole vectors
    bf16    two to a word, half of the bytes
    int8    four to a word, a quarter of the bytes; one scale per table, its largest magnitude / 127, from an extra pass

A table's row weights are multiplied in. Rows in a file are read, not mapped: mapped pages count as this process's
memory until the kernel takes them away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..kernels.words import column_order, row_words
from ..machine.memory import let_go
from ..model.dlrm import Dlrm, Table
from ..model.precision import scales_of, to_bf16, to_int8
from ..runtime.table_files import file_region

_CHUNK_BYTES = 1 << 19  # of rows at a time: what they become on the way stays in L2
_EXPONENTS = 512  # twice as many as float32 has
_LARGEST = 1e18  # of a value in int8: the dot of two rows of larger ones is beyond float32
_LEAST_KEPT = 0.01  # of the rows that are not zeros: an int8 table that keeps fewer is none


def stored_bytes(model: Dlrm, precision: str) -> int:
    """Bytes of all tables in a precision."""
    return sum(table.num_rows for table in model.tables) * row_words(model.dim, precision) * 4


def table_scales(
    model: Dlrm,
    done: Callable[[int], object] = lambda nbytes: None,
    *,
    known: Sequence[float] = (),
    found: Callable[[float], object] = lambda largest: None,
) -> np.ndarray:
    """[T] float32: int8's scale of each table. done(nbytes) is called after each piece that is read, found(largest)
    with the largest magnitude of each table; known: those of the first tables, which are not read again.

    Raises ValueError with table and row of a value that is not finite or beyond 1e18, and of one beside which 99 % of
    the other rows would be zeros: no scale fits such a table.
    """
    largest = list(known)
    done(sum(table.rows.nbytes for table in model.tables[: len(largest)]))
    for table in model.tables[len(largest) :]:
        largest.append(_largest(table, done))
        found(largest[-1])
    return scales_of(np.array(largest, np.float32))


def _largest(table: Table, done: Callable[[int], object]) -> float:
    largest, largest_row, first = np.float32(0), 0, 0
    sizes = np.zeros(_EXPONENTS, np.int64)  # how many rows there are of each binary exponent of their largest magnitude
    for rows in _weighted_rows(table):
        of_rows = np.abs(rows).max(axis=1, initial=0)
        fits = of_rows <= _LARGEST  # a NaN does not
        if not fits.all():
            row = int(fits.argmin())
            value = rows[row][int((np.abs(rows[row]) <= _LARGEST).argmin())]
            raise ValueError(f"table {table.name}, row {first + row} holds {value:.6g}, which int8 cannot take")
        if of_rows.max(initial=0) > largest:
            largest, largest_row = of_rows.max(), first + int(of_rows.argmax())
        sizes += np.bincount(np.frexp(of_rows[of_rows > 0])[1] + _EXPONENTS // 2, minlength=_EXPONENTS)
        first += len(rows)
        done(rows.nbytes)
    # A row is stored as zeros where its largest magnitude is below half a scale, largest / 254.
    kept, used = int(sizes[np.frexp(largest)[1] + _EXPONENTS // 2 - 8 :].sum()), int(sizes.sum())
    if used > 1 and kept <= max(1, _LEAST_KEPT * used):
        what = f"holds {largest:.6g}, beside which {used - kept:,} of {used:,} rows are zeros in int8"
        raise ValueError(f"table {table.name}, row {largest_row} {what}")
    return largest


def stored_rows(table: Table, precision: str, scale: float | None = None, first: int = 0) -> Iterator[np.ndarray]:
    """The rows from the first one on as words: float32 arrays [some rows, row_words]. scale: int8's."""
    words = row_words(table.dim, precision)
    for rows in _weighted_rows(table, first):
        if precision == "bf16":
            rows = to_bf16(rows)
        elif precision == "int8":
            rows = to_int8(rows, scale)
        width = words * 4 // rows.itemsize
        if table.dim != width:
            rows = np.pad(rows, ((0, 0), (0, width - table.dim)))
        if precision == "int8":
            rows = np.take(rows, column_order(precision, width), axis=1)  # an index would leave columns together
        yield np.ascontiguousarray(rows).view(np.float32)


def _weighted_rows(table: Table, first: int = 0) -> Iterator[np.ndarray]:
    """[some rows, dim] float32, half a MB at a time."""
    at_once = max(1, _CHUNK_BYTES // max(1, 4 * table.dim))
    for at, rows in _rows_in_order(table, first, at_once):
        yield rows if table.row_weights is None else rows * table.row_weights[at : at + at_once, None]


def _rows_in_order(table: Table, first: int, at_once: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, rows [up to at_once, dim] float32), from row `first` on"""
    region = file_region(table.rows)
    if region is None:
        for at in range(first, table.num_rows, at_once):
            yield at, np.asarray(table.rows[at : at + at_once], np.float32)
            for source in getattr(table.rows, "sources", ()):  # of computed rows
                let_go(source)
        return
    with region.path.open("rb") as file:
        file.seek(region.offset + first * table.dim * table.rows.itemsize)
        for at in range(first, table.num_rows, at_once):
            count = min(at_once, table.num_rows - at) * table.dim
            rows = np.fromfile(file, table.rows.dtype, count)
            yield at, np.asarray(rows.reshape(-1, table.dim), np.float32)
