"""Dense kernels in bf16 and int8 against their plain definition in NumPy, at the edges of their tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from bare_kernels import call, compiled, kernel
from quantized import FAMILY, VALUES, byte_order, needs, rounded, words_of
from tile_layouts import activated, from_tiles, in_register_tiles, to_tiles, up

from dlrm_tvm.kernels.activations import Tiles
from dlrm_tvm.kernels.dense import DenseSchedule, PackedDense, dense_layer
from dlrm_tvm.kernels.gemv import gemv_layer
from dlrm_tvm.kernels.isa import imported
from dlrm_tvm.kernels.packing import pack_bias, pack_weight
from dlrm_tvm.kernels.vectors import LANES, store
from dlrm_tvm.kernels.words import Form


@dataclass(frozen=True)
class Layer:
    """One dense kernel: its form, shape and schedule, and numbers to run it on. tiles 0: the kernel for one item.

    form: "bf16", "u8", "s8", or "ub", "sb" of AVX2's bytes, with "row" behind it where rows have scales
    of their own. extreme: the largest numbers that there are, of one sign. k_blocks: that K is cut into.
    """

    form: str
    mr: int
    tiles: int
    words: int
    outputs: int
    activation: str
    nr: int
    unroll: int = 1
    gain: float = 1.0
    extreme: bool = False
    k_blocks: int = 1

    @property
    def takes(self) -> Form:
        if self.precision == "bf16":
            return Form("bf16", family=FAMILY["bf16"])
        family = FAMILY[self.precision]
        return Form(self.precision, signed=self.form[0] == "s", by_row=self.form.endswith("row"), family=family)

    @property
    def precision(self) -> str:
        return {"bf16": "bf16", "u8": "int8", "s8": "int8"}.get(self.form.removesuffix("row"), "bytes")

    @property
    def zero_point(self) -> int:
        return 128 if self.form[0] == "s" else 0

    @property
    def items(self) -> int:
        return self.mr * max(1, self.tiles)

    @property
    def packed(self) -> PackedDense:
        """Weights behind 16 floats that belong to somebody else, then biases, scales and compensation."""
        first, width = LANES + up(up(self.outputs) * self.words), up(self.outputs)
        return PackedDense(
            self.words, self.outputs, self.activation, LANES, first,
            DenseSchedule(self.nr, self.unroll, k_blocks=self.k_blocks), self.takes,
            first + width, first + 2 * width, self.gain,
        )  # fmt: skip

    @property
    def elements(self) -> int:
        return self.packed.compensation_at + up(self.outputs)

    def numbers(self) -> dict[str, np.ndarray]:
        """x, w: bfloat16 numbers, or whole ones; bias; of int8: scale per output, scales per item."""
        rng = np.random.default_rng(self.words * 1000 + self.outputs)
        columns = self.words * VALUES[self.precision]
        x_shape, w_shape = (self.items, columns), (self.outputs, columns)
        numbers = {"bias": rng.normal(size=self.outputs).astype("f4")}
        if self.precision == "bf16":
            x, w = rng.normal(size=x_shape), rng.normal(size=w_shape) / np.sqrt(columns)
            return numbers | {"x": rounded(x), "w": rounded(w)}
        least, most = (-127, 127) if self.form[0] == "s" else (0, 255)
        of_w = self.takes.family.largest_weight
        if self.extreme:
            x, w = np.full(x_shape, most), np.full(w_shape, -of_w)
        else:
            x, w = rng.integers(least, most + 1, x_shape), rng.integers(-of_w, of_w + 1, w_shape)
        scale = rng.uniform(0.5, 2, self.outputs) / (127 * most * np.sqrt(columns) / 3)
        scales = rng.uniform(0.1, 10, self.items) if self.takes.by_row else np.ones(self.items)
        return numbers | {"x": x, "w": w, "scale": scale.astype("f4"), "scales": scales.astype("f4")}

    def buffer(self, numbers: dict[str, np.ndarray]) -> np.ndarray:
        packed, width = self.packed, up(self.outputs)
        buffer = np.full(self.elements, np.nan, np.float32)
        words = in_register_tiles(words_of(numbers["w"], self.precision), self.nr)
        buffer[LANES : LANES + words.size] = words
        buffer[packed.bias_at : packed.bias_at + width] = pack_bias(numbers["bias"], self.activation)
        if self.precision != "bf16":
            buffer[packed.scale_at : packed.compensation_at] = np.pad(numbers["scale"], (0, width - self.outputs))
            compensation = np.zeros(width, np.int32)
            compensation[: self.outputs] = -self.zero_point * numbers["w"].sum(axis=1)
            buffer[packed.compensation_at :] = compensation.view(np.float32)
        return buffer

    def formula(self, numbers: dict[str, np.ndarray]) -> np.ndarray:
        sums = numbers["x"].astype("f8") @ numbers["w"].astype("f8").T
        if self.precision != "bf16":
            sums = sums * numbers["scale"].astype("f8") * numbers["scales"].astype("f8")[:, None]
        return activated(sums + numbers["bias"], self.activation) * self.gain

    def __str__(self) -> str:
        parts = "" if self.k_blocks == 1 else f"-k{self.k_blocks}"
        return f"{self.form}-{self.mr}x{self.tiles}-{self.words}-{self.outputs}-{self.activation}{parts}"


# Words and outputs at whole vectors and one beside; register tiles that fit, that leave a narrower rest, and that are
# wider than the layer. Rows of 2,048 int8 columns of the largest magnitude sum up to 66 million.
LAYERS = [
    #     form  mr tiles words n  activation nr unroll
    Layer("bf16", 1, 2, 13, 1, "sigmoid", 16),
    Layer("bf16", 3, 2, 16, 32, "none", 32, 2),
    Layer("bf16", 5, 1, 17, 33, "relu", 32, 4),
    Layer("bf16", 10, 2, 240, 47, "relu", 32),
    Layer("bf16", 4, 1, 31, 100, "sigmoid", 64, 8, gain=7.5),
    Layer("u8", 2, 1, 1, 15, "relu", 32),
    Layer("u8", 5, 2, 16, 64, "none", 64, 2),
    Layer("u8", 10, 1, 120, 49, "relu", 32, gain=0.125),
    Layer("u8", 3, 1, 512, 17, "none", 32, extreme=True),
    Layer("u8row", 7, 2, 15, 31, "sigmoid", 32, 4),
    Layer("u8row", 14, 1, 33, 48, "relu", 32),
    Layer("s8", 4, 2, 17, 16, "none", 16),
    Layer("s8", 5, 1, 32, 33, "sigmoid", 32, 16, gain=100.0),
    Layer("s8", 3, 1, 512, 17, "relu", 32, extreme=True),
    Layer("s8row", 10, 3, 125, 100, "relu", 32),
    Layer("s8row", 9, 1, 16, 1, "none", 32),
    Layer("ub", 6, 2, 8, 16, "relu", 16, 2),
    Layer("ub", 3, 1, 512, 17, "none", 32, extreme=True),
    Layer("ubrow", 5, 1, 33, 31, "sigmoid", 16, 4),
    Layer("sb", 4, 2, 17, 48, "none", 32, gain=100.0),
    Layer("sb", 2, 1, 512, 17, "relu", 32, extreme=True),
    Layer("sbrow", 6, 3, 125, 33, "relu", 16),
    Layer("sb", 5, 2, 240, 17, "none", 16, k_blocks=3),
    Layer("bf16", 4, 3, 47, 100, "relu", 64, 2, k_blocks=2),
    Layer("u8", 5, 2, 240, 33, "none", 32, k_blocks=7, gain=0.5),
    Layer("u8row", 3, 2, 33, 17, "sigmoid", 32, k_blocks=5),
    Layer("s8", 3, 2, 512, 49, "relu", 32, extreme=True, k_blocks=3),
    Layer("bf16", 1, 0, 33, 100, "none", 64),
    Layer("bf16", 1, 0, 1, 1, "sigmoid", 256),
    Layer("u8", 1, 0, 16, 512, "relu", 256),
    Layer("u8row", 1, 0, 17, 33, "none", 32),
    Layer("s8", 1, 0, 120, 17, "sigmoid", 16, gain=3.0),
    Layer("s8row", 1, 0, 31, 49, "relu", 32),
    Layer("ub", 1, 0, 33, 100, "none", 64),
    Layer("sbrow", 1, 0, 31, 49, "relu", 32),
]  # fmt: skip
CASES = [pytest.param(case, marks=needs(case.precision), id=str(case)) for case in LAYERS]
GEMV = [param for param, case in zip(CASES, LAYERS) if case.tiles == 0]


def dense_function(case: Layer, number: int):
    def body(b) -> None:
        source, out = Tiles(b["x"], 0, case.words, case.mr), Tiles(b["y"], 0, case.outputs, case.mr)

        def write(tile, row, block, values: list) -> None:
            for v, value in enumerate(values):
                store(b["y"], out.index(tile, row, block + v), value)

        def row_scale(tile, row):
            return b["scales"][tile * case.mr + row] if case.takes.by_row else None

        with imported(FAMILY[case.precision]):
            if case.tiles == 0:
                vector = lambda block, values: write(0, 0, block, values)  # noqa: E731
                gemv_layer(case.packed, b["w"], lambda k: b["x"][k], vector, b["live"], row_scale(0, 0))
                return
            word = lambda tile, row, block, lane: b["x"][source.index(tile, row, block, lane)]  # noqa: E731
            sums = b["sums"] if case.k_blocks > 1 else None
            dense_layer(case.packed, b["w"], case.mr, word, write, case.tiles, row_scale=row_scale, sums=sums)

    sizes = {"x": case.items * up(case.words), "w": case.elements, "scales": case.items}
    sizes |= {"sums": case.items * up(case.outputs)}
    buffers = {name: (size, "float32") for name, size in (sizes | {"y": case.items * up(case.outputs)}).items()}
    return kernel(f"k{number}", buffers | {"live": (case.words + 1, "int32")}, body)


@pytest.fixture(scope="module")
def library(require_fma):
    runnable = [case for case in LAYERS if not needs(case.precision).args[0]]
    return {case: compiled([dense_function(case, 0)])["k0"] for case in runnable}


def run(library, case: Layer, numbers: dict[str, np.ndarray]) -> np.ndarray:
    """Outputs [items, padded outputs]."""
    x = numbers["x"] + case.zero_point
    scales = numbers.get("scales", np.ones(case.items, np.float32))
    y, live = np.full(case.items * up(case.outputs), np.nan, np.float32), np.zeros(case.words + 1, np.int32)
    x = to_tiles(words_of(x, case.precision), case.mr)
    y = call(library[case], x, case.buffer(numbers), scales, np.full_like(y, np.nan), y, live)[4]
    return from_tiles(y, case.items, case.outputs, case.mr)


def check(library, case: Layer, numbers: dict[str, np.ndarray]) -> None:
    y = run(library, case, numbers)
    wanted = case.formula(numbers)
    np.testing.assert_allclose(y[:, : case.outputs], wanted, rtol=2e-6, atol=4e-6 * max(1, case.gain))
    np.testing.assert_array_equal(y[:, case.outputs :], 0, "columns of nothing must be 0")


@pytest.mark.parametrize("case", CASES)
def test_quantized_dense_layer_matches_its_formula_at_tile_edges(library, case):
    check(library, case, case.numbers())


@pytest.mark.parametrize("case", GEMV)
@pytest.mark.parametrize("zeros", ["all", "first word", "last word", "every other word", "every other column"])
def test_quantized_gemv_matches_its_formula_whichever_inputs_are_zero(library, case, zeros):
    numbers = case.numbers()
    words = numbers["x"].reshape(case.words, -1)
    picked = {"first word": 0, "last word": -1, "every other word": slice(1, None, 2)}.get(zeros, slice(None))
    words[picked, slice(None, None, 2) if zeros == "every other column" else slice(None)] = 0
    check(library, case, numbers)


@pytest.mark.parametrize("case", GEMV)
def test_quantized_gemv_takes_bytes_of_zero_and_zeros_of_either_sign(library, case):
    """A signed byte 0 stands for -128; bfloat16 has a -0."""
    numbers = case.numbers()
    zero = {"b": -0.0, "s": -128, "u": 0}[case.form[0]]
    numbers["x"][0, : VALUES[case.precision]] = zero
    check(library, case, numbers)


@needs("bf16")
def test_bf16_gemv_does_not_skip_nan(library):
    case = next(each for each in LAYERS if (each.form, each.tiles) == ("bf16", 0))
    numbers = case.numbers()
    numbers["x"][0, -1] = np.nan
    assert np.isnan(run(library, case, numbers)[0, : case.outputs]).all()


@pytest.mark.parametrize("precision", ["bf16", "int8", "bytes"])
@pytest.mark.parametrize("outputs, nr", [(1, 32), (33, 32), (48, 32), (100, 64), (17, 64)])
def test_quantized_weights_are_packed_as_words_with_columns_in_the_order_of_activations(precision, outputs, nr):
    rng = np.random.default_rng(outputs)
    weight = rng.integers(-127, 128, (outputs, 50)).astype(np.int8)
    columns = np.full(64, -1)
    columns[rng.permutation(64)[:50]] = rng.permutation(50)
    wanted = np.where(columns < 0, 0, weight[:, columns]).astype(np.float32)
    if precision == "bf16":
        weight = words_of(weight, "bf16").view(np.uint16)
    wanted = words_of(byte_order(wanted) if precision == "int8" else wanted, precision)
    packed = pack_weight(weight, nr, columns, precision)
    np.testing.assert_array_equal(packed.view("u4"), in_register_tiles(wanted, nr).view("u4"))
