"""One opened library, ready to run: checks what it is given, cuts it into batches, hands back predictions.

Needs only TVM's run time (set TVM_USE_RUNTIME_LIB=1 before the first import to load the small one). One executor
belongs to the thread that made it: TVM's thread pool is per calling thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from threading import get_ident, local
from time import perf_counter
from typing import Any

import numpy as np
import tvm_ffi
from tvm.runtime import cpu, load_module
from tvm.runtime.vm import VirtualMachine

from .address_range import writable_view
from .artifact import Artifact
from .bags import Bags, as_array, check_bags
from .errors import UserError
from .parameters import ALIGNMENT
from .placement import place_threads

_POOL = local()
_PEAK_SINK = 1024 * 16  # floats; see kernels/peak.py


@dataclass(frozen=True)
class Batch:
    """One batch's inputs in aligned memory of their own, as the library's function `entry` takes them.

    inputs: dense and indices for `main`, and offsets too for `bags`.
    """

    entry: Any
    inputs: tuple[Any, ...]


@dataclass(frozen=True)
class OpenBatch:
    """A batch whose inputs are written anew before each run: dense [batch, D] float32, indices [batch, T] int64."""

    batch: Batch
    dense: np.ndarray
    indices: np.ndarray


class Executor:
    """Runs one artifact on `threads` threads; with `cores`, one CPU id per thread, each thread on its own.

    Without `cores` the threads may run wherever the calling thread may.
    """

    def __init__(self, artifact: Artifact, *, threads: int = 1, cores: Sequence[int] | None = None) -> None:
        if threads < 1:
            raise UserError(f"{threads} threads: at least 1 was wanted.")
        self.artifact = artifact
        self.threads = threads
        self._owner = get_ident()
        self.batch_size = artifact.manifest.batch_size
        self._card = artifact.manifest.model
        _place_pool(threads, cores)
        self._module = load_module(str(artifact.library))
        machine = VirtualMachine(self._module, cpu())
        self._main, self._bags = machine["main"], machine["bags"]
        self._profile = machine["profile"] if artifact.manifest.profile else None
        self._parameters = tuple(tvm_ffi.from_dlpack(writable_view(array)) for array in artifact.parameters)
        self._dense_shape = (self._card.num_dense,)
        self._indices_shape = (self._card.num_tables,)
        self._staging = self.open_batch()

    def __call__(
        self, dense: np.ndarray, indices: np.ndarray | Sequence, offsets: np.ndarray | Sequence | None = None
    ) -> np.ndarray:
        """dense [n, num_dense] float32, indices [n, num_tables] integers -> predictions [n] float32, for any n.

        With offsets, bags: both are given per table as torch.nn.EmbeddingBag takes them, indices[t] [any number] and
        offsets[t] [n] integers. A bag may be empty, which gives zeros.

        Raises UserError (a ValueError) on wrong shapes or dtypes, a dense value that is not finite, an index
        outside its table or offsets that are no bags (the message names the item, and the table and value), and when
        called from another thread than the one that made this executor.
        """
        if get_ident() != self._owner:
            raise UserError("a model belongs to the thread that loaded it: load it in each thread; weights are shared.")
        if offsets is not None:
            return self._predict_bags(dense, indices, offsets)
        dense, indices = self._checked(dense, indices)
        pred = np.empty(len(dense), np.float32)
        staging = self._staging
        for at in range(0, len(dense), self.batch_size):
            size = min(self.batch_size, len(dense) - at)
            staging.dense[:size] = dense[at : at + size]
            staging.indices[:size] = indices[at : at + size]
            pred[at : at + size] = self.run(staging.batch)[:size]
        # The library answers NaN for an item with bad input; looking at the output is cheaper than at the input, and
        # a sum of squares is NaN if and only if a prediction is.
        if isnan(pred.dot(pred)):
            self._explain_nan(pred, dense, lambda item: _first_outside(indices[item], self._card.table_rows))
        return pred

    def _predict_bags(self, dense: np.ndarray, indices: Sequence, offsets: Sequence) -> np.ndarray:
        dense = self._checked_dense(dense)
        bags = check_bags(indices, offsets, len(dense), self._card.num_tables)
        pred = np.empty(len(dense), np.float32)
        for at in range(0, len(dense), self.batch_size):
            end = min(at + self.batch_size, len(dense))
            pred[at:end] = self.run(self._bag_batch(dense[at:end], bags.part(at, end)))[: end - at]
        if isnan(pred.dot(pred)):
            self._explain_nan(pred, dense, lambda item: bags.part(item, item + 1).first_outside(self._card.table_rows))
        return pred

    def prepare(
        self, dense: np.ndarray, indices: np.ndarray | Sequence, offsets: np.ndarray | Sequence | None = None
    ) -> Batch:
        """An aligned copy of one full batch's inputs, given as in a call and checked, to be run any number of times."""
        bags = None
        if offsets is None:
            dense, indices = self._checked(dense, indices)
        else:
            dense = self._checked_dense(dense)
            bags = check_bags(indices, offsets, len(dense), self._card.num_tables)
        if len(dense) != self.batch_size:
            raise ValueError(f"{len(dense)} items for a library of batch size {self.batch_size}")
        if bags is not None:
            return self._bag_batch(dense, bags)
        opened = self.open_batch()
        opened.dense[:], opened.indices[:] = dense, indices
        return opened.batch

    def open_batch(self) -> OpenBatch:
        """A batch of zeros to be written by the caller, who answers for its values: `run` checks nothing."""
        dense = _aligned((self.batch_size, self._card.num_dense), np.float32)
        indices = _aligned((self.batch_size, self._card.num_tables), np.int64)
        return OpenBatch(Batch(self._main, (tvm_ffi.from_dlpack(dense), tvm_ffi.from_dlpack(indices))), dense, indices)

    def run(self, batch: Batch) -> np.ndarray:
        """Predictions [batch_size] float32 of a prepared batch; nothing is checked. This is the call that is timed."""
        return np.from_dlpack(batch.entry(*batch.inputs, *self._parameters))

    def run_profiled(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """A prepared batch without bags by the library's `profile`, if it has one: predictions [batch_size] float32,
        ticks [tiles, parts + 1] int64 with a row per thread as kernels/stopwatch.py has it; other rows mean nothing."""
        pred, ticks = self._profile(*batch.inputs, *self._parameters)
        return np.from_dlpack(pred), np.from_dlpack(ticks)

    def peak_gflops(self, seconds: float) -> float:
        """Fused multiply-adds and nothing else on all threads, for about `seconds`: GFLOP/s over all of them."""
        loop = self._module.get_function("peak_fma", query_imports=True)
        factors = tvm_ffi.from_dlpack(_aligned(2, np.float32))
        np.from_dlpack(factors)[:] = (0.999, 1e-6)
        sink = tvm_ffi.from_dlpack(_aligned(_PEAK_SINK, np.float32))
        flops_per_round = self.artifact.manifest.peak_flops_per_round * self.threads
        rounds, flops, start = 20_000, 0, perf_counter()
        while (elapsed := perf_counter() - start) < seconds:
            loop(rounds, factors, sink)
            flops += rounds * flops_per_round
        return flops / elapsed / 1e9 if flops else 0.0

    def stream_gbps(self, seconds: float) -> float:
        """One thread reading the MLP's weights over and over for about `seconds`: GB/s."""
        weights = self._parameters[-1]
        sink = tvm_ffi.from_dlpack(_aligned(_PEAK_SINK, np.float32))
        loop = self._module.get_function("stream_read", query_imports=True)
        size, reads, start = self.artifact.parameters[-1].nbytes, 0, perf_counter()
        while (elapsed := perf_counter() - start) < seconds:
            loop(weights, sink)
            reads += 1
        return reads * size / elapsed / 1e9

    def _bag_batch(self, dense: np.ndarray, bags: Bags) -> Batch:
        """Up to one batch; the items it lacks keep dense values of 0 and empty bags."""
        arrays = (
            _aligned((self.batch_size, self._card.num_dense), np.float32),
            _aligned(max(bags.num_indices, 1), np.int64),  # TVM takes no array without memory
            _aligned((self._card.num_tables, self.batch_size + 1), np.int64),
        )
        arrays[0][: len(dense)] = dense
        bags.write(*arrays[1:])
        return Batch(self._bags, tuple(map(tvm_ffi.from_dlpack, arrays)))

    def _checked_dense(self, dense: np.ndarray) -> np.ndarray:
        dense = as_array("dense", dense)
        if dense.shape[1:] != self._dense_shape or dense.dtype != np.float32:
            shape, wanted = list(dense.shape), self._dense_shape[0]
            raise UserError(f"dense is {dense.dtype} {shape}, float32 [n, {wanted}] was wanted.")
        return dense

    def _checked(self, dense: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dense, indices = self._checked_dense(dense), as_array("indices", indices)
        if indices.shape != (len(dense), *self._indices_shape) or indices.dtype.kind not in "iu":
            found, wanted = list(indices.shape), self._indices_shape[0]
            shape = f"[{len(dense)}, {wanted}]"
            raise UserError(
                f"indices are {indices.dtype} {found}, integers {shape} were wanted: one per item and table."
            )
        return dense, indices

    def _explain_nan(self, pred: np.ndarray, dense: np.ndarray, first_outside: Callable) -> None:
        """first_outside(item): (.., table, index) of the item's first index outside its table, or None."""
        for item in np.flatnonzero(np.isnan(pred)):
            if outside := first_outside(item):
                *_, table, index = outside
                rows = self._card.table_rows[table]
                raise UserError(
                    f"item {item}: index {index} is outside table {table}, which has {rows} rows (0..{rows - 1})."
                )
            bad = np.flatnonzero(~np.isfinite(dense[item]))
            if bad.size:
                raise UserError(
                    f"item {item}: dense value {bad[0]} is {dense[item, bad[0]]}, finite values were wanted."
                )


def _first_outside(row: np.ndarray, table_rows: Sequence[int]) -> tuple[int, int] | None:
    pairs = enumerate(zip(row.tolist(), table_rows))
    return next(((table, index) for table, (index, rows) in pairs if not 0 <= index < rows), None)


def _place_pool(threads: int, cores: Sequence[int] | None) -> None:
    """TVM has one pool per calling thread, whose size all of its executors share. Raises UserError on another size."""
    size = getattr(_POOL, "size", threads)
    if size != threads:
        raise UserError(f"this thread's models use {size} threads: load with threads={size}, or in another thread.")
    place_threads(threads, cores)
    _POOL.size = threads  # only now: where placing failed, another size may be tried


def _aligned(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros from a 64-byte boundary: what generated code takes for granted."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    at = -raw.ctypes.data % ALIGNMENT
    return raw[at : at + nbytes].view(dtype).reshape(shape)
