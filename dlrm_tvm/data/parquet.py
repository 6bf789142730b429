"""Parquet files, read row group by row group with pyarrow (the extra `ray`).

    dense values     X_int, or the graph's own input name: one column of lists; or scalar columns I1, I2 ..
    row numbers      X_cat, or the graph's own name: one column of lists; or scalar columns C1, C2 ..; or the names of
                     a graph that has an input per table: scalars, or lists where it fixes bags of several indices
    labels           target, label or y
    reference        torch_res or pred

Lists are of fixed size, or all of one length. X_int and I1 .. of integers are counts, of which log(1 + x) is taken; of
floating point they are logarithms already. `model_fingerprint` in the schema's metadata says whose the reference is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UserError, one_line
from ..model.bags import bags_of_arrays
from ..paths import packages_command
from .chunks import CHUNK_ITEMS, Chunk, ReferenceData, as_float32, as_labels, check_fingerprint, log_counts

if TYPE_CHECKING:
    from ..model.card import ModelCard

_LABELS, _REFERENCES = ("target", "label", "y"), ("torch_res", "pred")
_WANTED = {"iu": "integers", "f": "floating point", "iuf": "integers or floating point", "iufb": "numbers"}


class _Values(NamedTuple):
    """Columns that make one array: one of lists, [n, width], or scalar ones, [n, columns], or [n] of a lone one."""

    columns: tuple[str, ...]
    kinds: str
    width: int | None = None


def is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def open_parquet(path: Path, card: ModelCard, *, outputs_wanted: bool, outputs_optional: bool) -> ReferenceData:
    """Check columns and types against the model. Raises UserError as open_reference says, and without pyarrow."""
    with _opened(path) as file:
        schema, groups = file.schema_arrow, [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    dense, tables = _dense(path, schema, card), _tables(path, schema, card)
    reference, labels = _first(schema, _REFERENCES, "f"), _first(schema, _LABELS, "iufb")
    if outputs_wanted and not (outputs_optional or reference or labels):
        raise UserError(f"{path}: has neither {' nor '.join((*_REFERENCES, *_LABELS))}; want one of these columns.")
    if outputs_wanted and reference and (recorded := (schema.metadata or {}).get(b"model_fingerprint")):
        check_fingerprint(path, card, recorded.decode(errors="replace"))
    wanted = [dense, *tables, *filter(None, (reference, labels))]
    for values in wanted:
        _check_types(path, schema, values)
    are_counts = dense.kinds == "iuf" and _kind(schema, dense.columns[0]) in "iu"
    columns = [column for values in wanted for column in values.columns]

    def read(items: range) -> Iterator[Chunk]:
        for start, batch in _batches(path, columns, groups, items):
            x = _array(path, batch, dense, start)
            rows = [_array(path, batch, values, start) for values in tables]
            expected = None if reference is None else as_float32(_array(path, batch, reference, start))
            clicked = labels and as_labels(path, labels.columns[0], _array(path, batch, labels, start), start)
            bags = bags_of_arrays(rows, len(x), card.graph_inputs.indices_per_bag) if len(rows) > 1 else None
            if bags is not None and bags.of_one:
                rows, bags = [np.stack(bags.indices, axis=1)], None
            indices = rows[0].astype(np.int64) if bags is None else None
            yield Chunk(log_counts(x) if are_counts else as_float32(x), indices, expected, clicked, bags)

    lengths = card.graph_inputs.indices_per_bag if len(tables) > 1 else (1,)
    has = [reference is not None, labels is not None]
    borders = tuple(accumulate(groups))
    mean = sum(lengths) / len(lengths)
    return ReferenceData(path, "parquet", range(sum(groups)), *has, card, read, mean, borders=borders)


def _dense(path: Path, schema: Any, card: ModelCard) -> _Values:
    for name, kinds in (("X_int", "iuf"), (card.graph_inputs.dense, "f")):
        if name in schema.names:
            return _Values((name,), kinds, card.num_dense)
    return _Values(_numbered(path, schema, "I", card.num_dense, f"X_int, {card.graph_inputs.dense}"), "iuf")


def _tables(path: Path, schema: Any, card: ModelCard) -> list[_Values]:
    """One array for all tables, or where the graph fixes bags of several indices one for each."""
    own, tables, lengths = card.graph_inputs.indices, len(card.table_rows), card.graph_inputs.indices_per_bag
    if "X_cat" in schema.names:
        return [_Values(("X_cat",), "iu", tables)]
    if all(name in schema.names for name in own):
        if any(length != 1 for length in lengths):
            return [_Values((name,), "iu", None if each == 1 else each) for name, each in zip(own, lengths)]
        return [_Values(own, "iu", tables if len(own) == 1 and tables > 1 else None)]
    return [_Values(_numbered(path, schema, "C", tables, f"X_cat, {', '.join(own)}"), "iu")]


def _numbered(path: Path, schema: Any, letter: str, count: int, others: str) -> tuple[str, ...]:
    names = tuple(f"{letter}{number}" for number in range(1, count + 1))
    if missing := [name for name in names if name not in schema.names]:
        has = ", ".join(schema.names) or "no columns"
        raise UserError(f"{path}: has {has}; want {others}, or {names[0]} to {names[-1]} ({missing[0]} is missing).")
    return names


def _first(schema: Any, names: tuple[str, ...], kinds: str) -> _Values | None:
    return next((_Values((name,), kinds) for name in names if name in schema.names), None)


def _check_types(path: Path, schema: Any, values: _Values) -> None:
    import pyarrow as pa

    for column in values.columns:
        found = schema.field(column).type
        is_list = pa.types.is_fixed_size_list(found) or pa.types.is_list(found) or pa.types.is_large_list(found)
        size = found.list_size if pa.types.is_fixed_size_list(found) else values.width
        what = _WANTED[values.kinds] + (f", lists of {values.width}" if values.width else "")
        if is_list != (values.width is not None) or size != values.width or _kind(schema, column) not in values.kinds:
            raise UserError(f"{path}: {column} is {found}; want {what}.")
        if (_kind(schema, column) in "iu") != (_kind(schema, values.columns[0]) in "iu"):
            raise UserError(f"{path}: {values.columns[0]} and {column} are counts and logarithms; want one of the two.")


def _kind(schema: Any, column: str) -> str:
    """NumPy's letter for the type of its numbers; "?" for what is no number."""
    found = schema.field(column).type
    try:
        return np.dtype(getattr(found, "value_type", found).to_pandas_dtype()).kind
    except (NotImplementedError, TypeError):
        return "?"


def _batches(path: Path, columns: list[str], groups: list[int], items: range) -> Iterator[tuple[int, Any]]:
    """(number of its first item, pyarrow RecordBatch) of `items`, from the row groups that have any of them."""
    ends = list(accumulate(groups))
    taken = [n for n, end in enumerate(ends) if end - groups[n] < items.stop and end > items.start and groups[n]]
    at = ends[taken[0]] - groups[taken[0]] if taken else 0
    with _opened(path) as file:
        for batch in file.iter_batches(CHUNK_ITEMS, row_groups=taken, columns=columns):
            first, last = max(items.start - at, 0), min(items.stop - at, len(batch))
            if first < last:
                yield at + first, batch.slice(first, last - first)
            at += len(batch)


def _array(path: Path, batch: Any, values: _Values, start: int) -> np.ndarray:
    """[n], [n, width] or [n, columns] of the file's own dtype; of scalar columns that which holds all of theirs."""
    arrays = [_column(path, batch, column, values.width, start) for column in values.columns]
    return arrays[0] if values.width or len(arrays) == 1 else np.stack(arrays, axis=1)


def _column(path: Path, batch: Any, column: str, width: int | None, start: int) -> np.ndarray:
    array = batch.column(column)
    _refuse_nulls(path, array, column, start, each=1)
    if width is None:
        return array.to_numpy(zero_copy_only=False)
    if not hasattr(array.type, "list_size"):
        odd = np.flatnonzero(array.value_lengths().to_numpy() != width)
        if len(odd):
            found = len(array[int(odd[0])])
            raise UserError(f"{path}: {column} of item {start + odd[0]} has {found} values; want {width}.")
    flat = array.flatten()
    _refuse_nulls(path, flat, column, start, each=width)
    return flat.to_numpy(zero_copy_only=False).reshape(-1, width)


def _refuse_nulls(path: Path, array: Any, column: str, start: int, *, each: int) -> None:
    if array.null_count:
        item = start + int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0]) // each
        raise UserError(f"{path}: {column} of item {item} is null; want a number in every place.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A pyarrow ParquetFile; its errors as a UserError of one line."""
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: parquet is read with pyarrow. Install it: {packages_command('ray')}") from None
    try:
        with ParquetFile(path) as file:
            yield file
    except UserError:
        raise
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: damaged or truncated ({one_line(error)}); want a complete parquet file.") from error
