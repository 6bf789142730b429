"""The inputs of runs on symbols: batch sizes and lengths of bags. Offsets are given as values, the rest as symbols."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..symbols.expressions import Expressions, Symbols
from ..symbols.graph import OnnxGraph
from .roles import BATCHES, Roles

_SHRUNK_BATCHES = (2, 3, 5, 67)
_BAG_PROBES = 2
_LARGE_BATCH = 64  # one probe of so many items has bags of all lengths
_INDICES_PER_BAG = 5


@dataclass(frozen=True, eq=False)
class Probe:
    """One run. lengths: [columns, batch], the number of indices in each bag; are_unusual: some of them take the other
    branch of an If, see branches.py."""

    lengths: np.ndarray
    are_unusual: bool = False

    @property
    def batch(self) -> int:
        return self.lengths.shape[1]

    @property
    def starts(self) -> np.ndarray:
        """The offsets, [columns, batch]: where each bag begins in its column's indices."""
        return np.cumsum(self.lengths, axis=1) - self.lengths

    def offsets(self, *, last: bool) -> np.ndarray:
        """As a graph takes them, [columns, batch], or [columns, batch + 1] with the ends of the last bags."""
        return np.pad(np.cumsum(self.lengths, axis=1), ((0, 0), (1, 0)))[:, : None if last else -1]


def shrunk(graph: OnnxGraph) -> list[OnnxGraph]:
    """The graph at several small batch sizes, where its file fixes a large one; else none.

    Running thousands of items on symbols takes minutes. Sizes that are multiples of the batch shrink with it.
    """
    used = [source for source in graph.inputs if source.name in graph.used_names and source.dims]
    batch = next((source.dims[0] for source in used if source.dtype == np.float32), None)
    if batch is None or batch <= _LARGE_BATCH:
        return []
    sizes = {source.dims[source.batch_place(batch)] for source in used} | {batch}
    if any(size is None or size % batch > 1 for size in sizes):
        return []
    # One more than a multiple are offsets that include the last bag's end.
    return [graph.resized({size: size // batch * small + size % batch for size in sizes}) for small in _SHRUNK_BATCHES]


def probes_for(roles: Roles) -> list[Probe]:
    """One index per bag at several batch sizes; with offsets also bags of all lengths, empty ones among them.

    Every column has its own lengths, and its own number of indices where its input allows that. So offsets and sizes
    taken from another column's inputs are noticed.
    """
    batches = sorted({roles.fixed_batch or batch for batch in BATCHES})
    if not roles.offsets:
        return [Probe(np.repeat(np.array(roles.indices_per_bag)[:, None], batch, axis=1)) for batch in batches]
    if roles.one_index:
        return [_one_index_per_bag(roles, batch) for batch in batches if _takes_one_index_per_bag(roles, batch)]
    rng = np.random.default_rng(0)
    if batches[-1] >= _LARGE_BATCH:
        return [_one_full_bag(roles, batches[-1]), _bags(roles, batches[-1], rng)]
    probes = [_one_index_per_bag(roles, batch) for batch in batches if _takes_one_index_per_bag(roles, batch)]
    probes += [_one_full_bag(roles, batch) for batch in batches]
    return probes + [_bags(roles, batches[-1], rng) for _ in range(_BAG_PROBES)]


def bind(roles: Roles, probe: Probe, expressions: Expressions) -> dict[str, Symbols | np.ndarray]:
    """The graph's inputs: symbols ("dense", item)[k] and ("index", input, row)[position]; offsets as values."""
    dense = [expressions.vector(("dense", item), roles.num_dense) for item in range(probe.batch)]
    values: dict[str, Symbols | np.ndarray] = {roles.dense.name: Symbols(np.stack(dense), real=True)}
    expressions.index_dtypes = {source.name: source.dtype for source in roles.indices}
    expressions.bags_are_full = not roles.offsets
    totals = probe.lengths.sum(axis=1)
    columns = [expressions.vector(("index", *column), total) for column, total in zip(roles.columns, totals)]
    if roles.stacked:
        values[roles.indices[0].name] = Symbols(np.stack(columns, axis=1 if roles.items_first else 0), real=False)
    else:
        shaped = [
            ids if len(source.dims) == 1 else ids.reshape(probe.batch, -1)
            for source, ids in zip(roles.indices, columns)
        ]
        values |= {name: Symbols(ids, real=False) for (name, _), ids in zip(roles.columns, shaped)}
    offsets = probe.offsets(last=roles.last_offset)
    if len(roles.offsets) == 1 and len(roles.offsets[0].dims) == 2:
        values[roles.offsets[0].name] = offsets.astype(roles.offsets[0].dtype)
    else:
        values |= {source.name: row.astype(source.dtype) for source, row in zip(roles.offsets, offsets)}
    return values


def _takes_one_index_per_bag(roles: Roles, batch: int) -> bool:
    """False where the file fixes another number of indices."""
    return all(source.dims[-1] in (None, batch) for source in roles.indices)


def _one_index_per_bag(roles: Roles, batch: int) -> Probe:
    return Probe(np.ones((len(roles.columns), batch), np.int64))


def _one_full_bag(roles: Roles, batch: int) -> Probe:
    """All of a column's indices in one bag, a different bag for each column."""
    lengths = np.zeros((len(roles.columns), batch), np.int64)
    for column in range(len(lengths)):
        lengths[column, column % batch] = _total(roles, column, batch)
    return Probe(lengths)


def _bags(roles: Roles, batch: int, rng: np.random.Generator) -> Probe:
    """Each column's indices cut into `batch` bags at random places."""
    lengths = []
    for column in range(len(roles.columns)):
        total = _total(roles, column, batch)
        cuts = np.sort(rng.integers(0, total + 1, batch - 1))
        lengths.append(np.diff(cuts, prepend=0, append=total))
    return Probe(np.array(lengths))


def _total(roles: Roles, column: int, batch: int) -> int:
    """The number of indices of a column: the one that the file fixes, or one that differs between columns."""
    source = roles.indices[0 if roles.stacked else column]
    return source.dims[-1] or _INDICES_PER_BAG * batch + (0 if roles.stacked else column)
