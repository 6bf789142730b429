"""The model that all runs of a graph show, in a DLRM's own order: the order of what is joined goes into the weights.

Whichever features a graph joins, in whatever order, are columns of the first layer that reads them (features.py); a
kind of interaction here says which features are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import printable
from ..model.dlrm import Dense, Dlrm, Table
from ..model.interactions import Concat, Cross, Dot, Interaction
from ..symbols.graph import OnnxGraph
from .features import distinct_places, folded, merged
from .recognition import Found


def model_of(graph: OnnxGraph, runs: list[Found]) -> Dlrm:
    """The model that all runs show. Raises UserError where they differ in where values come from."""
    first = runs[0]
    joined = merged([run.joined for run in runs])
    crossed = merged([run.crossed for run in runs]) if first.crossed is not None else None
    if joined is None or (first.crossed is not None and crossed is None):
        raise graph.refusal(first.joiner, "joins its values in another order for other bags or batch sizes")
    kind = Cross if first.crossings else Dot if first.dots else Concat
    interaction, top = _OF_KIND[kind](graph, replace(first, joined=joined, crossed=crossed))
    try:
        return Dlrm(
            name=printable(graph.path.stem),
            bottom=first.bottom,
            tables=first.tables,
            interaction=interaction,
            top=(top, *first.top[1:]),
            graph_inputs=replace(first.graph_inputs, wraps=_wrapping(first.tables)),
            clamp=first.clamp,
            warnings=graph.warnings,
        )
    except ValueError as error:
        raise graph.refusal(None, str(error)) from None


def _wrapping(tables: tuple[Table, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((number, table.wraps) for number, table in enumerate(tables) if table.wraps)


def _concatenated(graph: OnnxGraph, found: Found) -> tuple[Concat, Dense]:
    return Concat(), folded(found.top[0], found.joined, found.width)


def _dotted(graph: OnnxGraph, found: Found) -> tuple[Dot, Dense]:
    """Of the features [x, dots with the diagonal] those that are used; the diagonal is left out where it is not."""
    dim, whole = found.tables[0].dim, Dot(with_self=True)
    pairs = whole.pairs(len(found.tables) + 1)
    own = [dim + at for at, (i, j) in enumerate(pairs) if i == j]
    if set(own) & set(found.joined.places.tolist()):
        return whole, folded(found.top[0], found.joined, dim + len(pairs))
    kept = np.delete(np.arange(dim + len(pairs)), own)
    renumbered = np.zeros(dim + len(pairs), np.int64)
    renumbered[kept] = np.arange(len(kept))
    return Dot(), folded(found.top[0], found.joined.renumbered(renumbered), len(kept))


def _crossed(graph: OnnxGraph, found: Found) -> tuple[Cross, Dense]:
    """x0 in the model's order: the same order for all that cross layers read and give."""
    places = distinct_places(found.joined)
    if places is None:
        reason = "gives the cross layers a value of x or of a row twice, or multiplied"
        raise graph.refusal(found.joiner, reason)
    crossings = tuple(_placed(each, places, found.width) for each in found.crossings)
    return Cross(crossings), folded(found.top[0], found.crossed.renumbered(places), found.width)


def _placed(crossing: tuple[Dense, ...], places: np.ndarray, width: int) -> tuple[Dense, ...]:
    """places: the model's place of each value of the graph; what it does not read is left as it is."""
    layers = list(crossing)
    weight = np.zeros((layers[0].outputs, width), np.float32)
    weight[:, places] = layers[0].weight
    layers[0] = replace(layers[0], weight=weight)
    weight, bias = np.zeros((width, layers[-1].inputs), np.float32), np.zeros(width, np.float32)
    weight[places], bias[places] = layers[-1].weight, layers[-1].bias
    layers[-1] = replace(layers[-1], weight=weight, bias=bias)
    return tuple(layers)


_OF_KIND: dict[type[Interaction], Callable[[OnnxGraph, Found], tuple[Interaction, Dense]]] = {
    Dot: _dotted,
    Concat: _concatenated,
    Cross: _crossed,
}
