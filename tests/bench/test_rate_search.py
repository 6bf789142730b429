"""The search of the highest rate, on a simulated machine of known service time, and its interval."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from dlrm_tvm.bench.rate_search import Target, find_rate, late_interval
from dlrm_tvm.console import WIDTH
from dlrm_tvm.errors import FoundWantingError
from dlrm_tvm.instances.arrivals import CLOSED, Arrivals, schedule_ns
from dlrm_tvm.instances.group import NoBatchError

SERVICE_NS = 2_000_000


class Machine:
    """One instance that serves a batch in 2 ms, in order; every window is simulated, none is waited for."""

    def __init__(self, stall_ns: int = 0) -> None:
        """stall_ns: in the middle of every second window."""
        self.stall_ns, self.windows = stall_ns, []

    def measure(self, *, duration_s: float, warmup_s: float, arrivals: Arrivals = CLOSED) -> SimpleNamespace:
        if not arrivals.is_open:
            latencies = np.full(1000, SERVICE_NS)
            return run(latencies, 1e9 / SERVICE_NS)
        self.windows.append(arrivals)
        span = {"begin_ns": 0, "end_ns": round(duration_s * 1e9)}
        asked, latencies, free = schedule_ns(arrivals, instance=0, instances=1, **span), [], 0
        for number, arrival in enumerate(asked.tolist()):
            stall = self.stall_ns if number == len(asked) // 2 and len(self.windows) % 2 else 0
            free = max(arrival, free) + SERVICE_NS + stall
            latencies.append(free - arrival)
        return run(np.array(latencies), len(asked) / duration_s)


def run(latencies_ns: np.ndarray, rate: float) -> SimpleNamespace:
    measurement = SimpleNamespace(latencies_ns=(latencies_ns,), total_batches_per_s=rate)
    return SimpleNamespace(interrupted=False, measurement=measurement)


def search(machine: Machine, target: Target, duration_s: float = 10) -> tuple:
    lines: list[str] = []
    found = find_rate(machine, target, duration_s=duration_s, warmup_s=0, show=lines.append)
    return found, lines


def true_share(rate: float, bound_ms: float) -> float:
    """Of late batches, in an hour of that machine."""
    found = Machine().measure(duration_s=3600, warmup_s=0, arrivals=Arrivals("poisson", rate, seed=99))
    return float((found.measurement.latencies_ns[0] > bound_ms * 1e6).mean())


@pytest.mark.parametrize(("bound_ms", "percentile"), [(6, 99), (20, 99), (8, 90)])
def test_the_rate_found_holds_in_the_long_run_and_one_not_much_higher_does_not(bound_ms: float, percentile: float):
    found, lines = search(Machine(), Target(bound_ms, percentile))
    allowed = 1 - percentile / 100
    assert true_share(found.rate, bound_ms) < allowed
    assert true_share(found.not_held + 0.05 * 500, bound_ms) > allowed
    assert 0 < found.not_held - found.rate <= 0.02 * 500
    assert sum(line.startswith("  rate") for line in lines) == len(found.probes)
    assert found.arrivals == Arrivals("poisson", found.rate)


def test_no_rate_is_judged_by_one_window_unless_most_of_it_is_late() -> None:
    found, _ = search(Machine(), Target(6))
    for probe in found.probes:
        assert probe.windows >= 3 or (probe.late > 0.5 and not probe.holds)
        if probe.interval:
            assert probe.interval[0] <= probe.late <= probe.interval[1]
        assert (probe.latency_ms <= 6) == (probe.late <= 0.01 + 1e-9)
    assert {arrivals.seed for arrivals in found_windows(Machine(), Target(6))} >= {0, 1, 2}


def found_windows(machine: Machine, target: Target) -> list[Arrivals]:
    search(machine, target)
    return machine.windows


def test_stalls_in_some_windows_widen_the_interval() -> None:
    steady, stalling = (search(Machine(stall), Target(6, 95), 2)[0] for stall in (0, 20_000_000))
    assert max(probe.windows for probe in stalling.probes) > 3
    assert stalling.rate < steady.rate


def test_a_low_rate_is_judged_by_longer_windows_not_given_up_for_want_of_batches() -> None:
    """The bound is 1.85 times the service time, which about 30 batches/s keep. None late of the 250 that eight windows
    of 2 s have at half of that would leave it open."""
    found, lines = search(Machine(), Target(3.7), duration_s=2)
    assert found.rate > 0 and true_share(found.rate, 3.7) < 0.01
    held = [probe for probe in found.probes if probe.holds]
    assert 380 < min(probe.batches for probe in held) <= 8 * 8 * max(probe.rate for probe in held)
    assert "windows of 2 s, at low rates up to 8 s" in "".join(lines)


def test_a_window_without_a_batch_is_of_a_rate_that_does_not_hold() -> None:
    class Standing(Machine):
        def measure(self, *, arrivals: Arrivals = CLOSED, **timing: float) -> SimpleNamespace:
            if arrivals.is_open and arrivals.rate > 100:
                raise NoBatchError("none")
            return super().measure(arrivals=arrivals, **timing)

    found, lines = search(Standing(), Target(6))
    assert "batches/s does not hold: no batch was done, 1 window" in "".join(lines) and "of 0 late" not in "".join(
        lines
    )
    assert 80 < found.rate <= 100 < found.not_held
    assert all(not probe.holds and probe.late == 1 for probe in found.probes if probe.rate > 100)


def test_an_interrupted_search_keeps_what_it_has_judged() -> None:
    class Interrupted(Machine):
        def measure(self, **timing: object) -> SimpleNamespace:
            if len(self.windows) == windows:
                raise KeyboardInterrupt
            return super().measure(**timing)

    whole, _ = search(Machine(), Target(6))
    windows = sum(probe.windows for probe in whole.probes[:3]) + 1
    found, _ = search(Interrupted(), Target(6))
    assert found.interrupted and found.probes == whole.probes[:3]
    assert found.rate == max(probe.rate for probe in found.probes if probe.holds)
    windows = 0
    with pytest.raises(KeyboardInterrupt):
        search(Interrupted(), Target(6))


def test_a_bound_below_the_service_time_is_refused_by_the_median_of_the_closed_loop() -> None:
    message = "No rate keeps p99 within 1 ms: back to back, 500.0 batches/s, p50 is 2.000. Try smaller batches."
    assert refusal(Machine(), Target(1)) == message


def test_a_tail_that_no_rate_keeps_is_refused_by_what_it_is_at_the_lowest_rate() -> None:
    """Every window has a batch of 102 ms in it, and at most 10 s of 7.8 batches/s: more than one in a hundred."""

    class Stalling(Machine):
        def measure(self, **timing: object) -> SimpleNamespace:
            self.windows.clear()  # every one is the first
            return super().measure(**timing)

    message = refusal(Stalling(100_000_000), Target(20), duration_s=2)
    assert re.fullmatch(
        r"No rate keeps p99 within 20 ms: at 7\.8 batches/s it is 10\d\.\d\. Try a larger --max-latency-ms\.",
        message,
    )


def test_a_rate_that_stays_open_is_refused_by_its_interval() -> None:
    message = refusal(Machine(), Target(3.7, 99.9), duration_s=2)
    found = re.fullmatch(
        r"No rate keeps p99\.9 within 3\.7 ms: at 7\.8 batches/s (.*) to (.*)% are late\. Try a longer --duration\.",
        message,
    )
    assert found and float(found[1]) <= 0.1 <= float(found[2])


def test_a_machine_that_stands_still_is_refused_by_that() -> None:
    class Standing(Machine):
        def measure(self, *, arrivals: Arrivals = CLOSED, **timing: float) -> SimpleNamespace:
            if arrivals.is_open:
                raise NoBatchError("none")
            return super().measure(**timing)

    expected = "No rate keeps p99 within 6 ms: at 7.8 batches/s a window had no batch. Try an idle machine."
    assert refusal(Standing(), Target(6)) == expected


def refusal(machine: Machine, target: Target, duration_s: float = 10) -> str:
    with pytest.raises(FoundWantingError) as refused:
        search(machine, target, duration_s)
    assert len(str(refused.value)) <= WIDTH
    return str(refused.value)


def test_few_batches_leave_the_share_open() -> None:
    """None late of 90 says no more than 4 %; of 600 less than 1 %."""
    assert late_interval([0, 0, 0], [30, 30, 30])[1] == pytest.approx(0.041, abs=0.001)
    assert late_interval([0, 0, 0], [200, 200, 200])[1] < 0.01


def test_the_interval_is_the_wider_one_of_wilsons_and_students() -> None:
    """Wilson, 20 of 400: 0.0326 to 0.0758. Student, shares 0.02, 0.08 (t = 12.706): beyond 0 and at 0.43."""
    low, high = late_interval([10, 10], [200, 200])
    assert (low, high) == (pytest.approx(0.0326, abs=5e-4), pytest.approx(0.0758, abs=5e-4))
    low, high = late_interval([4, 16], [200, 200])
    assert low == 0 and high == pytest.approx(0.05 + 12.706 * 0.0424264 / 2**0.5, abs=1e-3)
