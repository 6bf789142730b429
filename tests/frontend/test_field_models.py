"""More graphs as people build them: other embeddings, layers, heads and cross layers than test_field_graphs.py's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    stacked,
    write_graph,
)
from graphs import onnxruntime_outputs, onnxruntime_session
from onnx import TensorProto

from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.interactions import Cross, Dot
from dlrm_tvm.model.reference import predict


def _floats(b: Builder, *values: float) -> str:
    return b.constant(values if len(values) > 1 else values[0], np.float32)


# --- what is joined


def _flipped(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    joined, width = lower_triangle(b, x, vectors)
    ends = b.constant([np.iinfo(np.int64).min])
    return b.add("Slice", joined, b.constant([-1]), ends, b.constant([1]), b.constant([-1])), width


def _every_second_from_behind(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    joined, width = lower_triangle(b, x, vectors)
    return b.add("Slice", joined, b.constant([-2]), b.constant([0]), b.constant([1]), b.constant([-2])), (
        width - 1
    ) // 2


def _of_scaled_vectors(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    z = b.add("Mul", stacked(b, [x, *vectors]), _floats(b, -0.5))
    dots = b.add("MatMul", z, b.add("Transpose", z, perm=[0, 2, 1]))
    return b.add("Concat", x, picked(b, dots, LOWER, 4), axis=1), DIM + 6


def _of_a_scaled_x(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    return lower_triangle(b, b.add("Div", x, _floats(b, -0.25)), vectors)


def _means_of_products(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    z = stacked(b, [x, *vectors])
    left, right = (b.add("Gather", z, b.constant([pair[at] for pair in LOWER]), axis=1) for at in (0, 1))
    return b.add("Concat", x, b.add("ReduceMean", b.add("Mul", left, right), axes=[2], keepdims=0), axis=1), DIM + 6


@pytest.mark.parametrize(
    "join", [_flipped, _every_second_from_behind, _of_scaled_vectors, _of_a_scaled_x, _means_of_products]
)
def test_dots_are_read_as_onnxruntime_computes_them(join: Callable, tmp_path: Path) -> None:
    assert check(write_graph(tmp_path / "g.onnx", join=join)).interaction == Dot()


@pytest.mark.parametrize("dots", [True, False])
def test_dense_features_without_a_bottom_mlp_are_x(dots: bool, tmp_path: Path) -> None:
    def join(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
        return lower_triangle(b, x, vectors) if dots else (b.add("Concat", *vectors, x, axis=1), DENSE + 3 * DIM)

    def bottom(b: Builder) -> str:
        return b.add("Pad", "dense_x", b.constant([0, 0, 0, DIM - DENSE])) if dots else "dense_x"

    model = check(write_graph(tmp_path / "g.onnx", bottom=bottom, join=join))
    (layer,) = model.bottom
    np.testing.assert_array_equal(layer.weight, np.eye(DIM, DENSE))


# --- embeddings


def _floor_divided(b: Builder, indices: list[str]) -> list[str]:
    """As PyTorch's TorchScript exporter writes torch.div(index, 4, rounding_mode="floor")."""
    index, four, zero = indices[0], b.constant(4), b.constant(0)
    towards_zero = b.add("Div", index, four)
    signs = b.add("Xor", b.add("Less", index, zero), b.add("Less", four, zero))
    exact = b.add("Equal", b.add("Sub", index, b.add("Mul", towards_zero, four)), zero)
    less = b.add("Cast", b.add("And", signs, b.add("Not", exact)), to=TensorProto.INT64)
    quotient = b.add("Sub", towards_zero, less)
    rows = [b.add("Gather", b.table(3), quotient), b.add("Gather", b.table(4), b.add("Mod", index, four))]
    return [b.add("Mul", *rows), *plain(b, indices[1:])]


def _bits(b: Builder, indices: list[str]) -> list[str]:
    mixed = b.add("BitwiseXor", b.add("Mul", indices[0], b.constant(3)), b.constant(5))
    return [b.add("Gather", b.table(8), b.add("BitwiseAnd", mixed, b.constant(7))), *plain(b, indices[1:])]


def _compared(b: Builder, indices: list[str]) -> list[str]:
    places = b.add("Equal", b.add("Unsqueeze", indices[0], b.constant([1])), b.constant(np.arange(11)))
    return [b.add("MatMul", b.add("Cast", places, to=TensorProto.FLOAT), b.table(11)), *plain(b, indices[1:])]


def _one_hot(b: Builder, indices: list[str]) -> list[str]:
    vectors = b.add("OneHot", indices[0], b.constant([ROWS[0]]), b.constant([0, 1]), axis=-1)
    first = b.layer(b.add("Cast", vectors, to=TensorProto.FLOAT), ROWS[0], DIM)
    return [first, *plain(b, indices[1:])]


def _tensor_train(b: Builder, indices: list[str]) -> list[str]:
    parts = [b.add(op, indices[0], b.constant(4)) for op in ("Div", "Mod")]
    cores = [b.add("Gather", b.table(rows, 6), part) for rows, part in zip((3, 4), parts)]
    cores = [b.add("Reshape", core, b.constant([-1, *shape])) for core, shape in zip(cores, ((2, 3), (3, 2)))]
    return [b.add("Reshape", b.add("MatMul", *cores), b.constant([-1, 4])), *plain(b, indices[1:])]


def _gathered_elements(b: Builder, indices: list[str]) -> list[str]:
    column = b.add("Unsqueeze", indices[0], b.constant([1]))
    shape = b.add("Concat", b.add("Shape", indices[0]), b.constant([DIM]), axis=0)
    first = b.add("GatherElements", b.table(ROWS[0]), b.add("Expand", column, shape), axis=0)
    return [first, *plain(b, indices[1:])]


def _indexed(b: Builder, indices: list[str]) -> list[str]:
    """table[index], as torch.export writes it."""
    column = b.add("Unsqueeze", indices[0], b.constant([1]))
    return [b.add("GatherND", b.table(ROWS[0]), column), *plain(b, indices[1:])]


def _of_several_tables_in_one_array(b: Builder, indices: list[str]) -> list[str]:
    array, axis = b.random(2, ROWS[0], DIM), b.constant([1])
    rows = []
    for t in range(2):
        table = b.add("Expand", b.constant([[t]]), b.add("Shape", b.add("Unsqueeze", indices[t], axis)))
        places = b.add("Concat", table, b.add("Unsqueeze", indices[t], axis), axis=1)
        rows.append(b.add("GatherND", array, places))
    return [*rows, *plain(b, indices[2:])]


def _of_a_table_that_is_computed(b: Builder, indices: list[str]) -> list[str]:
    """As an exporter leaves it that folds no constants."""
    table = b.add("MatMul", b.table(ROWS[0], 2), b.random(2, DIM))
    table = b.add("Div", table, b.add("ReduceL2", table, axes=[1], keepdims=1))
    return [b.add("Gather", table, indices[0]), *plain(b, indices[1:])]


def _of_float16_since_19(b: Builder, indices: list[str]) -> list[str]:
    """With the attribute that ONNX Runtime's optimizer writes out; it matters for float8 alone."""
    rows = b.add("Gather", b.table(ROWS[0], dtype=np.float16), indices[0])
    return [b.add("Cast", rows, to=TensorProto.FLOAT, saturate=1), *plain(b, indices[1:])]


def _fused_activations(b: Builder, indices: list[str]) -> list[str]:
    first, second, *others = plain(b, indices)
    first = b.add("Gelu", first, domain="com.microsoft")
    return [first, b.add("QuickGelu", second, alpha=1.0, domain="com.microsoft"), *others]


# Per embedding: (it, the largest index of the first column + 1, the rows of its table).
EMBEDDINGS = {
    "a floored quotient times a remainder": (_floor_divided, 12, 12),
    "the lowest bits": (_bits, 10**6, 8),
    "one-hot vectors": (_one_hot, 11, 11),
    "one-hot vectors by comparison": (_compared, 11, 11),
    "a tensor train": (_tensor_train, 12, 12),
    "elements": (_gathered_elements, 11, 11),
    "table[index]": (_indexed, 11, 11),
    "tables in one array": (_of_several_tables_in_one_array, 11, 11),
    "float16": (_of_float16_since_19, 11, 11),
    "fused activations": (_fused_activations, 11, 11),
    "a computed table": (_of_a_table_that_is_computed, 11, 11),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_function_of_one_index_is_a_table(name: str, tmp_path: Path) -> None:
    embed, most, rows = EMBEDDINGS[name]
    opset = {"the lowest bits": 18, "float16": 19}.get(name, 17)
    model = check(write_graph(tmp_path / "g.onnx", embed=embed, opset=opset), rows=(most, *ROWS[1:]))
    assert model.tables[0].num_rows == rows


def _shifted(b: Builder, indices: list[str]) -> str:
    return b.add("Sub", indices[0], b.constant(1))


def _compared_to(b: Builder, values: str, count: int, dtype: type = np.int64) -> str:
    column = b.add("Unsqueeze", values, b.constant([1])) if dtype == np.int64 else values
    return b.add("Cast", b.add("Equal", column, b.constant(np.arange(count), dtype)), to=TensorProto.FLOAT)


def _one_hot_of(b: Builder, values: str, depth: int) -> str:
    return b.add(
        "Cast", b.add("OneHot", values, b.constant([depth]), b.constant([0, 1]), axis=-1), to=TensorProto.FLOAT
    )


# Per factor of a table of 11 rows' summand: (it, its rows). Of the index 0 ONNX's Equal gives zeros, its OneHot a 1.
ONE_HOT = {
    "another number compared": (lambda b, i: _compared_to(b, _shifted(b, i), 11), 11),
    "fewer numbers than rows": (lambda b, i: _compared_to(b, i[0], 4), 4),
    "floats compared": (lambda b, i: _compared_to(b, b.add("Gather", b.random(11, 1), i[0]), 2, np.float32), 2),
    "the number before": (lambda b, i: _one_hot_of(b, _shifted(b, i), 4), 4),
    "computed with": (lambda b, i: b.add("Mul", _one_hot_of(b, _shifted(b, i), 11), _floats(b, 2)), 11),
}


@pytest.mark.parametrize("name", ONE_HOT)
def test_one_hot_vectors_are_what_onnxruntime_computes_for_every_index(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    factor, rows = ONE_HOT[name]

    def embed(b: Builder, indices: list[str]) -> list[str]:
        product = b.add("MatMul", factor(b, indices), b.table(rows))
        return [b.add("Add", product, b.add("Gather", b.table(11), indices[0])), *plain(b, indices[1:])]

    path = write_graph(tmp_path / "g.onnx", embed=embed)
    model, dense = read_dlrm(path), np.random.default_rng(7).uniform(-2, 2, (11, DENSE)).astype(np.float32)
    indices = np.stack([np.arange(11), *(np.arange(11) % most for most in ROWS[1:])], axis=1)
    wanted = onnxruntime_outputs(onnxruntime_session(path), feed_of(dense, indices, "separate"))
    np.testing.assert_allclose(predict(model, dense, indices), wanted, rtol=1e-5, atol=2e-6)
    assert model.tables[0].num_rows == 11


def test_tables_that_one_hot_vectors_are_multiplied_by_have_the_names_of_their_weights(tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        weights = [b.table(rows) for rows in ROWS]
        vectors = [_one_hot_of(b, index, rows) for index, rows in zip(indices, ROWS)]
        named.extend(weights)
        last = b.add("Einsum", weights[-1], vectors[-1], equation="rd,br->bd")
        return [*(b.add("MatMul", each, weight) for each, weight in zip(vectors[:-1], weights)), last]

    named: list[str] = []
    model = check(write_graph(tmp_path / "g.onnx", embed=embed), rows=ROWS)
    assert [table.name for table in model.tables] == named and len({*named}) == len(ROWS)


@pytest.mark.parametrize("rows", [3, 5])
@pytest.mark.parametrize("vectors", ["one-hot", "compared", "rows"])
def test_a_weight_for_another_number_of_values_than_an_embedding_gives_is_refused(vectors, rows, tmp_path) -> None:
    """No runtime multiplies them. The bag's index is of a table of 4 rows, or its rows are of 4 values."""

    def embed(b: Builder, indices: list[str]) -> list[str]:
        made = {
            "one-hot": lambda: _one_hot_of(b, indices[0], 4),
            "compared": lambda: _compared_to(b, _shifted(b, indices), 4),
            "rows": lambda: b.add("Gather", b.table(11, 4), indices[0]),
        }[vectors]()
        return [b.add("MatMul", made, b.table(rows)), *plain(b, indices[1:])]

    with pytest.raises(UserError, match=f"multiplies 4 values by a weight for {rows}"):
        read_dlrm(write_graph(tmp_path / "g.onnx", embed=embed))


def test_indices_beyond_the_known_ones_are_one_row(tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        known = b.add("Less", indices[0], b.constant(11))
        return [b.add("Gather", b.table(11), b.add("Where", known, indices[0], b.constant(2))), *plain(b, indices[1:])]

    model = check(write_graph(tmp_path / "g.onnx", embed=embed), rows=(12, *ROWS[1:]))
    assert model.tables[0].num_rows == 12


# --- bags of three


def _mean_with_a_bias(b: Builder, index: str) -> str:
    return b.layer(b.add("ReduceMean", b.add("Gather", b.table(11, 2), index), axes=[1], keepdims=0), 2, DIM)


def _sum_by_the_root_of_three(b: Builder, index: str) -> str:
    sums = b.add("ReduceSum", b.add("Gather", b.table(11), index), b.constant([1]), keepdims=0)
    return b.add("Div", sums, _floats(b, 3**0.5))


def _mean_over_the_last_axis(b: Builder, index: str) -> str:
    return b.add(
        "ReduceMean", b.add("Transpose", b.add("Gather", b.table(11), index), perm=[0, 2, 1]), axes=[2], keepdims=0
    )


@pytest.mark.parametrize("first", [_mean_with_a_bias, _mean_over_the_last_axis, _sum_by_the_root_of_three])
def test_pooling_that_commutes_leaves_a_table(first: Callable, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    def embed(b: Builder, indices: list[str]) -> list[str]:
        axes = b.constant([1])
        return [first(b, indices[0]), *(b.add("ReduceSum", each, axes, keepdims=0) for each in plain(b, indices[1:]))]

    path = write_graph(tmp_path / "g.onnx", embed=embed, layout="bags")
    model, rng = read_dlrm(path), np.random.default_rng(3)
    dense = rng.uniform(-2, 2, (ITEMS, DENSE)).astype(np.float32)
    indices = [rng.integers(0, rows, (ITEMS, 3)) for rows in ROWS]
    feed = {"dense_x": dense} | {f"indices_{t}": each for t, each in enumerate(indices)}
    wanted = onnxruntime_outputs(onnxruntime_session(path), feed)
    found = predict(model, dense, [each.reshape(-1) for each in indices], [np.arange(ITEMS) * 3] * 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


# --- layers and what ends them


@pytest.mark.parametrize("how", ["Max", "Clip"])
def test_a_limit_at_zero_is_a_relu(how: str, tmp_path: Path) -> None:
    def bottom(b: Builder) -> str:
        hidden = b.add(how, b.layer("dense_x", DENSE, 6), _floats(b, 0))
        return b.add(how, b.layer(hidden, 6, DIM), _floats(b, 0))

    model = check(write_graph(tmp_path / "g.onnx", bottom=bottom))
    assert [layer.activation for layer in model.bottom] == ["relu", "relu"]


def test_a_layer_takes_values_that_are_transposed_before_it(tmp_path: Path) -> None:
    """As ONNX Runtime's optimizer writes a layer behind a Transpose."""

    def turned(b: Builder, x: str, width: int) -> str:
        weight = b.random(width, width)
        return b.add("FusedGemm", b.add("Transpose", x, perm=[1, 0]), weight, transA=1, activation="Relu")

    assert len(check(write_graph(tmp_path / "g.onnx", after_join=turned)).top) == 3


def _softmax_of_two(b: Builder, x: str) -> str:
    return b.add("Gather", b.add("Softmax", b.layer(x, 6, 2), axis=1), b.constant(1), axis=1)


def _second_of_three(b: Builder, x: str) -> str:
    logits = b.add("Slice", b.layer(x, 6, 3), b.constant([1]), b.constant([2]), b.constant([1]))
    return b.add("Sigmoid", logits)


def _squeezed(b: Builder, x: str) -> str:
    return b.add("Squeeze", b.add("Sigmoid", b.layer(x, 6, 1)))


@pytest.mark.parametrize("head", [_softmax_of_two, _second_of_three, _squeezed])
def test_a_prediction_is_read_however_it_is_taken_from_the_last_layer(head: Callable, tmp_path: Path) -> None:
    model = check(write_graph(tmp_path / "g.onnx", head=head))
    assert (model.top[-1].outputs, model.top[-1].activation) == (1, "sigmoid")


# --- cross layers


def _columns(b: Builder, x: str, width: int) -> str:
    """As TorchRec's CrossNet: columns [batch, width, 1], the weight on their left."""
    x0 = x = b.add("Unsqueeze", x, b.constant([2]))
    for _ in range(2):
        weight = b.constant(b.rng.uniform(-1, 1, (width, width)) / width, np.float32)
        gate = b.add("Add", b.add("MatMul", weight, x), b.random(width, 1))
        x = b.add("Add", b.add("Mul", x0, gate), x)
    return b.add("Squeeze", x, b.constant([2]))


def _joined(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    return b.add("Concat", x, *vectors, axis=1), 4 * DIM


def test_cross_layers_on_columns_are_read_as_onnxruntime_computes_them(tmp_path: Path) -> None:
    model = check(write_graph(tmp_path / "g.onnx", join=_joined, after_join=_columns))
    assert isinstance(model.interaction, Cross)
    assert [len(crossing) for crossing in model.interaction.crossings] == [1, 1]


# --- refusals


def _between(operator: str, **attributes: object) -> dict:
    return {"after_join": lambda b, x, width: b.add(operator, b.layer(x, width, width), **attributes)}


def _clipped(b: Builder, x: str, width: int) -> str:
    return b.add("Clip", b.layer(x, width, width), _floats(b, 0), _floats(b, 6))


def _swish(b: Builder, x: str, width: int) -> str:
    hidden = b.layer(x, width, width)
    return b.add("Mul", hidden, b.add("Sigmoid", hidden))


def _normalized(b: Builder, x: str, width: int) -> str:
    return b.add("Sub", x, b.add("ReduceMean", x, axes=[1]))


def _halved(b: Builder, x: str, width: int) -> str:
    return b.add("Cast", b.add("Cast", x, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)


def _with_dense(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
    joined, width = lower_triangle(b, x, vectors)
    return b.add("Concat", joined, "dense_x", axis=1), width + DENSE


def _rounded(b: Builder, indices: list[str]) -> list[str]:
    index = b.add("Cast", b.add("Gather", "dense_x", b.constant(0), axis=1), to=TensorProto.INT64)
    return plain(b, [index, *indices[1:]])


REFUSALS = {
    "cross layers on dots": ({"after_join": _columns}, "begins cross layers on dots"),
    "ReLU6": ({"after_join": _clipped}, r"\(Clip\) gives a layer clipped values; it takes .* ReLU, sigmoid or no"),
    "Swish": ({"after_join": _swish}, r"\(Mul\) gives a layer products of computed values; it takes"),
    "LeakyReLU": (_between("LeakyRelu"), r"\(LeakyRelu\) is no operation of a DLRM"),
    "LayerNormalization": (_between("LayerNormalization"), r"Expected|\(LayerNormalization\)"),
    "a mean of values": ({"after_join": _normalized}, r"\(ReduceMean\) .* as LayerNormalization does"),
    "float16": ({"after_join": _halved}, r"casts to FLOAT16; layers are read in FLOAT alone, so export the model in"),
    "dense features beside x": ({"join": _with_dense}, "a DLRM one, its bottom MLP's output, here the dense features"),
    "indices of floats": ({"embed": _rounded}, "makes whole numbers of floats; indices are inputs of their own"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_no_dlrm_computes_is_refused_in_words_that_its_author_knows(name: str, tmp_path: Path) -> None:
    options, reason = REFUSALS[name]
    with pytest.raises(UserError, match=reason) as caught:
        read_dlrm(write_graph(tmp_path / "g.onnx", **options))
    assert "\n" not in str(caught.value) and "--save-onnx" not in str(caught.value)
