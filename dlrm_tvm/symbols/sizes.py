"""How many elements an operator makes, told before they are made: a few bytes of a file may ask for terabytes.

And how much memory the values of one run take together: each may be small, and a file has many nodes.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable

import numpy as np

from ..machine.memory import available_bytes

MOST_COPIED_ELEMENTS = 2**26  # of a table, which is used as it is stored
MOST_MADE_ELEMENTS = 2**25


class Made:
    """The memory of arrays that a run has made and that still are there; constants as they are stored are none."""

    def __init__(self) -> None:
        self._most_bytes = available_bytes() // 2  # formulas of the values take some too
        self._bytes = 0
        self._owners: dict[int, weakref.ref] = {}  # by id(), until they are gone

    def add(self, values: Iterable[object]) -> None:
        """values: arrays, Symbols and others. Raises MemoryError where all together take too much."""
        for value in values:
            array = getattr(value, "ids", value)
            while isinstance(getattr(array, "base", None), np.ndarray):
                array = array.base
            if isinstance(array, np.ndarray) and array.base is None and id(array) not in self._owners:
                self._keep_in_mind(array, id(array), array.nbytes)
        if self._bytes > self._most_bytes:
            made, most = (f"{size / 1e9:,.1f} GB" for size in (self._bytes, self._most_bytes))
            raise MemoryError(f"makes, with the nodes before it, {made} of values; {most} of memory are there for them")

    def _keep_in_mind(self, array: np.ndarray, key: int, size: int) -> None:
        self._owners[key] = weakref.ref(array, lambda _: self._forget(key, size))
        self._bytes += size

    def _forget(self, key: int, size: int) -> None:
        del self._owners[key]
        self._bytes -= size


def check_size(operator: str, inputs: list[np.ndarray | None], attributes: dict) -> None:
    """inputs: values, or numbers of symbols in their place. Raises ValueError for more elements than a DLRM's graph has
    in one value, its tables aside: of those no more is made than there is."""
    made = _elements(operator, inputs, attributes)
    given = sum({id(value): value.size for value in inputs if value is not None}.values())
    if made > max(MOST_MADE_ELEMENTS, given):
        raise ValueError(f"makes {made:,} elements of {given:,}; {MOST_MADE_ELEMENTS:,} at most are made")


def check_constants(operator: str, inputs: list[np.ndarray | None], attributes: dict) -> None:
    """The same of constants alone, and that none is a table too large to load."""
    if max((value.size for value in inputs if value is not None), default=0) > MOST_COPIED_ELEMENTS:
        raise ValueError("computes with a table as a whole; rows of it may be looked up")
    check_size(operator, inputs, attributes)


def _elements(operator: str, inputs: list[np.ndarray | None], attributes: dict) -> int:
    """At most, 0 of operators that make no more than they are given. Python's integers: sizes in a file may be any."""
    given = [value for value in inputs if value is not None]
    if operator in ("Compress", "GatherElements", "ScatterElements") or operator.startswith("Reduce"):
        return 0  # a condition, indices and axes are not broadcast
    if operator == "ConstantOfShape":
        return math.prod(map(int, given[0]))
    if operator == "Range":
        start, limit, delta = (value.item() for value in given)
        return math.ceil((limit - start) / delta)
    if operator == "Tile":
        return given[0].size * math.prod(map(int, given[1]))
    if operator == "Expand":
        return math.prod(np.broadcast_shapes(given[0].shape, tuple(map(int, given[1]))))
    if operator == "Gather" and given[0].ndim:
        return given[0].size // max(given[0].shape[attributes.get("axis", 0)], 1) * given[1].size
    if operator == "OneHot":
        return given[0].size * int(given[1])
    if operator == "Concat":
        return sum(value.size for value in given)
    if operator == "GatherND" and given[1].ndim:
        *places, depth = given[1].shape
        return math.prod(places) * math.prod(given[0].shape[depth:])
    if operator == "NonZero":
        return given[0].ndim * given[0].size
    if operator == "BatchNormalization":
        scale = (given[1].size, *(1,) * (given[0].ndim - 2))
        return math.prod(np.broadcast_shapes(given[0].shape, scale))
    if operator == "MatMul":
        left, right = given[0].shape, given[1].shape
        both = np.broadcast_shapes(left[:-2], right[:-2])
        return math.prod(both) * math.prod(left[-2:-1]) * math.prod(right[-1:] if len(right) > 1 else ())
    if operator == "Gemm":
        product = given[0].shape[bool(attributes.get("transA"))], given[1].shape[not attributes.get("transB")]
        return math.prod(np.broadcast_shapes(product, *(value.shape for value in given[2:])))
    if operator == "Einsum":
        return _of_einsum(attributes["equation"].replace(" ", ""), [value.shape for value in given])
    try:
        return math.prod(np.broadcast_shapes(*(value.shape for value in given)))
    except ValueError:  # no operator that goes element by element
        return 0


def _of_einsum(equation: str, shapes: list[tuple[int, ...]]) -> int:
    """At most, where "..." stands for axes."""
    terms, arrow, result = equation.partition("->")
    if "..." in equation:
        return math.prod(map(math.prod, shapes))
    letters = terms.replace(",", "")
    sizes = {}
    for letter, size in zip(letters, (size for shape in shapes for size in shape), strict=True):
        sizes[letter] = max(size, sizes.get(letter, 0))
    return math.prod(
        size for letter, size in sizes.items() if (letter in result if arrow else letters.count(letter) == 1)
    )
