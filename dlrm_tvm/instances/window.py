"""The window in which all instances ran, and their work inside it.

    instance 0   |--|--|--|--|--|--|--|          closed loop: one end per batch; the next begins where one ends
    instance 1     |--|   |---|  |-|--|          arrivals: a batch begins when it was asked for, or when it can
                     t0            t1            counted: from when the last one was warm to when the first stops

Of a batch that a border cuts, throughput counts the part inside, so that long batches in a short window are not off by
one. Latencies are those of whole batches inside in a closed loop; with arrivals those of every batch that was asked for
inside, from when it was asked for. One that was given up counts with its waiting time until then: without it an
overloaded machine would look fast. Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUB_WINDOWS = 10


@dataclass(frozen=True, eq=False)
class Run:
    """One instance's timed loop: when it began, and the end of each batch [batches] int64, ns of one clock.

    arrivals_ns: when each batch was asked for, [>= batches] int64 in their order, None for a closed loop.
    stopped_ns: when the loop was left; None: with the last batch's end.
    """

    started_ns: int
    ends_ns: np.ndarray
    arrivals_ns: np.ndarray | None = None
    stopped_ns: int | None = None

    @property
    def starts_ns(self) -> np.ndarray:
        free_ns = np.concatenate([[self.started_ns], self.ends_ns[:-1]])[: len(self.ends_ns)]
        return free_ns if self.arrivals_ns is None else np.maximum(free_ns, self.arrivals_ns[: len(self.ends_ns)])

    @property
    def last_ns(self) -> int:
        if self.stopped_ns is not None:
            return self.stopped_ns
        return int(self.ends_ns[-1]) if len(self.ends_ns) else 0


@dataclass(frozen=True, eq=False)
class Measurement:
    """The work inside the window. latencies_ns: one int64 array per instance; batches_per_s: one rate per instance.

    With arrivals: offered_per_s, batches asked for per second, over all instances; late, how many of them were not
    done when the window closed; given_up, how many were not done at all. sub_windows_per_s: batches per second of all
    instances together in each of 10 equal parts of the window, whose mean is the throughput. services_ns: per instance
    the time of each batch that lies inside, wholly or in part.
    """

    duration_s: float
    batches_per_s: tuple[float, ...]
    latencies_ns: tuple[np.ndarray, ...]
    offered_per_s: float | None = None
    late: int = 0
    given_up: int = 0
    sub_windows_per_s: tuple[float, ...] = ()
    services_ns: tuple[np.ndarray, ...] = ()

    @property
    def batches(self) -> int:
        """In a closed loop whole batches inside the window; with arrivals those asked for inside."""
        return sum(len(latencies) for latencies in self.latencies_ns)

    @property
    def total_batches_per_s(self) -> float:
        return sum(self.batches_per_s)


def merge_runs(runs: Sequence[Run], begin_ns: int, end_ns: int) -> Measurement | None:
    """The part of begin..end in which every instance ran; None where there is none."""
    begin_ns = max(begin_ns, *(run.started_ns for run in runs))
    end_ns = min([end_ns, *(run.last_ns for run in runs)])
    if end_ns <= begin_ns:
        return None
    duration_s = (end_ns - begin_ns) / 1e9
    borders_ns = [begin_ns + (end_ns - begin_ns) * part // SUB_WINDOWS for part in range(SUB_WINDOWS + 1)]
    done = np.array([_batches_done(run, borders_ns) for run in runs])  # [runs, borders]
    latencies_ns, services_ns = zip(*(_times(run, begin_ns, end_ns) for run in runs))
    measurement = {
        "duration_s": duration_s,
        "batches_per_s": tuple(((done[:, -1] - done[:, 0]) / duration_s).tolist()),
        "sub_windows_per_s": tuple((np.diff(done).sum(axis=0) / (duration_s / SUB_WINDOWS)).tolist()),
        "services_ns": services_ns,
    }
    if runs[0].arrivals_ns is None:
        return Measurement(latencies_ns=latencies_ns, **measurement)
    asked = [_asked_for(run, begin_ns, end_ns) for run in runs]
    return Measurement(
        latencies_ns=tuple(ends_ns - arrivals_ns for arrivals_ns, ends_ns, _ in asked),
        offered_per_s=sum(len(arrivals_ns) for arrivals_ns, _, _ in asked) / duration_s,
        late=sum(int((ends_ns > end_ns).sum()) for _, ends_ns, _ in asked),
        given_up=sum(given_up for _, _, given_up in asked),
        **measurement,
    )


def _batches_done(run: Run, moments_ns: Sequence[int]) -> np.ndarray:
    """Batches done at each of the moments [n] float64, with the fraction of the one under way."""
    if not len(run.ends_ns):
        return np.zeros(len(moments_ns))
    # Relative to the start: a float64 holds nanoseconds since boot exactly for 104 days only.
    starts, ends = run.starts_ns - run.started_ns, run.ends_ns - run.started_ns
    times = np.stack([starts, ends], axis=1).reshape(-1)  # between an end and the next start nothing is done
    done = np.stack([np.arange(len(ends)), np.arange(len(ends)) + 1], axis=1).reshape(-1)
    return np.interp(np.array(moments_ns) - run.started_ns, times, done)


def _times(run: Run, begin_ns: int, end_ns: int) -> tuple[np.ndarray, np.ndarray]:
    """ns of each batch that lies wholly inside, and of each that does so wholly or in part."""
    starts_ns, ends_ns = run.starts_ns, run.ends_ns
    inside = (starts_ns >= begin_ns) & (ends_ns <= end_ns)
    touching = (starts_ns < end_ns) & (ends_ns > begin_ns)
    return (ends_ns - starts_ns)[inside], (ends_ns - starts_ns)[touching]


def _asked_for(run: Run, begin_ns: int, end_ns: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Arrivals inside the window, the end of each (or the end of its waiting), and how many were given up."""
    ends_ns = np.full(len(run.arrivals_ns), run.last_ns, np.int64)
    ends_ns[: len(run.ends_ns)] = run.ends_ns
    inside = (run.arrivals_ns >= begin_ns) & (run.arrivals_ns < end_ns)
    given_up = int(inside[len(run.ends_ns) :].sum())
    return run.arrivals_ns[inside], ends_ns[inside], given_up
