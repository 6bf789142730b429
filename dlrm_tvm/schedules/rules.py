"""The schedule of each kernel: from the tuning log, else by rule.

A schedule is a few numbers:

    network_fp32      per batch: mr items per tile, tiles per block, how rows are prefetched
    dense_fp32_relu   per (mr, inputs, outputs): outputs per register tile, k steps per loop body, and whether the next
                      panel of weights is prefetched

and likewise for bf16 and int8, whose inputs are counted in words of 2 and 4 columns.

The rules come from the measurements in tests/benchmarks/EXPERIMENTS.md. Knows nothing of files or of TVM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ..kernels.dense import DenseSchedule
from ..kernels.gather import Prefetch
from ..kernels.isa import REGISTERS
from ..kernels.vectors import LANES, padded
from ..runtime.manifest import PLAIN_KERNELS
from .tuning_log import Record, TuningLog

GEMV_OUTPUTS = 256  # 16 accumulators

# mr -> time per item relative to mr = 5, whole network on Zen 4. More than 10 items leave too few registers for two
# vectors of outputs and their weights; 5 x 64 outputs read less per multiply-add than 10 x 32.
_TILE_COST = {5: 1.0, 10: 1.015, 4: 1.01, 8: 1.02, 6: 1.02, 9: 1.03, 7: 1.03}
# bf16 and int8 on Zen 5, whose two multiply-adds a cycle outrun its last-level cache: tall tiles reuse weights more.
_TILE_COST_QUANTIZED = {10: 1.0, 12: 1.005, 8: 1.02, 9: 1.02, 6: 1.05, 5: 1.06}
_TILE_COST_AVX2 = {6: 1.0, 5: 1.05, 4: 1.12}  # 8 registers leave room for one vector of outputs
_SMALL_BATCH = 14  # up to here a batch is one tile
_SMALL_BATCH_AVX2 = 6

# Of L2. DLRM-v2's panels of 3456 x 64 float32 take 0.84 of a Zen 5's: blocks of 20 tiles reach 0.816 of the peak with
# whole ones and 0.857 with quarters (2026-11-30).
_PANEL_SHARE = 0.25
_WORD_BYTES = 4
_LARGEST_BLOCK = 4096  # items; scratch is allocated for a whole block
_WIDEST = 512  # outputs of a register tile; more would be endless code


@dataclass(frozen=True)
class NetworkSchedule:
    """mr: items per tile; block_tiles: tiles that go through the top MLP together; prefetch: see Prefetch."""

    mr: int
    block_tiles: int
    prefetch: Prefetch

    @property
    def items(self) -> int:
        """Of a block."""
        return self.mr * self.block_tiles


@dataclass(frozen=True)
class Probed:
    """A network's schedule as the rules take it. Of layers without a record, ahead: whether they prefetch their next
    panel; unroll: k steps of a loop body, None by rule. gflops: of the largest layer alone, None where it was not
    measured (layer_probe.py)."""

    network: NetworkSchedule
    ahead: bool = True
    unroll: int | None = None
    gflops: float | None = None


def default_network(
    batch: int, registers: int = REGISTERS, precision: str = "fp32", block_items: int = 1
) -> NetworkSchedule:
    """block_items: how many items should share a layer's weights (machine_model.py)."""
    mr = tile_heights(batch, registers, precision)[0]
    return NetworkSchedule(mr, default_block(mr, batch, block_items), Prefetch(every=4, locality=2))


def default_block(mr: int, batch: int, block_items: int) -> int:
    """Tiles of mr items in a block: of nearly one size, as the last one streams all weights too."""
    tiles = -(-batch // mr)
    most = max(1, -(-block_items // mr))
    return -(-tiles // -(-tiles // most))


def tile_heights(batch: int, registers: int = REGISTERS, precision: str = "fp32") -> list[int]:
    """Sensible mr for a batch, the fastest by the rule first: little padding, few loads per multiply-add."""
    costs, small = _TILE_COST if precision == "fp32" else _TILE_COST_QUANTIZED, _SMALL_BATCH
    if registers != REGISTERS:
        costs, small = _TILE_COST_AVX2, _SMALL_BATCH_AVX2
    if batch <= small:
        return [batch]
    return sorted(costs, key=lambda mr: computed_items(batch, mr, registers) * costs[mr])


def computed_items(batch: int, mr: int, registers: int) -> int:
    """Items that tiles of mr compute for a batch, by the time they take. With AVX2 of the last tile no more than the
    batch's own (NetworkPlan.last_rows), but fewer than 4 rows of two registers do not keep its multiply-adds busy."""
    whole, rest = divmod(batch, mr)
    last = mr if registers == REGISTERS else max(rest, 4)
    return whole * mr + (last if rest else 0)


def default_dense(
    mr: int, outputs: int, registers: int = REGISTERS, unit: int = 1, ahead: bool = True, unroll: int | None = None
) -> DenseSchedule:
    """As many vectors of outputs as registers allow, up to 8, in a number that divides the layer's width.

    unit: vectors of outputs that are packed together; ahead, unroll: see Probed. The kernel for one item does without.
    """
    vectors = padded(outputs) // LANES
    if mr == 1:
        return DenseSchedule(min(GEMV_OUTPUTS * registers // REGISTERS, vectors * LANES), 1)
    most = max(unit, min(8, (registers - 1) // (mr + 1)))
    whole = [v for v in range(unit, most + 1, unit) if vectors % v == 0]
    if unroll is None:
        unroll = 1 if registers == REGISTERS else 4  # AVX2 on Zen 3: a loop of 12 multiply-adds is too short
    return DenseSchedule(max(whole, default=min(unit, vectors)) * LANES, unroll, ahead)


def in_k_blocks(schedule: DenseSchedule, layer: LayerShape, l2: int | None, tiles: int) -> DenseSchedule:
    """K cut so that a panel of each part, which all `tiles` tiles of a block read, takes a share of L2 at most."""
    if tiles == 1 or l2 is None:
        return schedule
    panel_bytes = layer.inputs * min(schedule.nr, padded(layer.outputs)) * _WORD_BYTES
    return replace(schedule, k_blocks=-(-panel_bytes // int(_PANEL_SHARE * l2)))


def network_kernel(precision: str) -> str:
    return f"network_{precision}"


def dense_kernel(precision: str, activation: str) -> str:
    return f"dense_{precision}_{activation}"


def dense_shape(mr: int, inputs: int, outputs: int) -> str:
    """How a dense kernel's shape is written in the tuning log."""
    return f"mr={mr} k={inputs} n={outputs}"


def network_shape(batch: int, layers: Iterable[LayerShape]) -> str:
    """How a network is written in the tuning log, by its distinct layers: 9 MB of weights want other blocks than 64."""
    return f"batch={batch} words={sum(layer.inputs * layer.outputs for layer in set(layers))}"


@dataclass(frozen=True)
class LayerShape:
    """A layer as its kernel sees it. inputs: words per item, for the first top layer more than the model has;
    precision: of the words; unit: vectors of outputs that are packed together; a register tile holds a whole number of
    units; parts: that a value is the sum of; staged: inputs are kept as float32 until their row's scale is known.
    """

    activation: str
    inputs: int
    outputs: int
    precision: str = "fp32"
    unit: int = 1
    parts: int = 1
    staged: bool = False


@dataclass(frozen=True)
class Schedules:
    """The schedules of a network's kernels; network None: TVM's default code generation, no kernel of ours.

    tuned, untuned: names of the kernels whose schedule comes from the log, and by rule; probed: the network's, where it
    was measured.
    """

    network: NetworkSchedule | None
    dense: Mapping[LayerShape, DenseSchedule]
    tuned: tuple[str, ...] = ()
    untuned: tuple[str, ...] = ()
    probed: Probed | None = None

    @property
    def is_default(self) -> bool:
        return self.network is None

    @staticmethod
    def given(
        network: NetworkSchedule, dense: Callable[[LayerShape], DenseSchedule], layers: Iterable[LayerShape]
    ) -> Schedules:
        """Schedules from elsewhere than a log, such as candidates of a search."""
        return Schedules(network, {layer: dense(layer) for layer in layers})


DEFAULT_CODE = Schedules(None, {}, untuned=PLAIN_KERNELS)


def choose_schedules(
    log: TuningLog,
    layers: Iterable[LayerShape],
    *,
    cpu: str,
    batch: int,
    registers: int = REGISTERS,
    precision: str = "fp32",
    block_items: int = 1,
    l2: int | None = None,
    probe: Callable[[NetworkSchedule], Probed] = Probed,
) -> Schedules:
    """Records of the log of this CPU where it has usable ones, else the rules.

    registers: how many vectors of 16 float32 the CPU's registers hold; precision: the network's; block_items: for the
    rule, see default_network; l2: bytes of the cache that panels should fit; probe: betters the rule's schedule, where
    the log has none, by measuring.
    """
    records = _Records(log, cpu, batch)
    layers = list(layers)
    record = records.find(network_kernel(precision), network_shape(batch, layers))
    rule = default_network(batch, registers, precision, block_items)
    found = Probed(network_from(record.schedule)) if record else probe(rule)
    network = found.network
    dense = {}
    for layer in layers:
        shape = dense_shape(network.mr, layer.inputs, layer.outputs)
        record = records.find(dense_kernel(layer.precision, layer.activation), shape, layer)
        rule = default_dense(network.mr, layer.outputs, registers, layer.unit, found.ahead, found.unroll)
        dense[layer] = in_k_blocks(dense_from(record.schedule) if record else rule, layer, l2, network.block_tiles)
    return Schedules(network, dense, *records.summary(), None if found.gflops is None else found)


class _Records:
    """The usable records of a log for one network; remembers the kernels asked for."""

    def __init__(self, log: TuningLog, cpu: str, batch: int) -> None:
        self._log, self._cpu, self._batch = log, cpu, batch
        self._asked: list[tuple[str, Record | None]] = []

    def find(self, kernel: str, shape: str, layer: LayerShape | None = None) -> Record | None:
        record = self._log.find(kernel, shape, self._cpu)
        if record is not None and not _usable(record, self._batch, layer):
            record = None
        self._asked.append((f"{kernel} {shape}", record))
        return record

    def summary(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """tuned and untuned of Schedules; a kernel that several layers share is named once."""
        tuned = dict.fromkeys(name for name, record in self._asked if record and record.is_measured)
        untuned = dict.fromkeys(name for name, record in self._asked if name not in tuned)
        return tuple(tuned), tuple(untuned)


def network_from(numbers: dict[str, int]) -> NetworkSchedule:
    prefetch = Prefetch(every=numbers["fetch_every"], locality=numbers["fetch_locality"])
    return NetworkSchedule(numbers["mr"], numbers["block_tiles"], prefetch)


def network_numbers(schedule: NetworkSchedule) -> dict[str, int]:
    return {
        "mr": schedule.mr,
        "block_tiles": schedule.block_tiles,
        "fetch_every": schedule.prefetch.every,
        "fetch_locality": schedule.prefetch.locality,
    }


def dense_numbers(schedule: DenseSchedule) -> dict[str, int]:
    return {"nr": schedule.nr, "unroll": schedule.unroll, "ahead": int(schedule.ahead)}


def dense_from(numbers: dict[str, int]) -> DenseSchedule:
    """Records of before 2026-11-30 prefetch no panels."""
    return DenseSchedule(nr=numbers["nr"], unroll=numbers["unroll"], ahead=bool(numbers.get("ahead", 0)))


def _usable(record: Record, batch: int, layer: LayerShape | None) -> bool:
    """A log is a file that people edit: numbers that no kernel can be built from count as untuned."""
    if layer is None:
        return _usable_network(record.schedule, batch)
    return _usable_dense(record.schedule, layer)


def _usable_network(numbers: dict[str, int], batch: int) -> bool:
    if not {"mr", "block_tiles", "fetch_every", "fetch_locality"} <= numbers.keys():
        return False
    mr, tiles = numbers["mr"], numbers["block_tiles"]
    fits = 1 <= mr <= min(batch, REGISTERS - 2) and tiles >= 1 and mr * tiles <= _LARGEST_BLOCK
    return fits and numbers["fetch_every"] >= 0 and 0 <= numbers["fetch_locality"] <= 3


def _usable_dense(numbers: dict[str, int], layer: LayerShape) -> bool:
    if not {"nr", "unroll"} <= numbers.keys():
        return False
    nr = numbers["nr"]
    whole_units = nr % (layer.unit * LANES) == 0 or nr >= padded(layer.outputs)
    known = numbers["unroll"] in (1, 2, 4, 8, 16) and numbers.get("ahead", 0) in (0, 1)
    return whole_units and nr in range(LANES, _WIDEST + 1, LANES) and known
