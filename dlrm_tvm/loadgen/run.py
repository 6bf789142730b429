"""One run under MLPerf's LoadGen: instances, queue, samples and LoadGen's process together.

    peak -> closed loop of some seconds, for comparison and for the rate to ask for -> LoadGen's test -> peak

In accuracy mode nothing is timed: only the test is run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..bench.card import peak_line
from ..bench.measure import PEAK_SECONDS
from ..bench.session import RunSettings, Session, open_session
from ..bench.statistics import percentiles_ms
from ..bench.warnings import (
    faster_than_closed_warnings,
    load_warnings,
    peak_warnings,
    run_warnings,
    table_warnings,
    window_warnings,
)
from ..console import Bar, line
from ..data.query_samples import SampleSpec, plan_samples
from ..errors import UserError
from ..instances.group import NoBatchError
from ..instances.work_queue import WorkQueue
from ..machine.memory import memory_use
from ..runtime.artifact import open_artifact
from .conf_files import check_conf_file
from .peak_search import find_peak_qps, until_sure
from .process import (
    CutShortError,
    LoadgenProcess,
    LoadgenTest,
    check_room,
    loadgen_process,
    make_log_folder,
    require_loadgen,
    shared_with_loadgen,
)
from .settings import SCENARIOS, EffectiveSettings, LoadgenRequest, model_of

_CLOSED_LOOP_SHARE, _CLOSED_LOOP_S = 1 / 12, (1.0, 5.0)  # of the test's length, within these
# In the rate by which LoadGen prepares a test that must not be too short. Streams run dry below the true rate.
_HEADROOM, _STREAM_HEADROOM = 1.05, 2.0
NO_RATE = (
    "--scenario server needs a rate: give --target-qps Q, --find-peak-qps, or a --user-conf with a line such as "
    "*.Server.target_qps = Q."
)
_ACCURACY_QPS = 10_000.0  # latencies do not count there
_TAKE_MS = 50.0  # Offline: work taken at a time
_MOST_BATCHES, _ACCURACY_BATCHES = 64, 8
_WAIT_SHARE = 0.5  # of the latency bound; the rest is for delays
_SILENCE_S, _SILENCE_BATCHES = 60.0, 20


@dataclass(frozen=True)
class ClosedLoop:
    """The same instances without LoadGen: items per second, latencies of a batch in ms, warnings."""

    items_per_s: float
    batch_ms: dict[str, float]
    items_per_sample: float  # of the samples that LoadGen is to send
    warnings: tuple[str, ...]

    @property
    def samples_per_s(self) -> float:
        return self.items_per_s / self.items_per_sample


@dataclass(frozen=True, eq=False)
class LoadgenRun:
    """Everything known after a run. tests: the last one counts; served: per instance, over all tests, as
    queue_service.Served. closed_loop and peak_gflops: None in accuracy mode. wait_ms: of a batch that is not full.
    interrupted: whether Ctrl-C ended it, in the last test or after it.
    """

    session: Session
    settings: EffectiveSettings
    spec: SampleSpec
    closed_loop: ClosedLoop | None
    peak_gflops: float | None
    tests: tuple[LoadgenTest, ...]
    served: tuple[dict, ...]
    memory_bytes: int
    warnings: tuple[str, ...]
    wait_ms: float
    interrupted: bool


def run_loadgen(
    settings: RunSettings,
    request: LoadgenRequest,
    *,
    samples: int,
    find_peak: bool,
    warmup_s: float,
    show: Callable[[str], None],
) -> LoadgenRun:
    """request: for any model; samples: in LoadGen's library; find_peak: search the highest rate of the Server scenario.

    Raises UserError for inputs that do not fit, when a process dies, or LoadGen refuses.
    """
    require_loadgen()
    card = open_artifact(settings.model).manifest.model
    request = replace(request, model=model_of(card.interaction))
    for path in request.conf_files:
        check_conf_file(Path(path), request.model, SCENARIOS[request.scenario])
    bags = {"max_ind_range": settings.max_ind_range, "indices_per_bag": settings.indices_per_bag}
    spec = plan_samples(card, samples, settings.ref_data and str(settings.ref_data), **bags)
    if request.is_accuracy and not spec.has_labels:
        raise UserError("--accuracy needs labels. Give --ref-data a file that has them, such as the demo's npz.")
    check_room(spec)
    make_log_folder(Path(request.log_dir))
    with (
        shared_with_loadgen(spec) as (queue, ends, driver_ends),
        open_session(replace(settings, spare_core=True), show, queue=ends) as session,
        loadgen_process(session, queue, driver_ends) as loadgen,
    ):
        effective = loadgen.settings(request)
        return _Conduct(session, loadgen, queue, request, effective, spec, show, find_peak).run(warmup_s)


@dataclass
class _Conduct:
    """The steps of a run, over the session and LoadGen's process."""

    session: Session
    loadgen: LoadgenProcess
    queue: WorkQueue
    request: LoadgenRequest
    settings: EffectiveSettings
    spec: SampleSpec
    show: Callable[[str], None]
    find_peak: bool
    interrupted: bool = False

    def run(self, warmup_s: float) -> LoadgenRun:
        session, spec, request = self.session, self.spec, self.request
        if request.is_server and not (self.settings.target_qps or self.find_peak or request.is_accuracy):
            raise UserError(NO_RATE)
        size = f"{spec.items / spec.samples:.1f} items in the mean, {spec.nbytes / 1e9:.2f} GB"
        self.show(line("samples", f"{spec.samples:,} of {size}"))
        self.loadgen.load()
        peak_gflops, closed_loop = (None, None) if request.is_accuracy else (self._peak(), self._closed_loop(warmup_s))
        wait_ms = self._wait_ms(closed_loop)
        self.session.instances.begin_service(self._most_batches(closed_loop))
        before = self.session.instances.snapshot()
        tests = self._tests(closed_loop, wait_ms)
        after = self.session.instances.snapshot()
        memory_bytes = sum(memory_use(pid).pss_bytes for pid in self.session.instances.pids)
        self.queue.stop()
        served = self.session.instances.end_service()
        warnings = table_warnings(session.tables)
        if closed_loop:
            peak_after = self._peak_after() or peak_gflops
            warnings += load_warnings(session.plan.busiest)
            warnings += [f"In the closed loop before: {warning}" for warning in closed_loop.warnings]
            warnings += window_warnings(before, after)
            warnings += peak_warnings(peak_gflops, peak_after)
            warnings += self._faster_than_closed(closed_loop, tests[-1])
            peak_gflops = max(peak_gflops, peak_after)
        return LoadgenRun(
            session=session,
            settings=self.settings,
            spec=spec,
            closed_loop=closed_loop,
            peak_gflops=peak_gflops,
            tests=tuple(tests),
            served=tuple(served),
            memory_bytes=memory_bytes,
            warnings=tuple(warnings),
            wait_ms=wait_ms,
            interrupted=self.interrupted,
        )

    def _peak(self) -> float:
        gflops = self.session.instances.peak_gflops(PEAK_SECONDS)
        self.show(peak_line(gflops))
        return sum(gflops)

    def _peak_after(self) -> float | None:
        """None where Ctrl-C came before or comes now: the tests count all the same."""
        if not self.interrupted:
            with suppress(KeyboardInterrupt):
                return sum(self.session.instances.peak_gflops(PEAK_SECONDS))
        self.interrupted = True
        return None

    def _closed_loop(self, warmup_s: float) -> ClosedLoop:
        shortest_s, longest_s = _CLOSED_LOOP_S
        seconds = min(max(self.settings.duration_s * _CLOSED_LOOP_SHARE, shortest_s), longest_s)
        try:
            run = self.session.instances.measure(duration_s=seconds, warmup_s=warmup_s)
        except NoBatchError:
            raise UserError(
                f"No batch of {self.session.plan.manifest.batch_size:,} items was done within {seconds:g} s. "
                "Use a library of a smaller batch, or a longer --duration."
            ) from None
        if run.interrupted:
            raise KeyboardInterrupt
        measurement = run.measurement
        items_per_s = measurement.total_batches_per_s * self.session.plan.manifest.batch_size
        batch_ms = percentiles_ms(np.concatenate(measurement.latencies_ns))
        items_per_sample = self.spec.items / self.spec.samples
        closed_loop = ClosedLoop(items_per_s, batch_ms, items_per_sample, tuple(run_warnings(run)))
        text = f"{items_per_s:,.0f} items/s = {closed_loop.samples_per_s:,.1f} samples/s, in {seconds:.1f} s"
        self.show(line("closed loop", text))
        return closed_loop

    def _wait_ms(self, closed_loop: ClosedLoop | None) -> float:
        """Server: half of the latency bound, less the time that a batch takes.

        Waiting until the last moment would leave no time for delays, and gain next to nothing: at a high rate batches
        are full, at a low rate they need not be.
        """
        if not self.request.is_server or closed_loop is None:
            return 0.0
        return max(self.settings.latency_ms * _WAIT_SHARE - closed_loop.batch_ms["p99"], 0.0)

    def _show_plan(self, request: LoadgenRequest) -> None:
        settings = self.loadgen.settings(request)
        bound = f", p{100 * settings.latency_percentile:g} within {settings.latency_ms:g} ms" * request.is_server
        scenario = f"{SCENARIOS[request.scenario]} of {request.model}"
        self.show(line("LoadGen", f"{scenario}, {settings.least_text}{bound}"))

    def _faster_than_closed(self, closed_loop: ClosedLoop, test: LoadgenTest) -> list[str]:
        if not self.request.is_offline or test.verdict is None:
            return []
        items_per_s = test.items / (test.verdict.latency_ms["max"] / 1e3)
        return faster_than_closed_warnings(items_per_s / closed_loop.items_per_s)

    def _silence_s(self, closed_loop: ClosedLoop | None) -> float:
        """With work to do and no batch done for so long, an instance is stuck."""
        if closed_loop is None:
            return _SILENCE_S
        return max(_SILENCE_S, _SILENCE_BATCHES * closed_loop.batch_ms["max"] / 1e3)

    def _most_batches(self, closed_loop: ClosedLoop | None) -> int:
        if not self.request.is_offline:
            return 1
        if closed_loop is None:
            return _ACCURACY_BATCHES
        return max(1, min(int(_TAKE_MS / closed_loop.batch_ms["p50"]), _MOST_BATCHES))

    def _tests(self, closed_loop: ClosedLoop | None, wait_ms: float) -> list[LoadgenTest]:
        """In their order; the last one may be cut short. Raises KeyboardInterrupt where there would be none."""
        tests: list[LoadgenTest] = []

        def test(request: LoadgenRequest) -> LoadgenTest:
            seconds = None if closed_loop is None else self.loadgen.settings(request).least_s
            with Bar(f"LoadGen, {Path(request.log_dir).name}", seconds):
                tests.append(self.loadgen.test(request, wait_ms=wait_ms, silence_s=self._silence_s(closed_loop)))
            return tests[-1]

        try:
            self._test_all(test, closed_loop)
        except KeyboardInterrupt as interrupt:
            self.interrupted = True
            tests += [interrupt.test] if isinstance(interrupt, CutShortError) else []
            if not tests:
                raise
        return tests

    def _test_all(self, test: Callable[[LoadgenRequest], LoadgenTest], closed_loop: ClosedLoop | None) -> None:
        def say(label: str, text: str) -> None:
            self.show(line(label, text))

        request = self.request
        if closed_loop is None:
            test(replace(request, target_qps=self.settings.target_qps or _ACCURACY_QPS))
        elif self.find_peak:
            self._show_plan(request)
            timing = {"most_qps": closed_loop.samples_per_s, "duration_s": self.settings.duration_s}
            find_peak_qps(test, request, **timing, say=say)
        else:
            estimate = closed_loop.samples_per_s * (_HEADROOM if self.request.is_offline else _STREAM_HEADROOM)
            request = replace(request, target_qps=self.settings.target_qps or estimate)
            self._show_plan(request)
            until_sure(test, request, say)
