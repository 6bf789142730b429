"""int8 on AVX2: bytes of layers, whose products are added up in 16 bits where there is no VNNI, bytes of rows where
there is, and the peak loop."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi
from bare_kernels import call, compiled, kernel
from models import aligned, on_threads
from quantized import byte_order, words_of

from dlrm_tvm.kernels.isa import AVX2_INT8, AVX_VNNI, Family, imported
from dlrm_tvm.kernels.peak import MAX_THREADS, STEPS, PeakLoop
from dlrm_tvm.kernels.vectors import LANES, bits_of, load, store
from dlrm_tvm.kernels.vectors import words_of as as_words
from dlrm_tvm.kernels.words import UNPACKED, Form, column_order
from dlrm_tvm.machine.cpu import host_flags

BOUNDS = {"unsigned": (0, 255), "raised": (-128, 127), "row": (-128, 127)}
EDGES = np.concatenate([np.arange(-4, 4), np.arange(-130, -126), np.arange(125, 130), np.arange(253, 258)]) + 0.5
BEYOND = [1e6, -1e6, 2e9, -2e9, 1e30, 3e9, np.inf, -3e9, -np.inf, 40_000, -40_000, 70_000, -0.0]


def form_of(family: Family, kind: str) -> Form:
    return Form("int8" if kind == "row" else "bytes", signed=kind != "unsigned", family=family)


def pack_function(family: Family, kind: str):
    form = form_of(family, kind)

    def body(b) -> None:
        with imported(family):
            vectors = [load(b["x"], v * LANES) for v in range(form.unit)]
            store(b["y"], 0, form.pack(vectors, as_row=kind == "row"), form.unit_words)

    return kernel(f"pack_{kind}", {"x": (32, "float32"), "y": (form.unit_words, "float32")}, body)


def unpack_function(family: Family):
    def body(b) -> None:
        with imported(family):
            store(b["y"], 0, form_of(family, "raised").unpack(load(b["x"], 0, 4))[0])

    return kernel("unpack", {"x": (4, "float32"), "y": (16, "float32")}, body)


def dot_function(family: Family, kind: str):
    def body(b) -> None:
        with imported(family):
            sums = form_of(family, kind).dot(bits_of(load(b["acc"], 0)), load(b["x"], 0), load(b["w"], 0))
            store(b["y"], 0, as_words(sums))

    return kernel(f"dot_{kind}", {name: (16, "float32") for name in ("acc", "x", "w", "y")}, body)


@pytest.fixture(scope="module", params=[AVX2_INT8, AVX_VNNI], ids=lambda family: family.name)
def family(request) -> Family:
    if missing := set(request.param.flags) - host_flags():
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    return request.param


@pytest.fixture(scope="module")
def library(family):
    functions = [pack_function(family, kind) for kind in BOUNDS]
    functions += [dot_function(family, kind) for kind in ("raised", "row") if kind != "row" or not family.widens_rows]
    return compiled([*functions, unpack_function(family), PeakLoop(family).function()])


@pytest.mark.parametrize("kind", BOUNDS)
def test_values_round_ties_to_even_and_are_kept_within_their_bounds_in_the_order_that_is_stated(library, kind):
    least, most = BOUNDS[kind]
    for numbers in (EDGES, BEYOND, np.arange(32) - 3, 7.5 * np.arange(32)):
        values = np.resize(numbers, 32).astype(np.float32)
        wanted = np.clip(np.rint(values), least, most)
        wanted = byte_order(wanted) if kind == "row" else wanted[:16] + (128 if kind == "raised" else 0)
        words = call(library[f"pack_{kind}"], values, np.zeros(len(wanted) // 4, np.float32))[1]
        np.testing.assert_array_equal(words.view(np.uint32), words_of(wanted, "int8").view(np.uint32))


def test_unpacked_values_are_those_that_were_packed(library):
    np.testing.assert_array_equal(column_order("bytes", 32), np.arange(32))
    for values in (np.arange(-128, -112), np.arange(-8, 8), np.arange(112, 128)):
        got = call(library["unpack"], words_of(values + 128, "bytes"), np.zeros(16, np.float32))[1]
        np.testing.assert_array_equal(got, values * np.float32(UNPACKED))


@pytest.mark.parametrize("kind", ["raised", "row"])
@pytest.mark.parametrize("sign", [0, 1, -1])
def test_a_dot_adds_unsigned_times_signed_bytes_without_saturation(library, family, kind, sign):
    if kind == "row" and family.widens_rows:
        pytest.skip("rows are multiplied in 16 bits, see tests/network/test_interaction.py")
    largest = family.largest_weight if kind == "raised" else 128
    rng = np.random.default_rng(0)
    x = np.full(64, 255) if sign else rng.integers(0, 256, 64)
    w = np.full(64, min(sign * largest, 127)) if sign else rng.integers(-largest, min(largest, 127) + 1, 64)
    acc = rng.integers(-(1 << 30), 1 << 30, 16).astype(np.int32)
    arguments = acc.view(np.float32), words_of(x, "int8"), words_of(w, "int8"), np.zeros(16, np.float32)
    got = call(library[f"dot_{kind}"], *arguments)[3].view(np.int32)
    np.testing.assert_array_equal(got, acc + (x * w).reshape(16, 4).sum(axis=1))


@pytest.mark.parametrize("rounds, threads", [(0, 1), (1, 1), (2, 2)])
def test_the_peak_loop_runs_every_chain_as_often_as_it_is_credited_for(library, family, rounds, threads):
    """acc = y + acc . x, or acc + x . y: each step needs the one before, so that none can be left out."""
    x, y = np.array([3, -7, 64, -64]), 12_345
    factors = aligned(np.concatenate([words_of(x, "int8"), np.int32([y]).view(np.float32)]))
    sink = aligned(np.full(MAX_THREADS * LANES, -1, np.float32))
    arguments = (rounds, tvm_ffi.from_dlpack(factors), tvm_ffi.from_dlpack(sink))
    on_threads(threads, lambda: library["peak_fma"](*arguments))
    chains = np.arange(1, 7, dtype=np.int32)
    for _ in range(rounds * STEPS):
        if family is AVX_VNNI:
            chains += x.astype(np.uint8) @ np.int32([y]).view(np.int8).astype(np.int32)
        else:
            chains = (y + chains.view(np.uint8).reshape(-1, 4).astype(np.int64) @ x).astype(np.int32)
    np.testing.assert_array_equal(sink[: threads * LANES].view(np.int32), chains.sum(dtype=np.int32))
    np.testing.assert_array_equal(sink[threads * LANES :], -1)
    assert PeakLoop(family).flops_per_round == 2 * 4 * 6 * STEPS * LANES
