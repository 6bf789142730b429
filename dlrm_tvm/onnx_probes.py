"""What a DLRM graph is fed: which input plays which role, and the probes that a run on symbols is given.

Roles are found by running the graph: inputs whose very values steer it (the ends of a Loop's slices) are the
offsets; the other whole-number inputs are indices. Offsets therefore get values in a probe, everything else symbols.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .expressions import Expressions, Symbols
from .onnx_computations import NeedsValues, Value
from .onnx_graph import Input, OnnxGraph, names_read
from .onnx_interpreter import Interpreter

_BATCHES = (1, 2, 3, 5)
_MOST_TRIED = 2  # a graph may ask whether a size is 0, 1 or 2: there are smaller and larger ones here
_SHRUNK_BATCHES = (2, 3, 5, 67)
_BAG_PROBES = 2
_LARGE_BATCH = 64  # bags of so many items are of all lengths in a single probe
_INDICES_PER_BAG = 5


@dataclass(frozen=True)
class Roles:
    """The inputs that matter. indices, and offsets where there are any: one of rank 2, [columns, n], or one of rank 1
    per column."""

    dense: Input
    indices: tuple[Input, ...]
    offsets: tuple[Input, ...] = ()
    resized: bool = False

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
    def most_tried(self) -> int:
        """See Interpreter; sizes that the file fixes are what it may ask for."""
        if self.resized:
            return _MOST_TRIED
        return max(
            [_MOST_TRIED, *(size or 0 for source in (self.dense, *self.indices, *self.offsets) for size in source.dims)]
        )

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the file itself fixes, as static exports do; None where it is open."""
        paired = self.offsets or self.indices
        return self.dense.dims[0] or next((source.dims[-1] for source in paired if source.dims[-1]), None)


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


def shrunk(graph: OnnxGraph) -> list[OnnxGraph]:
    """The graph at several small batch sizes in place of a large one that its file fixes; none where it is open.

    Running thousands of items on symbols takes minutes. All other sizes that are multiples of the batch shrink with it.
    """
    batch = next((source.dims[0] for source in graph.inputs if source.dtype == np.float32 and source.dims), None)
    if batch is None or batch <= _LARGE_BATCH:
        return []
    ends = {source.dims[-1] for source in graph.inputs if source.dtype != np.float32 and source.dims}
    if any(size is None or size % batch for size in ends):
        return []
    return [graph.resized({size: size // batch * small for size in ends | {batch}}) for small in _SHRUNK_BATCHES]


def find_roles(graph: OnnxGraph) -> Roles:
    """Raises UserError where the inputs are not those of a DLRM."""
    used = [source for source in graph.inputs if source.name in graph.used_names]
    dense = _dense_input(graph, used)
    integers = [source for source in used if source is not dense]
    steering = _steering_inputs(graph, dense, integers)
    indices, offsets = (tuple(one for one in integers if (one.name in steering) is yes) for yes in (False, True))
    roles = Roles(dense, indices, offsets, graph.is_resized)
    _check_indices(graph, roles)
    _check_offsets(graph, roles)
    return roles


def probes_for(roles: Roles) -> list[Probe]:
    """One index per bag at several batch sizes; where the graph takes offsets also bags of all lengths, empty ones too.

    Every column has its own lengths, and its own number of indices where its input allows that, so that offsets or
    sizes taken from another column's inputs show.
    """
    batches = sorted({roles.fixed_batch or batch for batch in _BATCHES})
    if not roles.offsets:
        return [_one_index_per_bag(roles, batch) for batch in batches]
    rng = np.random.default_rng(0)
    if batches[-1] >= _LARGE_BATCH:
        return [_one_full_bag(roles, batches[-1]), _bags(roles, batches[-1], rng)]
    probes = [_one_index_per_bag(roles, batch) for batch in batches if _takes_one_index_per_bag(roles, batch)]
    probes += [_one_full_bag(roles, batch) for batch in batches]
    return probes + [_bags(roles, batches[-1], rng) for _ in range(_BAG_PROBES)]


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
    if len(roles.offsets) == 1 and len(roles.offsets[0].dims) == 2:
        values[roles.offsets[0].name] = probe.starts.astype(roles.offsets[0].dtype)
    else:
        values |= {source.name: row.astype(source.dtype) for source, row in zip(roles.offsets, probe.starts)}
    return values


def _takes_one_index_per_bag(roles: Roles, batch: int) -> bool:
    """Not where the file fixes another number of indices."""
    return all(source.dims[-1] in (None, batch) for source in roles.indices)


def _one_index_per_bag(roles: Roles, batch: int) -> Probe:
    return Probe(np.ones((len(roles.columns), batch), np.int64))


def _one_full_bag(roles: Roles, batch: int) -> Probe:
    """All of a column's indices in one bag, each column's in another."""
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
    """How many indices a column has: the number that the file fixes, else another for each where it may be."""
    source = roles.indices[0 if roles.stacked else column]
    return source.dims[-1] or _INDICES_PER_BAG * batch + (0 if roles.stacked else column)


def _steering_inputs(graph: OnnxGraph, dense: Input, integers: list[Input]) -> set[str]:
    """The names of those of `integers` whose values the graph works with.

    Found by runs in which all of them are symbols but those that are known to steer already, one bag to an item.
    """
    steering: set[str] = set()
    batch = dense.dims[0] or next((one.dims[0] for one in integers if len(one.dims) == 1 and one.dims[0]), _BATCHES[-1])
    most_tried = Roles(dense, tuple(integers), resized=graph.is_resized).most_tried
    expressions = Expressions()
    made: dict[str, Value] = {}
    while True:
        try:
            inputs = _discovery(dense, integers, steering, batch, expressions)
            Interpreter(graph, expressions, most_tried).run(inputs, made)
        except NeedsValues as need:
            # What does not hang on this input stays: there may be one for each table.
            for name in _made_from(graph, need.input_name):
                made.pop(name, None)
            steering.add(need.input_name)
            if len(steering) == len(integers):
                raise graph.refusal(need.node, f"works with the values of {need.input_name!r}") from None
            if dense.dims[0] and next(one for one in integers if one.name == need.input_name).dims[-1] == batch + 1:
                reason = f"takes offsets {need.input_name!r} with the last bag's end (include_last_offset)"
                raise graph.refusal(need.node, f"{reason}; those of the bags' beginnings alone are read") from None
            continue
        return steering


def _made_from(graph: OnnxGraph, name: str) -> set[str]:
    """The names of all that hangs on `name`."""
    found = {name}
    for node in graph.nodes:
        if not found.isdisjoint(names_read(node)):
            found.update(node.output)
    return found


def _discovery(
    dense: Input, integers: list[Input], steering: set[str], batch: int, expressions: Expressions
) -> dict[str, Symbols | np.ndarray]:
    items = [expressions.vector(("dense", item), dense.dims[1]) for item in range(batch)]
    values: dict[str, Symbols | np.ndarray] = {dense.name: Symbols(np.stack(items), real=True)}
    for source in integers:
        shape = tuple(size or batch for size in source.dims)
        if source.name in steering:
            values[source.name] = np.broadcast_to(np.arange(shape[-1], dtype=source.dtype), shape)
        else:
            ids = expressions.vector(("index", source.name, 0), math.prod(shape)).reshape(shape)
            values[source.name] = Symbols(ids, real=False)
    return values


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


def _check_offsets(graph: OnnxGraph, roles: Roles) -> None:
    shapes = {source.name: source.dims for source in roles.offsets}
    count = len(roles.columns)
    stacked = len(shapes) == 1 and len(roles.offsets[0].dims) == 2 and roles.offsets[0].dims[0] in (None, count)
    each = len(shapes) == count and all(len(dims) == 1 for dims in shapes.values())
    if roles.offsets and not (stacked or each):
        wanted = f"one [{count}, batch] or {count} [batch] are wanted, a row for each index column"
        raise graph.refusal(None, f"the offsets have dims {shapes}; {wanted}")
