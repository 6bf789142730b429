"""The model in TVM's own operators, left to TVM's default code generation: what `--tuning-log-file none` compiles.

No schedule, no vector kernel of ours: a baseline that shows what those are worth. It takes the same inputs and the
same three parameters as the tuned library, the MLPs' weights in the model's own layout, and treats bad input alike.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax, te, tirx

from .kernels.gather import LARGEST_FLOAT
from .kernels.packing import Packer
from .kernels.vectors import padded
from .model import Dense, Dlrm


def plain_network(model: Dlrm, batch: int, table_elements: int) -> tuple[tvm.IRModule, np.ndarray]:
    """A module whose `main` has the network's signature, and the flat float32 array of weights it reads."""
    packer = Packer()
    places = [(packer.add(layer.weight.reshape(-1)), packer.add(layer.bias)) for layer in model.layers]
    mlp_array = packer.finish()
    tables, dim = len(model.tables), padded(model.dim)

    def variable(name: str, shape: tuple[int, ...], dtype: str) -> relax.Var:
        return relax.Var(name, relax.TensorType(shape, dtype))

    builder = relax.BlockBuilder()
    dense = variable("dense", (batch, model.num_dense), "float32")
    indices = variable("indices", (batch, tables), "int64")
    rows = variable("tables", (table_elements,), "float32")
    info = variable("table_info", (2, tables), "int64")
    mlp = variable("mlp", mlp_array.shape, "float32")
    with builder.function("main", [dense, indices, rows, info, mlp]):
        with builder.dataflow():
            x = dense
            for layer, place in zip(model.bottom, places):
                x = builder.emit_te(_dense(layer, place), x, mlp, primfunc_name_hint="dense")
            vectors = builder.emit_te(_lookup(dim, model.dim), x, indices, rows, info, primfunc_name_hint="lookup")
            x = builder.emit_te(_interaction(model), vectors, primfunc_name_hint="interaction")
            for layer, place in zip(model.top, places[len(model.bottom) :]):
                x = builder.emit_te(_dense(layer, place), x, mlp, primfunc_name_hint="dense")
            wrong = builder.emit_te(_wrong, dense, indices, info, primfunc_name_hint="wrong")
            pred = builder.emit_output(builder.emit_te(_mark, x, wrong, primfunc_name_hint="mark"))
        builder.emit_func_output(pred)
    return builder.get(), mlp_array


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
    k = te.reduce_axis((0, dense.shape[1]), "k")
    one, zero = tirx.const(1, "int32"), tirx.const(0, "int32")

    def outside(i):
        inside = tirx.all(indices[i, t] >= 0, indices[i, t] < info[1, t])
        return te.sum(tirx.Select(inside, zero, one), axis=t)

    def infinite(i):
        return te.sum(tirx.Select(te.abs(dense[i, k]) <= LARGEST_FLOAT, zero, one), axis=k)

    batch = (dense.shape[0],)
    bad_index, bad_dense = te.compute(batch, outside), te.compute(batch, infinite)
    return te.compute(batch, lambda i: bad_index[i] + bad_dense[i])


def _mark(x, wrong):
    nan = tirx.const(float("nan"), "float32")
    return te.compute((x.shape[0],), lambda i: tirx.Select(wrong[i] == 0, x[i, 0], nan))
