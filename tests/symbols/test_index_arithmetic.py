"""What a graph computes from an index is a table for exactly those indices that it computes so: signs, overflow, casts,
weights of parts, parts of one array. Compared with ONNX Runtime on the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from field_graphs import DENSE, DIM, ROWS, Builder, feed_of, plain, write_graph
from graphs import onnxruntime_outputs, onnxruntime_session
from onnx import TensorProto

from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.bags import wrapped_indices
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.reference import predict
from dlrm_tvm.symbols.operators import divide

ITEMS = 60
MOST_INT64 = np.iinfo(np.int64).max


def _read(tmp_path: Path, embed: Callable, *, last: int | None = None) -> Dlrm:
    """Our reading, once all indices that it takes, up to `last` in the first table, give ONNX Runtime's outputs."""
    pytest.importorskip("onnxruntime")
    path = write_graph(tmp_path / "g.onnx", embed=embed)
    model, rng = read_dlrm(path), np.random.default_rng(4)
    ends = [dict(model.graph_inputs.wraps).get(t, table.num_rows - 1) + 1 for t, table in enumerate(model.tables)]
    ends[0] = min(ends[0], MOST_INT64 if last is None else last + 1)
    indices = np.stack([rng.integers(0, end, ITEMS) for end in ends], axis=1)
    indices[-1, 0] = ends[0] - 1
    dense = rng.uniform(-2, 2, (ITEMS, DENSE)).astype(np.float32)
    wanted = onnxruntime_outputs(onnxruntime_session(path), feed_of(dense, indices, "separate"))
    rows = wrapped_indices(indices, [table.num_rows for table in model.tables], model.graph_inputs.wraps)
    np.testing.assert_allclose(predict(model, dense, rows), wanted, rtol=1e-5, atol=2e-6)
    return model


def _first(rows: int, at: Callable[[Builder, str], str]) -> Callable:
    """The first table with a row number made of its index."""
    return lambda b, indices: [b.add("Gather", b.table(rows), at(b, indices[0])), *plain(b, indices[1:])]


def _cast(b: Builder, index: str, *types: int) -> str:
    for to in types:
        index = b.add("Cast", index, to=to)
    return index


def _mod(b: Builder, index: str, constant: int, **attributes: int) -> str:
    return b.add("Mod", index, b.constant(constant), **attributes)


def _behind_zero(b: Builder, index: str) -> str:
    return b.add("Sub", index, b.constant(5))


NARROW = (TensorProto.INT8, TensorProto.INT64)

# Per function of the index: rows of its table, the function, rows that we read.
FINITE = {
    "int8": (200, lambda b, i: _cast(b, i, *NARROW), 200),
    "divided by the lowest number": (
        200,
        lambda b, i: b.add("Add", i, b.add("Div", i, b.constant(np.iinfo(np.int64).min))),
        200,
    ),
    "int8 moved": (200, lambda b, i: b.add("Add", _cast(b, i, *NARROW), b.constant(3)), 200),
}

# Tables of the stored rows' number would refuse most indices that these are for.
UNREPEATED = {
    "int8 hashed": (7, lambda b, i: _mod(b, _cast(b, i, *NARROW), 7)),
    "quotients of negative numbers": (4, lambda b, i: _mod(b, b.add("Div", _behind_zero(b, i), b.constant(3)), 4)),
    "remainders of negative numbers": (10, lambda b, i: _mod(b, _behind_zero(b, i), 7, fmod=1)),
    "bits": (7, lambda b, i: _mod(b, b.add("BitwiseXor", i, b.add("Div", i, b.constant(8))), 7)),
}


@pytest.mark.parametrize("name", FINITE)
def test_what_does_not_repeat_itself_is_read_for_as_many_indices_as_the_table_has_rows(name, tmp_path: Path) -> None:
    rows, at, found = FINITE[name]
    model = _read(tmp_path, _first(rows, at))
    assert (model.tables[0].num_rows, model.graph_inputs.wraps) == (found, ())


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
def test_whole_numbers_are_divided_towards_zero(dtype) -> None:
    least, most = (int(each) for each in (np.iinfo(dtype).min, np.iinfo(dtype).max))
    numbers = [n for n in (least, least + 1, -7, -3, -1, 0, 1, 2, 3, 7, most - 1, most) if least <= n]
    pairs = [(n, by) for n in numbers for by in numbers if by and (n, by) != (least, -1)]
    found = divide(*(np.array(each, dtype) for each in zip(*pairs)))
    wanted = [abs(n) // abs(by) * (-1 if (n < 0) != (by < 0) else 1) for n, by in pairs]
    assert found.dtype == dtype and found.tolist() == wanted


@pytest.mark.parametrize("name", UNREPEATED)
def test_a_hash_that_is_not_found_to_repeat_itself_is_refused(name, tmp_path: Path) -> None:
    rows, at = UNREPEATED[name]
    with pytest.raises(UserError, match=r"hashed index, .* hashes indices in a way that was not found to repeat"):
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=_first(rows, at), opset=18))


# Per function of the index: it, the rows that we read, the last index before a type overflows.
HASHED = {
    "plain": (lambda b, i: _mod(b, i, 10), 10, MOST_INT64),
    "multiplied": (lambda b, i: _mod(b, b.add("Mul", i, b.constant(2654435761)), 10), 10, MOST_INT64 // 2654435761),
    "added": (lambda b, i: _mod(b, b.add("Add", i, b.constant(1 << 62)), 10), 10, MOST_INT64 - (1 << 62)),
    "quotients": (lambda b, i: _mod(b, b.add("Div", i, b.constant(3)), 10), 30, None),
    "a difference": (
        lambda b, i: b.add("Sub", i, b.add("Mul", b.add("Div", i, b.constant(10)), b.constant(10))),
        10,
        None,
    ),
    "int32": (lambda b, i: _cast(b, _mod32(b, i), TensorProto.INT64), 10, (1 << 31) - 1),
    "as PyTorch writes it up to opset 10": (
        lambda b, i: b.add("Sub", i, b.add("Mul", _floored(b, i, 10), b.constant(10))),
        10,
        None,
    ),
}


def _floored(b: Builder, index: str, divisor: int) -> str:
    """The quotient as PyTorch's exporter corrects it for negative numbers."""
    by, zero = b.constant(divisor), b.constant(0)
    quotient = b.add("Div", index, by)
    exact = b.add("Equal", b.add("Sub", index, b.add("Mul", quotient, by)), zero)
    signs = b.add("Xor", b.add("Less", index, zero), b.constant(False, bool))
    less = b.add("Mul", _cast(b, b.add("And", signs, b.add("Not", exact)), TensorProto.INT64), b.constant(1))
    return b.add("Sub", quotient, less)


def _mod32(b: Builder, index: str) -> str:
    return b.add("Mod", _cast(b, index, TensorProto.INT32), b.constant(10, np.int32))


@pytest.mark.parametrize("name", HASHED)
def test_a_hash_repeats_itself_until_a_type_overflows(name: str, tmp_path: Path) -> None:
    at, rows, last = HASHED[name]
    model = _read(tmp_path, _first(10, at))
    ((table, found),) = model.graph_inputs.wraps
    assert (table, model.tables[0].num_rows) == (0, rows)
    assert last is None or abs(found - last) < rows


def test_indices_behind_the_last_one_that_repeats_stay_and_are_refused() -> None:
    indices = np.array([[9, 9], [10, 10], [25, 25], [26, 26], [-1, -1]], np.int32)
    wrapped = wrapped_indices(indices, (10, 10), ((0, 25), (1, MOST_INT64)))
    np.testing.assert_array_equal(wrapped, [[9, 9], [0, 0], [5, 5], [26, 6], [-1, -1]])


def test_a_hash_that_overflows_before_it_repeats_itself_is_refused(tmp_path: Path) -> None:
    def at(b: Builder, index: str) -> str:
        return _mod(b, b.add("Mul", index, b.constant(6364136223846793005)), 10)

    with pytest.raises(UserError, match=r"hashed index.* overflows from the index 2 on, before it repeats itself"):
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=_first(10, at)))


def test_what_reads_no_table_is_refused_in_words(tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        index = b.add("Cast", b.add("Unsqueeze", indices[0], b.constant([1])), to=TensorProto.FLOAT)
        return [b.add("MatMul", index, b.table(1)), *plain(b, indices[1:])]

    with pytest.raises(UserError, match=r"\(projected rows\) looks up no table"):
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=embed))


def _doubled(b: Builder, index: str) -> str:
    for _ in range(60):
        index = b.add("Max", index, index)
    return index


def test_a_function_whose_parts_are_used_twice_each_is_read_in_no_time(tmp_path: Path) -> None:
    """Taken apart path by path it would have 2^60 parts."""
    assert _read(tmp_path, _first(11, _doubled)).tables[0].num_rows == 11


def test_a_hash_into_more_rows_than_can_be_tried_is_read_by_its_range(tmp_path: Path) -> None:
    model = _read(tmp_path, _first(10, lambda b, i: _mod(b, _mod(b, i, (1 << 31) - 1), 10)))
    assert model.tables[0].num_rows == (1 << 31) - 1


def _chain(b: Builder, index: str) -> str:
    for _ in range(600):
        index = b.add("Add", index, b.constant(0))
    return index


def _wide(b: Builder, index: str) -> str:
    return b.add("Min", _mod(b, index, 1 << 31), b.constant(9))


@pytest.mark.parametrize(
    ("at", "reason"),
    [(_chain, "is made by 602 operations, 256 at most are read"), (_wide, "tells 2,147,483,648 indices apart")],
)
def test_a_function_too_long_to_follow_is_refused_in_one_line(at: Callable, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=_first(10, at)))
    assert reason in str(caught.value) and "\n" not in str(caught.value)


# --- parts


def _weight(b: Builder, index: str) -> str:
    return b.add("Unsqueeze", b.add("Gather", b.random(18), index), b.constant([1]))


@pytest.mark.parametrize("weight", [_weight, lambda b, index: b.constant(2, np.float32)])
def test_a_weighted_part_beside_another_keeps_its_weight(weight: Callable, tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        halves = [b.add("Gather", b.table(11, DIM // 2), indices[0]) for _ in range(2)]
        halves[0] = b.add("Mul", halves[0], weight(b, indices[0]))
        return [b.add("Concat", *halves, axis=1), *plain(b, indices[1:])]

    _read(tmp_path, embed)


def test_a_weighted_part_of_a_joint_table_keeps_its_weights(tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        table = b.table(18)
        first = b.add("Mul", b.add("Gather", table, indices[0]), _weight(b, indices[0]))
        second = b.add("Gather", table, b.add("Add", indices[1], b.constant(11)))
        return [first, second, *plain(b, indices[2:])]

    model = _read(tmp_path, embed)
    assert [table.num_rows for table in model.tables] == [11, 7, ROWS[2]]
    assert len(model.tables[0].row_weights) == 11


def test_columns_and_overlapping_parts_of_one_array_are_whole_tables(tmp_path: Path) -> None:
    def columns(b: Builder, indices: list[str]) -> list[str]:
        halves = b.add("Split", b.table(11, 2 * DIM), b.constant([DIM, DIM]), outputs=2, axis=1)
        return [*(b.add("Gather", *pair) for pair in zip(halves, indices)), *plain(b, indices[2:])]

    def slices(b: Builder, indices: list[str]) -> list[str]:
        table, axis = b.table(15), b.constant([0])
        parts = [b.add("Slice", table, b.constant([at]), b.constant([at + 10]), axis) for at in (0, 5)]
        return [*(b.add("Gather", *pair) for pair in zip(parts, indices)), *plain(b, indices[2:])]

    for embed, rows in ((columns, 11), (slices, 10)):
        assert [table.num_rows for table in _read(tmp_path, embed).tables] == [rows, rows, ROWS[2]]


def test_sums_cut_off_to_whole_numbers_are_no_sums_of_such(tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        sums = [b.add("ReduceSum", rows, b.constant([1]), keepdims=0) for rows in plain(b, indices)]
        return [_cast(b, sums[0], TensorProto.INT64, TensorProto.FLOAT), *sums[1:]]

    with pytest.raises(UserError, match=r"no table tells what node Cast_\d+ \(Cast\) makes of pooled rows"):
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=embed, layout="bags"))


def _softmax(b: Builder, rows: str) -> str:
    return b.add("Softmax", rows)


def _by_sums(b: Builder, rows: str) -> str:
    return b.add("LpNormalization", rows, axis=-1, p=1)


@pytest.mark.parametrize(("operator", "opset"), [(_softmax, 11), (_by_sums, 17)])
def test_what_is_not_computed_row_by_row_as_onnxruntime_does_is_refused(operator, opset: int, tmp_path: Path) -> None:
    """Softmax goes over all axes from the second on up to operator set 12."""

    def embed(b: Builder, indices: list[str]) -> list[str]:
        first, *others = plain(b, indices)
        return [b.add("ReduceMean", rows, axes=[1], keepdims=0) for rows in (operator(b, first), *others)]

    path = write_graph(tmp_path / "g.onnx", embed=embed, layout="bags", opset=opset)
    with pytest.raises(
        UserError, match=r"node (Softmax_\d+ .* is no softmax of two|LpNormalization_\d+ .* is no operation)"
    ):
        read_dlrm(path)


def test_a_number_made_of_the_index_is_added_to_all_elements(tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        first, *others = plain(b, indices)
        wide = b.add("Expand", b.add("Unsqueeze", indices[0], b.constant([1])), b.constant([1, DIM]))
        odd = b.add("Mod", b.add("Add", wide, b.constant(5)), b.constant(2))
        return [b.add("Add", first, b.add("Cast", odd, to=TensorProto.FLOAT)), *others]

    _read(tmp_path, embed)


def test_a_node_repeated_at_the_end_is_read_where_it_stands_first(tmp_path: Path) -> None:
    model = onnx.load(write_graph(tmp_path / "g.onnx"))
    original = read_dlrm(tmp_path / "g.onnx").fingerprint
    model.graph.node.append(model.graph.node[0])
    onnx.save(model, tmp_path / "g.onnx")
    assert read_dlrm(tmp_path / "g.onnx").fingerprint == original


def test_padding_to_more_values_than_memory_has_is_refused_before_it_is_made(tmp_path: Path) -> None:
    def join(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
        return b.add("Pad", b.add("Concat", x, *vectors, axis=1), b.constant([0, 0, 0, 1 << 31])), 4 * DIM

    with pytest.raises(UserError, match=r"node Pad_\d+ .* pads to 10737418320 values"):
        read_dlrm(write_graph(tmp_path / "g.onnx", join=join))
