"""Bags as callers give them -> bags as the library takes them, checked, one batch at a time.

    given     per table, as torch.nn.EmbeddingBag takes them: indices [any number], offsets [n], where each item's bag
              begins; it ends where the next begins, the last with the indices
    taken     indices of all tables one after another [total] int64; offsets [T, batch + 1] int64 into those, each
              table's last one where its last bag ends; items that a batch lacks have empty bags

Offsets are checked here, before the library sees them. Indices are not looked at: the library answers NaN for an item
whose bag holds one outside its table. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import UserError


@dataclass(frozen=True, eq=False)
class Bags:
    """All bags of a call. indices[t]: [any number] integers; begins[t]: [n + 1] int64, with the end of the last bag."""

    indices: tuple[np.ndarray, ...]
    begins: tuple[np.ndarray, ...]

    def part(self, first: int, last: int) -> Bags:
        """The bags of items first .. last - 1, their indices as views."""
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
        """Into indices [num_indices or more] and offsets [T, batch + 1], as the library takes them."""
        at = 0
        for table, (values, begins) in enumerate(zip(self.indices, self.begins)):
            indices[at : at + len(values)] = values
            offsets[table, : len(begins)] = begins + at
            at += len(values)
            offsets[table, len(begins) :] = at

    def first_outside(self, table_rows: Sequence[int]) -> tuple[int, int, int] | None:
        """(item, table, index) of the first index that its table does not have, in the first table that has one."""
        for table, (values, begins, rows) in enumerate(zip(self.indices, self.begins, table_rows)):
            outside = np.flatnonzero((values < 0) | (values >= rows))
            if outside.size:
                item = np.searchsorted(begins, outside[0], side="right") - 1  # after all empty bags that begin there
                return int(item), table, int(values[outside[0]])
        return None


def _take(values: np.ndarray, begins: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    taken = np.concatenate([[0], np.cumsum((begins[1:] - begins[:-1])[items])])
    shift = np.repeat(begins[items] - taken[:-1], np.diff(taken))
    return values[np.arange(taken[-1]) + shift], taken


def join_bags(parts: Sequence[Bags]) -> Bags:
    """The items of all parts one after another."""
    joined = []
    for table in range(len(parts[0].indices)):
        lengths = [np.diff(part.begins[table]) for part in parts]
        begins = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        joined.append((np.concatenate([part.indices[table] for part in parts]), begins))
    return Bags(*map(tuple, zip(*joined)))


def check_bags(indices: Sequence, offsets: Sequence, items: int, tables: int) -> Bags:
    """Bags of `items` items in so many tables; raises UserError with the table and item that is wrong."""
    for name, given in (("indices", indices), ("offsets", offsets)):
        if not hasattr(given, "__len__") or len(given) != tables:
            found = len(given) if hasattr(given, "__len__") else type(given).__name__
            raise UserError(f"{name}: {found} given, one array for each of {tables} tables was wanted.")
    values = [_vector("indices", table, given) for table, given in enumerate(indices)]
    begins = [_begins(table, given, items, len(values[table])) for table, given in enumerate(offsets)]
    return Bags(tuple(values), tuple(begins))


def as_array(name: str, given) -> np.ndarray:
    """NumPy's view of what was given; UserError where it makes no array of it."""
    try:
        return np.asarray(given)
    except ValueError:  # nested lists of different lengths
        raise UserError(f"{name}: rows of different lengths were given, an array was wanted.") from None


def _vector(name: str, table: int, given) -> np.ndarray:
    array = as_array(f"{name} of table {table}", given)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)  # an empty list is of no integer type
    if array.ndim != 1 or array.dtype.kind not in "iu":
        found = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"{name} of table {table} are {found}, integers in one dimension were wanted.")
    return array


def _begins(table: int, given, items: int, num_indices: int) -> np.ndarray:
    offsets = _vector("offsets", table, given)
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
