"""The rotating set of inputs that an instance runs over and over: a working set that no cache holds.

    rows the set touches  >=  4 x the last-level cache,  unless 32 MiB of inputs do not reach that far, or the tables
                              are smaller: then all but 2 % of them

An item is 13 KB of table rows but only 260 bytes of input (MLPerf shape, one index per bag), so the set itself is
small. Tables smaller than a cache stay in it, as they do in service. Every batch, and every instance, has rows of its
own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .bags import Bags
from .errors import UserError
from .reference_data import read_inputs

if TYPE_CHECKING:
    from .manifest import ModelCard

_CACHES_TOUCHED = 4
_DRAWS_PER_ROW = 4  # 1 - exp(-4) of a table's rows are drawn at least once
_MAX_INPUT_BYTES = 32 * 1024**2  # per instance: part of the 150 MB that a worker may take
_MAX_BAG_BYTES = 1 << 30  # of indices; long bags in large batches could take any amount
_SEED = 20_201_119


def items_to_rotate(card: ModelCard, batch_size: int, l3_bytes: int, indices_per_bag: float = 1) -> int:
    """How many items the set needs: whole batches, at least two. Raises UserError where those take too much memory."""
    l3_bytes = l3_bytes or 32 * 1024**2  # where sysfs does not say
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
    """dense [items, D] float32 in 0..5, as log(1 + count) is; indices [items, T] int64, uniform over whole tables."""
    dense = np.empty((items, card.num_dense), np.float32)
    indices = np.empty((items, len(card.table_rows)), np.int64)
    draw_items(np.random.default_rng([_SEED, instance]), dense, indices, card.table_rows)
    return dense, indices


def draw_items(
    generator: np.random.Generator, dense: np.ndarray, indices: np.ndarray, table_rows: Sequence[int]
) -> None:
    """Fill dense [n, D] float32 and indices [n, T] of any integer type, as random_items says."""
    dense[:] = generator.random(dense.shape, dtype=np.float32) * np.float32(5)
    for table, rows in enumerate(table_rows):
        indices[:, table] = generator.integers(0, rows, len(indices), dtype=indices.dtype)


def random_bags(card: ModelCard, items: int, indices_per_bag: int, *, instance: int) -> tuple[np.ndarray, Bags]:
    """As random_items, with bags of exactly so many indices in every table."""
    dense, _ = random_items(card, items, instance=instance)
    generator = np.random.default_rng([_SEED, instance, indices_per_bag])
    begins = np.arange(items + 1) * indices_per_bag
    indices = tuple(generator.integers(0, rows, items * indices_per_bag) for rows in card.table_rows)
    return dense, Bags(indices, (begins,) * len(card.table_rows))


def recorded_items(
    path: str, card: ModelCard, items: int, *, instance: int, instances: int
) -> tuple[np.ndarray, np.ndarray | Bags]:
    """`items` items of a reference file, each instance's from another place in it; a short file is repeated.

    dense [items, D] float32, indices [items, T] int64 or bags. Raises UserError for a file that does not fit the model.
    """
    affordable = int(_MAX_INPUT_BYTES / _input_bytes_per_item(card, 1))
    dense, lookups = read_inputs(path, card, max_items=max(min(items * instances, affordable), items))
    picked = (np.arange(items) + len(dense) * instance // instances) % len(dense)
    return dense[picked], lookups.take(picked) if isinstance(lookups, Bags) else lookups[picked]


def _input_bytes_per_item(card: ModelCard, indices_per_bag: float) -> float:
    return 4 * card.num_dense + 8 * len(card.table_rows) * max(indices_per_bag, 1)
