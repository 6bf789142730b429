"""Search schedules on this machine: `compile.py --tune`.

    1. for each mr worth trying, each dense layer alone: outputs per register tile x k steps per loop body
    2. the whole network with the best layers: mr, then tiles per block, then how rows are fetched

Not MetaSchedule: what varies here is how a kernel is emitted, not a trace over one, and its builder and runner start
processes for every trial (3 s instead of 0.5 s). Nor TVM's `time_evaluator`: on a shared machine only a time beside the
peak measured in the same millisecond can be compared (trials.py). The network is timed in place, because what counts
there - weights and rows coming from far - does not show in a kernel alone.

Every trial is kept in LOG.MODEL.trials at once; a search that was interrupted goes on from there. When all are done,
each kernel's best schedule is appended to the log and the trials file is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import tvm
from tqdm import tqdm

from .errors import UserError
from .kernels.dense import REGISTERS, DenseSchedule
from .kernels.gather import RowFetch
from .kernels.vectors import LANES, padded
from .model import Dlrm
from .numerics import Numerics
from .plan import LayerShape, layer_shapes
from .schedules import (
    NetworkSchedule,
    default_block,
    default_dense,
    dense_kernel,
    dense_shape,
    network_kernel,
    network_shape,
    tile_heights,
)
from .selection import dense_from, dense_numbers, network_from, network_numbers
from .target import CpuTarget
from .trials import DenseTrial, NetworkTrial, Peak, Timing
from .tuning_log import Record, append, read_log

_HEIGHTS_TRIED = 3
_MARGIN = 1.02  # what a candidate must win by on a shared machine: less has turned out to be noise
_ACCUMULATORS = 12  # fewer leave the multiply-adds waiting for loads
_BLOCKS = (1, 2, 5, 10)  # beside the rule's
_FETCHES = ((4, 2), (1, 2), (8, 2), (4, 3), (0, 2))


class Search:
    """One search: measures what has not been measured before, remembers the best, writes as it goes."""

    def __init__(self, cpu: CpuTarget, log: Path, progress: tqdm, model: str = "", precision: str = "fp32") -> None:
        """model: what tells models apart in the trials' name; timings of one say nothing about another."""
        self._precision = precision
        self._cpu, self._log, self._progress = cpu.cpu, log, progress
        self.trials = log.with_name(f"{log.name}.{model}.trials" if model else f"{log.name}.trials")
        known = read_log(self.trials, must_exist=False).records
        mine = [record for record in known if (record.cpu, record.tvm) == (self._cpu, tvm.__version__)]
        self._known = {(r.kernel, r.shape, tuple(sorted(r.schedule.items()))): r for r in mine}

    def best(self, kernel: str, shape: str, candidates: list[dict[str, int]], time: Callable) -> Record:
        """The fastest of the candidates, or the first, the rule's or the best so far, if none beats it by _MARGIN.

        time(schedule numbers) -> Timing is called for those not known yet.
        """
        records = []
        for numbers in candidates:
            self._progress.set_postfix_str(f"{kernel} {shape}")
            key = (kernel, shape, tuple(sorted(numbers.items())))
            if key not in self._known:
                timing: Timing = time(numbers)
                self._known[key] = Record(
                    kernel, shape, self._precision, self._cpu, numbers, round(timing.time_us, 3),
                    round(timing.share_of_peak, 4), tvm.__version__, date.today().isoformat(),
                )  # fmt: skip
                append(self.trials, self._known[key])
            records.append(self._known[key])
            self._progress.update()
        fastest = max(records, key=lambda record: record.share_of_peak)
        return fastest if fastest.share_of_peak > _MARGIN * records[0].share_of_peak else records[0]

    def keep(self, record: Record) -> None:
        append(self._log, record)


def tune(model: Dlrm, batch: int, cpu: CpuTarget, log: Path, numerics: Numerics) -> None:
    """Find schedules for this model's layers in these numbers at this batch size and append them to the log.

    Raises UserError when the target is not this machine, or lacks AVX2 and FMA. Ctrl-C loses nothing that was measured.
    """
    if not cpu.is_host:
        raise UserError(f"--tune measures on this machine, which is not a {cpu.cpu}. Leave out --target-cpu.")
    if not cpu.registers:
        raise UserError(
            f"--tune: {cpu.cpu} has neither AVX-512 nor AVX2 with FMA, which the tuned kernels are made of."
        )
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.open("a").close()
    except OSError as error:
        raise UserError(
            f"{log}: {error.strerror}; a file to append to was wanted. Give --tuning-log-file another."
        ) from None
    heights = tile_heights(batch, cpu.registers, numerics.precision)[:_HEIGHTS_TRIED]
    layers = list(dict.fromkeys(layer_shapes(model, numerics)))
    total = sum(len(dense_candidates(mr, layer, cpu.registers)) for mr in heights for layer in layers)
    # One more or less, as the rule's block is among _BLOCKS or not.
    total += len(heights) + (len(_BLOCKS) if batch > heights[0] else 1) + len(_FETCHES)
    with tqdm(total=total, desc="tuning", unit="trial") as progress:
        search = Search(cpu, log, progress, model.fingerprint[:8], numerics.precision)
        _search(search, model, batch, cpu, heights, layers, numerics)
    search.trials.unlink(missing_ok=True)


def _search(
    search: Search,
    model: Dlrm,
    batch: int,
    cpu: CpuTarget,
    heights: list[int],
    layers: list[LayerShape],
    numerics: Numerics,
) -> None:
    chosen, peak = {}, Peak(cpu, numerics.precision)
    for mr in heights:
        for layer in layers:
            shape = dense_shape(mr, layer.inputs, layer.outputs)
            trial = DenseTrial(layer, mr, cpu, peak, model.mlp_bytes)
            numbers = [dense_numbers(schedule) for schedule in dense_candidates(mr, layer, cpu.registers)]
            kernel = dense_kernel(layer.precision, layer.activation)
            best = search.best(kernel, shape, numbers, lambda n, t=trial: t.time(dense_from(n)))
            chosen[mr, layer] = best
    network = NetworkTrial(model, batch, cpu, peak, lambda mr, layer: dense_from(chosen[mr, layer].schedule), numerics)
    best = None
    for candidates in network_stages(batch, heights, numerics.precision):
        numbers = [network_numbers(schedule) for schedule in candidates(best)]
        record = search.best(
            network_kernel(numerics.precision), network_shape(batch), numbers, lambda n: network.time(network_from(n))
        )
        best = network_from(record.schedule)
    search.keep(record)
    for (mr, _), dense_record in chosen.items():
        if mr == best.mr:
            search.keep(dense_record)


def network_stages(batch: int, heights: list[int], precision: str = "fp32") -> Iterator[Callable]:
    """Each stage: the best so far -> candidates that vary one thing; the best so far is the first of them."""
    start = RowFetch(*_FETCHES[0])

    def blocks(best: NetworkSchedule) -> list[NetworkSchedule]:
        others = [tiles for tiles in _BLOCKS if tiles != best.block_tiles and (tiles == 1 or batch > heights[0])]
        return [best, *(replace(best, block_tiles=tiles) for tiles in others)]

    yield lambda _: [NetworkSchedule(mr, default_block(mr, precision), start) for mr in heights]
    yield blocks
    yield lambda best: [replace(best, fetch=RowFetch(*fetch)) for fetch in _FETCHES]


def dense_candidates(mr: int, layer: LayerShape, registers: int = REGISTERS) -> list[DenseSchedule]:
    """Register tiles that fit, of enough accumulators where the layer is wide enough, the rule's choice first."""
    widths = {min(padded(layer.outputs), nr) for nr in (16, 32, 48, 64, 80, 96, 128, 256)}
    fitting = [nr for nr in sorted(widths) if mr == 1 or DenseSchedule(nr, 1).registers(mr) <= registers]
    fitting = [nr for nr in fitting if nr % (LANES * layer.unit) == 0] or fitting[-1:]
    enough = [nr for nr in fitting if mr * nr // LANES >= _ACCUMULATORS] or fitting[-1:]
    unrolls = (1,) if mr == 1 else (1, 2)
    rule = default_dense(mr, layer.outputs, registers, layer.unit)
    candidates = [DenseSchedule(nr, unroll) for nr in enough for unroll in unrolls]
    return [rule, *(candidate for candidate in candidates if candidate != rule)]
