"""The rotating set of inputs that an instance runs over and over: a working set that no cache holds.

    rows read by the set  >=  4 x the last-level cache,  unless the inputs are limited to 32 MiB before that, or the
                              tables are smaller: then all but 2 % of their rows

An item reads 13 KB of table rows but has only 260 bytes of input (MLPerf shape, one index per bag), so the set itself
is small. Tables smaller than a cache stay in it, as they do in service. Batches and instances have different rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..model.bags import Bags
from .reference_data import read_inputs

if TYPE_CHECKING:
    from ..model.card import ModelCard

_CACHES_TOUCHED = 4
_DRAWS_PER_ROW = 4  # 1 - exp(-4) of a table's rows are drawn at least once
_MAX_INPUT_BYTES = 32 * 1024**2  # per instance: part of the 150 MB that a worker may use
_MAX_BAG_BYTES = 1 << 30  # of indices; long bags in large batches could need any amount
_SEED = 20_201_119


def items_to_rotate(card: ModelCard, batch_size: int, l3_bytes: int, indices_per_bag: float = 1) -> int:
    """The number of items in the set: whole batches, at least two. Raises UserError where two need too much memory."""
    l3_bytes = l3_bytes or 32 * 1024**2  # 0 where sysfs does not say
    per_bag = max(indices_per_bag, 1)
    wanted = min(
        math.ceil(_CACHES_TOUCHED * l3_bytes / (card.gather_bytes_per_item * per_bag)),
        math.ceil(_DRAWS_PER_ROW * max(card.table_rows) / per_bag),
    )
    affordable = int(_MAX_INPUT_BYTES / _input_bytes_per_item(card, indices_per_bag))
    items = max(math.ceil(min(wanted, affordable) / batch_size), 2) * batch_size
    nbytes = items * _input_bytes_per_item(card, indices_per_bag)
    if indices_per_bag > 1 and nbytes > _MAX_BAG_BYTES:
        raise UserError(
            f"two batches of {batch_size} items with {indices_per_bag:g} indices per bag take {nbytes / 1e6:,.0f} MB "
            f"of inputs, more than {_MAX_BAG_BYTES / 1e6:,.0f}. Try fewer indices or a library of a smaller batch."
        )
    return items


def random_items(card: ModelCard, items: int, *, instance: int) -> tuple[np.ndarray, np.ndarray]:
    """dense [items, D] float32 in 0..5, like log(1 + count); indices [items, T] int64, uniform over whole tables."""
    dense = np.empty((items, card.num_dense), np.float32)
    indices = np.empty((items, len(card.table_rows)), np.int64)
    draw_items(np.random.default_rng([_SEED, instance]), dense, indices, card.table_rows)
    return dense, indices


def draw_items(
    generator: np.random.Generator, dense: np.ndarray, indices: np.ndarray, table_rows: Sequence[int]
) -> None:
    """Fill dense [n, D] float32 and indices [n, T] of any integer type as `random_items` does."""
    dense[:] = generator.random(dense.shape, dtype=np.float32) * np.float32(5)
    for table, rows in enumerate(table_rows):
        indices[:, table] = generator.integers(0, rows, len(indices), dtype=indices.dtype)


def bag_lengths(card: ModelCard, indices_per_bag: Sequence[int] | None = None) -> tuple[int, ...] | None:
    """Per table the number of indices in each random bag; None where all tables take one index per item, no bags.

    indices_per_bag: of each table, or one number for all; None: those that the model's graph fixes, else one. Raises
    UserError for another number of numbers, and for bags that the model does not take.
    """
    tables = len(card.table_rows)
    lengths = card.graph_inputs.indices_per_bag if indices_per_bag is None else tuple(indices_per_bag)
    if indices_per_bag is not None and len(lengths) not in (1, tables):
        raise UserError(
            f"--indices-per-bag: {len(lengths)} numbers were given, one for all tables or one for each of {tables} was "
            "wanted."
        )
    lengths = lengths * tables if len(lengths) == 1 else lengths
    if not any(length != 1 for length in lengths):
        return None
    if reason := card.graph_inputs.one_index:
        raise UserError(f"bags of one index each were wanted: {reason}. Leave --indices-per-bag out.")
    return lengths


def mean_length(lengths: Sequence[int] | None) -> float:
    return 1 if lengths is None else sum(lengths) / len(lengths)


def random_bags(card: ModelCard, items: int, lengths: Sequence[int], *, instance: int) -> tuple[np.ndarray, Bags]:
    """As `random_items`, with bags of exactly lengths[t] indices in table t."""
    dense, _ = random_items(card, items, instance=instance)
    generator = np.random.default_rng([_SEED, instance, *lengths])
    begins = tuple(np.arange(items + 1) * length for length in lengths)
    indices = tuple(generator.integers(0, rows, items * each) for rows, each in zip(card.table_rows, lengths))
    return dense, Bags(indices, begins)


def recorded_items(
    path: str, card: ModelCard, items: int, *, instance: int, instances: int, max_ind_range: int | None = None
) -> tuple[np.ndarray, np.ndarray | Bags]:
    """`items` items of a reference file; each instance starts at another place in it, and a short file is repeated.

    dense [items, D] float32, indices [items, T] int64 or bags. Raises UserError for a file that does not fit the model.
    """
    affordable = int(_MAX_INPUT_BYTES / _input_bytes_per_item(card, 1))
    most = max(min(items * instances, affordable), items)
    dense, lookups = read_inputs(path, card, max_items=most, max_ind_range=max_ind_range)
    picked = (np.arange(items) + len(dense) * instance // instances) % len(dense)
    return dense[picked], lookups.take(picked) if isinstance(lookups, Bags) else lookups[picked]


def _input_bytes_per_item(card: ModelCard, indices_per_bag: float) -> float:
    return 4 * card.num_dense + 8 * len(card.table_rows) * max(indices_per_bag, 1)
