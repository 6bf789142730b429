"""Graphs as people build them are read as ONNX Runtime computes them: the order of features, layouts, embeddings."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from field_graphs import (
    DENSE,
    DIM,
    ITEMS,
    LOWER,
    ROWS,
    Builder,
    check,
    feed_of,
    lower_triangle,
    picked,
    plain,
    products,
    stacked,
    write_graph,
)
from graph_mutations import mutate
from graphs import onnxruntime_outputs, onnxruntime_session
from onnx import TensorProto

from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.computed_rows import ComputedRows
from dlrm_tvm.model.interactions import Concat, Cross, Dot
from dlrm_tvm.model.reference import predict
from dlrm_tvm.paths import ROOT

CASES = ROOT / "tests" / "field_cases"


# --- what is joined


def _upper(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    return b.add("Concat", x, picked(b, products(b, [x, *vectors]), pairs, 4), axis=1), DIM + 6


def _all_pairs(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    flat = b.add("Reshape", products(b, [x, *vectors]), b.constant([-1, 16]))
    return b.add("Concat", x, flat, axis=1), DIM + 16


def _dense_last(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    return b.add("Concat", picked(b, products(b, [x, *vectors]), LOWER, 4), x, axis=1), DIM + 6


def _x_last_among_vectors(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    return b.add("Concat", x, picked(b, products(b, [*vectors, x]), LOWER, 4), axis=1), DIM + 6


def _padded(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    joined, width = lower_triangle(b, x, vectors)
    return b.add("Pad", joined, b.constant([0, 0, 0, 6])), width + 6


def _with_a_constant(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    joined, width = lower_triangle(b, x, vectors)
    size = b.add("Shape", x, start=0, end=1)
    shape = b.add("Concat", size, b.constant([2]), axis=0)
    return b.add("Concat", b.add("Expand", b.constant(0.7, np.float32), shape), joined, axis=1), width + 2


def _masked(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    mask = b.constant(np.tril(np.ones((4, 4)), -1), np.float32)
    flat = b.add("Reshape", b.add("Mul", products(b, [x, *vectors]), mask), b.constant([-1, 16]))
    return b.add("Concat", x, flat, axis=1), DIM + 16


def _chosen(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    mask, zero = b.constant(np.tri(4, k=-1), bool), b.constant(0, np.float32)
    flat = b.add("Reshape", b.add("Where", mask, products(b, [x, *vectors]), zero), b.constant([-1, 16]))
    return b.add("Concat", x, flat, axis=1), DIM + 16


def _triangle(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    dots = b.add("Trilu", products(b, [x, *vectors]), b.constant(1))
    return b.add("Concat", x, b.add("Reshape", dots, b.constant([-1, 16])), axis=1), DIM + 16


def _scaled(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    dots = b.add("Div", products(b, [x, *vectors]), b.constant(DIM**0.5, np.float32))
    return b.add("Concat", x, picked(b, dots, LOWER, 4), axis=1), DIM + 6


def _einsum(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    z = stacked(b, [x, *vectors])
    return b.add("Concat", x, picked(b, b.add("Einsum", z, z, equation="bnd, bmd -> bmn"), LOWER, 4), axis=1), DIM + 6


def _products_summed(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    z = stacked(b, [x, *vectors])
    left, right = (b.add("Gather", z, b.constant([pair[at] for pair in LOWER]), axis=1) for at in (0, 1))
    dots = b.add("ReduceSum", b.add("Mul", left, right), b.constant([2]), keepdims=0)
    return b.add("Concat", x, dots, axis=1), DIM + 6


def _gather_nd(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    turned = b.add("Transpose", products(b, [x, *vectors]), perm=[1, 2, 0])
    dots = b.add("Transpose", b.add("GatherND", turned, b.constant(LOWER[::-1])), perm=[1, 0])
    return b.add("Concat", dots, x, axis=1), DIM + 6


def _compressed(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    flat = b.add("Reshape", products(b, [x, *vectors]), b.constant([-1, 16]))
    kept = b.constant(np.tri(4, k=-1).T.ravel(), bool)
    return b.add("Concat", x, b.add("Compress", flat, kept, axis=1), axis=1), DIM + 6


def _some_pairs(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    return picked(b, products(b, [x, *vectors]), [(3, 0), (1, 2), (0, 1), (0, 3)], 4), 4


def _fused(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    z = stacked(b, [x, *vectors])
    dots = picked(b, b.add("FusedMatMul", z, z, transB=1, alpha=0.5), LOWER, 4)
    return b.add("FusedGemm", b.add("Concat", x, dots, axis=1), b.random(DIM + 6, 5), activation="Relu"), 5


DOTS = {
    "upper triangle": _upper,
    "all pairs": _all_pairs,
    "dense last": _dense_last,
    "x last": _x_last_among_vectors,
    "zero padding": _padded,
    "a constant": _with_a_constant,
    "a mask": _masked,
    "Where": _chosen,
    "Trilu": _triangle,
    "divided by a root": _scaled,
    "Einsum": _einsum,
    "products summed": _products_summed,
    "GatherND": _gather_nd,
    "Compress": _compressed,
    "some pairs": _some_pairs,
    "fused": _fused,
}


@pytest.mark.parametrize("name", DOTS)
def test_dots_in_any_order_are_read_as_onnxruntime_computes_them(name: str, tmp_path: Path) -> None:
    model = check(write_graph(tmp_path / "g.onnx", join=DOTS[name]))
    assert model.interaction == Dot(with_self=name in ("all pairs",))


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (3, 2, 1, 0), (0, 0, 1, 2, 3, 2)])
def test_vectors_joined_in_any_order_and_number_are_read_as_onnxruntime_computes_them(order, tmp_path: Path) -> None:
    def join(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
        return b.add("Concat", *([x, *vectors][at] for at in order), axis=1), DIM * len(order)

    assert check(write_graph(tmp_path / "g.onnx", join=join)).interaction == Concat()


def _of_widths(*widths: int):
    def embed(b: Builder, indices: list[str]) -> list[str]:
        return [b.add("Gather", b.table(rows, width), index) for rows, width, index in zip(ROWS, widths, indices)]

    return embed


def _joined(*widths: int):
    def join(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
        return b.add("Concat", *vectors, x, axis=1), DIM + sum(widths)

    return join


def _crossed(b: Builder, x0: str, width: int) -> str:
    """A layer of low rank, one of full rank."""
    x = x0
    for gate in (lambda x: b.layer(b.layer(x, width, 3), 3, width), lambda x: b.layer(x, width, width)):
        x = b.add("Add", b.add("Mul", x0, gate(x)), x)
    return x


@pytest.mark.parametrize("widths", [(2, 4, 3), (1, 6, 4), (3, 3, 3)])
@pytest.mark.parametrize("after_join", [None, _crossed])
def test_vectors_of_different_widths_are_joined_as_onnxruntime_joins_them(widths, after_join, tmp_path: Path) -> None:
    path = write_graph(tmp_path / "g.onnx", embed=_of_widths(*widths), join=_joined(*widths), after_join=after_join)
    model = check(path)
    assert model.dim == max(DIM, *widths)
    assert isinstance(model.interaction, Concat if after_join is None else Cross)
    stored = [isinstance(table.rows, np.ndarray) for table in model.tables]
    assert stored == [width == model.dim for width in widths], "what is wide enough stays where it is"
    narrow = model.tables[stored.index(False)].rows
    assert narrow.origin.startswith("rows of ") and not narrow[:][:, min(widths) :].all()


@pytest.mark.parametrize("widths", [(2, 4, 1), (6, 2, 4)])
def test_vectors_filled_up_with_zeros_have_dots(widths, tmp_path: Path) -> None:
    dim = max(DIM, *widths)

    def join(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
        filled = [
            b.add("Pad", each, b.constant([0, 0, 0, dim - width])) for each, width in zip([x, *vectors], (DIM, *widths))
        ]
        z = b.add("Reshape", b.add("Concat", *filled, axis=1), b.constant([-1, 4, dim]))
        dots = picked(b, b.add("MatMul", z, b.add("Transpose", z, perm=[0, 2, 1])), LOWER, 4)
        return b.add("Concat", x, dots, axis=1), DIM + 6

    model = check(write_graph(tmp_path / "g.onnx", embed=_of_widths(*widths), join=join))
    assert (model.dim, model.interaction) == (dim, Dot())


def test_the_same_weights_are_the_same_model_whatever_the_order_of_the_features(tmp_path: Path) -> None:
    """A permuted first weight is what undoes a permuted join."""
    straight = read_dlrm(write_graph(tmp_path / "a.onnx"))
    turned = read_dlrm(write_graph(tmp_path / "b.onnx", join=_dense_last))
    order = [*range(6, 6 + DIM), *range(6)]
    np.testing.assert_array_equal(turned.top[0].weight, straight.top[0].weight[:, order])
    np.testing.assert_array_equal(turned.top[0].bias, straight.top[0].bias)


# --- normalizations


def _normal(b: Builder, x: str, width: int) -> str:
    constants = [b.constant(b.rng.uniform(low, 2, width), np.float32) for low in (0.5, -1, -1, 0.5)]
    return b.add("BatchNormalization", x, *constants)


def _normal_bottom(b: Builder) -> str:
    centred = b.add("Div", b.add("Sub", "dense_x", b.random(DENSE)), b.constant([0.5, 2, 3], np.float32))
    hidden = b.add("Relu", _normal(b, b.layer(centred, DENSE, 6), 6))
    return _normal(b, b.layer(_normal(b, hidden, 6), 6, DIM), DIM)


def test_batch_normalization_is_folded_into_the_layers_around_it(tmp_path: Path) -> None:
    model = check(write_graph(tmp_path / "g.onnx", bottom=_normal_bottom, after_join=_normal))
    assert [layer.activation for layer in model.bottom] == ["relu", "none"]


def test_batch_normalization_of_what_has_dots_is_refused_by_node(tmp_path: Path) -> None:
    def bottom(b: Builder) -> str:
        return _normal(b, b.layer("dense_x", DENSE, DIM, "Relu"), DIM)

    with pytest.raises(UserError, match=r"node BatchNormalization_\d+ .* gives a layer normalized or shifted values"):
        read_dlrm(write_graph(tmp_path / "g.onnx", bottom=bottom))


# --- layouts of indices


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("layout", ["separate", "columns", "items_first", "tables_first"])
def test_indices_of_every_layout_are_read(layout: str, batch: int | None, tmp_path: Path) -> None:
    model = check(write_graph(tmp_path / "g.onnx", layout=layout, batch=batch), layout=layout, items=batch or ITEMS)
    assert model.graph_inputs.items_first == (layout == "items_first")


@pytest.mark.parametrize(
    ("layout", "named"),
    [("columns", "indices_0"), ("items_first", "indices, column 0"), ("tables_first", "indices, row 0")],
)
def test_indices_that_are_used_twice_are_named_as_the_graph_has_them(layout: str, named: str, tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        return plain(b, [*indices[:2], indices[0]])

    with pytest.raises(UserError, match=f"looks up {named} in .*, though .* takes it already"):
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=embed, layout=layout))


# --- embeddings


def _joint(b: Builder, indices: list[str]) -> list[str]:
    table = b.table(sum(ROWS))
    return [
        b.add("Gather", table, b.add("Add", index, b.constant(offset)))
        for index, offset in zip(indices, (12, 0, 5))  # not in the tables' order
    ]


def _hashed(b: Builder, indices: list[str]) -> list[str]:
    return [b.add("Gather", b.table(rows), b.add("Mod", index, b.constant(rows))) for rows, index in zip(ROWS, indices)]


def _multiplied_and_hashed(b: Builder, indices: list[str]) -> list[str]:
    mixed = b.add("Add", b.add("Mul", indices[0], b.constant(37)), b.constant(5))
    return [b.add("Gather", b.table(6), b.add("Mod", mixed, b.constant(6))), *plain(b, indices[1:])]


def _quotient_remainder(combine: str):
    def embed(b: Builder, indices: list[str]) -> list[str]:
        dim = DIM // 2 if combine == "Concat" else DIM
        quotient = b.add("Div", indices[0], b.constant(4))
        remainder = b.add("Mod", indices[0], b.constant(4))
        rows = [b.add("Gather", b.table(3, dim), quotient), b.add("Gather", b.table(4, dim), remainder)]
        both = b.add("Concat", *rows, axis=1) if combine == "Concat" else b.add(combine, *rows)
        return [both, *plain(b, indices[1:])]

    return embed


def _projected(b: Builder, indices: list[str]) -> list[str]:
    narrow = [b.add("Gather", b.table(rows, 2), index) for rows, index in zip(ROWS, indices)]
    return [b.add("MatMul", rows, b.random(2, DIM)) for rows in narrow]


def _a_layer_behind(b: Builder, indices: list[str]) -> list[str]:
    first, *others = plain(b, indices)
    return [b.layer(first, DIM, DIM, "Relu"), b.add("Tanh", others[0]), b.layer(others[1], DIM, DIM)]


def _of_type(dtype: int, width: str):
    def embed(b: Builder, indices: list[str]) -> list[str]:
        kind = np.float16 if width == "float16" else onnx.helper.tensor_dtype_to_np_dtype(dtype)
        rows = [b.add("Gather", b.table(rows, dtype=kind), index) for rows, index in zip(ROWS, indices)]
        return [b.add("Cast", each, to=TensorProto.FLOAT) for each in rows]

    return embed


def _padding_index(b: Builder, indices: list[str]) -> list[str]:
    first, *others = plain(b, indices)
    real = b.add("Cast", b.add("Not", b.add("Equal", indices[0], b.constant(2))), to=TensorProto.FLOAT)
    return [b.add("Mul", first, b.add("Unsqueeze", real, b.constant([1]))), *others]


def _remapped(b: Builder, indices: list[str]) -> list[str]:
    mapped = b.add("Gather", b.constant([3, 0, 2, 2, 1, 5, 4, 0, 1, 1, 3]), indices[0])
    return [b.add("Gather", b.table(6), mapped), *plain(b, indices[1:])]


def _limited(b: Builder, indices: list[str]) -> list[str]:
    limited = b.add("Min", b.add("Max", indices[0], b.constant(0)), b.constant(5))
    return [b.add("Gather", b.table(6), limited), *plain(b, indices[1:])]


def _quantized(b: Builder, indices: list[str]) -> list[str]:
    table = b.constant(b.rng.integers(-128, 128, (ROWS[0], DIM)), np.int8)
    scale, zero = b.constant(0.01, np.float32), b.constant(3, np.int8)
    first = b.add("DequantizeLinear", b.add("Gather", table, indices[0]), scale, zero)
    return [first, *plain(b, indices[1:])]


def _behind_rows(*operators: tuple):
    """Each operator, (its name, attributes, constants' shapes), on the first table's rows."""

    def embed(b: Builder, indices: list[str]) -> list[str]:
        first, *others = plain(b, indices)
        for name, attributes, shapes in operators:
            first = b.add(name, first, *(b.random(*shape) for shape in shapes), **attributes)
        return [first, *others]

    return embed


def _of_length_one(b: Builder, indices: list[str]) -> list[str]:
    first, *others = plain(b, indices)
    return [b.add("Div", first, b.add("ReduceL2", first, axes=[1], keepdims=1)), *others]


# Per embedding: (it, the largest indices + 1, the rows of the first table that we read, whether it takes any index).
EMBEDDINGS = {
    "a joint table": (_joint, (11, 5, 7), 11, False),
    "hashed": (_hashed, (1000, 1000, 1000), 11, True),
    "multiplied and hashed": (_multiplied_and_hashed, (1000, 5, 7), 6, True),
    "quotient times remainder": (_quotient_remainder("Mul"), (12, 5, 7), 12, False),
    "quotient plus remainder": (_quotient_remainder("Add"), (12, 5, 7), 12, False),
    "quotient beside remainder": (_quotient_remainder("Concat"), (12, 5, 7), 12, False),
    "projected": (_projected, ROWS, 11, False),
    "a layer behind": (_a_layer_behind, ROWS, 11, False),
    "float16": (_of_type(TensorProto.FLOAT16, "float16"), ROWS, 11, False),
    "bfloat16": (_of_type(TensorProto.BFLOAT16, "bfloat16"), ROWS, 11, False),
    "a padding index": (_padding_index, ROWS, 11, False),
    "remapped": (_remapped, ROWS, 11, False),
    "limited": (_limited, (6, 5, 7), 6, False),
    "quantized": (_quantized, ROWS, 11, False),
    "LayerNormalization": (_behind_rows(("LayerNormalization", {}, [(DIM,), (DIM,)])), ROWS, 11, False),
    "LeakyRelu and Softmax": (_behind_rows(("LeakyRelu", {}, []), ("Softmax", {"axis": 1}, [])), ROWS, 11, False),
    "rows of length 1": (_of_length_one, ROWS, 11, False),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_function_of_one_index_is_a_table(name: str, tmp_path: Path) -> None:
    embed, most, rows, wraps = EMBEDDINGS[name]
    model = check(write_graph(tmp_path / "g.onnx", embed=embed), rows=most)
    assert model.tables[0].num_rows == rows
    assert (0 in dict(model.graph_inputs.wraps)) == wraps
    assert isinstance(model.tables[0].rows, ComputedRows) == (name != "a joint table")


@pytest.mark.parametrize("name", ["a joint table", "hashed", "quotient times remainder"])
def test_it_is_one_of_int32_indices_too(name: str, tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        wide = [b.add("Cast", index, to=TensorProto.INT64) for index in indices]
        return EMBEDDINGS[name][0](b, wide)

    path = write_graph(tmp_path / "g.onnx", embed=embed, index_type=TensorProto.INT32)
    check(path, rows=EMBEDDINGS[name][1], dtype=np.int32)


def test_a_table_goes_when_its_model_goes(tmp_path: Path) -> None:
    """Nothing that remembers keeps the map of a table of 100 GB."""
    model = read_dlrm(write_graph(tmp_path / "g.onnx", embed=EMBEDDINGS["hashed"][0]))
    kept = weakref.ref(model.tables[0].rows.compute)
    assert kept() is not None
    del model
    gc.collect()
    assert kept() is None


def test_computed_rows_are_the_same_by_slice_by_array_and_one_by_one(tmp_path: Path) -> None:
    rows = read_dlrm(write_graph(tmp_path / "g.onnx", embed=_projected)).tables[0].rows
    whole = rows[:]
    assert (whole.shape, whole.dtype, rows.nbytes) == ((11, DIM), np.float32, whole.nbytes)
    np.testing.assert_array_equal(rows[3:9], whole[3:9])
    np.testing.assert_array_equal(rows[np.array([[7, 0], [10, 7]])], whole[[[7, 0], [10, 7]]])
    np.testing.assert_array_equal(rows[4], whole[4])
    with pytest.raises(IndexError, match="row 11 of 11"):
        rows[np.array([0, 11])]


def test_a_hash_by_two_numbers_that_no_table_can_hold_is_refused_with_its_size(tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        table = b.table(9)
        parts = [b.add("Mod", indices[0], b.constant(most)) for most in (1_000_003, 999_983)]
        rows = [b.add("Gather", table, b.add("Mod", part, b.constant(9))) for part in parts]
        return [b.add("Add", *rows), *plain(b, indices[1:])]

    with pytest.raises(UserError, match=r"hashed index.* tells [\d,]+ indices apart: as a table that is [\d,.]+ TB"):
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=embed))


def test_a_function_that_uses_another_many_times_is_looked_at_once(tmp_path: Path) -> None:
    """40 doublings are a million million uses of the index."""

    def embed(b: Builder, indices: list[str]) -> list[str]:
        index = indices[0]
        for _ in range(40):
            index = b.add("Sub", b.add("Add", index, index), index)
        return [b.add("Gather", b.table(11), index), *plain(b, indices[1:])]

    assert check(write_graph(tmp_path / "g.onnx", embed=embed)).tables[0].num_rows == 11


def test_a_product_of_rows_of_two_indices_is_refused_by_node(tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        first, *others = plain(b, indices)
        return [b.add("Mul", first, others[0]), *others]

    with pytest.raises(UserError, match=r"node Mul_\d+ .* gives a layer products of computed values"):
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=embed))


# --- bags of three


def _pooled(b: Builder, rows: str, how: str = "ReduceSum") -> str:
    if how == "ReduceSum":
        return b.add(how, rows, b.constant([1]), keepdims=0)
    return b.add(how, rows, axes=[1], keepdims=0)


def _bags_behind(first):
    """The first table by `first(builder, indices)`, sums of rows of the others."""

    def embed(b: Builder, indices: list[str]) -> list[str]:
        return [first(b, indices[0]), *(_pooled(b, each) for each in plain(b, indices[1:]))]

    return embed


def _bags_masked(b: Builder, index: str) -> str:
    real = b.add("Cast", b.add("Not", b.add("Equal", index, b.constant(2))), to=TensorProto.FLOAT)
    return _pooled(b, b.add("Mul", b.add("Gather", b.table(11), index), b.add("Unsqueeze", real, b.constant([2]))))


def _bags_projected(b: Builder, index: str) -> str:
    return b.add("MatMul", _pooled(b, b.add("Gather", b.table(11, 2), index), "ReduceMean"), b.random(2, DIM))


def _bags_of_quotient_and_remainder(combine: str):
    def first(b: Builder, index: str) -> str:
        parts = [b.add(op, index, b.constant(4)) for op in ("Div", "Mod")]
        return b.add(combine, *(_pooled(b, b.add("Gather", b.table(4), part)) for part in parts))

    return first


def _bags_with_a_layer(b: Builder, index: str) -> str:
    return b.layer(_pooled(b, b.add("Gather", b.table(11), index)), DIM, DIM)


def _bags_averaged_over_a_mask(b: Builder, index: str) -> str:
    real = b.add("Cast", b.add("Not", b.add("Equal", index, b.constant(2))), to=TensorProto.FLOAT)
    return b.add("Div", _bags_masked(b, index), b.add("ReduceSum", real, b.constant([1]), keepdims=1))


@pytest.mark.parametrize("first", [_bags_masked, _bags_projected, _bags_of_quotient_and_remainder("Add")])
def test_pooling_that_commutes_leaves_a_table(first, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = write_graph(tmp_path / "g.onnx", embed=_bags_behind(first), layout="bags")
    model, rng = read_dlrm(path), np.random.default_rng(3)
    dense = rng.uniform(-2, 2, (ITEMS, DENSE)).astype(np.float32)
    indices = [rng.integers(0, rows, (ITEMS, 3)) for rows in ROWS]
    feed = {"dense_x": dense} | {f"indices_{t}": each for t, each in enumerate(indices)}
    wanted = onnxruntime_outputs(onnxruntime_session(path), feed)
    found = predict(model, dense, [each.reshape(-1) for each in indices], [np.arange(ITEMS) * 3] * 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (_bags_of_quotient_and_remainder("Mul"), "pooled rows (quotient-remainder embedding, constant_"),
        (_bags_with_a_layer, "pooled rows (projected rows, constant_"),
        (_bags_averaged_over_a_mask, "pooled rows (padding_idx, constant_"),
    ],
)
def test_pooling_that_does_not_commute_is_refused_and_named(first, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=_bags_behind(first), layout="bags"))
    assert reason in str(caught.value)
    assert "--save-onnx" not in str(caught.value)


# --- mutations

MUTATIONS = 5
MUTATED = {
    **{name: {"join": DOTS[name]} for name in ("all pairs", "a mask", "zero padding", "Einsum")},
    **{name: {"embed": EMBEDDINGS[name][0]} for name in ("a joint table", "hashed", "quotient times remainder")},
    "normalized": {"bottom": _normal_bottom, "after_join": _normal},
}


@pytest.mark.parametrize("name", MUTATED)
def test_a_mutated_one_is_refused_or_read_as_it_computes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    original, found = onnx.load(write_graph(tmp_path / "g.onnx", **MUTATED[name])), []
    for seed in range(MUTATIONS):
        model, change = mutate(original, np.random.default_rng(seed))
        onnx.save(model, tmp_path / "mutated.onnx")
        try:
            read = read_dlrm(tmp_path / "mutated.onnx")
        except UserError:
            continue
        rng = np.random.default_rng(seed)
        dense = rng.uniform(-2, 2, (ITEMS, DENSE)).astype(np.float32)
        indices = rng.integers(0, min(table.num_rows for table in read.tables), (ITEMS, len(ROWS)))
        session = onnxruntime_session(tmp_path / "mutated.onnx")
        wanted = onnxruntime_outputs(session, feed_of(dense, indices, "separate"))
        np.testing.assert_allclose(predict(read, dense, indices), wanted, rtol=1e-4, atol=1e-5, err_msg=change)
        found.append(change)
    assert 0 < len(found) < MUTATIONS


def test_what_a_function_divides_by_is_not_the_index(tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        hashed = b.add("Mod", b.constant(7), indices[0])
        return [b.add("Gather", b.table(7), hashed), *plain(b, indices[1:])]

    with pytest.raises(UserError, match=r"hashed index.* divides whole numbers by 0"):
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=embed))


# --- names that are defined twice


def _node_twice(graph: onnx.GraphProto) -> None:
    graph.node.insert(1, graph.node[0])


def _unread_again(graph: onnx.GraphProto) -> None:
    graph.node.append(onnx.helper.make_node("Neg", ["dense_x"], ["nobody"]))
    graph.node.append(onnx.helper.make_node("Abs", ["dense_x"], ["nobody"]))


def _input_twice(graph: onnx.GraphProto) -> None:
    graph.input.append(graph.input[0])


def _constant_twice(graph: onnx.GraphProto) -> None:
    tensor = graph.initializer[-1]
    graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))


@pytest.mark.parametrize("change", [_node_twice, _unread_again, _input_twice, _constant_twice])
def test_a_harmless_second_definition_is_read_with_a_warning(change, tmp_path: Path) -> None:
    plain = read_dlrm(write_graph(tmp_path / "g.onnx"))
    model = onnx.load(tmp_path / "g.onnx")
    change(model.graph)
    onnx.save(model, tmp_path / "twice.onnx")
    twice = read_dlrm(tmp_path / "twice.onnx")
    assert twice.fingerprint == plain.fingerprint
    assert len(twice.warnings) == 1 and "twice" in twice.warnings[0] and not plain.warnings


def test_a_second_definition_that_matters_is_refused(tmp_path: Path) -> None:
    model = onnx.load(write_graph(tmp_path / "g.onnx"))
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    model.graph.node.insert(2, onnx.helper.make_node("Neg", relu.input, relu.output))
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(UserError, match="a name that is taken already"):
        read_dlrm(tmp_path / "g.onnx")


# --- what ONNX Runtime's optimizer writes


@pytest.mark.parametrize("name", ["op12_gather", "dynamo20_gather"])
def test_a_file_of_onnxruntimes_optimizer_is_the_same_model(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    path = ROOT / "tests" / "exports" / f"{name}.onnx"
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert {"FusedGemm", "FusedMatMul"} <= kinds
    assert read_dlrm(tmp_path / "optimized.onnx").fingerprint == read_dlrm(path).fingerprint


# --- recorded files


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.onnx")))
def test_recorded_case_gives_onnxruntimes_outputs(name: str) -> None:
    model, data = read_dlrm(CASES / f"{name}.onnx"), np.load(CASES / f"{name}.npz")
    names = model.graph_inputs
    given = [data[each] for each in names.indices]
    indices = given[0] if names.items_first else np.stack([each.reshape(-1) for each in given], axis=1)
    found = predict(model, data[names.dense], indices)
    np.testing.assert_allclose(found, data["pred"].reshape(-1), rtol=1e-5, atol=1e-6)
    assert ("quotient-remainder" in names.one_index) == (name == "qr_embedding")
