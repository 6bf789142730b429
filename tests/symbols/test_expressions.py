"""Formulas get equal numbers exactly where they are equal."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_tvm.symbols.expressions import Expressions

TABLE = np.zeros((9, 4), np.float32)


@pytest.fixture
def expressions() -> Expressions:
    return Expressions()


def rows(expressions: Expressions, count: int) -> np.ndarray:
    functions = expressions.functions
    row = functions.gather(TABLE, functions.index(np.dtype(np.int64)), "table")
    return expressions.looked_up(row, expressions.vector(("index", "i", 0), count))


def test_a_function_of_a_part_is_the_part_of_the_function(expressions: Expressions) -> None:
    x = rows(expressions, 3)
    whole = expressions.apply("relu", x)
    np.testing.assert_array_equal(expressions.apply("relu", x[1:, 2:]), whole[1:, 2:])
    assert not np.isin(expressions.apply("sigmoid", x), whole).any()


def test_sums_and_means_do_not_depend_on_the_order_but_on_each_member(expressions: Expressions) -> None:
    x = rows(expressions, 4).T  # [4 places, 4 rows]
    for kind in ("sum", "mean"):
        pooled = expressions.pool(kind, x[:, :3])
        np.testing.assert_array_equal(expressions.pool(kind, x[:, [2, 0, 1]]), pooled)
        np.testing.assert_array_equal(expressions.pool(kind, x[1:2, :3]), pooled[1:2])
        for other in ([0, 1, 3], [0, 1, 1, 2], [0, 1], [0, 0, 1]):
            assert not np.isin(expressions.pool(kind, x[:, other]), pooled).any()
    assert not np.isin(expressions.pool("sum", x), expressions.pool("mean", x)).any()


def test_the_sum_of_one_row_is_the_row_and_of_none_is_zero(expressions: Expressions) -> None:
    x = rows(expressions, 2).T
    np.testing.assert_array_equal(expressions.pool("sum", x[:, :1]), x[:, 0])
    for kind in ("sum", "mean"):
        zeros = expressions.pool(kind, x[:, :0])
        np.testing.assert_array_equal(zeros, expressions.constants(np.zeros(4, np.float32)))


def test_a_sum_over_its_own_number_of_rows_is_their_mean(expressions: Expressions) -> None:
    x = rows(expressions, 3).T
    sums = expressions.pool("sum", x)
    np.testing.assert_array_equal(expressions.divide(sums, np.float32(3)), expressions.pool("mean", x))
    with pytest.raises(ValueError, match="divides a sum of 3 rows by 2"):
        expressions.divide(sums, np.float32(2))


def test_elements_of_different_places_are_not_added(expressions: Expressions) -> None:
    x = rows(expressions, 2)
    with pytest.raises(ValueError, match="different places"):
        expressions.pool("sum", np.stack([x[0, :2], x[1, 1:3]], axis=1))


def test_products_are_equal_in_either_order_and_for_equal_vectors_alone(expressions: Expressions) -> None:
    x = rows(expressions, 5)[None]
    all_pairs = expressions.dot(x, x)[0]
    np.testing.assert_array_equal(all_pairs, all_pairs.T)
    assert len(np.unique(all_pairs)) == 15
    np.testing.assert_array_equal(expressions.dot(x[:, 3:], x[:, :2])[0], all_pairs[3:, :2])
    shifted = np.roll(x, 1, axis=-1)
    assert not np.isin(expressions.dot(shifted, x), all_pairs).any()
    (kind, *factors), _ = expressions.key(int(all_pairs[4, 2]))
    assert (kind, sorted(factors)) == ("dot", [int(x[0, 2, 0]), int(x[0, 4, 0])])


def test_rows_times_one_are_the_rows_and_times_others_differ(expressions: Expressions) -> None:
    functions = expressions.functions
    row = functions.gather(TABLE, functions.index(np.dtype(np.int64)), "table")
    once, twice, again = (functions.apply("Mul", [row, np.float32([factor])], {}) for factor in (1, 2, 2))
    assert once is row is not twice is again


def test_vectors_put_together_otherwise_are_other_inputs_of_a_layer(expressions: Expressions) -> None:
    x, weight = rows(expressions, 2), np.zeros((3, 4), np.float32)
    outputs = expressions.linear(x, weight, True)
    np.testing.assert_array_equal(expressions.linear(x[::-1], weight, True), outputs[::-1])
    swapped = expressions.linear(x[:, [1, 0, 2, 3]], weight, True)
    assert not np.isin(swapped, outputs).any()
    ((_, _, row),) = expressions.operands("linear", swapped[:1])
    np.testing.assert_array_equal(expressions.elements(row), x[0, [1, 0, 2, 3]])
