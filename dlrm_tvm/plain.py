"""The model in TVM's own operators, left to TVM's default code generation: what `--tuning-log-file none` compiles.

No schedule, no vector kernel of ours: a baseline that shows what those are worth. It takes the same inputs and the
same three parameters as the tuned library, the MLPs' weights in the model's own layout, and treats bad input alike.
TVM has no operator whose loops depend on data, so bags are pooled by the plain definition in TIR (embedding_bag.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax, te, tirx

from .kernels.embedding_bag import BagShape, embedding_bag_plain
from .kernels.gather import LARGEST_FLOAT
from .kernels.packing import Packer
from .kernels.vectors import padded
from .model import Dense, Dlrm


def plain_network(model: Dlrm, batch: int, table_elements: int) -> tuple[tvm.IRModule, np.ndarray]:
    """A module whose `main` and `bags` have the network's signatures, and the flat float32 array of weights."""
    packer = Packer()
    places = [(packer.add(layer.weight.reshape(-1)), packer.add(layer.bias)) for layer in model.layers]
    mlp_array = packer.finish()
    network = _Network(relax.BlockBuilder(), model, batch, table_elements, mlp_array.size, places)
    network.emit_main()
    network.emit_bags()
    return network.builder.get(), mlp_array


@dataclass(frozen=True)
class _Network:
    """places: where each layer's weight and bias begin in the array of weights."""

    builder: relax.BlockBuilder
    model: Dlrm
    batch: int
    table_elements: int
    mlp_elements: int
    places: list[tuple[int, int]]

    def emit_main(self) -> None:
        builder, model = self.builder, self.model
        indices = _variable("indices", (self.batch, len(model.tables)), "int64")
        dense, rows, info, mlp = self._arguments()
        with builder.function("main", [dense, indices, rows, info, mlp]):
            with builder.dataflow():
                x = self._layers(model.bottom, self.places, dense, mlp)
                lookup = _lookup(padded(model.dim), model.dim)
                vectors = builder.emit_te(lookup, x, indices, rows, info, primfunc_name_hint="lookup")
                x = self._top(vectors, mlp)
                wrong = builder.emit_te(_wrong, dense, indices, info, primfunc_name_hint="wrong")
                pred = builder.emit_output(builder.emit_te(_mark(model.clamp), x, wrong, primfunc_name_hint="mark"))
            builder.emit_func_output(pred)

    def emit_bags(self) -> None:
        builder, model = self.builder, self.model
        tables = len(model.tables)
        indices = _variable("indices", (tirx.Var("total", "int64"),), "int64")
        offsets = _variable("offsets", (tables, self.batch + 1), "int64")
        dense, rows, info, mlp = self._arguments()
        means = tuple(table.pooling == "mean" for table in model.tables)
        pool = embedding_bag_plain(BagShape(self.batch, padded(model.dim), self.table_elements, means), model.dim)
        pool = builder.add_func(pool.without_attr("global_symbol"), "embedding_bag_plain")
        pooled_type = [
            relax.TensorType((self.batch, tables, model.dim), "float32"),
            relax.TensorType((self.batch,), "int64"),
        ]
        with builder.function("bags", [dense, indices, offsets, rows, info, mlp]):
            with builder.dataflow():
                x = self._layers(model.bottom, self.places, dense, mlp)
                pooled = builder.emit(relax.call_tir(pool, [indices, offsets, rows, info], out_ty=pooled_type))
                vectors = builder.emit_te(_join, x, pooled[0], primfunc_name_hint="join")
                x = self._top(vectors, mlp)
                wrong = builder.emit_te(_wrong_bags, dense, pooled[1], primfunc_name_hint="wrong_bags")
                pred = builder.emit_output(builder.emit_te(_mark(model.clamp), x, wrong, primfunc_name_hint="mark"))
            builder.emit_func_output(pred)

    def _arguments(self) -> tuple[relax.Var, ...]:
        """What both functions take: dense, tables, table_info, mlp."""
        return (
            _variable("dense", (self.batch, self.model.num_dense), "float32"),
            _variable("tables", (self.table_elements,), "float32"),
            _variable("table_info", (2, len(self.model.tables)), "int64"),
            _variable("mlp", (self.mlp_elements,), "float32"),
        )

    def _top(self, vectors, mlp):
        x = self.builder.emit_te(_interaction(self.model), vectors, primfunc_name_hint="interaction")
        return self._layers(self.model.top, self.places[len(self.model.bottom) :], x, mlp)

    def _layers(self, layers: tuple[Dense, ...], places: list, x, mlp):
        for layer, place in zip(layers, places):
            x = self.builder.emit_te(_dense(layer, place), x, mlp, primfunc_name_hint="dense")
        return x


def _variable(name: str, shape: tuple, dtype: str) -> relax.Var:
    return relax.Var(name, relax.TensorType(shape, dtype))


def _dense(layer: Dense, place: tuple[int, int]):
    weight_at, bias_at = place

    def compute(x, mlp):
        k = te.reduce_axis((0, layer.inputs), "k")
        shape = (x.shape[0], layer.outputs)
        dot = te.compute(shape, lambda i, n: te.sum(x[i, k] * mlp[weight_at + n * layer.inputs + k], axis=k))

        def finish(i, n):
            value = dot[i, n] + mlp[bias_at + n]
            if layer.activation == "relu":
                return te.max(value, tirx.const(0, "float32"))
            return te.sigmoid(value) if layer.activation == "sigmoid" else value

        return te.compute(shape, finish)

    return compute


def _lookup(row_elements: int, dim: int):
    def compute(x, indices, rows, info):
        def vector(i, v, d):
            index = indices[i, te.max(v - 1, 0)]
            table = te.max(v - 1, 0)
            safe = tirx.Select(tirx.all(index >= 0, index < info[1, table]), index, tirx.const(0, "int64"))
            return tirx.if_then_else(v == 0, x[i, d], rows[info[0, table] + safe * row_elements + d])

        return te.compute((x.shape[0], indices.shape[1] + 1, dim), vector)

    return compute


def _join(x, pooled):
    shape = (pooled.shape[0], pooled.shape[1] + 1, pooled.shape[2])
    return te.compute(shape, lambda i, v, d: tirx.if_then_else(v == 0, x[i, d], pooled[i, te.max(v - 1, 0), d]))


def _interaction(model: Dlrm):
    first, second = (np.array(side) for side in zip(*model.pairs)) if model.pairs else (np.array([]), np.array([]))

    def compute(vectors):
        batch, _, dim = vectors.shape
        if model.interaction.kind == "cat":
            return te.compute((batch, model.top_inputs), lambda i, c: vectors[i, c // dim, c % dim])
        d = te.reduce_axis((0, dim), "d")
        n = model.num_vectors
        dots = te.compute((batch, n, n), lambda i, a, b: te.sum(vectors[i, a, d] * vectors[i, b, d], axis=d))
        column = te.compute((len(first),), lambda p: _constant(first * n + second, p))
        return te.compute(
            (batch, model.top_inputs),
            lambda i, c: tirx.if_then_else(
                c < dim,
                vectors[i, 0, te.min(c, dim - 1)],
                dots[i, column[te.max(c - dim, 0)] // n, column[te.max(c - dim, 0)] % n],
            ),
        )

    return compute


def _constant(values: np.ndarray, at):
    """values[at] as nested selections by halves: TE has no constant arrays."""
    if len(values) == 1:
        return tirx.const(int(values[0]), "int32")
    half = len(values) // 2
    return tirx.Select(at < half, _constant(values[:half], at), _constant(values[half:], at - half))


def _wrong(dense, indices, info):
    t = te.reduce_axis((0, indices.shape[1]), "t")
    one, zero = tirx.const(1, "int32"), tirx.const(0, "int32")

    def outside(i):
        inside = tirx.all(indices[i, t] >= 0, indices[i, t] < info[1, t])
        return te.sum(tirx.Select(inside, zero, one), axis=t)

    batch = (dense.shape[0],)
    bad_index, bad_dense = te.compute(batch, outside), _not_finite(dense)
    return te.compute(batch, lambda i: bad_index[i] + bad_dense[i])


def _wrong_bags(dense, wrong):
    """wrong: [batch] int64, what the pooling counted."""
    bad_dense, one = _not_finite(dense), tirx.const(1, "int32")
    return te.compute((dense.shape[0],), lambda i: tirx.Select(wrong[i] == 0, bad_dense[i], one))


def _not_finite(dense):
    """How many dense values of each item are not finite: [batch] int32."""
    k = te.reduce_axis((0, dense.shape[1]), "k")
    one, zero = tirx.const(1, "int32"), tirx.const(0, "int32")

    def infinite(i):
        return te.sum(tirx.Select(te.abs(dense[i, k]) <= LARGEST_FLOAT, zero, one), axis=k)

    return te.compute((dense.shape[0],), infinite)


def _mark(clamp: tuple[float, float] | None):
    """The prediction, clamped, or NaN for an item with wrong input."""

    def compute(x, wrong):
        nan = tirx.const(float("nan"), "float32")
        value = (lambda i: x[i, 0]) if clamp is None else (lambda i: _clamped(x[i, 0], *clamp))
        return te.compute((x.shape[0],), lambda i: tirx.Select(wrong[i] == 0, value(i), nan))

    return compute


def _clamped(value, least: float, greatest: float):
    """A NaN, which is neither less nor more, stays one."""
    least, greatest = tirx.const(least, "float32"), tirx.const(greatest, "float32")
    return tirx.Select(value < least, least, tirx.Select(value > greatest, greatest, value))
