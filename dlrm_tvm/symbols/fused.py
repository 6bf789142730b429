"""Operators that are several of a DLRM's computations in one, taken apart into those.

Einsum               a product of matrices, its axes transposed before and after
BatchNormalization   x * (scale / sqrt(var + epsilon)) + (bias - mean * scale / sqrt(var + epsilon))
Softmax              of two values: the sigmoids of their differences
FusedGemm            Gemm, then Relu or Sigmoid        (com.microsoft: what ONNX Runtime's optimizer writes)
FusedMatMul          MatMul of transposed matrices
Gelu, QuickGelu      x * (1 + erf(x / sqrt(2))) / 2 and x * sigmoid(alpha x), behind a lookup
"""

from __future__ import annotations

import numpy as np

from .computations import Computations, Value
from .expressions import Symbols
from .lookup_operators import on_lookups

FUSED_DOMAIN = "com.microsoft"
_DIFFERENCES = np.array([[1, -1], [-1, 1]], np.float32)
_ACTIVATIONS = {b"Relu": "relu", b"Sigmoid": "sigmoid"}


def einsum(computations: Computations, *operands: Value, equation: bytes) -> Symbols:
    """Of two operands with one common letter that the result lacks. Raises ValueError for any other."""
    letters, wanted = _letters(equation.decode(errors="replace").replace(" ", ""))
    if len(operands) != 2 or len(letters) != 2:
        raise ValueError(f"is {equation.decode(errors='replace')!r}; a product of two arrays is wanted")
    left, right = letters
    summed = set(left) & set(right) - set(wanted)
    both = [letter for letter in left if letter in right and letter in wanted]
    only = [[letter for letter in own if letter not in both and letter not in summed] for own in letters]
    if len(summed) != 1 or sorted(wanted) != sorted([*both, *only[0], *only[1]]) or len(set(wanted)) != len(wanted):
        raise ValueError(f"is {equation.decode(errors='replace')!r}; a product of matrices is wanted")
    (common,) = summed
    sides = [
        _arranged(value, own, [*both, *lone, common], len(both)) for value, own, lone in zip(operands, letters, only)
    ]
    if not isinstance(sides[1], Symbols) or not isinstance(sides[0], Symbols):
        data, weight = sides if isinstance(sides[0], Symbols) else sides[::-1]
        if both or weight.ndim != 2:
            raise ValueError("multiplies by a constant that differs between items")
        result = computations.matmul(data, weight.T)
        order = [*only[0], *only[1]] if data is sides[0] else [*only[1], *only[0]]
    else:
        result = computations.matmul(sides[0], _moved(sides[1], lambda array: np.swapaxes(array, -1, -2)))
        order = [*both, *only[0], *only[1]]
    sizes = {letter: size for value, own in zip(operands, letters) for letter, size in zip(own, _array(value).shape)}
    shaped = _moved(result, lambda array: array.reshape([sizes[letter] for letter in order]))
    return _moved(shaped, lambda array: np.transpose(array, [order.index(letter) for letter in wanted]))


def _letters(equation: str) -> tuple[list[str], str]:
    terms, _, result = equation.partition("->")
    letters = terms.split(",")
    if not all(term.isalpha() and len(set(term)) == len(term) for term in letters) or not (result or "a").isalpha():
        raise ValueError(f"is {equation!r}, whose axes have no letters of their own")
    once = sorted(letter for letter in set("".join(letters)) if "".join(letters).count(letter) == 1)
    return letters, result if "->" in equation else "".join(once)


def _arranged(value: Value, letters: str, order: list[str], batch: int) -> Value:
    """Axes in this order; those between the first `batch` ones and the last one as one."""

    def arranged(array: np.ndarray) -> np.ndarray:
        moved = np.transpose(array, [letters.index(letter) for letter in order])
        return moved.reshape(*moved.shape[:batch], -1, moved.shape[-1])

    return _moved(value, arranged)


def _array(value: Value) -> np.ndarray:
    return value.ids if isinstance(value, Symbols) else value


def _moved(value: Value, move) -> Value:
    return Symbols(move(value.ids), value.real) if isinstance(value, Symbols) else move(value)


def batch_normalization(
    computations: Computations,
    data: Value,
    scale: Value,
    bias: Value,
    mean: Value,
    variance: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> Symbols:
    """Of [items, values], or of [items, values, n] whose second axis the constants belong to."""
    constants = (scale, bias, mean, variance)
    if training_mode or not isinstance(data, Symbols) or any(isinstance(each, Symbols) for each in constants):
        raise ValueError("normalizes by what the items give, as in training")
    if data.ids.ndim < 2 or any(each.shape != (data.ids.shape[1],) for each in constants):
        raise ValueError(f"normalizes values of shape {data.ids.shape} by {scale.shape} constants")
    wide = [each.astype(np.float64) for each in constants]
    factors = wide[0] / np.sqrt(wide[3] + epsilon)
    shifts = (wide[1] - wide[2] * factors).astype(np.float32)
    column = (-1, *(1,) * (data.ids.ndim - 2))
    factors, shifts = factors.reshape(column), shifts.reshape(column)
    scaled = on_lookups(computations.lookups, "Mul", [data, factors.astype(np.float32)], {})
    return computations.add(computations.times(data, factors) if scaled is None else scaled, shifts)


def softmax(computations: Computations, data: Value, **attributes: object) -> Symbols:
    found = on_lookups(computations.lookups, "Softmax", [data], attributes)
    if found is not None:
        return found
    if data.ids.ndim != 2 or data.ids.shape[1] != 2 or attributes.get("axis", 1) not in (1, -1) or not data.real:
        raise ValueError("is no softmax of two values of each item")
    logits = Symbols(computations.expressions.linear(data.ids, _DIFFERENCES, False), True)
    return computations.function("sigmoid", logits)


def fused_gemm(
    computations: Computations,
    *inputs: Value,
    activation: bytes = b"",
    activation_alpha: float = 0.0,
    activation_beta: float = 0.0,
    activation_gamma: float = 0.0,
    **attributes: object,
) -> Symbols:
    result = computations.gemm(*inputs, **attributes)
    if activation and activation not in _ACTIVATIONS:
        raise ValueError(f"ends in {activation.decode(errors='replace')!r}; Relu and Sigmoid are read")
    return computations.function(_ACTIVATIONS[activation], result) if activation else result


def fused_matmul(
    computations: Computations,
    a: Value,
    b: Value,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803 - ONNX Runtime's name
    transB: int = 0,  # noqa: N803
    transBatchA: int = 0,  # noqa: N803
    transBatchB: int = 0,  # noqa: N803
) -> Symbols:
    if transBatchA or transBatchB:
        raise ValueError("transposes the items")
    a, b = (
        _moved(each, lambda array: np.swapaxes(array, -1, -2)) if turn else each
        for each, turn in ((a, transA), (b, transB))
    )
    result = computations.matmul(a, b)
    return result if alpha == 1 else computations.times(result, np.float32(alpha))


def gelu(computations: Computations, data: Value) -> Symbols:
    one = _behind_lookup(
        computations, "Add", _behind_lookup(computations, "Erf", _scaled(computations, data, 0.5**0.5)), 1
    )
    return _scaled(computations, _behind_lookup(computations, "Mul", data, one), 0.5)


def quick_gelu(computations: Computations, data: Value, *, alpha: float = 1.702) -> Symbols:
    gate = _behind_lookup(computations, "Sigmoid", _scaled(computations, data, alpha))
    return _behind_lookup(computations, "Mul", data, gate)


def _scaled(computations: Computations, data: Value, factor: float) -> Symbols:
    return _behind_lookup(computations, "Mul", data, factor)


def _behind_lookup(computations: Computations, operator: str, *inputs: Value | float) -> Symbols:
    values = [np.float32(value) if isinstance(value, (int, float)) else value for value in inputs]
    found = on_lookups(computations.lookups, operator, values, {})
    if found is None:
        raise ValueError("is an activation other than ReLU and sigmoid")
    return found


def domains_of(operator: str) -> tuple[str, ...]:
    """Those in which an operator is the one that is read."""
    plain = ("", "ai.onnx")
    return (FUSED_DOMAIN, *plain) if (FUSED_DOMAIN, operator) in FUSED else plain


FUSED = {
    ("", "Einsum"): einsum,
    ("", "BatchNormalization"): batch_normalization,
    ("", "Softmax"): softmax,
    (FUSED_DOMAIN, "FusedGemm"): fused_gemm,
    (FUSED_DOMAIN, "FusedMatMul"): fused_matmul,
    (FUSED_DOMAIN, "Gelu"): gelu,
    (FUSED_DOMAIN, "QuickGelu"): quick_gelu,
}
