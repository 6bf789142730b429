"""Dense kernels alone against their plain definition in NumPy, at the edges of their tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from bare_kernels import call, compiled, kernel
from tile_layouts import activated, from_tiles, in_register_tiles, to_tiles, up
from tvm.tirx.script.builder import ir as T

from dlrm_tvm.kernels import dense
from dlrm_tvm.kernels.activations import Tiles
from dlrm_tvm.kernels.dense import DenseSchedule, Hook, PackedDense, dense_layer, hook_places
from dlrm_tvm.kernels.gemv import gemv_layer
from dlrm_tvm.kernels.packing import pack_bias, pack_weight
from dlrm_tvm.kernels.vectors import LANES, store


@dataclass(frozen=True)
class Layer:
    """One dense kernel: its name, shape and schedule, and numbers to run it on."""

    name: str
    mr: int
    tiles: int
    inputs: int
    outputs: int
    activation: str
    nr: int
    unroll: int = 1
    hook_every: int = 0
    ahead: bool = False

    @property
    def items(self) -> int:
        return self.mr * self.tiles

    @property
    def packed(self) -> PackedDense:
        """Weights behind 16 floats that belong to somebody else, the bias behind the weights."""
        bias_at = LANES + up(up(self.outputs) * self.inputs)
        schedule = DenseSchedule(self.nr, self.unroll, self.ahead)
        return PackedDense(self.inputs, self.outputs, self.activation, LANES, bias_at, schedule)

    def numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x [items, inputs], weight [outputs, inputs], bias [outputs]."""
        rng = np.random.default_rng(self.inputs * 1000 + self.outputs)
        x = rng.normal(size=(self.items, self.inputs))
        weight = rng.normal(size=(self.outputs, self.inputs)) / np.sqrt(self.inputs)
        return x.astype("f4"), weight.astype("f4"), rng.normal(size=self.outputs).astype("f4")

    def buffer(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        buffer = np.full(self.packed.bias_at + up(self.outputs), np.nan, np.float32)
        buffer[LANES : LANES + up(self.outputs) * self.inputs] = in_register_tiles(weight, self.nr)
        buffer[self.packed.bias_at :] = pack_bias(bias, self.activation)
        return buffer

    def formula(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return activated(x.astype("f8") @ weight.astype("f8").T + bias, self.activation)


# Outputs and inputs at whole vectors and one beside; register tiles that fit, that leave a narrower rest, and that
# are wider than the layer.
DENSE = [
    #     name    mr tiles  k   n   activation nr unroll
    Layer("d1", 1, 3, 13, 1, "sigmoid", 16),
    Layer("d2", 2, 1, 1, 15, "relu", 32),
    Layer("d3", 3, 2, 16, 16, "none", 16, 2),
    Layer("d4", 4, 2, 17, 17, "relu", 32, 4),
    Layer("d5", 5, 1, 15, 31, "sigmoid", 16, 8),
    Layer("d6", 7, 2, 480, 32, "relu", 64),
    Layer("d7", 9, 1, 32, 33, "none", 32, 16),
    Layer("d8", 10, 3, 479, 47, "relu", 32, ahead=True),
    Layer("d9", 12, 1, 33, 48, "sigmoid", 32, 2),
    Layer("d10", 14, 2, 16, 49, "relu", 64),
    Layer("d11", 16, 1, 48, 100, "none", 48, 4),
    Layer("d12", 10, 2, 100, 100, "relu", 32, hook_every=2, ahead=True),
]  # fmt: skip

GEMV = [
    Layer("g1", 1, 1, 13, 512, "relu", 256),
    Layer("g2", 1, 1, 1, 1, "sigmoid", 256),
    Layer("g3", 1, 1, 479, 100, "none", 64),
    Layer("g4", 1, 1, 480, 17, "relu", 16),
    Layer("g5", 1, 1, 33, 49, "sigmoid", 32),
]


def dense_function(case: Layer):
    def body(b) -> None:
        source, out = Tiles(b["x"], 0, case.inputs, case.mr), Tiles(b["y"], 0, case.outputs, case.mr)

        def write(tile, row, block, values: list) -> None:
            for v, value in enumerate(values):
                store(b["y"], out.index(tile, row, block + v), value)

        hook = Hook(lambda place: T.buffer_store(b["seen"], b["seen"][place] + 1, [place]), case.hook_every)
        dense_layer(
            case.packed,
            b["w"],
            case.mr,
            lambda tile, row, block, lane: b["x"][source.index(tile, row, block, lane)],
            write,
            case.tiles,
            hook if case.hook_every else None,
        )

    sizes = {"x": case.items * up(case.inputs), "w": case.packed.bias_at + up(case.outputs)}
    sizes |= {"y": case.items * up(case.outputs), "seen": 64}
    return kernel(
        case.name, {name: (size, "int32" if name == "seen" else "float32") for name, size in sizes.items()}, body
    )


def gemv_function(case: Layer):
    def body(b) -> None:
        def write(block, values: list) -> None:
            for v, value in enumerate(values):
                store(b["y"], (block + v) * LANES, value)

        gemv_layer(case.packed, b["w"], lambda k: b["x"][k], write, b["live"])

    sizes = {"x": case.inputs, "w": case.packed.bias_at + up(case.outputs), "y": up(case.outputs)}
    buffers = {name: (size, "float32") for name, size in sizes.items()}
    return kernel(case.name, buffers | {"live": (case.inputs + 1, "int32")}, body)


@pytest.fixture(scope="module")
def layers(require_fma):
    return compiled([*map(dense_function, DENSE), *map(gemv_function, GEMV)])


def run_dense(layers, case: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Outputs [items, padded outputs], and how often each of the hook's places was passed."""
    x, weight, bias = case.numbers()
    y = np.full(case.items * up(case.outputs), np.nan, np.float32)
    _, _, y, seen = call(layers[case.name], to_tiles(x, case.mr), case.buffer(weight, bias), y, np.zeros(64, np.int32))
    return from_tiles(y, case.items, case.outputs, case.mr), seen


@pytest.mark.parametrize("case", DENSE, ids=lambda case: f"{case.mr}x{case.tiles}-{case.inputs}-{case.outputs}")
def test_dense_layer_matches_its_formula_at_tile_edges(layers, case):
    y, _ = run_dense(layers, case)
    np.testing.assert_allclose(y[:, : case.outputs], case.formula(*case.numbers()), rtol=2e-6, atol=4e-6)
    np.testing.assert_array_equal(y[:, case.outputs :], 0, "columns of nothing must be 0")


def test_dense_layer_passes_each_place_of_its_hook_once_per_tile(layers):
    case = DENSE[-1]
    _, seen = run_dense(layers, case)
    register_columns = sum(count for _, count, _ in case.packed.column_tiles)
    places = register_columns * hook_places(case.packed, case.hook_every)
    assert places == 4 * 3
    np.testing.assert_array_equal(seen, [case.tiles] * places + [0] * (64 - places))


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("tiles, shared_by", [(1, 1), (4, 4), (40, 40), (5, 3)])
def test_tiles_prefetch_each_line_of_the_next_panel(require_fma, monkeypatch, tiles, shared_by, is_known):
    """Counted instead of prefetched; more tiles than were expected ask for the last line again. is_known: while
    compiling."""
    case = Layer("ahead", 2, tiles, 48, 100, "relu", 32, ahead=True)
    lines = up(case.outputs) * case.inputs // LANES

    def body(b) -> None:
        def count(buffer, index, locality: int) -> None:
            line = (index - LANES) // LANES
            T.buffer_store(b["seen"], b["seen"][line] + 1, [line])

        monkeypatch.setattr(dense, "prefetch", count)
        number = shared_by if is_known else T.bind(T.int32(shared_by))
        word = lambda tile, row, block, lane: b["x"][(tile * case.mr + row) * 48 + block * LANES + lane]  # noqa: E731
        write = lambda tile, row, block, values: T.buffer_store(b["y"], T.float32(0), [0])  # noqa: E731
        dense_layer(case.packed, b["w"], case.mr, word, write, tiles, shared_by=number)

    sizes = {"x": case.items * 48, "w": case.packed.bias_at + up(case.outputs), "y": 1}
    buffers = {name: (size, "float32") for name, size in sizes.items()} | {"seen": (2 * lines, "int32")}
    run = compiled([kernel("ahead", buffers, body)])["ahead"]
    seen = call(run, *(np.zeros(size, np.float32) for size in sizes.values()), np.zeros(2 * lines, np.int32))[3]
    panel = 32 * case.inputs // LANES
    assert (seen[:panel] == 0).all()
    # Three whole panels, of which the first has none before it, then one of 16 outputs, then what lies behind.
    assert (seen[panel : 3 * panel] >= 1).all()
    if shared_by == tiles and 32 % tiles == 0:
        assert (seen[panel : 3 * panel] == 1).all()


@pytest.mark.parametrize("k_blocks", [1, 2])
@pytest.mark.parametrize("is_short", [0, 1])
def test_rows_beyond_those_of_a_short_last_tile_are_not_computed(require_fma, is_short, k_blocks):
    case, rows = Layer("last", 6, 3, 37, 48, "relu", 16), 4
    packed = replace(case.packed, schedule=replace(case.packed.schedule, k_blocks=k_blocks))

    def body(b) -> None:
        source, out = Tiles(b["x"], 0, case.inputs, case.mr), Tiles(b["y"], 0, case.outputs, case.mr)
        word = lambda tile, row, block, lane: b["x"][source.index(tile, row, block, lane)]  # noqa: E731

        def write(tile, row, block, values: list) -> None:
            store(b["y"], out.index(tile, row, block), values[0])

        sums, last = b["sums"] if k_blocks > 1 else None, (b["is_short"][0], rows)
        dense_layer(packed, b["w"], case.mr, word, write, case.tiles, sums=sums, last=last)

    sizes = {"x": case.items * up(case.inputs), "w": case.packed.bias_at + up(case.outputs)}
    sizes |= {"y": case.items * up(case.outputs), "sums": case.items * up(case.outputs)}
    buffers = {name: (size, "float32") for name, size in sizes.items()} | {"is_short": (1, "int32")}
    run = compiled([kernel("last", buffers, body)])["last"]
    x, weight, bias = case.numbers()
    y, sums = (np.full(sizes["y"], np.nan, np.float32) for _ in range(2))
    y = call(run, to_tiles(x, case.mr), case.buffer(weight, bias), y, sums, np.array([is_short], np.int32))[2]
    y = from_tiles(y, case.items, case.outputs, case.mr)
    taken = 2 * case.mr + (rows if is_short else case.mr)
    np.testing.assert_allclose(y[:taken], case.formula(x, weight, bias)[:taken], rtol=2e-6, atol=4e-6)
    assert np.isnan(y[taken:]).all()


def run_gemv(layers, case: Layer, x: np.ndarray) -> np.ndarray:
    _, weight, bias = case.numbers()
    y, live = np.full(up(case.outputs), np.nan, np.float32), np.zeros(case.inputs + 1, np.int32)
    return call(layers[case.name], x, case.buffer(weight, bias), y, live)[2]


@pytest.mark.parametrize("case", GEMV, ids=lambda case: f"{case.inputs}-{case.outputs}")
@pytest.mark.parametrize("zeros", ["none", "all", "first", "last", "every other", "negative"])
def test_gemv_layer_matches_its_formula_whichever_inputs_are_zero(layers, case, zeros):
    x, weight, bias = case.numbers()
    picked = {"none": [], "first": 0, "last": -1, "every other": slice(1, None, 2)}.get(zeros, slice(None))
    x[0, picked] = -0.0 if zeros == "negative" else 0.0
    y = run_gemv(layers, case, x[0])
    np.testing.assert_allclose(y[: case.outputs], case.formula(x, weight, bias)[0], rtol=2e-6, atol=4e-6)
    np.testing.assert_array_equal(y[case.outputs :], 0)


def test_gemv_layer_does_not_skip_nan(layers):
    x = GEMV[2].numbers()[0][0]
    x[478] = np.nan
    assert np.isnan(run_gemv(layers, GEMV[2], x)[:100]).all()


@pytest.mark.parametrize("outputs, nr", [(1, 16), (33, 32), (48, 32), (100, 48), (17, 64)])
def test_packed_weights_lie_in_register_tiles_with_columns_in_the_order_asked_for(outputs, nr):
    weight = np.arange(1, outputs * 5 + 1, dtype=np.float32).reshape(outputs, 5)
    columns = np.array([3, -1, 0, 4, -1, 1, 2])
    wanted = np.where(columns < 0, 0, weight[:, columns])
    np.testing.assert_array_equal(pack_weight(weight, nr, columns), in_register_tiles(wanted, nr))
