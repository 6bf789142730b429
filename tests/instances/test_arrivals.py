"""Open loops: schedules, latency from the intended arrival, overload, pauses; and runs that end when stable."""

from __future__ import annotations

import os
import signal
import threading
import time
from array import array
from pathlib import Path

import numpy as np
import pytest
from fakes import CORES, MS, fakes

from dlrm_tvm.bench.warnings import overload_warnings, stability_warnings, stall_warnings
from dlrm_tvm.errors import UserError
from dlrm_tvm.instances.arrivals import Arrivals, read_trace, schedule_ns
from dlrm_tvm.instances.loops import StopClock, open_loop
from dlrm_tvm.instances.progress import ProgressBoard, StabilityWatch
from dlrm_tvm.instances.window import Run, merge_runs

SECOND = 10**9


def schedule(kind: str, rate: float, seconds: float, instance: int = 0, instances: int = 1) -> np.ndarray:
    span = {"begin_ns": 7 * SECOND, "end_ns": 7 * SECOND + round(seconds * SECOND)}
    return schedule_ns(Arrivals(kind, rate), instance=instance, instances=instances, **span)


def served_in_order(arrivals_ns: np.ndarray, service_ns: int) -> np.ndarray:
    """Ends of a single server that takes them in their order (Lindley's recursion), as a loop."""
    ends, free = [], 0
    for arrival in arrivals_ns.tolist():
        free = max(arrival, free) + service_ns
        ends.append(free)
    return np.array(ends)


# Schedules


def test_fixed_arrivals_of_all_instances_together_are_evenly_spaced() -> None:
    together = np.sort(np.concatenate([schedule("fixed", 30, 2, instance, 3) for instance in range(3)]))
    assert len(together) == 60
    assert np.abs(np.diff(together) - SECOND / 30).max() <= 1
    assert together[0] == 7 * SECOND and together[-1] < 9 * SECOND


def test_poisson_gaps_are_exponential_and_differ_by_instance() -> None:
    one, other = (schedule("poisson", 2000, 100, instance, 2) for instance in (0, 1))
    gaps_s = np.diff(one) / 1e9
    assert gaps_s.mean() == pytest.approx(1 / 1000, rel=0.02)
    assert gaps_s.std() == pytest.approx(1 / 1000, rel=0.02)
    assert (gaps_s > 2 / 1000).mean() == pytest.approx(np.exp(-2), rel=0.03)
    assert abs(np.corrcoef(gaps_s[:90_000], np.diff(other)[:90_000])[0, 1]) < 0.02
    assert one[0] >= 7 * SECOND and one[-1] < 107 * SECOND
    assert (schedule("poisson", 2000, 100, 0, 2) == one).all()


def test_rates_too_low_for_one_arrival_give_none_or_one() -> None:
    assert len(schedule("poisson", 1e-6, 1)) == 0
    assert len(schedule("fixed", 1e-6, 1)) == 1


def whole_stream(arrivals: Arrivals, seconds: float, instances: int) -> np.ndarray:
    """Of all instances together, in s from the beginning."""
    span = {"instances": instances, "begin_ns": 7 * SECOND, "end_ns": round((7 + seconds) * SECOND)}
    parts = [schedule_ns(arrivals, instance=instance, **span) for instance in range(instances)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    return np.sort(np.concatenate(parts)) / 1e9 - 7


@pytest.mark.parametrize("kind", ["fixed", "poisson"])
def test_bursts_come_at_one_moment_and_keep_the_rate(kind: str) -> None:
    times = whole_stream(Arrivals(kind, 1000, burst=5), 200, instances=3)
    moments, sizes = np.unique(times, return_counts=True)
    assert set(sizes[:-1]) == {5}
    assert len(times) / 200 == pytest.approx(1000, rel=0.03)
    gaps = np.diff(moments)
    assert gaps.std() == pytest.approx(0 if kind == "fixed" else gaps.mean(), rel=0.03, abs=1e-8)


def test_another_seed_is_another_stream_of_the_same_rate() -> None:
    one, other = (whole_stream(Arrivals("poisson", 2000, seed=seed), 20, 1) for seed in (0, 1))
    assert len(np.intersect1d(one, other)) < 10 and len(one) == pytest.approx(len(other), rel=0.05)


def test_a_trace_is_replayed_over_and_over(tmp_path: Path) -> None:
    """Four requests in 0.3 s: the next round begins where a fifth would be expected, 0.1 s later."""
    (tmp_path / "t.csv").write_text("100.0,a\n100.05,b\n100.05,c\n100.3,d\n")
    arrivals = Arrivals("trace", trace=str(tmp_path / "t.csv"))
    times = whole_stream(arrivals, 1.0, instances=2)
    assert times == pytest.approx([0, 0.05, 0.05, 0.3, 0.4, 0.45, 0.45, 0.7, 0.8, 0.85, 0.85], abs=1e-8)
    at_rate = whole_stream(Arrivals("trace", 100, trace=str(tmp_path / "t.csv")), 1.0, instances=2)
    assert at_rate[:5] == pytest.approx(np.array([0, 0.05, 0.05, 0.3, 0.4]) / 10, abs=1e-8)


@pytest.mark.filterwarnings("error")
def test_a_trace_slowed_to_ages_is_asked_for_once(tmp_path: Path) -> None:
    """1e-9 batches per second: the second is due in 30 years, the last one beyond 64 bits of nanoseconds."""
    (tmp_path / "t.csv").write_text("".join(f"{second}\n" for second in range(20)))
    assert whole_stream(Arrivals("trace", 1e-9, trace=str(tmp_path / "t.csv")), 1.0, instances=1).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n1.5\n", "the time number 3 is 1.5. Two or more times in seconds that ascend"),
        ("1\nnan\n", "the time number 2 is nan"),
        ("1\n", "1 times. Two or more"),
        ("1\n1\n", "2 times. Two or more"),
        ("time\n1\n", "A trace was wanted: a time in seconds per line"),
        ("", "0 times. Two or more"),
        ("0\n1\n9e9\n", "its times span 9e.09 s; 1e-06 s to a year, in seconds, were wanted"),
        ("0\n1e-9\n", "its times span 1e-09 s"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_trace_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=f"t.csv: .*{message}") as error:
        read_trace(str(tmp_path / "t.csv"))
    assert "\n" not in str(error.value)


# From runs to figures


def measured(arrivals_ns: np.ndarray, ends_ns: np.ndarray, begin_s: float, end_s: float, stopped_s: float = 1e6):
    run = Run(6 * SECOND, ends_ns, arrivals_ns, round(stopped_s * SECOND))
    return merge_runs([run], round(begin_s * SECOND), round(end_s * SECOND))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_poisson_arrivals_at_a_fixed_service_time_wait_as_md1_says(load: float) -> None:
    """M/D/1: mean wait = load x service / (2 (1 - load)) (Pollaczek and Khinchine)."""
    service_ns = 2 * MS
    arrivals_ns = schedule("poisson", load / (service_ns / 1e9), 1500)
    measurement = measured(arrivals_ns, served_in_order(arrivals_ns, service_ns), 10, 1500)
    waits_ns = measurement.latencies_ns[0] - service_ns
    assert waits_ns.mean() == pytest.approx(load * service_ns / (2 * (1 - load)), rel=0.03)
    assert measurement.total_batches_per_s == pytest.approx(load / (service_ns / 1e9), rel=0.02)
    assert overload_warnings(measurement) == []


def test_throughput_of_an_open_loop_counts_no_idle_time() -> None:
    arrivals_ns = np.array([7000, 7100, 7200, 7900]) * MS
    measurement = measured(arrivals_ns, arrivals_ns + 50 * MS, 7.025, 7.925)
    assert measurement.total_batches_per_s == pytest.approx((0.5 + 1 + 1 + 0.5) / 0.9)


def test_latency_counts_from_the_intended_arrival_also_of_those_done_after_the_window() -> None:
    arrivals_ns = np.array([7000, 7010, 7020, 7500]) * MS
    ends_ns = np.array([7300, 7310, 7320, 7510]) * MS  # the first took 0.3 s, and those behind it waited
    measurement = measured(arrivals_ns, ends_ns, 7.005, 7.4)
    assert (measurement.latencies_ns[0] == np.array([300, 300]) * MS).all()
    measurement = measured(arrivals_ns, ends_ns, 7.005, 7.305)
    assert (measurement.latencies_ns[0] == np.array([300, 300]) * MS).all()
    assert (measurement.late, measurement.given_up) == (2, 0)


def test_requests_given_up_count_with_the_time_that_they_waited() -> None:
    arrivals_ns = np.array([7000, 7100, 7200]) * MS
    measurement = measured(arrivals_ns, np.array([7050]) * MS, 7, 8, stopped_s=10)
    assert (measurement.latencies_ns[0] == np.array([50, 2900, 2800]) * MS).all()
    assert (measurement.late, measurement.given_up) == (2, 2)


def test_overload_is_said_with_a_rate_to_try() -> None:
    arrivals_ns = schedule("fixed", 100, 10)
    measurement = measured(arrivals_ns, served_in_order(arrivals_ns, 20 * MS), 7, 17)
    (warning,) = overload_warnings(measurement)
    assert "100.0 batches/s were asked for and 50.0 done: 500 still waited" in warning and "try --rate 40" in warning


# The loop


def test_open_loop_begins_no_batch_before_its_time_and_skips_none() -> None:
    clock = StopClock()
    now = time.perf_counter_ns()
    clock.set(now + 60 * SECOND)
    arrivals_ns = [now + 20 * MS, now + 21 * MS, now + 60 * MS]
    begun, batches = [], []

    def run(batch: str) -> None:
        begun.append(time.perf_counter_ns())
        batches.append(batch)

    ends = open_loop(run, ["a", "b"], clock, arrivals_ns)
    assert batches == ["a", "b", "a"]
    assert isinstance(ends, array) and len(ends) == 3
    assert all(begin >= arrival for begin, arrival in zip(begun, arrivals_ns))


def test_open_loop_that_is_interrupted_ends_while_it_waits() -> None:
    clock = StopClock()
    clock.set(time.perf_counter_ns() + 3600 * SECOND)
    threading.Timer(0.2, clock.interrupt).start()
    began = time.monotonic()
    assert len(open_loop(lambda batch: None, [None], clock, [time.perf_counter_ns() + 1800 * SECOND])) == 0
    assert time.monotonic() - began < 5


# Workers


def test_poisson_arrivals_at_real_workers_queue_as_their_schedule_says() -> None:
    """Against Lindley's recursion on the same schedule; a busy machine may only make them later."""
    arrivals, warmup_s, duration_s = Arrivals("poisson", 120), 0.5, 3.0
    with fakes(1, call_ms=5) as instances:
        run = instances.measure(duration_s=duration_s, warmup_s=warmup_s, arrivals=arrivals)
    asked_ns = schedule_ns(arrivals, instance=0, instances=1, begin_ns=0, end_ns=4 * SECOND)
    wanted = (served_in_order(asked_ns, 5 * MS) - asked_ns)[(asked_ns >= 0.5 * SECOND) & (asked_ns < 3.5 * SECOND)]
    found = run.measurement.latencies_ns[0]
    assert len(found) == len(wanted)
    assert (found - wanted).min() > -0.3 * MS
    assert (found - wanted).min() < 2 * MS
    assert run.measurement.offered_per_s == pytest.approx(len(wanted) / duration_s)


def test_an_overloaded_open_loop_that_is_stopped_counts_no_request_as_quick() -> None:
    """300/s are asked for, 200/s can be done: whoever came shortly before the end has a long queue before it."""
    with fakes(1, call_ms=5) as instances:
        run = instances.measure(duration_s=15, warmup_s=1, arrivals=Arrivals("fixed", 300), until_stable=True)
    latencies = run.measurement.latencies_ns[0]
    assert latencies.min() > 100 * MS
    assert len(overload_warnings(run.measurement)) == 1


def test_a_run_that_was_stopped_early_leaves_the_next_one_whole() -> None:
    with fakes(1, call_ms=2) as instances:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert instances.measure(duration_s=30, warmup_s=0).interrupted
        again = instances.measure(duration_s=0.5, warmup_s=0)
    assert not again.interrupted and again.measurement.duration_s == pytest.approx(0.5, abs=0.1)


def test_fixed_arrivals_below_capacity_take_the_service_time() -> None:
    with fakes(2, call_ms=4) as instances:
        run = instances.measure(duration_s=1.5, warmup_s=0.1, arrivals=Arrivals("fixed", 40))
    latencies = np.concatenate(run.measurement.latencies_ns)
    assert len(latencies) == 60
    assert latencies.min() >= 4 * MS and np.median(latencies) < 8 * MS


def test_a_stopped_worker_shows_in_the_open_loops_tail() -> None:
    """Two seconds in which nothing was served delay every request that came then, not one."""
    with fakes(1, call_ms=2) as instances:
        pid = instances.pids[0]
        threading.Timer(1.0, os.kill, (pid, signal.SIGSTOP)).start()
        threading.Timer(3.0, os.kill, (pid, signal.SIGCONT)).start()
        run = instances.measure(duration_s=6, warmup_s=0.2, arrivals=Arrivals("fixed", 100))
    latencies = run.measurement.latencies_ns[0]
    assert len(latencies) == 600
    assert np.percentile(latencies, 99.9) > 1800 * MS
    (warning,) = stall_warnings(run.measurement.services_ns)
    assert warning.startswith("Instance 0 finished nothing for ")
    assert 100 < (latencies > 500 * MS).sum() < 350


# Stable throughput


def looks(rates: list[float], instances: int = 1) -> tuple[StabilityWatch, int | None]:
    """A watch fed ten times a second with instances of these rates, one per second; the look at which it was stable."""
    watch, counts, at_s = StabilityWatch(), 1.0, 1.0
    for look in range(10 * len(rates)):
        rate = rates[look // 10] / instances
        ends_ns = np.full(instances, round(at_s * SECOND))
        if watch.look(np.full(instances, round(counts)), ends_ns):
            return watch, look
        counts, at_s = counts + rate / 10, at_s + 0.1
    return watch, None


def test_steady_rates_are_stable_after_three_windows() -> None:
    assert looks([500] * 8)[1] in range(30, 40)
    assert looks([500] * 8, instances=4)[1] in range(30, 40)


def test_drifting_rates_are_not_stable() -> None:
    watch, stable = looks([500 * 1.02**second for second in range(12)])
    assert stable is None and len(watch.rates) >= 9
    assert stability_warnings(False, interrupted=False)[0].startswith("Throughput did not become stable: no 3 windows")
    assert stability_warnings(None, interrupted=False) == stability_warnings(True, interrupted=False) == []


def test_rates_that_settle_are_stable_from_then_on() -> None:
    assert looks([300, 350, 400, 500, 500, 500, 500, 500])[1] in range(60, 75)


def test_few_long_batches_give_exact_rates() -> None:
    """0.3 s a batch: 3 or 4 end within a second, which counts alone would call 3 or 4 per second."""
    watch = StabilityWatch()
    for done in range(1, 60):
        watch.look(np.array([done]), np.array([done * 300 * MS]))
    assert watch.rates == pytest.approx([1 / 0.3] * len(watch.rates)) and watch.is_stable


def test_board_shows_count_and_end_of_the_same_batch() -> None:
    board = ProgressBoard(2)
    other_end = ProgressBoard(2, board.descriptor)
    run = other_end.telling(lambda batch: batch, instance=1)
    for done in range(1, 4):
        before = time.perf_counter_ns()
        assert run("batch") == "batch"
        counts, ends_ns = board.read()
        assert counts.tolist() == [0, done]
        assert before <= ends_ns[1] <= time.perf_counter_ns()
    board.close()


def test_stable_run_ends_early() -> None:
    with fakes(len(CORES[:2]), call_ms=20) as instances:
        began = time.monotonic()
        run = instances.measure(duration_s=15, warmup_s=0.1, until_stable=True)
    assert not run.interrupted
    if run.stable:  # on a machine that lets it
        assert time.monotonic() - began < 15
        assert run.measurement.duration_s < 14.9
    assert run.measurement.batches > 100
