"""The roles of the graph's inputs: dense features, indices, offsets.

They are found by running the graph. Offsets are the inputs whose values control it (as the ends of a Loop's slices);
the other whole-number inputs are indices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..symbols.branches import Branches
from ..symbols.computations import NeedsValues, Value
from ..symbols.expressions import Expressions, Symbols
from ..symbols.functions import Functions
from ..symbols.graph import Input, OnnxGraph
from ..symbols.interpreter import Interpreter
from ..symbols.names import names_read

BATCHES = (1, 2, 3, 5)
# Of a single index input: [tables, items], [items, tables], or the bags of one table, [items, number].
LAYOUTS = TABLES_FIRST, ITEMS_FIRST, ONE_BAG = ("tables first", "items first", "one bag")
_MOST_BAGS = 512  # of a run where the file fixes no number of items
_MOST_TRIED = 2  # a graph may ask whether a size is 0, 1 or 2: BATCHES has smaller and larger ones


@dataclass(frozen=True)
class Roles:
    """The inputs in use. indices, and offsets if there are any: one input [columns, n], or one [n] per column; indices
    without offsets may also be [n, number] per column. last_offset: offsets include the end of the last bag. layout: of
    the only index input, if it has two dims, one of LAYOUTS. one_index: why bags may have one index each alone.
    """

    dense: Input
    indices: tuple[Input, ...]
    offsets: tuple[Input, ...] = ()
    resized: bool = False
    last_offset: bool = False
    layout: str = TABLES_FIRST
    one_index: str = ""

    @property
    def num_dense(self) -> int:
        return self.dense.dims[1]

    @property
    def stacked(self) -> bool:
        return len(self.indices) == 1 and len(self.indices[0].dims) == 2 and self.layout != ONE_BAG

    @property
    def items_first(self) -> bool:
        return self.stacked and self.layout == ITEMS_FIRST

    @property
    def indices_per_bag(self) -> list[int]:
        """Of each column, as its input fixes it; 1 where offsets tell, or one index is taken."""
        if self.stacked:
            return [1] * len(self.columns)
        return [source.dims[1] if len(source.dims) == 2 else 1 for source in self.indices]

    @property
    def takes_several(self) -> bool:
        """Whether index inputs are [items, number]."""
        return not self.stacked and any(len(source.dims) == 2 for source in self.indices)

    @property
    def columns(self) -> list[tuple[str, int]]:
        """(input name, row in it) of each index column."""
        if self.stacked:
            return [(self.indices[0].name, row) for row in range(self.indices[0].dims[1 if self.items_first else 0])]
        return [(source.name, 0) for source in self.indices]

    def called(self, column: tuple[str, int]) -> str:
        """One of `columns`, as its graph has it."""
        name, place = column
        return f"{name}, {'column' if self.items_first else 'row'} {place}" if self.stacked else name

    @property
    def most_tried(self) -> int:
        """See Interpreter; a graph may ask for the sizes that its file fixes."""
        if self.resized:
            return _MOST_TRIED
        return max(
            [_MOST_TRIED, *(size or 0 for source in (self.dense, *self.indices, *self.offsets) for size in source.dims)]
        )

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the file fixes, as static exports do; None where it is open."""
        if self.dense.dims[0] or self.offsets:
            ends = (source.dims[-1] for source in self.offsets if source.dims[-1])
            return self.dense.dims[0] or next((end - self.last_offset for end in ends), None)
        place = 0 if self.items_first or not self.stacked else -1
        return next((source.dims[place] for source in self.indices if source.dims[place]), None)


def find_roles(graph: OnnxGraph) -> list[Roles]:
    """All that the inputs may be: they do not tell [items, tables] from [items, indices per bag]. Raises UserError
    where they are not those of a DLRM."""
    used = [source for source in graph.inputs if source.name in graph.used_names]
    dense = _dense_input(graph, used)
    integers = [source for source in used if source is not dense]
    last_offset = bool(dense.dims[0]) and any(one.dims[-1:] == (dense.dims[0] + 1,) for one in integers)
    steering, last_offset = _steering(graph, dense, integers, last_offset)
    indices, offsets = (tuple(one for one in integers if (one.name in steering) is yes) for yes in (False, True))
    found = []
    for layout in _layouts(dense, indices, offsets):
        roles = Roles(dense, indices, offsets, graph.is_resized, last_offset and bool(offsets), layout)
        _check_indices(graph, roles)
        _check_offsets(graph, roles)
        found.append(roles)
    return found


def _layouts(dense: Input, indices: tuple[Input, ...], offsets: tuple[Input, ...]) -> list[str]:
    if len(indices) != 1 or len(indices[0].dims) != 2 or offsets or indices[0].dims[1] is None:
        return [TABLES_FIRST]
    items = {dense.dims[0], None} if dense.dims[0] else {None}
    first, second = indices[0].dims
    if first in items and second in items:
        return [TABLES_FIRST, ITEMS_FIRST, ONE_BAG]
    return [ITEMS_FIRST, ONE_BAG] if first in items else [TABLES_FIRST, ITEMS_FIRST]


def _steering(graph: OnnxGraph, dense: Input, integers: list[Input], last_offset: bool) -> tuple[set[str], bool]:
    """(names of the offsets, whether those include the end of the last bag): with as many offsets as there are bags, or
    one more; without branches by the value of an index, or with them. Raises what the first way of these raises, where
    all fail."""
    errors = []
    for branches in (None, Branches(graph)):
        for ends in dict.fromkeys((last_offset, True)):
            try:
                return _steering_inputs(graph, dense, integers, ends, branches), ends
            except UserError as error:
                errors.append(error)
    raise errors[0]


def _steering_inputs(
    graph: OnnxGraph, dense: Input, integers: list[Input], last_offset: bool, branches: Branches | None
) -> set[str]:
    """The names of the `integers` whose values the graph needs.

    Found by runs of one bag per item, in which all are symbols but those already known to be needed.
    """
    steering: set[str] = set()
    sizes = (one.dims[0] for one in integers if len(one.dims) == 1)
    batch = dense.dims[0] or next((size for size in sizes if size and size <= _MOST_BAGS), BATCHES[-1])
    most_tried = Roles(dense, tuple(integers), resized=graph.is_resized).most_tried
    expressions = Expressions(Functions(graph.opset))
    expressions.bags_are_full = True  # of one index each
    made: dict[str, Value] = {}
    while True:
        try:
            inputs = _discovery(dense, integers, steering, batch, expressions, last_offset)
            Interpreter(graph, expressions, most_tried, branches).run(inputs, made)
        except NeedsValues as need:
            # Results that do not depend on this input are kept: each table may have such an input.
            for name in _made_from(graph, need.input_name):
                made.pop(name, None)
            steering.add(need.input_name)
            if len(steering) == len(integers):
                raise graph.refusal(need.node, f"works with the values of {need.input_name!r}") from None
            continue
        return steering


def _made_from(graph: OnnxGraph, name: str) -> set[str]:
    """The names of all values that depend on `name`."""
    found = {name}
    for node in graph.nodes:
        if not found.isdisjoint(names_read(node)):
            found.update(node.output)
    return found


def _discovery(
    dense: Input,
    integers: list[Input],
    steering: set[str],
    batch: int,
    expressions: Expressions,
    last_offset: bool,
) -> dict[str, Symbols | np.ndarray]:
    items = [expressions.vector(("dense", item), dense.dims[1]) for item in range(batch)]
    values: dict[str, Symbols | np.ndarray] = {dense.name: Symbols(np.stack(items), real=True)}
    expressions.index_dtypes = {source.name: source.dtype for source in integers}
    for source in integers:
        shape = tuple(size or batch for size in source.dims)
        if source.name in steering:
            shape = (*shape[:-1], source.dims[-1] or batch + last_offset)
            values[source.name] = np.broadcast_to(np.arange(shape[-1], dtype=source.dtype), shape)
        else:
            ids = expressions.vector(("index", source.name, 0), math.prod(shape)).reshape(shape)
            values[source.name] = Symbols(ids, real=False)
    return values


def _dense_input(graph: OnnxGraph, used: list[Input]) -> Input:
    for source in used:
        if source.dtype not in (np.float32, np.int32, np.int64):
            raise graph.refusal(None, f"input {source.name!r} is {source.dtype}; float32, int64 or int32 is wanted")
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
    fixed = all(len(dims) == 1 or (len(dims) == 2 and dims[1] and not roles.offsets) for dims in shapes.values())
    if not (roles.stacked or fixed):
        wanted = "one [tables, batch] or [batch, tables], or of each table [n] or [batch, a fixed number]"
        raise graph.refusal(None, f"the index inputs have dims {shapes}; wanted are {wanted}")
    if roles.stacked and not roles.indices[0].dims[1 if roles.items_first else 0]:
        raise graph.refusal(None, f"input {roles.indices[0].name!r} leaves open how many tables it has indices for")
    ignored = [source for source in graph.inputs if source.name not in graph.used_names and source.dtype.kind in "iu"]
    unused = [source.name for source in ignored if len(source.dims) == 1]
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
