"""Search schedules on this machine: `compile.py --tune`.

    1. for each mr worth trying, each dense layer alone: outputs per register tile x k steps per loop body
    2. the whole network with the best layers: mr, then tiles per block, then how rows are fetched

The most promising comes first: the rule's own schedule, its mr, the layers with most weights, blocks near the rule's.
Half of the seconds are for 1, all that is left for 2. No trial begins when they are over (the one under way ends), and
the rule's schedule stands for a kernel that was not measured.

Not MetaSchedule: a schedule here changes how a kernel is emitted, not a trace over it, and MetaSchedule's builder and
runner start processes for every trial (3 s instead of 0.5 s). Nor TVM's `time_evaluator`: on a shared machine a time is
only comparable next to the peak of the same millisecond (trials.py). The network is timed as a whole, because a kernel
alone does not show the cost of weights and rows that come from far away.

Every trial is written to LOG.MODEL.trials at once, and the next search continues from there. At the end each kernel's
best schedule is appended to the log, and the trials file is removed if no candidate is left to measure.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from time import perf_counter

import tvm

from ..compiler.plan import layer_shapes
from ..console import Bar, show
from ..kernels.dense import DenseSchedule
from ..kernels.gather import Prefetch
from ..kernels.isa import REGISTERS
from ..kernels.vectors import LANES, padded
from ..model.dlrm import Dlrm
from ..model.precision import Numerics, weight_bytes
from ..schedules.layer_probe import probe_blocks
from ..schedules.machine_model import MachineModel, Peak, measure_machine
from ..schedules.rules import (
    LayerShape,
    NetworkSchedule,
    default_block,
    default_dense,
    default_network,
    dense_from,
    dense_kernel,
    dense_numbers,
    dense_shape,
    network_from,
    network_kernel,
    network_numbers,
    network_shape,
    tile_heights,
)
from ..schedules.target import CpuTarget
from ..schedules.tuning_log import Record, append, read_log
from .trials import DenseTrial, NetworkTrial, Timing

_HEIGHTS_TRIED = 3
_MARGIN = 1.02  # a candidate must win by so much: on a shared machine less has turned out to be noise
_ACCUMULATORS = 12  # with fewer the multiply-adds wait for loads
_BLOCK_ITEMS = (5, 10, 20, 50, 100, 200, 400, 512)  # beside the rule's
_PREFETCHES = ((4, 2), (1, 2), (8, 2), (4, 3), (0, 2))
_DENSE_SHARE = 0.5  # of the seconds: a trial of the network takes ten times as long as one of a layer


class Search:
    """One search: measures each candidate once, over all runs, while there is time; writes each trial as it is made."""

    def __init__(
        self,
        cpu: CpuTarget,
        log: Path,
        progress: Bar,
        model: str = "",
        precision: str = "fp32",
        *,
        seconds: float = math.inf,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """model: a name for the trials file; timings of one model say nothing about another. seconds: from now on."""
        self._precision, self._seconds, self._clock, self._began = precision, seconds, clock, clock()
        self._cpu, self._log, self._progress = cpu.cpu, log, progress
        self.trials = log.with_name(f"{log.name}.{model}.trials" if model else f"{log.name}.trials")
        known = read_log(self.trials, must_exist=False).records
        mine = [record for record in known if (record.cpu, record.tvm) == (self._cpu, tvm.__version__)]
        self._known = {(r.kernel, r.shape, tuple(sorted(r.schedule.items()))): r for r in mine}
        self._wanted: set[tuple] = set()

    @property
    def counts(self) -> tuple[int, int]:
        """How many candidates were measured, by earlier runs too, of how many."""
        return len(self._wanted & self._known.keys()), len(self._wanted)

    def best(
        self, kernel: str, shape: str, candidates: list[dict[str, int]], time: Callable, share: float = 1
    ) -> Record:
        """The fastest candidate, or the first one if none beats it by _MARGIN: that is the rule's, or the best so far.

        time(schedule numbers) -> Timing is called for candidates without a trial, while less than this share of the
        seconds is over. A candidate that was not measured never wins over one that was.
        """
        records = []
        for numbers in candidates:
            elapsed = self._clock() - self._began
            self._progress.note = f"{self.counts[0]} measured, {kernel} {shape}"
            key = (kernel, shape, tuple(sorted(numbers.items())))
            self._wanted.add(key)
            if key not in self._known and elapsed < share * self._seconds:
                self._known[key] = self._record(kernel, shape, numbers, time(numbers))
                append(self.trials, self._known[key])
            records.append(self._known.get(key) or self._record(kernel, shape, numbers))
        fastest = max(records, key=lambda record: record.share_of_peak or 0)
        return fastest if (fastest.share_of_peak or 0) > _MARGIN * (records[0].share_of_peak or 0) else records[0]

    def _record(self, kernel: str, shape: str, numbers: dict[str, int], timing: Timing | None = None) -> Record:
        figures = (round(timing.time_us, 3), round(timing.share_of_peak, 4)) if timing else (None, None)
        today = date.today().isoformat()
        return Record(kernel, shape, self._precision, self._cpu, numbers, *figures, tvm.__version__, today)

    def keep(self, record: Record) -> None:
        """One that was not measured never replaces the log's."""
        standing = read_log(self._log, must_exist=False).find(record.kernel, record.shape, self._cpu)
        if record.is_measured or standing is None:
            append(self._log, record)


def tune(
    model: Dlrm,
    batch: int,
    cpu: CpuTarget,
    log: Path,
    numerics: Numerics,
    seconds: float = math.inf,
    clock: Callable[[], float] = perf_counter,
) -> None:
    """Find schedules for this model's layers in this precision at this batch size and append them to the log.

    cpu: this machine's. Prints in one line how many of the candidates were measured; no trial begins when the seconds
    are over. Ctrl-C loses no finished trial.
    """
    family, name = cpu.family(numerics.precision), model.fingerprint[:8]
    with Bar("looking at the machine"):
        space = _Space.of(model, batch, cpu, numerics, measure_machine(cpu, family, weight_bytes(model, numerics)))
    with Bar("tuning", seconds if math.isfinite(seconds) else None) as progress:  # not all trials may be made
        search = Search(cpu, log, progress, name, numerics.precision, seconds=seconds, clock=clock)
        peak = Peak(cpu, family)
        dense = _search_layers(search, space, space.trial_of(cpu, peak, weight_bytes(model, numerics)))
        schedules = {key: dense_from(record.schedule) for key, record in dense.items()}
        network = NetworkTrial(model, batch, cpu, peak, lambda mr, layer: schedules[mr, layer], numerics)
        best = _search_network(search, space, network, zlib.crc32(repr(schedules).encode()))
        for record in (best, *(dense[best.schedule["mr"], layer] for layer in space.layers)):
            search.keep(record)
    measured, candidates = search.counts
    if measured == candidates:
        search.trials.unlink(missing_ok=True)
    more = "" if measured == candidates else "; --tune again goes on with the others"
    show(f"{'tuning':<12}{measured} of {candidates} candidates measured{more}")


@dataclass(frozen=True)
class _Space:
    """Where the search looks. heights: mr to try; layers: distinct shapes, the largest first."""

    batch: int
    precision: str
    registers: int
    heights: tuple[int, ...]
    layers: tuple[LayerShape, ...]
    block_items: int  # as probed

    @staticmethod
    def of(model: Dlrm, batch: int, cpu: CpuTarget, numerics: Numerics, machine: MachineModel) -> _Space:
        family = cpu.family(numerics.precision)
        registers = family.registers
        heights = tile_heights(batch, registers, numerics.precision)[:_HEIGHTS_TRIED]
        shapes = dict.fromkeys(layer_shapes(model, numerics, family))
        layers = sorted(shapes, key=lambda layer: -layer.inputs * layer.outputs)
        start = default_network(batch, registers, numerics.precision, machine.block_items(model, numerics, layers))
        nbytes = weight_bytes(model, numerics)
        items = probe_blocks(layers, start, batch, cpu, numerics.precision, nbytes).network.items
        return _Space(batch, numerics.precision, registers, tuple(heights), tuple(layers), items)

    def trial_of(self, cpu: CpuTarget, peak: Peak, network_bytes: int) -> Callable[[LayerShape, int], DenseTrial]:
        def trial(layer: LayerShape, mr: int) -> DenseTrial:
            tiles = default_block(mr, self.batch, self.block_items)
            return DenseTrial(layer, mr, cpu, peak, self.precision, network_bytes, tiles)

        return trial


def _search_layers(
    search: Search, space: _Space, trial_of: Callable[[LayerShape, int], DenseTrial]
) -> dict[tuple[int, LayerShape], Record]:
    """(mr, layer) -> the best record."""
    best = {}
    for mr in space.heights:
        for layer in space.layers:
            trial = functools.cache(functools.partial(trial_of, layer, mr))  # its weights are made when they are timed
            numbers = [dense_numbers(schedule) for schedule in dense_candidates(mr, layer, space.registers)]
            best[mr, layer] = search.best(
                dense_kernel(layer.precision, layer.activation),
                dense_shape(mr, layer.inputs, layer.outputs),
                numbers,
                lambda n, trial=trial: trial().time(dense_from(n)),
                share=_DENSE_SHARE,
            )
    return best


def _search_network(search: Search, space: _Space, trial: NetworkTrial, layers: int) -> Record:
    """The best record of the last stage. layers: a number for the layers' schedules, as a trial made with others does
    not count."""
    best, kernel, shape = None, network_kernel(space.precision), network_shape(space.batch, space.layers)
    for candidates in network_stages(space.batch, space.heights, space.block_items):
        numbers = [network_numbers(schedule) for schedule in candidates(best)]
        record = search.best(kernel, f"{shape} layers={layers:08x}", numbers, lambda n: trial.time(network_from(n)))
        best = network_from(record.schedule)
    return replace(record, shape=shape)


def network_stages(batch: int, heights: Sequence[int], block_items: int) -> Iterator[Callable]:
    """Each stage: the best so far -> candidates that vary one number; the best so far is the first of them."""
    start = Prefetch(*_PREFETCHES[0])

    def blocks(best: NetworkSchedule) -> list[NetworkSchedule]:
        others = [tiles for tiles in block_candidates(batch, best.mr, block_items) if tiles != best.block_tiles]
        return [best, *(replace(best, block_tiles=tiles) for tiles in others)]

    yield lambda _: [NetworkSchedule(mr, default_block(mr, batch, block_items), start) for mr in heights]
    yield blocks
    yield lambda best: [replace(best, prefetch=Prefetch(*each)) for each in _PREFETCHES]


def block_candidates(batch: int, mr: int, block_items: int) -> list[int]:
    """Tiles of a block: of some items up to 512, as far as the batch goes, those near the rule's first."""
    nearest = sorted(_BLOCK_ITEMS, key=lambda items: abs(math.log(items / block_items)))
    return list(dict.fromkeys(default_block(mr, batch, items) for items in nearest))


def dense_candidates(mr: int, layer: LayerShape, registers: int = REGISTERS) -> list[DenseSchedule]:
    """The rule's choice, then register tiles that fit and have enough accumulators, where the layer is wide enough."""
    widths = {min(padded(layer.outputs), nr) for nr in (16, 32, 48, 64, 80, 96, 128, 256)}
    whole = [nr for nr in sorted(widths) if nr % (LANES * layer.unit) == 0] or [max(widths)]
    fitting = [nr for nr in whole if mr == 1 or DenseSchedule(nr, 1).registers(mr) <= registers] or whole[:1]
    enough = [nr for nr in fitting if mr * nr // LANES >= _ACCUMULATORS] or fitting[-1:]
    unrolls = (1,) if mr == 1 else (1, 2)
    rule = default_dense(mr, layer.outputs, registers, layer.unit)
    aheads = (False,) if mr == 1 else (True, False)
    candidates = [DenseSchedule(nr, unroll, ahead) for nr in enough for unroll in unrolls for ahead in aheads]
    return [rule, *(candidate for candidate in candidates if candidate != rule)]
