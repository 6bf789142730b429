"""One opened library, ready to run: checks what it is given, cuts it into batches, hands back predictions.

Needs only TVM's run-time library (tvm_alone.py). An executor may be called from any thread at any time. TVM has one
pool of threads per calling thread, so each has a seat of its own, made on its first call and gone with the thread; code
and weights are shared. The network is one function of the library, which is called without TVM's virtual machine: that
costs some 20 us a call when weights have pushed it out of the caches. Only TVM's default code needs it.
After a fork a pool of several threads is dead in the child (a call would wait for ever), so the child's call raises.
At the interpreter's exit running calls end and no new one begins: a thread must not come back from TVM into a Python
that is gone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from time import perf_counter
from typing import Any

import numpy as np

from ..errors import UserError, one_line
from ..machine.address_range import writable_view
from ..machine.tile_state import TILE_FLAGS, require_tiles
from ..model.bags import Bags, as_array, bags_of_arrays, bags_of_one, check_bags, wrapped_indices
from . import seats
from .artifact import Artifact
from .manifest import peak_name
from .parameters import aligned
from .thread_pool import check_threads, place_threads
from .tvm_alone import tvm_ffi

_MOST_THREADS = 1024  # see kernels/peak.py
_PEAK_SINK = _MOST_THREADS * 16  # floats
_CPU, _POOLED = 1, 2  # a device's kind and an allocator's, as tvm/runtime/vm.py hands them to TVM's virtual machine


@dataclass(frozen=True)
class Batch:
    """One batch's inputs and predictions in aligned memory of their own, as the library's function `entry` takes them.

    inputs: dense and indices, or dense, indices and offsets of bags. pred: [batch] float32.
    """

    entry: Any
    inputs: tuple[Any, ...]
    output: Any
    pred: np.ndarray


@dataclass(frozen=True)
class OpenBatch:
    """A batch whose inputs are written anew before each run: dense [batch, D] float32, indices [batch, T] int64."""

    batch: Batch
    dense: np.ndarray
    indices: np.ndarray


@dataclass(frozen=True, eq=False)
class _Seat:
    """What one calling thread needs: functions (inputs, parameters, outputs), and memory for a batch and for ticks."""

    main: Any
    bags: Any
    profiles: tuple[Any, Any]
    staging: OpenBatch
    ticks: np.ndarray
    ticks_out: Any


class Executor:
    """Runs one artifact on `threads` threads; with `cores`, one CPU id per thread, each thread on its own.

    Without `cores` the threads may run wherever the calling thread may. Raises UserError for more threads than cores,
    and where the library is none of this program or not what its manifest says.
    """

    def __init__(self, artifact: Artifact, *, threads: int = 1, cores: Sequence[int] | None = None) -> None:
        check_threads(threads, cores)
        self.artifact = artifact
        self.threads = threads
        self.batch_size = artifact.manifest.batch_size
        self._cores = cores
        self._card = artifact.manifest.model
        self._dense_shape = (self._card.num_dense,)
        self._indices_shape = (self._card.num_tables,)
        self._tiles = TILE_FLAGS[0] in artifact.manifest.cpu_features
        if self._tiles:
            require_tiles(str(artifact.library))  # before there are threads
        self._seats = seats.Seats(threads, self._make_seat)
        try:
            with seats.making:  # a forked child has another one
                self._module = tvm_ffi.load_module(os.path.realpath(artifact.library))
                self._parameters = tuple(tvm_ffi.from_dlpack(writable_view(array)) for array in artifact.parameters)
            # Where the manifest has other shapes than the library, this fails.
            self._seats.mine().call(lambda held: self.run(held.staging.batch))
        except (UserError, OSError):
            raise
        except Exception as error:  # TVM's have no common type
            reason = one_line(error)
            raise UserError(
                f"{artifact.library} is no library of this program, or not the one of its manifest ({reason}). "
                "Compile again."
            ) from None

    def __del__(self) -> None:
        seats.let_go(self.__dict__)

    def _make_seat(self) -> _Seat:
        place_threads(self.threads, self._cores)
        if self._tiles:
            self._require_tiles_on_all_threads()
        profiles = (None, None)
        if self.artifact.manifest.is_plain:
            machine = self._module["vm_load_executable"]()
            machine["vm_initialization"](_CPU, 0, _POOLED)
            main, bags = _storing(machine["main"]), _storing(machine["bags"])
        else:
            main, bags = self._function("dlrm"), self._function("dlrm_bags")
            if self.artifact.manifest.profile:
                profiles = self._function("dlrm_profile"), self._function("dlrm_profile_bags")
        ticks = aligned((self.threads, len(self.artifact.manifest.profile) + 1), np.int64)
        return _Seat(main, bags, profiles, self._open_batch(main), ticks, tvm_ffi.from_dlpack(ticks))

    def _function(self, name: str) -> Any:
        return self._module.get_function(name, query_imports=True)

    def __call__(
        self, dense: np.ndarray, indices: np.ndarray | Sequence, offsets: np.ndarray | Sequence | None = None
    ) -> np.ndarray:
        """dense [n, num_dense] float32, indices [n, num_tables] integers -> predictions [n] float32, for any n.

        With offsets, bags: both are given per table as torch.nn.EmbeddingBag takes them, indices[t] [any number] and
        offsets[t] [n] integers, or [n + 1] with the end of the last bag. A bag may be empty, which gives zeros. A model
        whose graph fixes the number of indices per bag also takes a list of arrays [n, number], one per table, without
        offsets.

        Raises UserError (a ValueError) on wrong shapes or dtypes, a dense value that is not finite, an index outside a
        table or offsets that are no bags (the message names the item, and the table and value), in a forked child whose
        parent's thread used several, and within a call of the same thread, as in a signal handler. A row of a table
        that holds NaN gives NaN.

        May be called from any thread, also at once. What a thread costs is in docs/compile.md.
        """
        seat = self._seats.mine()
        if self._are_bags(indices, offsets):
            return seat.call(self._predict_bags, dense, indices, offsets)
        return seat.call(self._predict, dense, indices)

    def _predict(self, seat: _Seat, dense: np.ndarray, indices: np.ndarray) -> np.ndarray:
        dense, indices = self._checked(dense, indices)
        pred = np.empty(len(dense), np.float32)
        staging = seat.staging
        for at in range(0, len(dense), self.batch_size):
            size = min(self.batch_size, len(dense) - at)
            staging.dense[:size] = dense[at : at + size]
            staging.indices[:size] = indices[at : at + size]
            pred[at : at + size] = self.run(staging.batch)[:size]
        # The library answers NaN for an item with bad input; looking at the output is cheaper than at the input, and
        # a sum of squares is NaN if and only if a prediction is.
        if isnan(pred.dot(pred)):
            self._explain_nan(pred, dense, bags_of_one(indices))
        return pred

    def _are_bags(self, indices: np.ndarray | Sequence, offsets: np.ndarray | Sequence | None) -> bool:
        fixed = self._card.graph_inputs.indices_per_bag
        return offsets is not None or (bool(fixed) and isinstance(indices, list | tuple))

    def _checked_bags(self, dense: np.ndarray, indices: Sequence, offsets: Sequence | None) -> Bags:
        card, n = self._card, len(dense)
        fixed = card.graph_inputs.indices_per_bag if offsets is None else None
        bags = bags_of_arrays(indices, n, fixed) if fixed else check_bags(indices, offsets, n, card.num_tables)
        bags.check_one_index(card.graph_inputs.one_index)
        return bags.wrapped(card.table_rows, card.graph_inputs.wraps)

    def _predict_bags(self, seat: _Seat, dense: np.ndarray, indices: Sequence, offsets: Sequence | None) -> np.ndarray:
        dense = self._checked_dense(dense)
        bags = self._checked_bags(dense, indices, offsets)
        pred = np.empty(len(dense), np.float32)
        for at in range(0, len(dense), self.batch_size):
            end = min(at + self.batch_size, len(dense))
            pred[at:end] = self.run(self._bag_batch(seat, dense[at:end], bags.part(at, end)))[: end - at]
        if isnan(pred.dot(pred)):
            self._explain_nan(pred, dense, bags)
        return pred

    def prepare(
        self, dense: np.ndarray, indices: np.ndarray | Sequence, offsets: np.ndarray | Sequence | None = None
    ) -> Batch:
        """An aligned copy of one full batch's inputs, given as in a call and checked, to be run any number of times."""
        if len(dense) != self.batch_size:
            raise ValueError(f"{len(dense)} items for a library of batch size {self.batch_size}")
        if self._are_bags(indices, offsets):
            dense = self._checked_dense(dense)
            return self._bag_batch(self._seats.mine().held, dense, self._checked_bags(dense, indices, offsets))
        dense, indices = self._checked(dense, indices)
        opened = self.open_batch()
        opened.dense[:], opened.indices[:] = dense, indices
        return opened.batch

    def open_batch(self) -> OpenBatch:
        """A batch of zeros to be written by the caller, who answers for its values: `run` checks nothing."""
        return self._open_batch(self._seats.mine().held.main)

    def _open_batch(self, main: Any) -> OpenBatch:
        dense = aligned((self.batch_size, self._card.num_dense), np.float32)
        indices = aligned((self.batch_size, self._card.num_tables), np.int64)
        return OpenBatch(self._batch(main, dense, indices), dense, indices)

    def _batch(self, entry: Any, *inputs: np.ndarray) -> Batch:
        pred = aligned(self.batch_size, np.float32)
        return Batch(entry, tuple(map(tvm_ffi.from_dlpack, inputs)), tvm_ffi.from_dlpack(pred), pred)

    def run(self, batch: Batch) -> np.ndarray:
        """Predictions [batch_size] float32 of a batch that this thread prepared, in the batch's memory until it runs
        again; nothing is checked. This is the call that is timed."""
        batch.entry(*batch.inputs, *self._parameters, batch.output)
        return batch.pred

    def run_profiled(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The same with time stamps, if the library has them: and ticks [threads, parts + 1] int64 as
        network/stopwatch.py has it, until the next such run; rows of threads without a tile are zero."""
        seat, with_bags = self._seats.mine().held, len(batch.inputs) == 3
        seat.profiles[with_bags](*batch.inputs, *self._parameters, batch.output, seat.ticks_out)
        return batch.pred, seat.ticks

    def _require_tiles_on_all_threads(self) -> None:
        answers = aligned(_MOST_THREADS, np.int64)
        self._function("ask_for_tiles")(tvm_ffi.from_dlpack(answers))
        if answers[: self.threads].any():
            raise UserError(f"{self.artifact.library}: the kernel grants AMX's tile state to some threads only.")

    def peak_gflops(self, seconds: float, precision: str | None = None) -> float:
        """Fused multiply-adds and nothing else on all threads, for about `seconds`: GFLOP/s over all of them.
        precision: whose, if the library has such a loop; by default its own."""
        peak = self.artifact.manifest.peak_of(precision)
        loop = self._function(peak_name(peak.precision) if peak in self.artifact.manifest.other_peaks else "peak_fma")
        factors = tvm_ffi.from_dlpack(aligned(2, np.float32))
        np.from_dlpack(factors)[:] = (0.999, 1e-6)
        sink = tvm_ffi.from_dlpack(aligned(_PEAK_SINK, np.float32))
        flops_per_round = peak.flops_per_round * self.threads
        rounds, flops, start = 80_000, 0, perf_counter()
        while (elapsed := perf_counter() - start) < seconds:
            loop(rounds, factors, sink)
            flops += rounds * flops_per_round
        return flops / elapsed / 1e9 if flops else 0.0

    def stream_gbps(self, seconds: float) -> float:
        """One thread reading the MLP's weights over and over for about `seconds`: GB/s."""
        weights = self._parameters[-1]
        sink = tvm_ffi.from_dlpack(aligned(_PEAK_SINK, np.float32))
        loop = self._function("stream_read")
        size, reads, start = self.artifact.parameters[-1].nbytes, 0, perf_counter()
        while (elapsed := perf_counter() - start) < seconds:
            loop(weights, sink)
            reads += 1
        return reads * size / elapsed / 1e9

    def _bag_batch(self, seat: _Seat, dense: np.ndarray, bags: Bags) -> Batch:
        """Up to one batch; the items it lacks keep dense values of 0 and empty bags."""
        arrays = (
            aligned((self.batch_size, self._card.num_dense), np.float32),
            aligned(max(bags.num_indices, 1), np.int64),  # TVM takes no array without memory
            aligned((self._card.num_tables, self.batch_size + 1), np.int64),
        )
        arrays[0][: len(dense)] = dense
        bags.write(*arrays[1:])
        return self._batch(seat.bags, *arrays)

    def _checked_dense(self, dense: np.ndarray) -> np.ndarray:
        dense = as_array("dense", dense)
        if dense.shape[1:] != self._dense_shape or dense.dtype != np.float32:
            shape, wanted = list(dense.shape), self._dense_shape[0]
            raise UserError(f"dense is {dense.dtype} {shape}, float32 [n, {wanted}] was wanted.")
        return dense

    def _checked(self, dense: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dense, indices = self._checked_dense(dense), as_array("indices", indices)
        if indices.shape != (len(dense), *self._indices_shape) or indices.dtype.kind not in "iu":
            found, wanted = list(indices.shape), [len(dense), *self._indices_shape]
            raise UserError(
                f"indices are {indices.dtype} {found}, integers {wanted} were wanted: one per item and table."
            )
        return dense, wrapped_indices(indices, self._card.table_rows, self._card.graph_inputs.wraps)

    def _explain_nan(self, pred: np.ndarray, dense: np.ndarray, bags: Bags) -> None:
        for item in np.flatnonzero(np.isnan(pred)):
            if outside := bags.part(item, item + 1).first_outside(self._card.table_rows):
                _, table, index = outside
                rows = self._card.table_rows[table]
                raise UserError(
                    f"item {item}: index {index} is outside table {table}, which has {rows} rows (0..{rows - 1})."
                )
            bad = np.flatnonzero(~np.isfinite(dense[item]))
            if bad.size:
                raise UserError(
                    f"item {item}: dense value {bad[0]} is {dense[item, bad[0]]}, finite values were wanted."
                )


def _storing(function: Any) -> Any:
    """A function that returns its output, as one that stores it in its last argument."""

    def store(*arguments: Any) -> None:
        np.from_dlpack(arguments[-1])[:] = np.from_dlpack(function(*arguments[:-1]))

    return store
