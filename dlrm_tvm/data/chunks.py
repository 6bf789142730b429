"""Items of an opened file, chunk by chunk: what every kind of data is read as, and the checks of their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import UserError
from ..model.bags import Bags, bags_of_one, wrapped_indices
from .splits import DAY_ITEMS, Splits, choose_split

if TYPE_CHECKING:
    from ..model.card import ModelCard

CHUNK_ITEMS = 32768


class Chunk(NamedTuple):
    """dense [n, D] float32, indices [n, T] int64, reference [n] float32 or None, labels [n] uint8 0/1 or None.

    bags: the lookups where bags hold other numbers of indices than one; indices is None then.
    """

    dense: np.ndarray
    indices: np.ndarray | None
    reference: np.ndarray | None
    labels: np.ndarray | None
    bags: Bags | None = None

    @property
    def lookups(self) -> tuple:
        """A model's arguments after dense: indices, or for bags indices and offsets per table."""
        return (self.indices,) if self.bags is None else (self.bags.indices, self.bags.offsets)


@dataclass(frozen=True)
class ReferenceData:
    """An opened file. Iterating reads and checks `items`, numbers of items in the file, `CHUNK_ITEMS` at a time.

    Iterating raises UserError for values that the model cannot take: an index outside its table (table, item, value),
    a dense value that is not finite, a label that is not 0 or 1, offsets that make no bags.
    _read: items -> their chunks; indices_per_bag: 1, or the mean over all bags; splits: what MLPerf cuts the file into;
    split: the name of the one in use, or "all"; file_items: how many the file holds; max_ind_range: indices are taken
    modulo it, as facebookresearch/dlrm's --max-ind-range does. borders: the items, besides the first, at which reading
    can begin without reading what is before; None: any item. files: all that it is read from; empty: `path` alone.
    """

    path: Path
    kind: str
    items: range
    has_reference: bool
    has_labels: bool
    _card: ModelCard
    _read: Callable[[range], Iterator[Chunk]]
    indices_per_bag: float = 1
    splits: Splits = field(default_factory=dict)
    split: str = "all"
    file_items: int = 0
    max_ind_range: int | None = None
    borders: tuple[int, ...] | None = None
    files: tuple[Path, ...] = ()

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def portion(self) -> str:
        """The items in use, for people."""
        count = f"{self.num_items:,} items"
        if self.split == "all" and self.items.start == 0:
            return count
        return f"{count} of split {self.split}, from item {self.items.start:,} on"

    def __iter__(self) -> Iterator[Chunk]:
        start = self.items.start
        for chunk in self._read(self.items):
            chunk = chunk if self.max_ind_range is None else _capped(chunk, self.max_ind_range)
            chunk = _wrapped(self.path, self._card, chunk)
            _check_values(self.path, self._card, chunk, start)
            yield chunk
            start += len(chunk.dense)

    def only(self, items: range) -> ReferenceData:
        """Of these items of the file alone."""
        return replace(self, items=items)

    def shards(self, most_items: int) -> list[range]:
        """`items` in ranges of `most_items`, each of which is read without reading what is before it. Where that can
        begin at borders only, ranges end at the last border before that number, or at the next one after it."""
        if self.borders is None:
            return pieces(self.items, most_items)
        ends = [each for each in self.borders if self.items.start < each < self.items.stop] + [self.items.stop]
        shards, start = [], self.items.start
        for end, after in zip(ends, [*ends[1:], None]):
            if start < end and (after is None or after - start > most_items):
                shards.append(range(start, end))
                start = end
        return shards

    def part(
        self, split: str | None, *, for_calibration: bool, first_item: int = 0, max_items: int | None = None
    ) -> ReferenceData:
        """Of a split, see `choose_split`, at most `max_items` items from its `first_item` on. Raises UserError if there
        are none."""
        total = len(self.items)
        if not total:
            raise UserError(f"{self.path}: holds no items.")
        name = choose_split(self.path, self.splits, split, for_calibration=for_calibration)
        items = self.splits.get(name, self.items)
        if first_item >= len(items):
            where = f"split {name} of its {total:,}" if name in self.splits else "it"
            raise UserError(f"{self.path}: {where} has {len(items):,} items; none is left from item {first_item:,} on.")
        end = None if max_items is None else first_item + max_items
        return replace(self, items=items[first_item:end], split=name, file_items=total)

    def cut(self) -> str | None:
        """How the file is cut, for people; None where it is not."""
        if not self.splits:
            return None
        note = "" if self.file_items == DAY_ITEMS else f" (day 23 of Criteo's logs has {DAY_ITEMS:,}; cut as that is)"
        first, last = self.items[0], self.items[-1]
        return f"{self.split}, items {first:,} to {last:,} of {self.file_items:,}{note}; others by --split"


def pieces(items: range, most_items: int | None = None) -> list[range]:
    """`items` in parts of `most_items`, by default `CHUNK_ITEMS`; the last one is shorter."""
    most_items = most_items or CHUNK_ITEMS
    starts = range(items.start, items.stop, most_items)
    return [range(start, min(start + most_items, items.stop)) for start in starts]


def as_labels(path: Path, key: str, labels: np.ndarray, start: int) -> np.ndarray:
    """uint8; labels: of items from `start` on."""
    odd = np.flatnonzero((labels != 0) & (labels != 1))
    if len(odd):
        raise UserError(f"{path}: {key} of item {start + odd[0]} is {labels[odd[0]]}; labels are 0 or 1.")
    return labels.astype(np.uint8)


def as_float32(values: np.ndarray) -> np.ndarray:
    """Of any shape."""
    with np.errstate(over="ignore"):  # those beyond float32 become infinite, and are refused later
        return values.astype(np.float32)


def log_counts(counts: np.ndarray) -> np.ndarray:
    """MLPerf's dense features: log(1 + x) in float32, with negative counts as 0, as facebookresearch/dlrm has them."""
    return np.log(as_float32(np.maximum(counts, 0)) + np.float32(1))


def check_fingerprint(path: Path, card: ModelCard, recorded: str) -> None:
    """Raises UserError for that of another model."""
    if recorded != card.fingerprint:
        raise UserError(
            f"{path}: its outputs were recorded for another model (fingerprint {recorded[:12]}); the library holds "
            f"{card.name} ({card.fingerprint[:12]}). Give --ref-data recorded for {card.name}."
        )


def _capped(chunk: Chunk, most: int) -> Chunk:
    """Indices modulo `most`; negative ones stay, to be refused."""

    def capped(indices: np.ndarray) -> np.ndarray:
        if most > np.iinfo(indices.dtype).max:
            return indices
        return np.where(indices < 0, indices, indices % most)

    if chunk.bags is None:
        return chunk._replace(indices=capped(chunk.indices))
    return chunk._replace(bags=replace(chunk.bags, indices=tuple(map(capped, chunk.bags.indices))))


def _wrapped(path: Path, card: ModelCard, chunk: Chunk) -> Chunk:
    """As the model's graph takes its indices: modulo the rows of a table that hashes them."""
    inputs = card.graph_inputs
    if chunk.bags is None:
        return chunk._replace(indices=wrapped_indices(chunk.indices, card.table_rows, inputs.wraps))
    try:
        chunk.bags.check_one_index(inputs.one_index)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return chunk._replace(bags=chunk.bags.wrapped(card.table_rows, inputs.wraps))


def _check_values(path: Path, card: ModelCard, chunk: Chunk, start: int) -> None:
    bags = bags_of_one(chunk.indices) if chunk.bags is None else chunk.bags
    if outside := bags.first_outside(card.table_rows):
        item, table, index = outside
        raise UserError(
            f"{path}: item {start + item} takes row {index} of table {table} "
            f"({card.table_names[table]}), which has {card.table_rows[table]} rows. {_advice(card, index)}"
        )
    if not np.isfinite(chunk.dense).all():
        item, column = np.argwhere(~np.isfinite(chunk.dense))[0]
        value = chunk.dense[item, column]
        raise UserError(f"{path}: dense value {column} of item {start + item} is {value}; want finite numbers.")
    if chunk.reference is not None and not np.isfinite(chunk.reference).all():
        item = np.flatnonzero(~np.isfinite(chunk.reference))[0]
        raise UserError(f"{path}: the reference output of item {start + item} is {chunk.reference[item]}.")


def _advice(card: ModelCard, index: int) -> str:
    """--max-ind-range N gives tables of N rows at most, so it explains no index below the largest table's rows."""
    most = max(card.table_rows)
    if index < most:
        return "Use data made for this model."
    return f"Give --max-ind-range {most} if the model was trained with it, else data made for this model."
