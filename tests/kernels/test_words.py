"""Words of each precision: packing, planes, products, by TIR functions of a few instructions, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from bare_kernels import call, compiled, kernel
from quantized import FAMILY, QUANTIZED, byte_order, needs, quantized_cases, rounded, values_of, words_of
from tvm.tirx.script.builder import ir as T

from dlrm_tvm.kernels.isa import imported
from dlrm_tvm.kernels.vectors import LANES, bits_of, load, store
from dlrm_tvm.kernels.vectors import words_of as as_words
from dlrm_tvm.kernels.words import Form, column_order

BYTE_KINDS = {"unsigned": (0, 255), "raised": (-128, 127), "row": (-128, 127)}  # least and most


def form_of(kind: str) -> Form:
    return Form("bf16", family=FAMILY["bf16"]) if kind == "bf16" else Form("int8", signed=kind != "unsigned")


def pack_function(kind: str):
    """a, b [16] f32 -> the words of one unit."""
    form = form_of(kind)

    def body(b) -> None:
        with imported(FAMILY[form.precision]):
            vectors = [load(b["a"], 0), load(b["b"], 0)][: form.unit]
            store(b["y"], 0, form.pack(vectors, as_row=kind == "row"), form.unit_words)

    return kernel(f"pack_{kind}", {"a": (16, "float32"), "b": (16, "float32"), "y": (form.unit_words, "float32")}, body)


def planes_function(precision: str):
    """x [16 words] -> y [values][16] f32, and z [16 words] joined from those again, but for int8."""
    form = Form(precision, signed=precision == "int8", family=FAMILY[precision])

    def body(b) -> None:
        with imported(FAMILY[precision]):
            for plane, value in enumerate(form.planes(load(b["x"], 0))):
                store(b["y"], plane * LANES, value)
            if precision != "int8":
                store(b["z"], 0, form.join([load(b["y"], plane * LANES) for plane in range(form.values)]))

    sizes = {"x": (16, "float32"), "y": (16 * form.values, "float32"), "z": (16, "float32")}
    return kernel(f"planes_{precision}", sizes, body)


def join_function(precision: str):
    form = Form(precision, signed=precision == "int8", family=FAMILY[precision])

    def body(b) -> None:
        with imported(FAMILY[precision]):
            store(b["y"], 0, form.join([load(b["x"], plane * LANES) for plane in range(form.values)]))

    return kernel(f"join_{precision}", {"x": (16 * form.values, "float32"), "y": (16, "float32")}, body)


def dot_function(precision: str, name: str, signed: bool):
    """acc, x, w [16 words] -> acc + x . w as words; signed: x goes through Form.left first."""
    form = Form(precision, signed=signed, family=FAMILY[precision])

    def body(b) -> None:
        with imported(FAMILY[precision]):
            x = load(b["x"], 0)
            x = T.bind(form.left(x)) if signed else x
            acc = load(b["acc"], 0)
            total = form.dot(bits_of(acc) if precision == "int8" else acc, x, load(b["w"], 0))
            store(b["y"], 0, as_words(total) if precision == "int8" else total)

    return kernel(name, {each: (16, "float32") for each in ("acc", "x", "w", "y")}, body)


def zero_function(precision: str):
    """x [16] words -> y [16] int32: which are zero in all of their values."""

    def body(b) -> None:
        with T.serial(16) as lane:
            T.buffer_store(b["y"], T.Select(Form(precision).is_zero(b["x"][lane]), 1, 0), [lane])

    return kernel(f"zero_{precision}", {"x": (16, "float32"), "y": (16, "int32")}, body)


@pytest.fixture(scope="module")
def bf16():
    functions = [pack_function("bf16"), planes_function("bf16"), join_function("bf16"), zero_function("bf16")]
    return compiled([*functions, dot_function("bf16", "dot_bf16", False)])


@pytest.fixture(scope="module")
def int8():
    functions = [*map(pack_function, BYTE_KINDS), planes_function("int8"), zero_function("int8")]
    return compiled([*functions, dot_function("int8", "dot_int8", False), dot_function("int8", "dot_left", True)])


@pytest.fixture
def library(request):
    """What the test's `precision` is made for."""
    return request.getfixturevalue(request.getfixturevalue("precision"))


def packed(library, kind: str, values: np.ndarray) -> np.ndarray:
    """[32] f32 -> the unit's words."""
    return call(library[f"pack_{kind}"], values[:16], values[16:], np.zeros(form_of(kind).unit_words, np.float32))[2]


@needs("bf16")
def test_bf16_pack_rounds_to_nearest_even_and_keeps_the_order_of_columns(bf16):
    numbers = np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32)
    ties = (np.float32(1) + np.arange(32) * np.float32(2**-8)).astype(np.float32)  # every other one is a tie
    limits = np.resize(np.float32([0, -0.0, np.inf, -np.inf, np.finfo("f4").max, 2.0**-126, 3.3e38, -1e-37]), 32)
    for values in (*numbers, ties, -ties, limits):
        got = values_of(packed(bf16, "bf16", values), "bf16")
        np.testing.assert_array_equal(got, rounded(values))
        np.testing.assert_array_equal(np.signbit(got), np.signbit(values))
    assert np.isnan(values_of(packed(bf16, "bf16", np.full(32, np.nan, np.float32)), "bf16")).all()


@needs("int8")
@pytest.mark.parametrize("kind", BYTE_KINDS)
def test_bytes_round_ties_to_even_saturate_and_lie_in_the_order_of_columns_that_is_stated(int8, kind):
    least, most = BYTE_KINDS[kind]
    edges = np.concatenate([np.arange(-4, 4) + 0.5, least + np.arange(-2, 2) / 2, most + np.arange(-2, 3) / 2])
    edges = np.concatenate([edges, [-0.0, 1e6, -1e6, 2e9, -2e9, 40_000, -40_000, 0.49999997, 70_000]])
    columns = np.resize(edges, 32).astype(np.float32)
    order = np.argsort(np.random.default_rng(1).random(32))
    for values in (columns, columns[order], np.arange(32, dtype=np.float32) - 3, np.float32(7.5) * np.arange(32)):
        wanted = np.minimum(np.maximum(np.rint(values), least), most) + (128 if kind == "raised" else 0)
        got = values_of(packed(int8, kind, values.astype(np.float32)), "int8", unsigned=kind != "row")
        np.testing.assert_array_equal(got, byte_order(wanted))


@needs("int8")
@pytest.mark.parametrize("kind", BYTE_KINDS)
def test_bytes_of_what_int32_does_not_hold_are_the_nearest_ones(int8, kind):
    raised = 128 if kind == "raised" else 0
    for value, nearest in ((1e30, 1), (3e9, 1), (np.inf, 1), (-3e9, 0), (-np.inf, 0)):
        got = values_of(packed(int8, kind, np.full(32, value, np.float32)), "int8", unsigned=kind != "row")
        np.testing.assert_array_equal(got, BYTE_KINDS[kind][nearest] + raised)


def test_column_order_is_that_of_the_packs():
    np.testing.assert_array_equal(column_order("int8", 96), byte_order(np.arange(96)))
    for precision in ("fp32", "bf16"):
        np.testing.assert_array_equal(column_order(precision, 64), np.arange(64))


def any_words(precision: str, rng: np.random.Generator) -> np.ndarray:
    """16 words of every kind of number that the precision has."""
    if precision == "bf16":
        return words_of(np.concatenate([rng.normal(size=28), [0, -0.0, np.inf, 2.0**-126]]), precision)
    return words_of(np.concatenate([rng.integers(-127, 128, 60), [-127, 127, 0, -1]]), precision)


@pytest.mark.parametrize("precision", quantized_cases(*[(each,) for each in QUANTIZED]))
def test_plane_p_holds_value_p_of_each_word_and_join_puts_them_together_again(library, precision):
    for seed in range(20):
        words = any_words(precision, np.random.default_rng(seed))
        values = values_of(words, precision)
        _, planes, joined = call(library[f"planes_{precision}"], words, np.zeros(len(values), "f4"), np.zeros(16, "f4"))
        np.testing.assert_array_equal(planes.reshape(-1, 16), values.reshape(16, -1).T)
        assert precision == "int8" or np.array_equal(joined.view(np.uint32), words.view(np.uint32))


@needs("bf16")
def test_bf16_join_rounds_to_nearest_even(bf16):
    rng = np.random.default_rng(0)
    ties = np.float32(1) + rng.integers(-64, 64, (10, 32)) * np.float32(2**-8)
    for planes in (*rng.normal(size=(50, 32)), *ties, np.resize([np.inf, -np.inf, 0, 2.0**-130, 3.4e38], 32)):
        planes = planes.astype(np.float32)
        words = call(bf16["join_bf16"], planes, np.zeros(16, np.float32))[1]
        np.testing.assert_array_equal(values_of(words, "bf16").reshape(16, 2).T.reshape(-1), rounded(planes))


@pytest.mark.parametrize("precision", quantized_cases(*[(each,) for each in QUANTIZED]))
def test_only_words_whose_values_are_all_zero_are_zero(library, precision):
    """In particular no word that is a denormal, or -0.0, as a float."""
    values = np.zeros((16, 2 if precision == "bf16" else 4))
    values[np.arange(1, 15), np.arange(1, 15) % values.shape[1]] = 1
    seen = call(library[f"zero_{precision}"], words_of(values, precision).reshape(-1), np.zeros(16, np.int32))[1]
    assert seen.tolist() == [1, *[0] * 14, 1]


@needs("bf16")
def test_bf16_dot_adds_both_products_of_each_word_in_float32(bf16):
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, w = rounded(rng.normal(size=(2, 32)))
        acc = rng.normal(size=16).astype(np.float32)
        got = call(bf16["dot_bf16"], acc, words_of(x, "bf16"), words_of(w, "bf16"), np.zeros(16, "f4"))[3]
        exact = acc + (x.astype("f8") * w).reshape(16, 2).sum(axis=1)
        np.testing.assert_allclose(got, exact, rtol=3e-7, atol=1e-6)


@needs("int8")
@pytest.mark.parametrize("extreme", [False, True])
def test_int8_dot_adds_unsigned_times_signed_bytes_without_saturation(int8, extreme):
    rng = np.random.default_rng(0)
    x = np.full(64, 255) if extreme else rng.integers(0, 256, 64)
    w = np.resize([-128, -128, -128, -128, 127, 127, 127, 127], 64) if extreme else rng.integers(-128, 128, 64)
    acc = rng.integers(-(1 << 30), 1 << 30, 16).astype(np.int32)
    got = call(int8["dot_int8"], acc.view("f4"), words_of(x, "int8"), words_of(w, "int8"), np.zeros(16, "f4"))[3]
    np.testing.assert_array_equal(got.view(np.int32), acc + (x * w).reshape(16, 4).sum(axis=1))


@needs("int8")
def test_the_left_factor_of_a_dot_has_128_added_to_each_byte(int8):
    x, w = np.random.default_rng(0).integers(-127, 128, (2, 64))
    x[:3], w[:3] = (-127, 0, 127), (127, -127, -127)
    got = call(int8["dot_left"], np.zeros(16, "f4"), words_of(x, "int8"), words_of(w, "int8"), np.zeros(16, "f4"))[3]
    np.testing.assert_array_equal(got.view(np.int32), ((x + 128) * w).reshape(16, 4).sum(axis=1))


@pytest.mark.parametrize(
    ("columns", "bf16_words", "int8_words"), [(1, 16, 8), (32, 16, 8), (33, 32, 16), (479, 240, 120)]
)
def test_words_of_columns_come_in_whole_units(columns, bf16_words, int8_words):
    assert Form("fp32").words(columns) == -(-columns // 16) * 16
    assert Form("bf16").words(columns) == bf16_words
    assert Form("int8", signed=True, by_row=True).words(columns) == int8_words
