"""Bags as callers give them -> bags as the library takes them, checked, one batch at a time.

    given     per table, as torch.nn.EmbeddingBag takes them: indices [any number], and offsets [n], where each item's
              bag begins; a bag ends where the next begins, the last one at the end of the indices
    taken     indices of all tables one after another [total] int64; offsets [T, batch + 1] int64 into them, with the
              end of each table's last bag; items missing from a batch have empty bags

Offsets are checked before the library sees them. Indices are not: the library answers NaN for an item with an index
outside its table, and `first_outside` then names it. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError


@dataclass(frozen=True, eq=False)
class Bags:
    """All bags of a call. indices[t]: [any number] integers; begins[t]: [n + 1] integers, with the last bag's end."""

    indices: tuple[np.ndarray, ...]
    begins: tuple[np.ndarray, ...]

    def part(self, first: int, last: int) -> Bags:
        """The bags of items first .. last - 1; indices are views."""
        cuts = [begins[first : last + 1] for begins in self.begins]
        return Bags(
            tuple(indices[cut[0] : cut[-1]] for indices, cut in zip(self.indices, cuts)),
            tuple(cut - cut[0] for cut in cuts),
        )

    def take(self, items: np.ndarray) -> Bags:
        """The bags of these items, in this order; an item may come more than once."""
        picked = [_take(values, begins, items) for values, begins in zip(self.indices, self.begins)]
        return Bags(*map(tuple, zip(*picked)))

    @property
    def num_indices(self) -> int:
        return sum(map(len, self.indices))

    @property
    def offsets(self) -> tuple[np.ndarray, ...]:
        """[n] per table: with `indices`, what torch.nn.EmbeddingBag takes."""
        return tuple(begins[:-1] for begins in self.begins)

    @property
    def of_one(self) -> bool:
        """Whether every bag holds exactly one index."""
        return all(np.array_equal(begins, np.arange(len(begins))) for begins in self.begins)

    def write(self, indices: np.ndarray, offsets: np.ndarray) -> None:
        """Write to indices [num_indices or more] and offsets [T, batch + 1], as the library takes them."""
        at = 0
        for table, (values, begins) in enumerate(zip(self.indices, self.begins)):
            indices[at : at + len(values)] = values
            offsets[table, : len(begins)] = begins + at
            at += len(values)
            offsets[table, len(begins) :] = at

    def wrapped(self, table_rows: Sequence[int], wraps: Sequence[tuple[int, int]]) -> Bags:
        """As GraphInputs.wraps has it; negative indices and those behind the last one stay, to be refused."""
        if not wraps:
            return self
        indices = list(self.indices)
        for table, last in wraps:
            values = indices[table]
            indices[table] = np.where((values < 0) | (values > last), values, values % table_rows[table])
        return Bags(tuple(indices), self.begins)

    def check_one_index(self, reason: str) -> None:
        """Raises UserError for bags of another number of indices where a model takes none such for a reason."""
        if reason and not self.of_one:
            raise UserError(f"bags of one index each were wanted: {reason}.")

    def first_outside(self, table_rows: Sequence[int]) -> tuple[int, int, int] | None:
        """(item, table, index) of the first item, and its first table, with an index outside its table."""
        found = []
        for table, (values, begins, rows) in enumerate(zip(self.indices, self.begins, table_rows)):
            outside = np.flatnonzero((values < 0) | (values >= rows))
            if outside.size:
                item = np.searchsorted(begins, outside[0], side="right") - 1  # past empty bags that begin there
                found.append((int(item), table, int(values[outside[0]])))
        return min(found, default=None)


def _take(values: np.ndarray, begins: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    taken = np.concatenate([[0], np.cumsum((begins[1:] - begins[:-1])[items])])
    shift = np.repeat(begins[items] - taken[:-1], np.diff(taken))
    return values[np.arange(taken[-1]) + shift], taken


def bags_of_one(indices: np.ndarray) -> Bags:
    """[n, T] integers, one index per item and table, as views."""
    begins = np.arange(len(indices) + 1)
    return Bags(tuple(indices.T), (begins,) * indices.shape[1])


def wrapped_indices(indices: np.ndarray, table_rows: Sequence[int], wraps: Sequence[tuple[int, int]]) -> np.ndarray:
    """`Bags.wrapped` for [n, T] integers, one per item and table."""
    return np.stack(bags_of_one(indices).wrapped(table_rows, wraps).indices, axis=1) if wraps else indices


def bags_of_arrays(indices: Sequence, items: int, wanted: Sequence[int]) -> Bags:
    """Bags of a fixed number of indices: of each table an array [items, number], or [items] for one each.

    wanted: the number of each table. Raises UserError that names the wrong table.
    """
    if len(indices) != len(wanted):
        raise UserError(f"indices: {len(indices)} given, one array for each of {len(wanted)} tables was wanted.")
    flat, begins = [], []
    for table, (given, number) in enumerate(zip(indices, wanted)):
        array = as_array(f"indices of table {table}", given)
        one_each = number == 1 and array.shape == (items,)
        if array.dtype.kind not in "iu" or not (one_each or array.shape == (items, number)):
            found = f"{array.dtype} {list(array.shape)}"
            raise UserError(f"indices of table {table} are {found}, integers [{items}, {number}] were wanted.")
        flat.append(array.reshape(-1))
        begins.append(np.arange(items + 1) * number)
    return Bags(tuple(flat), tuple(begins))


def join_bags(parts: Sequence[Bags]) -> Bags:
    """The items of all parts one after another."""
    joined = []
    for table in range(len(parts[0].indices)):
        lengths = [np.diff(part.begins[table]) for part in parts]
        begins = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        joined.append((np.concatenate([part.indices[table] for part in parts]), begins))
    return Bags(*map(tuple, zip(*joined)))


def check_bags(indices: Sequence, offsets: Sequence, items: int, tables: int, *, last: bool = False) -> Bags:
    """The bags of all items and tables. Offsets may have one more element, the end of the last bag, those of all tables
    alike; last: they have it. Raises UserError that names the wrong table and item.
    """
    for name, given in (("indices", indices), ("offsets", offsets)):
        if not hasattr(given, "__len__") or len(given) != tables:
            found = len(given) if hasattr(given, "__len__") else type(given).__name__
            raise UserError(f"{name}: {found} given, one array for each of {tables} tables was wanted.")
    values = [_vector("indices", table, given) for table, given in enumerate(indices)]
    starts = [_vector("offsets", table, given) for table, given in enumerate(offsets)]
    last = last or all(len(each) == items + 1 for each in starts)
    begins = [_begins(table, each, items, len(values[table]), last) for table, each in enumerate(starts)]
    return Bags(tuple(values), tuple(begins))


def as_array(name: str, given) -> np.ndarray:
    """What was given as an array. Raises UserError if it is none."""
    try:
        return np.asarray(given)
    except ValueError:  # nested lists of different lengths
        raise UserError(f"{name}: rows of different lengths were given, an array was wanted.") from None


def _vector(name: str, table: int, given) -> np.ndarray:
    array = as_array(f"{name} of table {table}", given)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)  # an empty list has no integer type
    if array.ndim != 1 or array.dtype.kind not in "iu":
        found = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"{name} of table {table} are {found}, integers in one dimension were wanted.")
    return array


def _without_end(table: int, offsets: np.ndarray, items: int, num_indices: int) -> np.ndarray:
    if not len(offsets) or offsets[-1] != num_indices:
        found = offsets[-1] if len(offsets) else "missing"
        raise UserError(
            f"the last offset of table {table} is {found}, its {num_indices} indices' end was wanted: {len(offsets)} "
            f"offsets were given for {items} items."
        )
    return offsets[:-1]


def _begins(table: int, offsets: np.ndarray, items: int, num_indices: int, last: bool) -> np.ndarray:
    if last:
        offsets = _without_end(table, offsets, items, num_indices)
    if len(offsets) != items:
        raise UserError(f"offsets of table {table}: {len(offsets)} given, one for each of {items} items was wanted.")
    if items == 0 and num_indices:
        raise UserError(f"indices of table {table}: {num_indices} given for no items.")
    if items and offsets[0] != 0:
        raise UserError(f"item 0: the offset of table {table} is {offsets[0]}, bags begin at 0.")
    beyond = np.flatnonzero(offsets > num_indices)
    if beyond.size:
        item = beyond[0]
        raise UserError(
            f"item {item}: the offset of table {table} is {offsets[item]}, beyond its {num_indices} indices."
        )
    begins = np.append(offsets.astype(np.int64), num_indices)
    falling = np.flatnonzero(begins[1:] < begins[:-1])
    if falling.size:
        item = falling[0] + 1
        raise UserError(
            f"item {item}: the offset of table {table} is {begins[item]}, less than the one before, {begins[item - 1]}."
        )
    return begins
