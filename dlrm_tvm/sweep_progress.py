"""How far a sweep is and how long it will take: a bar on a terminal, a line per run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from tqdm import tqdm

from .sweep_plan import Planned
from .sweep_results import Outcome


class Progress:
    """Of these runs, as a context. show: gets the lines where stderr is no terminal."""

    def __init__(self, pending: Sequence[Planned], show: Callable[[str], None]) -> None:
        self._total = len(pending)
        self._show = show
        self._began_s = time.monotonic()
        self._done = 0
        self._bar = tqdm(total=self._total, unit="run", leave=False, disable=None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def advance(self, outcome: Outcome) -> None:
        self._done += 1
        said = f"{outcome.planned.combination}: {_figures(outcome)}"
        if not self._bar.disable:
            self._bar.set_description_str(said, refresh=False)
            self._bar.update()
            return
        left_s = (time.monotonic() - self._began_s) / self._done * (self._total - self._done)
        why = "" if outcome.error is None else f": {outcome.error}"
        self._show(f"  {self._done}/{self._total}  {said}{why}   ({_time_left(left_s)} left)")


def _figures(outcome: Outcome) -> str:
    if outcome.figures is None:
        return "failed"
    return f"{outcome.figures['items_per_s']:,.0f} items/s, p99 {outcome.figures['latency_ms']['p99']:.3f} ms"


def _time_left(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
