"""What a DLRM graph is fed: which input plays which role, and the probes that a run on symbols is given.

Roles are found by running the graph: an input whose very values steer it (the ends of a Loop's slices) is the
offsets; the other whole-number inputs are indices. Offsets therefore get values in a probe, everything else symbols.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .expressions import Expressions, Symbols
from .onnx_graph import Input, OnnxGraph
from .onnx_interpreter import Interpreter, NeedsValues

_BATCHES = (3, 5)
_BAG_PROBES = 4
_INDICES_PER_BAG = 5


@dataclass(frozen=True)
class Roles:
    """The inputs that matter. indices: one of rank 2, [columns, n], or one of rank 1 per column."""

    dense: Input
    indices: tuple[Input, ...]
    offsets: Input | None = None

    @property
    def num_dense(self) -> int:
        return self.dense.dims[1]

    @property
    def stacked(self) -> bool:
        return len(self.indices[0].dims) == 2

    @property
    def columns(self) -> list[tuple[str, int]]:
        """(input name, row in it) of each index column."""
        if self.stacked:
            return [(self.indices[0].name, row) for row in range(self.indices[0].dims[0])]
        return [(source.name, 0) for source in self.indices]

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the file itself fixes, as static exports do; None where it is open."""
        paired = self.indices[0] if self.offsets is None else self.offsets
        return self.dense.dims[0] or paired.dims[-1]


@dataclass(frozen=True, eq=False)
class Probe:
    """One run: lengths [columns, batch] are how many indices each bag holds."""

    lengths: np.ndarray

    @property
    def batch(self) -> int:
        return self.lengths.shape[1]

    @property
    def starts(self) -> np.ndarray:
        """[columns, batch]: where in its column's indices each bag begins, which is what offsets are."""
        return np.cumsum(self.lengths, axis=1) - self.lengths


def find_roles(graph: OnnxGraph) -> Roles:
    """Raises UserError where the inputs are not those of a DLRM."""
    used = [source for source in graph.inputs if source.name in graph.used_names]
    dense = _dense_input(graph, used)
    integers = [source for source in used if source is not dense]
    offsets = _offsets_input(graph, dense, integers)
    roles = Roles(dense, tuple(source for source in integers if source is not offsets), offsets)
    _check_indices(graph, roles)
    if offsets is not None and (len(offsets.dims) != 2 or offsets.dims[0] not in (None, len(roles.columns))):
        wanted = f"[{len(roles.columns)}, batch] is wanted, a row for each index column"
        raise graph.refusal(None, f"the offsets {offsets.name!r} have dims {offsets.dims}; {wanted}")
    return roles


def probes_for(roles: Roles) -> list[Probe]:
    """One index per bag at two batch sizes; and, where the graph takes offsets, bags of all lengths, empty included.

    Every column has its own lengths, and its own number of indices where its input allows that, so that offsets or
    sizes taken from another column's inputs show.
    """
    batches = sorted({roles.fixed_batch or batch for batch in _BATCHES})
    probes = [_one_index_per_bag(roles, batch) for batch in batches]
    if roles.offsets is not None:
        rng = np.random.default_rng(0)
        probes += [_bags(roles, batches[-1], rng) for _ in range(_BAG_PROBES)]
    return probes


def bind(roles: Roles, probe: Probe, expressions: Expressions) -> dict[str, Symbols | np.ndarray]:
    """What the graph is fed: symbols ("dense", item)[k] and ("index", input, row)[position]; offsets as values."""
    dense = [expressions.vector(("dense", item), roles.num_dense) for item in range(probe.batch)]
    values: dict[str, Symbols | np.ndarray] = {roles.dense.name: Symbols(np.stack(dense), real=True)}
    totals = probe.lengths.sum(axis=1)
    columns = [expressions.vector(("index", *column), total) for column, total in zip(roles.columns, totals)]
    if roles.stacked:
        values[roles.indices[0].name] = Symbols(np.stack(columns), real=False)
    else:
        values |= {name: Symbols(ids, real=False) for (name, _), ids in zip(roles.columns, columns)}
    if roles.offsets is not None:
        values[roles.offsets.name] = probe.starts.astype(roles.offsets.dtype)
    return values


def _one_index_per_bag(roles: Roles, batch: int) -> Probe:
    return Probe(np.ones((len(roles.columns), batch), np.int64))


def _bags(roles: Roles, batch: int, rng: np.random.Generator) -> Probe:
    """Each column's indices cut into `batch` bags at random places."""
    lengths = []
    for column in range(len(roles.columns)):
        source = roles.indices[0 if roles.stacked else column]
        total = source.dims[-1] or _INDICES_PER_BAG * batch + (0 if roles.stacked else column)
        cuts = np.sort(rng.integers(0, total + 1, batch - 1))
        lengths.append(np.diff(cuts, prepend=0, append=total))
    return Probe(np.array(lengths))


def _offsets_input(graph: OnnxGraph, dense: Input, integers: list[Input]) -> Input | None:
    """The one of `integers` whose values the graph works with, found by a run in which all of them are symbols."""
    expressions, batch = Expressions(), dense.dims[0] or _BATCHES[0]
    items = [expressions.vector(("dense", item), dense.dims[1]) for item in range(batch)]
    values = {dense.name: Symbols(np.stack(items), real=True)}
    for source in integers:
        shape = tuple(size or batch for size in source.dims)
        values[source.name] = Symbols(
            expressions.vector(("index", source.name, 0), math.prod(shape)).reshape(shape), real=False
        )
    try:
        Interpreter(graph, expressions).run(values)
    except NeedsValues as need:
        if len(integers) == 1:
            raise graph.refusal(need.node, f"works with the values of {need.input_name!r}") from None
        return next(source for source in integers if source.name == need.input_name)
    return None


def _dense_input(graph: OnnxGraph, used: list[Input]) -> Input:
    for source in used:
        if source.dtype not in (np.float32, np.int32, np.int64):
            raise graph.refusal(None, f"input {source.name!r} is {source.dtype}; float32, int64 or int32 are wanted")
    floats = [source for source in used if source.dtype == np.float32]
    if len(floats) != 1:
        names = [source.name for source in floats]
        raise graph.refusal(None, f"the float inputs in use are {names}; a DLRM has one, its dense features")
    if len(floats[0].dims) != 2 or not floats[0].dims[1]:
        raise graph.refusal(None, f"input {floats[0].name!r} has dims {floats[0].dims}; [batch, number] is wanted")
    return floats[0]


def _check_indices(graph: OnnxGraph, roles: Roles) -> None:
    shapes = {source.name: source.dims for source in roles.indices}
    if not shapes:
        raise graph.refusal(None, "no index input is in use, and a DLRM looks up embedding tables")
    ranks = sorted(len(dims) for dims in shapes.values())
    if ranks != [2] and set(ranks) != {1}:
        raise graph.refusal(None, f"the index inputs have dims {shapes}; one [tables, batch] or several [n] are wanted")
    if ranks == [2] and not roles.indices[0].dims[0]:
        raise graph.refusal(None, f"input {roles.indices[0].name!r} leaves open how many tables it has indices for")
    unused = [source.name for source in graph.inputs if source.name not in graph.used_names and len(source.dims) == 1]
    if unused:
        raise graph.refusal(None, f"input {unused[0]!r} is not used, so an item's indices would not all count")
