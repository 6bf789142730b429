"""ONNX graph -> Dlrm, by what the graph computes; or a refusal that names the node and the reason.

The graph is run on symbols (interpreter.py), which gives a formula for each output element. The formula is taken
apart from the prediction down (recognition.py). It must be exactly

    top MLP ( [x, z_i . z_j ...] )    z = [x, e_1 .. e_T]    x = bottom MLP (dense)    e_t = pooled rows of table t

or a clamp of it, for every item of several probes: batch sizes, and bags of all lengths where the graph takes offsets.
Node names, the order of operations and the order of what is joined do not matter; a table's rows may be computed from
stored ones. Knows nothing of TVM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..model.computed_rows import ComputedRows
from ..model.dlrm import Dlrm, Table
from ..symbols.branches import Branches
from ..symbols.functions import Functions
from ..symbols.graph import OnnxGraph, PooledRowsError
from .assembly import model_of
from .probes import probes_for, shrunk
from .recognition import Found, Recognition
from .roles import Roles, find_roles


def read_dlrm(path: str | Path) -> Dlrm:
    """The DLRM that the file at `path` computes, named by the file's stem.

    Tables in external data are read-only memory maps and are not read. Raises UserError, in one line, for a file that
    cannot be read and for a graph that is not a DLRM.
    """
    graph = OnnxGraph(path)
    try:
        with np.errstate(all="ignore"):  # of a graph's own arithmetic, which is refused where it matters
            if small := shrunk(graph):
                try:
                    return _read(small)
                except UserError:
                    pass  # it may be a DLRM at the file's own batch size only
            return _read([graph])
    except RecursionError:
        raise graph.refusal(None, "computes in more steps, one after another, than a DLRM has") from None


def _read(graphs: list[OnnxGraph]) -> Dlrm:
    """graphs: one graph, at one or several sizes."""
    refusals = []
    for each in zip(*map(find_roles, graphs)):
        try:
            return _read_as(graphs, each)
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def _read_as(graphs: list[OnnxGraph], roles: Sequence[Roles]) -> Dlrm:
    """roles: of the inputs, for each graph."""
    try:
        return _read_in_bags(graphs, roles)
    except PooledRowsError as error:
        reason = str(error).removeprefix(f"{graphs[0].path}: ").rstrip(".")
        single = [replace(own, one_index=reason) for own in roles]
        if not all(own.offsets for own in roles) or not all(map(probes_for, single)):
            raise
        return _read_in_bags(graphs, single)


def _read_in_bags(graphs: list[OnnxGraph], roles: Sequence[Roles]) -> Dlrm:
    functions, branches = Functions(graphs[0].opset), Branches(graphs[0])
    probes = [(graph, own, probe) for graph, own in zip(graphs, roles) for probe in probes_for(own)]
    runs = [Recognition(*each, functions, branches).found() for each in probes]
    if branches.of_column:
        unusual = [(graph, own, replace(probe, are_unusual=True)) for graph, own, probe in probes]
        runs += [Recognition(*each, functions, branches).found() for each in unusual]
    for run in runs[1:]:
        if not _same(runs[0], run):
            raise graphs[0].refusal(None, "the weights depend on the batch size or on the offsets")
    return model_of(graphs[0], runs)


def _same(one: Found, other: Found) -> bool:
    """Whether two probes found the same model."""
    shapes = [
        (
            run.dots,
            [layer.activation for layer in run.layers],
            len(run.bottom),
            list(map(len, run.crossings)),
            run.clamp,
        )
        for run in (one, other)
    ]
    if shapes[0] != shapes[1] or len(one.tables) != len(other.tables):
        return False
    layers = all(
        np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias) for a, b in zip(one.layers, other.layers)
    )
    return layers and all(_same_table(a, b) for a, b in zip(one.tables, other.tables))


def _same_table(a: Table, b: Table) -> bool:
    if a.pooling != b.pooling or (a.row_weights is None) != (b.row_weights is None):
        return False
    weights = a.row_weights is None or np.array_equal(a.row_weights, b.row_weights)
    return weights and a.wraps == b.wraps and _same_rows(a.rows, b.rows)


def _same_rows(a: np.ndarray | ComputedRows, b: np.ndarray | ComputedRows) -> bool:
    """Stored rows are the same memory; those that the graph makes, as from bfloat16, are made anew each time."""
    if isinstance(a, ComputedRows) or isinstance(b, ComputedRows):
        return isinstance(a, ComputedRows) and isinstance(b, ComputedRows) and a.compute is b.compute
    same_memory = (a.ctypes.data, a.shape, a.strides) == (b.ctypes.data, b.shape, b.strides)
    return same_memory or np.array_equal(a, b, equal_nan=True)
