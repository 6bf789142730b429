"""Fully connected layer of a single item, skipping the inputs that are exactly zero.

Plain definition:   y[n] = act(b[n] + sum over k with x[k] != 0 of x[k] * W[n, k])

With one item every weight is used once, so the layer is as fast as weights come out of the last-level cache; a row
of weights whose input is 0 (half of them after a ReLU on random weights, most in many trained networks) need not
come at all. 0 * w is 0 for every finite w, and compile.py refuses other weights, so the result is the same.

    live = [k for k in K if x[k] != 0]            # branch-free: always store, advance by x[k] != 0
    for n in N/nr:  for k in live:  acc[nr] += x[k] * W[n, k, :]

Registers: nr/16 accumulators + 1 broadcast; weights come straight from memory. Weights lie as in dense.py.
Fetching rows some live inputs ahead was measured and cost 7 %: out-of-order execution already looks that far.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from .dense import PackedDense, activate
from .vectors import LANES, broadcast, fma, load, store


def live_inputs(count: int, source: Callable, live) -> object:
    """Write the k of the inputs that are not zero to live[0..]; returns their number.

    source(k): x[k] as an expression; live: int32 buffer of count + 1 elements.
    """
    number = T.alloc_buffer((1,), "int32", scope="local")
    T.buffer_store(number, 0, [0])
    with T.serial(count) as k:
        T.buffer_store(live, k, [number[0]])
        T.buffer_store(number, number[0] + T.Select(source(k) == T.float32(0), 0, 1), [0])
    return T.bind(number[0])


def gemv_layer(layer: PackedDense, weights, source: Callable, write: Callable, live) -> None:
    """All outputs of one item. source(k): x[k]; write(block, value): stores 16 outputs."""
    number = live_inputs(layer.inputs, source, live)
    for first, count, nr in layer.column_tiles:
        with T.serial(count) as n:
            output = first + n * nr
            acc = T.alloc_buffer((nr,), "float32", scope="local")
            for v in range(nr // LANES):
                store(acc, v * LANES, load(weights, layer.bias_at + output + v * LANES))
            with T.serial(number) as at:
                row_at = layer.weight_at + output * layer.inputs
                k = T.bind(live[at])
                x = T.bind(broadcast(source(k)))
                for v in range(nr // LANES):
                    w = load(weights, row_at + k * nr + v * LANES)
                    store(acc, v * LANES, fma(x, w, load(acc, v * LANES)))
            for v in range(nr // LANES):
                write((output // LANES) + v, activate(load(acc, v * LANES), layer.activation))
