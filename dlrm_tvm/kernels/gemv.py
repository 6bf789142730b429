"""Fully connected layer of a single item, which skips inputs that are exactly zero.

Plain definition:   y[n] = act(b[n] + sum over k with x[k] != 0 of x[k] * W[n, k])

With one item every weight is used once, so bandwidth from the last-level cache is the limit. Rows of weights whose
input is 0 need not be read: half of them after a ReLU on random weights, most in many trained networks. 0 * w is 0 for
every finite w, and compile.py refuses other weights, so the result is the same.

    live = [k for k in K if x[k] != 0]            # branch-free: always store, advance by x[k] != 0
    for n in N/nr:  for k in live:  acc[nr] += x[k] * W[n, k, :]

k counts words of 1, 2 or 4 columns (words.py); a word is skipped if all of its columns are zero.

Registers: nr/16 accumulators + 1 broadcast; weights come straight from memory, stored as in dense.py.
Prefetching rows some live inputs ahead was measured and cost 7 %: out-of-order execution already looks that far.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from .dense import PackedDense
from .vectors import LANES, broadcast, load, store
from .words import Form


def live_inputs(count: int, source: Callable, live, form: Form) -> object:
    """Write the k of words that are not zero to live[0..], and return their number.

    source(k): word k of x as an expression; live: int32 buffer of count + 1 elements.
    """
    number = T.alloc_buffer((1,), "int32", scope="local")
    T.buffer_store(number, 0, [0])
    with T.serial(count) as k:
        T.buffer_store(live, k, [number[0]])
        T.buffer_store(number, number[0] + T.Select(form.is_zero(source(k)), 0, 1), [0])
    return T.bind(number[0])


def gemv_layer(layer: PackedDense, weights, source: Callable, write: Callable, live, row_scale=None) -> None:
    """All outputs of one item. source(k): word k of x; row_scale: its dynamic scale, None for none;
    write(block, values): takes the vectors of 16 outputs from column 16 * block on.
    """
    number = live_inputs(layer.inputs, source, live, layer.takes)
    for first, count, nr in layer.column_tiles:
        vectors = nr // LANES
        with T.serial(count) as n:
            output = first + n * nr
            acc = T.alloc_buffer((nr,), layer.takes.sum_dtype, scope="global")
            for v in range(vectors):
                store(acc, v * LANES, layer.first_sum(weights, output + v * LANES))
            with T.serial(number) as at:
                row_at = layer.weight_at + output * layer.inputs
                k = T.bind(live[at])
                x = T.bind(broadcast(source(k)))
                for v in range(vectors):
                    w = load(weights, row_at + k * nr + v * LANES)
                    store(acc, v * LANES, layer.takes.dot(load(acc, v * LANES), x, w))
            finish = layer.finish(weights, output, vectors)
            write(output // LANES, [finish(v, load(acc, v * LANES), row_scale) for v in range(vectors)])
