"""Dense layers on AMX tiles, emulated: against their formula, at the edges of tiles, panels and k blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from bare_kernels import call, compiled, kernel
from quantized import VALUES, rounded, words_of
from tile_layouts import activated, from_tiles, in_register_tiles, to_tiles, up

from dlrm_tvm.kernels.activations import Tiles
from dlrm_tvm.kernels.dense import DenseSchedule, PackedDense
from dlrm_tvm.kernels.tile_dense import PANEL, TileScratch, tile_dense_layer
from dlrm_tvm.kernels.tile_unit import TileUnit
from dlrm_tvm.kernels.vectors import load, store
from dlrm_tvm.kernels.words import Form

pytestmark = pytest.mark.usefixtures("require_fma")


@dataclass(frozen=True)
class Layer:
    """form: "bf16", "u8" or "s8", with "row" behind it where rows have scales of their own; k_tiles: of 16 words;
    by_k: with k outermost."""

    form: str
    mr: int
    tiles: int
    k_tiles: int
    outputs: int
    activation: str = "relu"
    by_k: bool = False

    @property
    def precision(self) -> str:
        return "bf16" if self.form == "bf16" else "int8"

    @property
    def takes(self) -> Form:
        if self.precision == "bf16":
            return Form("bf16")
        return Form("int8", signed=self.form.startswith("s8"), by_row=self.form.endswith("row"))

    @property
    def items(self) -> int:
        """Of whole pairs of tiles."""
        return self.mr * -(-self.tiles // 2) * 2

    @property
    def words(self) -> int:
        return 16 * self.k_tiles

    @property
    def packed(self) -> PackedDense:
        width = up(self.outputs)
        first = width * self.words
        schedule = DenseSchedule(PANEL, 1, k_outermost=self.by_k)
        return PackedDense(self.words, self.outputs, self.activation, 0, first, schedule, self.takes, first + width)

    def numbers(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.outputs)
        columns = self.words * VALUES[self.precision]
        x_shape, w_shape = (self.items, columns), (self.outputs, columns)
        bias = rng.normal(size=self.outputs).astype("f4")
        if self.precision == "bf16":
            w = rounded(rng.normal(size=w_shape) / np.sqrt(columns))
            return {"x": rounded(rng.normal(size=x_shape)), "w": w, "bias": bias}
        least, most = (-128, 127) if self.takes.signed else (0, 255)
        x, w = rng.integers(least, most + 1, x_shape), rng.integers(-127, 128, w_shape)
        scale = (rng.uniform(0.5, 2, self.outputs) / (127 * most * np.sqrt(columns) / 3)).astype("f4")
        scales = rng.uniform(0.1, 10, self.items).astype("f4") if self.takes.by_row else np.ones(self.items, "f4")
        return {"x": x, "w": w, "bias": bias, "scale": scale, "scales": scales}

    def formula(self, numbers: dict[str, np.ndarray]) -> np.ndarray:
        sums = numbers["x"].astype("f8") @ numbers["w"].astype("f8").T
        if self.precision == "int8":
            sums = sums * numbers["scale"].astype("f8") * numbers["scales"].astype("f8")[:, None]
        return activated(sums + numbers["bias"], self.activation)

    def __str__(self) -> str:
        by_k = "-by k" if self.by_k else ""
        return f"{self.form}-{self.mr}x{self.tiles}-{self.k_tiles}-{self.outputs}-{self.activation}{by_k}"


LAYERS = [
    Layer("bf16", 16, 2, 1, 32),
    Layer("bf16", 16, 3, 2, 33, "none"),
    Layer("bf16", 13, 4, 3, 64),
    Layer("bf16", 16, 4, 19, 40, "sigmoid"),  # k blocks of 9 and 10
    Layer("bf16", 1, 1, 32, 16),
    Layer("bf16", 5, 6, 48, 96),  # three k blocks
    Layer("bf16", 13, 4, 91, 33),  # six, in three sizes of loops
    Layer("u8", 16, 2, 4, 32),
    Layer("u8", 16, 5, 2, 47, "none"),
    Layer("u8row", 9, 2, 3, 64, "sigmoid"),
    Layer("s8", 16, 2, 20, 33, "none"),
    Layer("s8row", 16, 4, 34, 31),
    Layer("bf16", 16, 4, 19, 80, by_k=True),  # k blocks of 9 and 10; panels of 32 and 16
    Layer("bf16", 7, 3, 75, 64, "none", by_k=True),  # five k blocks
    Layer("s8", 16, 4, 55, 40, "none", by_k=True),
    Layer("u8", 16, 2, 20, 16, by_k=True),
    Layer("u8", 9, 2, 3, 70, by_k=True),  # one k block
]


def function(case: Layer):
    def body(b) -> None:
        unit = TileUnit(case.mr, emulated=True)
        scratch = TileScratch(case.items // case.mr // 2, [case.packed])
        source, out = Tiles(b["x"], 0, case.words, case.mr), Tiles(b["y"], 0, case.outputs, case.mr)

        def write(tile, row, block, values: list) -> None:
            for v, value in enumerate(values):
                at = out.index(tile, row, block + v)
                store(b["y"], at, load(b["y"], at) + value)

        def row_scale(tile, row):
            return b["scales"][tile * case.mr + row] if case.takes.by_row else None

        unit.configure()
        tile_dense_layer(case.packed, b["w"], unit, scratch, source, write, case.tiles, row_scale)

    packed = case.packed
    sizes = {"x": case.items * case.words, "w": packed.scale_at + up(case.outputs), "scales": case.items}
    sizes["y"] = case.items * up(case.outputs)
    return kernel("layer", {name: (size, "float32") for name, size in sizes.items()}, body)


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_a_layer_on_tiles_matches_its_formula_and_writes_each_output_once(case: Layer) -> None:
    """Outputs are added to what was there."""
    numbers, packed = case.numbers(), case.packed
    weights = np.zeros(packed.scale_at + up(case.outputs), np.float32)
    words = in_register_tiles(words_of(numbers["w"], case.precision), PANEL)
    weights[: words.size] = words
    weights[packed.bias_at : packed.bias_at + case.outputs] = numbers["bias"]
    if case.precision == "int8":
        weights[packed.scale_at : packed.scale_at + case.outputs] = numbers["scale"]
    x = to_tiles(words_of(numbers["x"], case.precision), case.mr)
    scales = numbers.get("scales", np.ones(case.items, np.float32))
    y = np.full(case.items * up(case.outputs), 0.25, np.float32)
    # Of the emulation LLVM makes little in seconds; some small layers have its passes all the same.
    layer = compiled([function(case)], optimized=case in (LAYERS[0], LAYERS[9], LAYERS[16]))["layer"]
    y = call(layer, x, weights, scales, y)[3]
    y = from_tiles(y, case.items, case.outputs, case.mr)[:, : case.outputs]
    np.testing.assert_allclose(y, case.formula(numbers) + 0.25, rtol=2e-6, atol=4e-6)
