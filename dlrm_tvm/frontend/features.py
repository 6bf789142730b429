"""Where each value that the top MLP reads comes from: a feature of the model, in any order, or a constant.

    value n of an item  =  coefficients[n] * feature[places[n]] + constants[n]        the same n for all items

So the order of features, features read twice or never, masks and padding are the first weight's columns:

    W'[:, p] = sum of coefficients[n] * W[:, n] over all n of places[n] = p
    b'       = b + sum of constants[n] * W[:, n]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..model.layers import Dense
from ..symbols.expressions import Expressions

_CONSTANT = -1


@dataclass(frozen=True, eq=False)
class Origins:
    """choices: per value the places that it may come from; a feature may be zero in all items of one run, so there may
    be several. `_CONSTANT`: it may be a constant. coefficients: NaN where none is known, as of a zero."""

    choices: tuple[frozenset[int], ...]
    coefficients: np.ndarray
    constants: np.ndarray

    @property
    def places(self) -> np.ndarray:
        return np.array([min(each) for each in self.choices], np.int64)

    def renumbered(self, numbers: np.ndarray) -> Origins:
        """With numbers[place] in the place of each place."""
        places = (place if place == _CONSTANT else int(numbers[place]) for place in self.places.tolist())
        return replace(self, choices=tuple(frozenset({place}) for place in places))

    def both(self, other: Origins) -> Origins | None:
        """What holds in two runs; None where nothing does."""
        if len(self.choices) != len(other.choices) or (self.constants != other.constants).any():
            return None
        choices = tuple(one & two for one, two in zip(self.choices, other.choices))
        coefficients = np.where(np.isnan(self.coefficients), other.coefficients, self.coefficients)
        agree = np.isnan(other.coefficients) | (other.coefficients == coefficients)
        return Origins(choices, coefficients, self.constants) if all(choices) and agree.all() else None


@dataclass(frozen=True, eq=False)
class Terms:
    """ids: [batch, N], each value being coefficient * id + constant; -1 for the id of a constant."""

    ids: np.ndarray
    coefficients: np.ndarray
    constants: np.ndarray


def terms_of(expressions: Expressions, values: np.ndarray) -> Terms:
    """Values [batch, N] without the constants that were added and multiplied in."""
    ids = values.copy()
    coefficients, constants = np.ones(values.shape), np.zeros(values.shape)
    firsts, _, _ = expressions.whereabouts(values)
    kinds = {first: expressions.kind_of(first) for first in np.unique(firsts).tolist()}
    odd = np.isin(firsts, [first for first, kind in kinds.items() if kind in ("add", "times", "constant")])
    known: dict[int, tuple[int, float, float]] = {}
    for at in zip(*np.nonzero(odd)):
        number = int(values[at])
        if number not in known:
            known[number] = _term(expressions, number)
        ids[at], coefficients[at], constants[at] = known[number]
    return Terms(ids, coefficients, constants)


def _term(expressions: Expressions, number: int) -> tuple[int, float, float]:
    steps: list[tuple[str, float]] = []
    ends = is_layer(expressions, number)
    while not ends and (key := expressions.key(number))[0][0] in ("add", "times"):
        (kind, row, factors), position = key
        own = np.frombuffer(factors, np.float32 if kind == "add" else np.float64)[position]
        steps.append((kind, float(own)))
        number = int(expressions.elements(row)[position])
        # Along a whole vector it is one where the vector around it is; to ask each time would take quadratic time.
        ends = expressions.kind_of(row) == "vector" and is_layer(expressions, number)
    base, coefficient, constant = number, 1.0, 0.0
    if expressions.kind_of(number) == "constant":
        base, coefficient, constant = _CONSTANT, 0.0, float(expressions.key(number)[0][2])
    for kind, own in reversed(steps):
        if kind == "add":
            constant += own
        else:
            base, coefficient, constant = (base, coefficient * own, constant * own) if own else (_CONSTANT, 0.0, 0.0)
    return base, coefficient, constant


def is_layer(expressions: Expressions, number: int) -> bool:
    """Whether it is an output of a layer, with or without bias, normalization and activation."""
    kinds = ("add", "times", "relu", "sigmoid", "max")
    while (kind := expressions.kind_of(number)) in kinds:
        (_, number, *operands), _ = expressions.key(number)
        if kind == "max" and operands != [0]:  # of 0 it is a ReLU
            return False
        kinds = ("add", "times")
    return kind == "linear"


def origins(expressions: Expressions, terms: Terms, features: np.ndarray) -> tuple[Origins | None, tuple[int, int]]:
    """features: [batch, F] numbers. None where a value is no feature; then with (item, value) of the first."""
    batch, count = terms.ids.shape
    own = terms_of(expressions, features)
    matched = terms.ids != _CONSTANT
    low, high = np.zeros((batch, count), np.int64), np.zeros((batch, count), np.int64)
    orders = np.argsort(features, axis=1, kind="stable")
    for item in range(batch):
        ordered = features[item][orders[item]]
        low[item] = np.searchsorted(ordered, terms.ids[item], side="left")
        high[item] = np.searchsorted(ordered, terms.ids[item], side="right")
    missing = matched & (low == high)
    if missing.any():
        return None, tuple(int(each) for each in np.argwhere(missing)[0])
    places = np.take_along_axis(orders, np.minimum(low, features.shape[1] - 1), axis=1)
    alike = [(each == each[0]).all(axis=0) for each in (places, terms.coefficients, terms.constants)]
    clear = (matched & (high - low == 1)).all(axis=0) & np.logical_and.reduce(alike)
    choices: list[frozenset[int]] = []
    coefficients, constants = np.full(count, np.nan), terms.constants[0].copy()
    for value in range(count):
        if clear[value]:
            choices.append(frozenset({int(places[0, value])}))
            coefficients[value] = terms.coefficients[0, value]
            continue
        items = np.flatnonzero(matched[:, value])
        if len(items) == 0:
            found, at = _constant_choices(terms, own, value)
            if found is None:
                return None, (at, value)
            choices.append(found)
            continue
        first = items[0]
        coefficient, constant = terms.coefficients[first, value], terms.constants[first, value]
        own_items = [set(orders[item][low[item, value] : high[item, value]].tolist()) for item in items]
        found = set.intersection(*own_items)
        for item in items:
            if (terms.coefficients[item, value], terms.constants[item, value]) != (coefficient, constant) or not found:
                return None, (int(item), value)
        for item in np.flatnonzero(~matched[:, value]):
            found = {place for place in found if _agrees(terms, own, item, value, place, coefficient, constant)}
            if not found:
                return None, (int(item), value)
        coefficients[value], constants[value] = coefficient, constant
        choices.append(frozenset(found))
    return Origins(tuple(choices), coefficients, constants), (0, 0)


def _agrees(
    terms: Terms, features: Terms, item: int, value: int, place: int, coefficient: float, constant: float
) -> bool:
    """Whether a constant is that of a feature that is constant too, as of an empty bag."""
    if features.ids[item, place] != _CONSTANT:
        return False
    return terms.constants[item, value] == coefficient * features.constants[item, place] + constant


def _constant_choices(terms: Terms, features: Terms, value: int) -> tuple[frozenset[int] | None, int]:
    """A constant in all items: of all features that are constants in all items, or none."""
    constants = terms.constants[:, value]
    choices = set(np.flatnonzero((features.ids == _CONSTANT).all(axis=0)).tolist())
    if (constants == constants[0]).all():
        choices.add(_CONSTANT)
    return (frozenset(choices), 0) if choices else (None, int(np.flatnonzero(constants != constants[0])[0]))


def folded(layer: Dense, found: Origins, count: int) -> Dense:
    """The layer for `count` features in their own order; the same weights where nothing was changed."""
    places = found.places
    coefficients = np.nan_to_num(found.coefficients, nan=0)
    plain = (coefficients == 1).all() and not found.constants.any()
    if plain and len(places) == count and np.array_equal(places, np.arange(count)):
        return layer
    wide = layer.weight.astype(np.float64)
    of_features = np.flatnonzero(places != _CONSTANT)
    weight = np.zeros((count, layer.outputs))
    np.add.at(weight, places[of_features], (wide * coefficients)[:, of_features].T)
    bias = layer.bias + (wide * found.constants).sum(axis=1) if found.constants.any() else layer.bias
    return replace(layer, weight=np.ascontiguousarray(weight.T, np.float32), bias=bias.astype(np.float32))


def widened(layer: Dense, outputs: int) -> Dense:
    """The layer with further outputs, which nothing reads."""
    more = outputs - layer.outputs
    return replace(layer, weight=np.pad(layer.weight, ((0, more), (0, 0))), bias=np.pad(layer.bias, (0, more)))


def distinct_places(found: Origins) -> np.ndarray | None:
    """places, where each feature is read once at most, and as it is; else None."""
    as_it_is = (found.coefficients == 1).all() and not found.constants.any()
    return found.places if as_it_is and len(np.unique(found.places)) == len(found.places) else None


def merged(runs: Sequence[Origins]) -> Origins | None:
    result: Origins | None = runs[0]
    for other in runs[1:]:
        result = result and result.both(other)
    return result
