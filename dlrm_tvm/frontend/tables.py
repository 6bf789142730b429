"""How a graph uses its embedding tables, read from the formulas of one run on symbols.

    e = sum or mean over a bag of  f(index)

Found are the vectors that the joined values are made of. `vectors` makes the formulas of every bag that follow from
them, so that recognition.py can compare them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from ..errors import printable
from ..model.dlrm import Table
from ..symbols.branches import Branches
from ..symbols.expressions import Expressions
from ..symbols.functions import Function
from ..symbols.graph import OnnxGraph
from ..symbols.names import label
from .computed_tables import computed_table, filled_up, without_overlap, without_rows
from .features import is_layer
from .probes import Probe
from .roles import Roles

Column = tuple[str, int]

_POOLED = ("sum", "mean")
# What formulas give that no layer of a DLRM takes, in words.
_ODD = {
    "add": "normalized or shifted values",
    "dots": "dots of other vectors",
    "max": "clipped values",
    "min": "clipped values",
    "plus": "sums of computed values",
    "product": "products of computed values",
    "times": "multiplied values",
}
_WANTED = "it takes another's outputs (with ReLU, sigmoid or no activation), x, rows of tables or dots"


class TableUses:
    """The tables used in one run. Raises UserError where no DLRM uses them so.

    joined: [batch, N] numbers of what the interaction gives, -1 for constants; branches: by the value of an index.
    x: [batch, width], the numbers of the only vector among them that is none of tables. dots: whether the values are
    products of vectors.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        roles: Roles,
        expressions: Expressions,
        joined: np.ndarray,
        joiner: onnx.NodeProto,
        branches: Branches,
    ) -> None:
        self.graph = graph
        self.branches = branches
        self.roles = roles
        self.expressions = expressions
        self.joiner = joiner
        self.dots = False
        self._parts: dict[Column, tuple[Function, ...]] = {}
        self._averaged: set[Column] = set()
        self._makers: dict[Column, onnx.NodeProto] = {}
        self.x = self._found(joined)

    def tables(self) -> tuple[Table, ...]:
        """The table that each index column looks up in, in the columns' order."""
        for column in self.roles.columns:
            if column not in self._parts:
                raise self.graph.refusal(None, f"no table is looked up with {self.roles.called(column)}")
        widths = [sum(part.width for part in self._parts[column]) for column in self.roles.columns]
        dim = max(self.x.shape[1], *widths)
        return self._fitting([self._table(column, dim) for column in self.roles.columns])

    def vectors(self, tables: Sequence[Table], probe: Probe) -> np.ndarray:
        """The numbers of x and of each pooled bag as a DLRM computes them, [batch, 1 + T, D]; zeros fill up to D."""
        dim, zero = tables[0].dim, self.expressions.scalar("constant", "float32", 0.0)
        columns = zip(self.roles.columns, tables, probe.lengths, strict=True)
        vectors = [self.x, *(self._bags(*column) for column in columns)]
        filled = [np.pad(each, ((0, 0), (0, dim - each.shape[1])), constant_values=zero) for each in vectors]
        return np.stack(filled, axis=1)

    def _bags(self, column: Column, table: Table, lengths: np.ndarray) -> np.ndarray:
        count = int(lengths.sum())
        kept = self.branches.are_kept(column, count)
        indices = self.expressions.vector(("index", *column), count)[kept]
        ends = np.concatenate([[0], np.cumsum(kept)])[np.cumsum(lengths)]
        starts = np.concatenate([[0], ends[:-1]])
        rows = [self.expressions.looked_up(part, indices) for part in self._parts[column]]
        pooled = [self.expressions.bags(table.pooling, each, starts, ends) for each in rows]
        return np.concatenate(pooled, axis=1)

    # --- the vectors that are joined

    def _found(self, joined: np.ndarray) -> np.ndarray:
        x = []
        for ids in joined:
            vectors = self._vectors_of(ids[ids >= 0])
            others = [first for first in vectors if self._is_other(first)]
            if not others:
                raise self.graph.refusal(self.joiner, "joins no output of a bottom MLP with the tables' rows")
            is_x = lambda first: self.expressions.kind_of(first) == "dense" or is_layer(self.expressions, first)  # noqa: E731
            odd = next((first for first in others if not is_x(first)), None)
            if odd is not None:
                kind, node = self.expressions.kind_of(odd), self.expressions.maker_of(odd)
                raise self.graph.refusal(node, f"gives a layer {_ODD.get(kind, kind)}; {_WANTED}")
            if len(others) > 1:
                dense = any(self.expressions.kind_of(first) == "dense" for first in others)
                among = ", here the dense features themselves too" if dense else ""
                reason = f"joins {len(others)} vectors beside the tables', a DLRM one, its bottom MLP's output{among}"
                raise self.graph.refusal(self.joiner, reason)
            x.append(self.expressions.elements(others[0]))
        if len({len(each) for each in x}) > 1:
            raise self.graph.refusal(self.joiner, "joins vectors of other dimensions for other items")
        return np.stack(x)

    def _vectors_of(self, ids: np.ndarray) -> list[int]:
        """First numbers of the vectors that an item's values are elements or products of. Those of tables are noted."""
        firsts, _, _ = self.expressions.whereabouts(ids)
        is_dot = np.array([self.expressions.kind_of(first) == "dots" for first in firsts.tolist()], bool)
        operands = list(dict.fromkeys(self.expressions.factors(ids[is_dot]).ravel().tolist())) if is_dot.any() else []
        single = list(dict.fromkeys(firsts[~is_dot].tolist()))
        rows = [first for first in single if not self._is_other(first)]
        self.dots = self.dots or bool(operands)
        if operands and rows:
            node = self.expressions.maker_of(rows[0])
            raise self.graph.refusal(
                self.joiner,
                f"joins dots and rows themselves (those of {label(node)}); a DLRM joins x and the one or the other",
            )
        columns: dict[Column, list[int]] = {}
        for first in rows:
            columns.setdefault(self._column(first), []).append(first)
        for column, own in columns.items():
            self._note(column, own)
        vectors = single
        for operand in operands:
            elements = self._without_zeros(self.expressions.elements(operand))
            own = list(dict.fromkeys(self.expressions.whereabouts(elements)[0].tolist()))
            if all(self.expressions.kind_of(first) == "constant" for first in own):
                continue  # an empty bag
            if self._is_whole(elements, own) and not any(map(self._is_other, own)):
                self._note(self._column(own[0]), own)
            else:
                vectors = [*vectors, *(own if len(own) == 1 and self._is_whole(elements, own) else [operand])]
        return list(dict.fromkeys(vectors))

    def _without_zeros(self, elements: np.ndarray) -> np.ndarray:
        """Without those that fill a narrow vector up; one at least is left."""
        filled = np.flatnonzero(elements != self.expressions.scalar("constant", "float32", 0.0))
        return elements[: filled[-1] + 1 if filled.size else 1]

    def _is_whole(self, elements: np.ndarray, firsts: Sequence[int]) -> bool:
        return np.array_equal(np.concatenate([self.expressions.elements(first) for first in firsts]), elements)

    def _is_other(self, first: int) -> bool:
        """Whether it is no vector of a table; constants are pooled bags of none."""
        kind = self.expressions.kind_of(first)
        return kind not in ("function", "constant", *_POOLED)

    def _column(self, first: int) -> Column | None:
        """Of the first index that a vector depends on; None for constants."""
        (kind, *operands), _ = self.expressions.key(first)
        if kind == "constant":
            return None
        if kind in _POOLED:
            return self._column(int(np.frombuffer(operands[0], np.int64)[0]))
        if kind == "function":
            (_, *column), _ = self.expressions.key(operands[1])
            return tuple(column)
        raise self.graph.refusal(self.expressions.maker_of(first), f"gives {kind} values in place of a table's rows")

    def _note(self, column: Column | None, firsts: list[int]) -> None:
        """That the bags of a column give these vectors, one after the other."""
        if column is None:
            return
        parts = tuple(part for first in firsts if (part := self._part(first, column)) is not None)
        known = self._parts.setdefault(column, parts)
        self._makers.setdefault(column, self.expressions.maker_of(firsts[0]))
        if known != parts:
            raise self._two_uses(column, known, parts, self.expressions.maker_of(firsts[0]))

    def _two_uses(self, column: Column, known: tuple[Function, ...], parts: tuple[Function, ...], node: onnx.NodeProto):
        names = [_name(each) for each in (known, parts)]
        if names[0] == names[1]:
            reason = "weights that depend on more than the row; a DLRM's depend on the row alone"
            return self.graph.refusal(node, f"gives rows that are multiplied by {reason}")
        return self.graph.refusal(
            node, f"looks up {self.roles.called(column)} in {names[1]!r}, though {names[0]!r} takes it already"
        )

    def _part(self, first: int, column: Column) -> Function | None:
        """What is made of each index of the column; None for a bag of none."""
        (kind, *operands), _ = self.expressions.key(first)
        if kind in _POOLED:
            if kind == "mean":
                self._averaged.add(column)
            summands = np.frombuffer(operands[0], np.int64).tolist()
            parts = {self._part(summand, self._same_column(summand, column)) for summand in summands}
            if len(parts) > 1:
                one, other = list(parts)[:2]
                raise self._two_uses(column, (one,), (other,), self.expressions.maker_of(first))
            return parts.pop()
        return operands[0] if kind == "function" else None

    def _same_column(self, first: int, column: Column) -> Column:
        if self._column(first) not in (column, None):
            raise self.graph.refusal(
                self.expressions.maker_of(first),
                f"pools rows of {self.roles.called(column)} with those of another index input",
            )
        return column

    # --- tables made of them

    def _table(self, column: Column, dim: int) -> Table:
        parts, node = self._parts[column], self._makers[column]
        pooling, name = "mean" if column in self._averaged else "sum", printable(_name(parts))
        padding, functions = self.branches.of_column.get(column, {}), self.expressions.functions
        if padding and pooling == "mean" and not self.roles.one_index:
            raise self.graph.of_long_bags(node, f"leaves out of the mean (padding_idx, {name})")
        function = filled_up(functions, functions.pick(parts, range(sum(part.width for part in parts))), dim)
        try:
            for kept, value in padding.values():
                function = without_rows(functions, function, kept, value)
            return computed_table(name, pooling, function)
        except (ArithmeticError, IndexError, MemoryError, RecursionError, TypeError, ValueError) as error:
            raise self.graph.refusal(node, f"({function.form}) {error}") from None

    def _fitting(self, tables: list[Table]) -> tuple[Table, ...]:
        tables = without_overlap(tables)
        for table in tables:
            same = next(one for one in tables if one.rows is table.rows)
            if same.pooling != table.pooling or not np.array_equal(same.row_weights, table.row_weights):
                raise self.graph.refusal(None, f"table {table.name!r} is used twice, in different ways")
        return tuple(tables)


def _name(parts: tuple[Function, ...]) -> str:
    return " and ".join(dict.fromkeys(name for part in parts for name in part.tables))
