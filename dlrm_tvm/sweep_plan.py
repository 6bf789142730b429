"""What a sweep measures and in which order: text -> combinations -> rounds. Pure; knows neither files nor workers.

    "instances=1,2;threads=1-4;batch=16,100"      every combination of them; a key left out: as in a single run
    auto                                          ways to fill the cores there are x batches from 1 to 2048

Every round runs all combinations once, shuffled anew, so that a slow drift of the machine meets all of them alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from .errors import UserError

AUTO = "auto"
AUTO_BATCHES = (1, 16, 100, 400, 2048)
_LIMITS = {"instances": 65_536, "threads": 65_536, "batch": 1_000_000}
_MAX_COMBINATIONS = 1000
_MAX_PLACEMENTS = 8
_AUTO_SECONDS = 1800  # what --sweep auto is to take; less important placements are left out first, but one
_EXAMPLE = 'Write it like --sweep "instances=1,2;threads=1-4;batch=16,100", or --sweep auto.'


@dataclass(frozen=True, order=True)
class Combination:
    """One way to run the model: instances of so many threads each, items per batch."""

    instances: int
    threads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.placement}, batch {self.batch}"

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
    """The values named, in their order; None: the key was left out."""

    instances: tuple[int, ...] | None = None
    threads: tuple[int, ...] | None = None
    batch: tuple[int, ...] | None = None


def parse_spec(text: str) -> SweepSpec:
    """The values of each key. Raises UserError that says what was found and where."""
    values: dict[str, tuple[int, ...]] = {}
    parts = text.strip().removesuffix(";").split(";")
    for part in parts:
        key, equals, listed = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(f"--sweep: {part.strip()!r} is no KEY=VALUES. {_EXAMPLE}")
        if key not in _LIMITS:
            raise UserError(f"--sweep: {key!r} is none of {', '.join(_LIMITS)}. {_EXAMPLE}")
        if key in values:
            raise UserError(f"--sweep names {key} twice. {_EXAMPLE}")
        values[key] = _values(key, listed)
    return SweepSpec(**values)


def _values(key: str, text: str) -> tuple[int, ...]:
    values: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = _number(first), _number(last if dash else first)
        if low is None or high is None or not 1 <= low <= high:
            raise UserError(f"--sweep: {part.strip()!r} of {key} is neither a number from 1 up nor a range. {_EXAMPLE}")
        if high > _LIMITS[key]:
            raise UserError(f"--sweep: {part.strip()!r} of {key} goes beyond {_LIMITS[key]}. {_EXAMPLE}")
        values += range(low, high + 1)
    return tuple(dict.fromkeys(values))


def _number(text: str) -> int | None:
    """None: no plain decimal number."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 100 else None


def expand(
    spec: SweepSpec, *, single_run: SweepSpec, fitting: Callable[[int | None, int], int | None]
) -> tuple[list[Combination], list[Combination]]:
    """Every combination that fits the machine, and those that do not.

    single_run: the values of the keys that were left out; its instances may be None: as many as fit.
    fitting(instances, threads): how many instances there will be, None where they need more cores than there are.
    Raises UserError where there are more combinations than anyone waits for.
    """
    instances = spec.instances or single_run.instances or (None,)
    threads, batches = spec.threads or single_run.threads, spec.batch or single_run.batch
    size = len(instances) * len(threads) * len(batches)
    if size > _MAX_COMBINATIONS:
        raise UserError(
            f"--sweep names {size} combinations; at most {_MAX_COMBINATIONS} were wanted. Name fewer values."
        )
    found, left_out = [], []
    for count, each in product(instances, threads):
        fit = fitting(count, each)
        for batch in batches:
            (left_out if fit is None else found).append(Combination(fit or count or 1, each, batch))
    return found, left_out


def auto_placements(cores: int) -> list[tuple[int, int]]:
    """(instances, threads) that use `cores` cores, the most telling ones first; one core alone comes third.

    One thread each, one instance on all, then powers of two, then the other divisors.
    """
    powers = [2**exponent for exponent in range(1, cores.bit_length()) if 2**exponent <= cores]
    divisors = [threads for threads in range(2, cores) if cores % threads == 0]
    placements = [(cores, 1), (1, cores), (1, 1), *((cores // threads, threads) for threads in (*powers, *divisors))]
    return list(dict.fromkeys(placements))[:_MAX_PLACEMENTS]


def auto_combinations(cores: int, *, repeats: int, seconds_each: float) -> list[Combination]:
    """Every placement x AUTO_BATCHES, with fewer placements, one at least, where half an hour would not do."""
    placements = auto_placements(cores)
    fitting = int(_AUTO_SECONDS / (seconds_each * repeats * len(AUTO_BATCHES)))
    return [
        Combination(instances, threads, batch)
        for instances, threads in sorted(placements[: max(fitting, 1)])
        for batch in AUTO_BATCHES
    ]


def shuffled_rounds(combinations: Sequence[Combination], *, repeats: int, seed: int) -> list[Planned]:
    """Round after round, each in an order of its own. More repeats of the same seed begin with those of fewer."""
    draw = random.Random(seed)
    planned = []
    for number in range(repeats):
        order = sorted(combinations)
        draw.shuffle(order)
        planned += [Planned(number, combination) for combination in order]
    return planned
