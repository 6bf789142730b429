"""Cross layers in the formulas of one run, taken apart from the last one down; recognition.py's part for them.

x_{l+1} = plus{product{x0, W_l (V_l x_l) + b_l}, x_l}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..symbols.expressions import Expressions
from ..symbols.graph import OnnxGraph


@dataclass(frozen=True, eq=False)
class Crossings:
    """layers: of each cross layer (V, W) or (W,), empty where there are none; inputs: [batch, N] numbers of x0, or of
    what was to be taken apart where it is no cross layer's output."""

    layers: tuple[tuple, ...]
    inputs: np.ndarray


def take_apart(graph: OnnxGraph, expressions: Expressions, joined: np.ndarray, layer_of: Callable) -> Crossings:
    """joined: [batch, N] numbers; layer_of(rows): the layer that gives them, None if none does.

    Raises UserError, with the node, for sums of products that are no cross layers.
    """
    found: list[tuple] = []
    x, first = joined, None
    while (operands := _update(expressions, x)) is not None:
        gates, factors, below = operands
        node = expressions.maker_of(int(x.flat[0]))
        if first is not None and not np.array_equal(factors, first):
            raise graph.refusal(
                node, "multiplies by other values than the cross layers after it, all of which do by x0"
            )
        first = factors
        found.insert(0, _layers(graph, expressions, gates, below, layer_of))
        x = below
    if first is not None and not np.array_equal(x, first):
        node = expressions.maker_of(int(x.flat[0]))
        raise graph.refusal(node, "gives the first cross layer other values than it multiplies by; both are x0")
    return Crossings(tuple(found), x)


def _update(expressions: Expressions, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(W's outputs, x0, x_l), [batch, N] each, of x = x0 * outputs + x_l; None where x is anything else."""
    sums = expressions.operands("plus", x)
    if sums is None:
        return None
    parts = []
    for pair in sums:
        product, below = sorted(pair, key=lambda number: _kind(expressions, number) != "product")
        if _kind(expressions, product) != "product":
            return None
        (_, *factors), _ = expressions.key(product)
        gate, first = sorted(factors, key=lambda number: _kind(expressions, number) not in ("linear", "add"))
        parts.append((gate, first, below))
    return tuple(np.stack([expressions.elements(number) for number in column]) for column in zip(*parts))


def _layers(
    graph: OnnxGraph, expressions: Expressions, gates: np.ndarray, below: np.ndarray, layer_of: Callable
) -> tuple:
    """(V, W), or (W,) of full rank, that give `gates` from `below`."""
    last = layer_of(gates)
    if last is not None and np.array_equal(last.inputs, below):
        return (last,)
    first = None if last is None else layer_of(last.inputs)
    if first is None or first.dense.activation != "none" or not np.array_equal(first.inputs, below):
        node = expressions.maker_of(int(gates.flat[0]))
        reason = "is multiplied by x0 but is not W (V x) + b of the x that is added, as in a cross layer"
        raise graph.refusal(node, reason)
    return first, last


def _kind(expressions: Expressions, number: int) -> str:
    return expressions.key(number)[0][0]
