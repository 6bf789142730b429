"""Schedules for one model and batch out of a tuning log, with word of what was tuned, borrowed or by rule."""

from __future__ import annotations

from dataclasses import dataclass, field

from .kernels.dense import REGISTERS, DenseSchedule
from .kernels.gather import RowFetch
from .kernels.vectors import LANES, padded
from .plan import LayerShape
from .schedules import (
    NetworkSchedule,
    default_dense,
    default_network,
    dense_kernel,
    dense_shape,
    network_kernel,
    network_shape,
)
from .tuning_log import Record, TuningLog

_LARGEST_BLOCK = 4096  # items; scratch is allocated for a whole block
_WIDEST = 512  # outputs of a register tile; beyond, a line of a log would ask for endless code


@dataclass
class Selection:
    """Chooses schedules and remembers how: `tuned` and `untuned` name kernels, `borrowed` the CPUs of records.

    registers: how many vectors of 16 the CPU's registers hold; precision: the network's.
    """

    log: TuningLog
    cpu: str
    batch: int
    registers: int = REGISTERS
    precision: str = "fp32"
    tuned: list[str] = field(default_factory=list)
    untuned: list[str] = field(default_factory=list)
    borrowed: set[str] = field(default_factory=set)

    def network(self) -> NetworkSchedule:
        record = self._find(network_kernel(self.precision), network_shape(self.batch))
        if record is None:
            schedule = default_network(self.batch, self.registers, self.precision)
            self._mr = schedule.mr
            return schedule
        schedule = network_from(record.schedule)
        self._mr = schedule.mr
        return schedule

    def dense(self, layer: LayerShape) -> DenseSchedule:
        """The schedule of one layer; call network() first."""
        kernel = dense_kernel(layer.precision, layer.activation)
        record = self._find(kernel, dense_shape(self._mr, layer.inputs, layer.outputs), layer)
        if record is None:
            return default_dense(self._mr, layer.outputs, self.registers, layer.unit)
        return dense_from(record.schedule)

    def _find(self, kernel: str, shape: str, layer: LayerShape | None = None) -> Record | None:
        record = self.log.find(kernel, shape, self.cpu)
        name = f"{kernel} {shape}"
        if record is not None and not (_usable(record, self.batch, layer) and self._may_borrow(record)):
            record = None
        names = self.untuned if record is None else self.tuned
        if name not in names:
            names.append(name)
        if record is not None and record.cpu != self.cpu:
            self.borrowed.add(record.cpu)
        return record

    def _may_borrow(self, record: Record) -> bool:
        """What was tuned for AVX-512 would spill on a CPU with a quarter of its registers."""
        return record.cpu == self.cpu or self.registers == REGISTERS


def network_from(numbers: dict[str, int]) -> NetworkSchedule:
    fetch = RowFetch(every=numbers["fetch_every"], locality=numbers["fetch_locality"])
    return NetworkSchedule(numbers["mr"], numbers["block_tiles"], fetch)


def network_numbers(schedule: NetworkSchedule) -> dict[str, int]:
    return {
        "mr": schedule.mr,
        "block_tiles": schedule.block_tiles,
        "fetch_every": schedule.fetch.every,
        "fetch_locality": schedule.fetch.locality,
    }


def dense_numbers(schedule: DenseSchedule) -> dict[str, int]:
    return {"nr": schedule.nr, "unroll": schedule.unroll}


def dense_from(numbers: dict[str, int]) -> DenseSchedule:
    return DenseSchedule(nr=numbers["nr"], unroll=numbers["unroll"])


def _usable(record: Record, batch: int, layer: LayerShape | None) -> bool:
    """A log is a file that people edit: numbers that no kernel can be made of count as untuned."""
    numbers = record.schedule
    if record.kernel == network_kernel(record.precision):
        if not {"mr", "block_tiles", "fetch_every", "fetch_locality"} <= numbers.keys():
            return False
        mr, tiles = numbers["mr"], numbers["block_tiles"]
        fits = 1 <= mr <= min(batch, REGISTERS - 2) and tiles >= 1 and mr * tiles <= _LARGEST_BLOCK
        return fits and numbers["fetch_every"] >= 0 and 0 <= numbers["fetch_locality"] <= 3
    if not {"nr", "unroll"} <= numbers.keys():
        return False
    nr = numbers["nr"]
    whole_units = nr % (layer.unit * LANES) == 0 or nr >= padded(layer.outputs)
    return whole_units and nr in range(LANES, _WIDEST + 1, LANES) and numbers["unroll"] in (1, 2, 4, 8, 16)
