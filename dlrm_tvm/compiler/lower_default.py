"""The model in TVM's own operators, left to TVM's default code generation: `--tuning-log-file none`.

A baseline without schedules and vector kernels of ours. It takes the same inputs and the same three parameters as the
tuned library, with the MLPs' weights in the model's layout, and treats bad input alike. TVM has no operator whose
loops depend on data, so bags are pooled by the plain definition in TIR (embedding_bag.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax, te, tirx

from ..kernels.embedding_bag import BagShape, embedding_bag_plain
from ..kernels.gather import LARGEST_FLOAT
from ..kernels.packing import Packer
from ..kernels.vectors import padded
from ..model.dlrm import Dense, Dlrm
from ..model.interactions import Concat, Cross, Dot


def plain_network(model: Dlrm, batch: int, table_elements: int) -> tuple[tvm.IRModule, np.ndarray]:
    """A module whose `main` and `bags` have the network's signatures, and the flat float32 array of the MLPs."""
    packer = Packer()
    places = [(packer.add(layer.weight.reshape(-1)), packer.add(layer.bias)) for layer in model.layers]
    mlp_array = packer.finish()
    network = _Network(relax.BlockBuilder(), model, batch, table_elements, mlp_array.size, places)
    network.emit_main()
    network.emit_bags()
    return network.builder.get(), mlp_array


@dataclass(frozen=True)
class _Network:
    """places: where each layer's weight and bias begin in the MLPs' array."""

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
        """Of both functions: dense, tables, table_info, mlp."""
        return (
            _variable("dense", (self.batch, self.model.num_dense), "float32"),
            _variable("tables", (self.table_elements,), "float32"),
            _variable("table_info", (2, len(self.model.tables)), "int64"),
            _variable("mlp", (self.mlp_elements,), "float32"),
        )

    def _top(self, vectors, mlp):
        first, model = len(self.model.bottom), self.model

        def outputs(at: int, x):
            return self._layers((model.interaction.layers[at],), [self.places[first + at]], x, mlp)

        x = _JOINED[type(model.interaction)](model, vectors, self.builder.emit, outputs)
        return self._layers(model.top, self.places[model.first_top :], x, mlp)

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
            if layer.activation == "relu":  # te.max would turn NaN into 0
                return tirx.Select(value < 0, tirx.const(0, "float32"), value)
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


# Per kind: vectors [batch, V, D] -> the top MLP's input; outputs(k, x): of the interaction's layer k.


def _dot(model: Dlrm, vectors: relax.Var, emit: Callable, outputs: Callable) -> relax.Var:
    """[x, dots]: of all products Z Zᵀ, those of the model's pairs."""
    count = model.num_vectors
    pairs = np.array([i * count + j for i, j in model.interaction.pairs(count)])
    products = emit(relax.op.matmul(vectors, emit(relax.op.permute_dims(vectors, [0, 2, 1]))))
    products = emit(relax.op.reshape(products, (-1, count * count)))
    dots = emit(relax.op.take(products, relax.const(pairs, "int64"), axis=1, mode="clip"))
    x = emit(relax.op.take(vectors, relax.const(0, "int64"), axis=1, mode="clip"))
    return emit(relax.op.concat([x, dots], axis=1))


def _concat(model: Dlrm, vectors: relax.Var, emit: Callable, outputs: Callable) -> relax.Var:
    return emit(relax.op.reshape(vectors, (-1, model.top_inputs)))


def _cross(model: Dlrm, vectors: relax.Var, emit: Callable, outputs: Callable) -> relax.Var:
    """x0 * y + x for each cross layer, y what its layers make of x."""
    first = x = _concat(model, vectors, emit, outputs)
    at = 0
    for crossing in model.interaction.crossings:
        y = x
        for _ in crossing:
            y = outputs(at, y)
            at += 1
        x = emit(relax.op.add(emit(relax.op.multiply(first, y)), x))
    return x


_JOINED = {Dot: _dot, Concat: _concat, Cross: _cross}


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
    """wrong: [batch] int64, the pooling's count of wrong indices and offsets."""
    bad_dense, one = _not_finite(dense), tirx.const(1, "int32")
    return te.compute((dense.shape[0],), lambda i: tirx.Select(wrong[i] == 0, bad_dense[i], one))


def _not_finite(dense):
    """Per item the number of dense values that are not finite: [batch] int32."""
    k = te.reduce_axis((0, dense.shape[1]), "k")
    one, zero = tirx.const(1, "int32"), tirx.const(0, "int32")

    def infinite(i):
        return te.sum(tirx.Select(te.abs(dense[i, k]) <= LARGEST_FLOAT, zero, one), axis=k)

    return te.compute((dense.shape[0],), infinite)


def _mark(clamp: tuple[float, float] | None):
    """The prediction, clamped; NaN for an item with wrong input."""

    def compute(x, wrong):
        nan = tirx.const(float("nan"), "float32")
        value = (lambda i: x[i, 0]) if clamp is None else (lambda i: _clamped(x[i, 0], *clamp))
        return te.compute((x.shape[0],), lambda i: tirx.Select(wrong[i] == 0, value(i), nan))

    return compute


def _clamped(value, least: float, greatest: float):
    """NaN stays NaN."""
    least, greatest = tirx.const(least, "float32"), tirx.const(greatest, "float32")
    return tirx.Select(value < least, least, tirx.Select(value > greatest, greatest, value))
