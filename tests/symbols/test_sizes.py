"""What is refused before it is made: more than the limit, unless as much is given. Nothing large is made here."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_tvm.symbols.sizes import MOST_MADE_ELEMENTS, check_size


def _of(*shape: int) -> np.ndarray:
    """Of one number in memory."""
    return np.broadcast_to(np.float32(1), shape)


TABLE, SIDE = _of(MOST_MADE_ELEMENTS, 2), 1 << 13
AS_MUCH_AS_GIVEN = {
    "a table scaled": ("Mul", [TABLE, _of(1)], {}),
    "tables joined": ("Concat", [TABLE, _of(5, 2)], {"axis": 0}),
    "a table multiplied": ("MatMul", [TABLE, _of(2, 2)], {}),
    "a table normalized": ("BatchNormalization", [TABLE, *[_of(2)] * 4], {}),
    "rows by a condition": ("Compress", [_of(SIDE, 1), _of(SIDE)], {"axis": 0}),
    "elements by indices": ("GatherElements", [_of(1, SIDE), _of(SIDE, 1)], {"axis": 1}),
    "elements replaced": ("ScatterElements", [_of(SIDE, 1), _of(1, SIDE), _of(1, SIDE)], {}),
    "a product over two axes": ("ReduceProd", [_of(MOST_MADE_ELEMENTS, 1), np.array([0, 1])], {}),
    "a table summed": ("Einsum", [TABLE], {"equation": "ij->j"}),
}
MORE = {
    "one table joined with itself": ("Concat", [TABLE, TABLE], {"axis": 0}),
    "places of a table": ("GatherND", [TABLE, np.broadcast_to(0, (MOST_MADE_ELEMENTS * 3, 1))], {}),
    "places of elements": ("NonZero", [_of(MOST_MADE_ELEMENTS, 1, 1)], {}),
    "powers": ("Pow", [_of(SIDE, 1), _of(SIDE)], {}),
    "normalized": ("BatchNormalization", [_of(SIDE, 1), *[_of(SIDE)] * 4], {}),
    "a product": ("MatMul", [_of(SIDE, 1), _of(1, SIDE)], {}),
    "many products": ("MatMul", [_of(SIDE, 1, 1, 3), _of(SIDE, 3, 1)], {}),
    "a transposed product": ("Gemm", [_of(1, SIDE), _of(SIDE, 1)], {"transA": 1, "transB": 1}),
    "letters": ("Einsum", [_of(SIDE), _of(SIDE)], {"equation": "i,j"}),
    "letters of several sizes": ("Einsum", [_of(1, SIDE), _of(SIDE, 1)], {"equation": "ij,ij->ij"}),
    "letters with dots": ("Einsum", [_of(SIDE), _of(SIDE)], {"equation": "...i,...j->...ij"}),
}


@pytest.mark.parametrize("name", AS_MUCH_AS_GIVEN)
def test_as_much_as_is_given_may_be_made(name: str) -> None:
    check_size(*AS_MUCH_AS_GIVEN[name])


@pytest.mark.parametrize("name", MORE)
def test_more_is_refused_in_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=r"makes [\d,]+ elements of [\d,]+; 33,554,432 at most are made"):
        check_size(*MORE[name])
