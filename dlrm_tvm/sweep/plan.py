"""What a sweep measures and in which order: text -> combinations -> rounds. Pure; knows neither files nor workers.

    instances=1,2;threads=1-4;batch=16,100        every combination; an axis left out: as in a single run
    batch=1-2048*2  cores=8-32+8                  steps as llama-bench writes them; x for * where a shell takes that
    engine=ours,openvino;precision=fp32,int8      two more axes, of names
    cores=1-8*2                                   in all: as many instances as fill them
    rate=50,100                                   Poisson arrivals, batches per second in all
    auto                                          ways to fill the usable cores x batches from 1 to 2048

Each round runs every combination once, in a new random order, so that slow drift of the machine hits all alike.
Engines that differ in nothing else run one after the other: their ratio is what drifts least.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product

from ..engines.interface import ENGINES, OURS, TITLES
from ..errors import UserError
from ..machine.topology import parse_ranges
from ..model.precision import PRECISIONS

AUTO = "auto"
AUTO_BATCHES = (1, 16, 100, 400, 2048)
_LIMITS = {"instances": 65_536, "threads": 65_536, "batch": 1_000_000, "cores": 65_536, "rate": 1_000_000}
_NAMES = {"engine": (OURS, *ENGINES), "precision": PRECISIONS}
_AXES = (*_LIMITS, *_NAMES)
_MAX_COMBINATIONS = 1000
_MAX_PLACEMENTS = 8
_AUTO_SECONDS = 1800  # the most that --sweep auto may take; it drops the least important placements first
_EXAMPLE = "Write it like --sweep instances=1,2 threads=1-8*2 batch=16,100, or --sweep auto."


@dataclass(frozen=True, order=True)
class Combination:
    """One way to run the model: instances, threads of each, items per batch.

    engine, precision: None where the sweep has no such axis; the single run's settings say them. rate: of batches that
    arrive, per second; None for a closed loop, and for a trace as it is. source: the file of an earlier result.
    arrivals: how its batches arrived.
    """

    instances: int
    threads: int
    batch: int
    engine: str | None = None
    precision: str | None = None
    rate: float | None = None
    source: str | None = None
    arrivals: str | None = None

    @property
    def place(self) -> tuple:
        """For sorting; None before any other value."""
        return tuple((value is not None, value) for value in astuple(self))

    def __str__(self) -> str:
        return f"{self.placement}, {self.variant}"

    @property
    def variant(self) -> str:
        """All but the placement."""
        return self._named(f"batch {self.batch}")

    @property
    def series(self) -> str:
        """All but the placement and the batch."""
        return self._named() or "all"

    def _named(self, *batch: str) -> str:
        rate = None if self.rate is None else f"{self.rate:,.7g} batches/s"
        named = (self.source, *batch, self.precision, TITLES.get(self.engine, self.engine), self.arrivals, rate)
        return ", ".join(filter(None, named))

    @property
    def arriving(self) -> str | None:
        """How batches arrive; None for a closed loop."""
        return self.arrivals or (None if self.rate is None else "poisson")

    @property
    def placement(self) -> str:
        each = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.instances} instance{'s' * (self.instances > 1)} × {each}"


@dataclass(frozen=True)
class Planned:
    """One run: a combination in one of the rounds, counted from 0."""

    round: int
    combination: Combination


@dataclass(frozen=True)
class SweepSpec:
    """The values of each axis, in their order; None: the axis was left out."""

    instances: tuple[int, ...] | None = None
    threads: tuple[int, ...] | None = None
    batch: tuple[int, ...] | None = None
    engine: tuple[str, ...] | None = None
    precision: tuple[str, ...] | None = None
    cores: tuple[int, ...] | None = None
    rate: tuple[int, ...] | None = None


def parse_spec(text: str) -> SweepSpec:
    """Raises UserError that says what was found and where."""
    values: dict[str, tuple] = {}
    parts = text.strip().removesuffix(";").split(";")
    for part in parts:
        key, equals, listed = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(f"--sweep: {part.strip()!r} is no KEY=VALUES. {_EXAMPLE}")
        if key not in _AXES:
            raise UserError(f"--sweep: {key!r} is none of {', '.join(_AXES)}. {_EXAMPLE}")
        if key in values:
            raise UserError(f"--sweep names {key} twice. {_EXAMPLE}")
        values[key] = _names(key, listed) if key in _NAMES else _values(key, listed)
    if "cores" in values and "instances" in values:
        raise UserError(f"--sweep names cores and instances: the one decides the other. {_EXAMPLE}")
    return SweepSpec(**values)


def _names(key: str, text: str) -> tuple[str, ...]:
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in _NAMES[key]:
            raise UserError(f"--sweep: {name!r} of {key} is none of {', '.join(_NAMES[key])}. {_EXAMPLE}")
    return tuple(dict.fromkeys(names))


def _values(key: str, text: str) -> tuple[int, ...]:
    try:
        values = parse_ranges(text, least=1, most=_LIMITS[key], noun="a number from 1 up", of=f" of {key}")
    except ValueError as error:
        raise UserError(f"--sweep: {error}. {_EXAMPLE}") from None
    return tuple(dict.fromkeys(values))


def expand(
    spec: SweepSpec, *, single_run: SweepSpec, fitting: Callable[[int | None, int], int | None]
) -> tuple[list[Combination], list[Combination]]:
    """Every combination that fits the machine, and those that do not.

    single_run: values of the axes that were left out; its instances may be None: as many as fit.
    fitting(instances, threads): how many instances there will be, None where they need too many cores.
    Raises UserError where there are more combinations than anyone waits for.
    """
    instances = spec.instances or spec.cores or single_run.instances or (None,)
    threads, batches = spec.threads or single_run.threads, spec.batch or single_run.batch
    others = [batches, spec.engine or (None,), spec.precision or (None,), spec.rate or (None,)]
    size = math.prod(map(len, (instances, threads, *others)))
    if size > _MAX_COMBINATIONS:
        raise UserError(
            f"--sweep names {size} combinations; at most {_MAX_COMBINATIONS} were wanted. Name fewer values."
        )
    found, left_out = [], []
    for count, each in product(instances, threads):
        if spec.cores and count % each:
            continue  # no number of instances fills so many cores
        count = count // each if spec.cores else count
        fit = fitting(count, each)
        for other in product(*others):
            (left_out if fit is None else found).append(Combination(fit or count or 1, each, *other))
    return found, left_out


def auto_placements(cores: int) -> list[tuple[int, int]]:
    """(instances, threads) that use `cores` cores, the most important first; one core alone comes third.

    One thread each, one instance on all, then powers of two, then the other divisors.
    """
    powers = [2**exponent for exponent in range(1, cores.bit_length()) if 2**exponent <= cores]
    divisors = [threads for threads in range(2, cores) if cores % threads == 0]
    placements = [(cores, 1), (1, cores), (1, 1), *((cores // threads, threads) for threads in (*powers, *divisors))]
    return list(dict.fromkeys(placements))[:_MAX_PLACEMENTS]


def auto_combinations(cores: int, *, repeats: int, seconds_each: float) -> list[Combination]:
    """Every placement x AUTO_BATCHES; fewer placements, one at least, where all would take over half an hour."""
    placements = auto_placements(cores)
    fitting = int(_AUTO_SECONDS / (seconds_each * repeats * len(AUTO_BATCHES)))
    return [
        Combination(instances, threads, batch)
        for instances, threads in sorted(placements[: max(fitting, 1)])
        for batch in AUTO_BATCHES
    ]


def shuffled_rounds(combinations: Sequence[Combination], *, repeats: int, seed: int) -> list[Planned]:
    """Round after round, each in its own order. More repeats of the same seed begin with those of fewer."""
    draw = random.Random(seed)
    planned = []
    for number in range(repeats):
        order = sorted(combinations)
        draw.shuffle(order)
        groups: dict[Combination, list[Combination]] = {}  # engines of one setting, which stay together
        for combination in order:
            groups.setdefault(replace(combination, engine=None), []).append(combination)
        planned += [Planned(number, combination) for group in groups.values() for combination in group]
    return planned


def placements_text(combinations: Sequence[Combination]) -> str:
    """As instances × threads, the first ten."""
    pairs = dict.fromkeys((one.instances, one.threads) for one in combinations)
    found = [f"{instances} × {threads}" for instances, threads in pairs]
    return ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
