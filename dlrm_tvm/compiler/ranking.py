"""How fast the libraries are that `compile.py --precision auto` may take: on this machine, one thread, in turns.

Inputs are drawn as multi_instance.py's are (data/workload.py): rows of whole tables, more than the last-level cache
holds. A library rotates over those batches that it ran while warming up: no row is still to be read from a file.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from ..console import Bar
from ..data.workload import items_to_rotate, random_items
from ..runtime.artifact import open_artifact
from ..runtime.executor import Executor

_ROUNDS = 5
_ROUND_SECONDS = 0.03  # of each library; with three of them it takes about a second in all
_WARM_UP_SECONDS = 0.2


def items_per_second(
    libraries: Sequence[Path], l3_bytes: int, clock: Callable[[], float] = perf_counter
) -> list[float]:
    """Of each library, the median over rounds in which they take turns: a disturbance meets all of them."""
    with Bar(f"timing {len(libraries)} candidates"):
        turns = [_Turn(Executor(open_artifact(library)), l3_bytes, clock) for library in libraries]
        rounds = [[turn.items_per_second() for turn in turns] for _ in range(_ROUNDS)]
    return [statistics.median(rates) for rates in zip(*rounds)]


class _Turn:
    def __init__(self, model: Executor, l3_bytes: int, clock: Callable[[], float]) -> None:
        self._model, self._clock = model, clock
        card, size = model.artifact.manifest.model, model.batch_size
        dense, indices = random_items(card, items_to_rotate(card, size, l3_bytes), instance=0)
        warm, ends = [], clock() + _WARM_UP_SECONDS
        for at in range(0, len(dense), size):
            warm.append(model.prepare(dense[at : at + size], indices[at : at + size]))
            model.run(warm[-1])
            if clock() >= ends:
                break
        self._batches = itertools.cycle(warm)

    def items_per_second(self) -> float:
        start, items = self._clock(), 0
        while (elapsed := self._clock() - start) < _ROUND_SECONDS:
            self._model.run(next(self._batches))
            items += self._model.batch_size
        return items / elapsed
