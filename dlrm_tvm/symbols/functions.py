"""Functions of one index: all that an embedding computes from it, as an expression over NumPy arrays.

    f(index) = index | table[f] | operator(f, g, constants) | f W | elements of f, g        index: [n] whole numbers
                                                                                            f: [n, width]

Equal functions are one object, so that those of different items and probes are compared by `is`. How much of one is a
table: domains.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from .operators import ON_CONSTANTS
from .row_operators import evaluate_rows

INDEX_TYPES = (np.int32, np.int64)  # hold the row numbers of any table
_SMALL_BYTES = 1 << 20
_WIDEST_ONE_HOT = 1 << 12


@dataclass(frozen=True, eq=False)
class Function:
    """operator: "index", "gather", "pick" (elements of the operands, by attribute positions), "linear", "one_hot",
    "matmul" (of matrices that rows are), or ONNX's name.

    operands: functions and constants; attributes: (name, value) pairs; width: of its values; name: of the table that
    "gather" reads.
    """

    operator: str
    operands: tuple[Function | np.ndarray, ...]
    attributes: tuple[tuple[str, object], ...]
    width: int
    dtype: np.dtype
    name: str = ""

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """[n] whole numbers -> [n, width]"""
        return _evaluate(self, indices, {})

    @property
    def functions(self) -> list[Function]:
        return [operand for operand in self.operands if isinstance(operand, Function)]

    def parts(self) -> list[Function]:
        """All functions that it is made of, itself first; each once, however often it is used."""
        found = {self: None}
        waiting = [self]
        while waiting:
            for function in waiting.pop().functions:
                if function not in found:
                    found[function] = None
                    waiting.append(function)
        return list(found)

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.name for part in self.parts() if part.operator == "gather"))

    @property
    def sources(self) -> list[np.ndarray]:
        return [part.operands[0] for part in self.parts() if part.operator == "gather"]

    @property
    def operators(self) -> set[str]:
        return {part.operator for part in self.parts()}

    @property
    def form(self) -> str:
        """What kind of embedding it is, in the field's words."""
        operators, tables = self.operators, " and ".join(self.tables)
        types = {str(part.dtype) for part in self.parts() if part.operator == "gather"} - {"float32"}
        on_indices = {part.operator for part in self.parts() if part.dtype.kind in "iu"}
        hashes = "Mod" in operators or {"Div", "Mul", "Sub"} <= on_indices  # i - i / n * n, before opset 11
        if "Div" in operators and hashes and len(self.tables) > 1:
            kind = "quotient-remainder embedding"
        elif hashes:
            kind = "hashed index"
        elif "linear" in operators:
            kind = "projected rows"
        elif "matmul" in operators:
            kind = "product of rows as matrices, as in a tensor train"
        elif "Equal" in operators:
            kind = "padding_idx"
        elif self.operator == "pick" and len(self.functions) < len(self.operands):
            kind = f"rows of {self.functions[0].width} values, filled up to {self.width}"
        else:
            kind = f"rows of {types.pop()}" if len(types) == 1 else "function of the index"
        return f"{kind}, {tables}" if tables else kind


class Functions:
    """Makes functions, each once. opset: the graph's, by which its operators are computed."""

    def __init__(self, opset: int = 18) -> None:
        self.opset = opset
        self._made: dict[tuple, Function] = {}
        self._arrays: dict[int, tuple[np.ndarray, tuple]] = {}  # by id(), which must stay unique

    def index(self, dtype: np.dtype) -> Function:
        return self._once(("index", dtype), lambda: Function("index", (), (), 1, dtype))

    def gather(self, table: np.ndarray, at: Function, name: str, *, zeros_outside: bool = False) -> Function:
        width = 1 if table.ndim == 1 else table.shape[1]
        how = (("zeros_outside", True),) if zeros_outside else ()
        make = lambda: Function("gather", (table, at), how, width, table.dtype, name)  # noqa: E731
        return self._once(("gather", self._identity(table), name, id(at), zeros_outside), make)

    def linear(self, function: Function, weight: np.ndarray, transposed: bool, name: str) -> Function:
        """weight: [N, K] if transposed, else [K, N]. One-hot vectors times a weight are its rows, or zeros: a table of
        its name."""
        inside = function
        while inside.operator == "Cast":
            inside = inside.functions[0]
        if inside.operator == "one_hot" and inside.operands[0].dtype.kind in "iu":
            rows = weight.T if transposed else weight
            return self.gather(rows, inside.operands[0], name, zeros_outside=True)
        how, width = (("transposed", transposed),), weight.shape[0 if transposed else 1]
        make = lambda: Function("linear", (function, weight), how, width, weight.dtype)  # noqa: E731
        return self._once(("linear", id(function), self._identity(weight), transposed), make)

    def one_hot(self, function: Function, depth: int, dtype: np.dtype) -> Function:
        """ONNX's OneHot: -1 is the last place, as in a gather; places outside give zeros."""
        return self._of("one_hot", [function], (("depth", depth),), depth, dtype)

    def matmul(self, left: Function, right: Function, sizes: tuple[int, int, int]) -> Function:
        """[n, M K] and [n, K N] as matrices -> [n, M N]; sizes: (M, K, N)"""
        return self._of("matmul", [left, right], (("sizes", sizes),), sizes[0] * sizes[2], left.dtype)

    def pick(self, functions: Sequence[Function | np.ndarray], positions: Sequence[int]) -> Function:
        """Elements of all values one after the other; constants are [width]."""
        whole = list(range(len(positions)))
        if len(functions) == 1 and functions[0].width == len(whole) and list(positions) == whole:
            return functions[0]
        dtype = next(each.dtype for each in functions if isinstance(each, Function))
        return self._of("pick", functions, (("positions", tuple(positions)),), len(positions), dtype)

    def apply(self, operator: str, operands: Sequence[Function | np.ndarray], attributes: dict) -> Function:
        """An operator element by element or row by row; constants are of shape [1] or [width]."""
        if operator == "Equal":  # of the index itself, which is never negative, to 0, 1, 2, ..
            for function, places in permutations(operands):
                is_index = isinstance(function, Function) and function.operator == "index"
                is_whole = isinstance(places, np.ndarray) and places.size > 1
                if is_index and is_whole and np.array_equal(places.ravel(), np.arange(places.size)):
                    return self.one_hot(function, places.size, np.dtype(bool))
        if operator == "Mul":
            for function, factor in permutations(operands):
                is_one = isinstance(factor, np.ndarray) and factor.size == 1 and factor == 1
                if is_one and factor.dtype == function.dtype:
                    return function
        few = 0 if operator in ON_CONSTANTS else 1
        given = [np.ones((few, each.width), each.dtype) if isinstance(each, Function) else each for each in operands]
        example = _computed(operator, self.opset, given, attributes)
        attributes = attributes if operator in ON_CONSTANTS else {**attributes, "opset": self.opset}
        return self._of(operator, operands, tuple(attributes.items()), example.shape[1], example.dtype)

    def _of(self, operator: str, operands: Sequence, attributes: tuple, width: int, dtype: np.dtype) -> Function:
        keys = tuple(
            id(each) if isinstance(each, Function) else (str(each.dtype), each.shape, each.tobytes())
            for each in operands
        )
        return self._once(
            (operator, keys, attributes), lambda: Function(operator, tuple(operands), attributes, width, dtype)
        )

    def _identity(self, array: np.ndarray) -> tuple:
        """The same for the same values, of small arrays; of large ones for the same memory."""
        if id(array) not in self._arrays:
            small = array.nbytes <= _SMALL_BYTES
            what = hashlib.sha256(array.tobytes()).digest() if small else (array.ctypes.data, array.strides)
            self._arrays[id(array)] = array, (str(array.dtype), array.shape, what)
        return self._arrays[id(array)][1]

    def _once(self, key: tuple, make: Callable[[], Function]) -> Function:
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = make()
        return found


def _evaluate(function: Function, indices: np.ndarray, known: dict[Function, np.ndarray]) -> np.ndarray:
    if function not in known:
        values = [_evaluate(each, indices, known) if isinstance(each, Function) else each for each in function.operands]
        known[function] = _value(function, values, indices)
    return known[function]


def _value(function: Function, values: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
    if function.operator == "index":
        return indices.astype(function.dtype)[:, None]
    if function.operator == "gather":
        table, at = values[0], values[1][:, 0]
        if not function.attributes:
            return table[at].reshape(len(indices), function.width)
        inside = (at >= -len(table)) & (at < len(table))
        return np.where(inside[:, None], table[np.where(inside, at, 0)], table.dtype.type(0))
    if function.operator == "linear":  # in float64: NumPy's float32 differs with the number of rows
        weight = values[1].T if dict(function.attributes)["transposed"] else values[1]
        return (values[0].astype(np.float64) @ weight.astype(np.float64)).astype(function.dtype)
    if function.operator == "one_hot":
        if function.width > _WIDEST_ONE_HOT:
            raise ValueError(f"makes one-hot vectors of {function.width:,} values, and multiplies them by no weight")
        places = np.arange(function.width)
        return ((values[0] == places) | (values[0] == places - function.width)).astype(function.dtype)
    if function.operator == "matmul":
        m, k, n = dict(function.attributes)["sizes"]
        left, right = (value.astype(np.float64).reshape(-1, *shape) for value, shape in zip(values, ((m, k), (k, n))))
        return (left @ right).astype(function.dtype).reshape(-1, m * n)
    if function.operator == "pick":
        columns = [np.broadcast_to(value, (len(indices), value.shape[-1])) for value in values]
        return np.concatenate(columns, axis=1)[:, list(dict(function.attributes)["positions"])]
    attributes = dict(function.attributes)
    return _computed(function.operator, attributes.pop("opset", 0), values, attributes)


def _computed(operator: str, opset: int, values: list[np.ndarray], attributes: dict) -> np.ndarray:
    with np.errstate(all="ignore"):
        if operator in ON_CONSTANTS:
            return ON_CONSTANTS[operator](*values, **attributes)
        return evaluate_rows(operator, opset, values, attributes)
