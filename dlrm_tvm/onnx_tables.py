"""How a graph uses its embedding tables, read from the formulas of one run on symbols.

    e = sum or mean over a bag of  row(table, index) * factor(row_weights, index)

What is found here is a guess that holds for some of the formulas; `vectors` makes the formulas that it would give, so
that the reader can compare all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .expressions import Expressions
from .model import Table
from .onnx_graph import OnnxGraph
from .onnx_probes import Probe, Roles

Column = tuple[str, int]


class TableUses:
    """The tables that one run looked up in. Raises UserError where they are not a DLRM's."""

    def __init__(self, graph: OnnxGraph, roles: Roles, expressions: Expressions) -> None:
        self.graph = graph
        self.roles = roles
        self.expressions = expressions
        self._factors: dict[Column, set[tuple]] = {}  # keys of what each column's rows were multiplied by
        self._averaged: set[Column] = set()
        self._find_factors_and_means()

    def tables(self) -> tuple[Table, ...]:
        """The table that each index column looks up in, in the columns' order."""
        found: dict[Column, Table] = {}
        columns = set(self.roles.columns)
        for key in self.expressions.keys_of_kind("row"):
            column = self._column(key)
            if column not in columns:
                raise self.graph.refusal(self.expressions.maker_of_key(key), "looks up what is no index of an input")
            table = found.get(column) or self._table(key, column)
            if table.rows is not self.expressions.array(key[1]):
                raise self.graph.refusal(
                    self.expressions.maker_of_key(key),
                    f"looks up {_called(column)} in {self.expressions.array_name(key[1])!r}, though {table.name!r} "
                    "takes it already",
                )
            found[column] = table
        for column in self.roles.columns:
            if column not in found:
                raise self.graph.refusal(None, f"no table is looked up with {_called(column)}")
        return self._fitting([found[column] for column in self.roles.columns])

    def vectors(self, x: np.ndarray, tables: Iterable[Table], probe: Probe) -> np.ndarray:
        """[batch, 1 + T, D] numbers of x and of each pooled bag, made here as a DLRM makes them."""
        columns = zip(self.roles.columns, tables, probe.starts, probe.lengths, strict=True)
        return np.stack([x, *(self._bags(*column) for column in columns)], axis=1)

    def _bags(self, column: Column, table: Table, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        indices = self.expressions.vector(("index", *column), int(lengths.sum()))
        rows = self.expressions.lookup(table.rows, indices, table.name)
        if table.row_weights is not None:
            rows = self.expressions.scale(rows, self._row_factors(column, indices)[:, None])
        return self.expressions.bags(table.pooling, rows, starts, starts + lengths)

    def _row_factors(self, column: Column, indices: np.ndarray) -> np.ndarray:
        (key,) = self._factors[column]
        if key[0] == "constant":
            return np.full(len(indices), self.expressions.scalar(*key), np.int64)
        identity = key[1]
        return self.expressions.lookup(self.expressions.array(identity), indices, "")

    def _find_factors_and_means(self) -> None:
        for _, row, factor in self.expressions.keys_of_kind("scaled"):
            (kind, *operands), _ = self.expressions.key(factor)
            used = (kind, operands[0]) if kind == "factor" else (kind, *operands)
            self._factors.setdefault(self._column_of_row(row), set()).add(used)
        for _, summands in self.expressions.keys_of_kind("mean"):
            first = int(np.frombuffer(summands, np.int64)[0])
            self._averaged.add(self._column_of_row(first))

    def _table(self, key: tuple, column: Column) -> Table:
        rows, name = self.expressions.array(key[1]), self.expressions.array_name(key[1])
        pooling = "mean" if column in self._averaged else "sum"
        return Table(name, rows, pooling, self._row_weights(key, column, len(rows)))

    def _row_weights(self, key: tuple, column: Column, num_rows: int) -> np.ndarray | None:
        used = self._factors.get(column)
        if not used:
            return None
        node = self.expressions.maker_of_key(key)
        if len(used) > 1:
            reason = "weights that depend on more than the row; a DLRM's depend on the row alone"
            raise self.graph.refusal(node, f"gives rows that are multiplied by {reason}")
        ((kind, *operands),) = used
        if kind == "constant":
            return np.broadcast_to(np.float32(operands[1]), (num_rows,))
        weights = self.expressions.array(operands[0])
        if len(weights) != num_rows or not np.isfinite(weights).all():
            reason = f"{len(weights)} row weights, {num_rows} finite ones are wanted"
            raise self.graph.refusal(node, f"gives rows that are multiplied by {reason}")
        return weights

    def _column(self, key: tuple) -> Column | None:
        """The index column that a row was looked up with."""
        (kind, *column), _ = self.expressions.key(key[2])
        return tuple(column) if kind == "index" else None

    def _column_of_row(self, number: int) -> Column | None:
        """The column of a row, weighted or not; None for what is no row."""
        key, _ = self.expressions.key(number)
        if key[0] == "scaled":
            key, _ = self.expressions.key(key[1])
        return self._column(key) if key[0] == "row" else None

    def _fitting(self, tables: list[Table]) -> tuple[Table, ...]:
        for table in tables:
            if table.dim != tables[0].dim:
                reason = f"table {table.name!r} has rows of {table.dim} values, {tables[0].name!r} of {tables[0].dim}"
                raise self.graph.refusal(None, reason)
            same = next(one for one in tables if one.rows is table.rows)
            if same.pooling != table.pooling or not np.array_equal(same.row_weights, table.row_weights):
                raise self.graph.refusal(None, f"table {table.name!r} is used twice, in different ways")
        return tuple(tables)


def _called(column: Column) -> str:
    return f"{column[0]}, row {column[1]}"
