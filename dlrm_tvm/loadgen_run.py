"""One run under MLPerf's LoadGen: instances, queue, samples and LoadGen's process, brought together.

    peak -> closed loop of some seconds, for comparison and for the rate to ask for -> LoadGen's test -> peak

The search for the highest valid rate is a bisection with short tests, confirmed by one of full length.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from . import disturbances
from .artifact import open_artifact
from .errors import UserError
from .instances import MeasuredRun, interrupts_blocked
from .loadgen_driver import DriverAssignment
from .loadgen_logs import Verdict, read_verdict
from .loadgen_settings import EffectiveSettings, LoadgenRequest
from .memory import available_bytes, memory_use
from .metrics import percentiles_ms
from .query_samples import SampleSpec, plan_samples
from .report import MLPERF_ITEMS_PER_SAMPLE, line, peak_line
from .session import PEAK_SECONDS, RunSettings, Session, open_session
from .shared_arrays import SharedArrays
from .work_queue import WorkQueue
from .worker import QueueEnds
from .worker_process import WorkerProcess

DRIVER_COMMAND = (sys.executable, "-m", "dlrm_tvm.loadgen_driver")

_CLOSED_LOOP_S = 5.0
_ROOM = 1 << 30  # of memory, left to everything else
_HEADROOM = 1.05  # of the rate that LoadGen sizes an Offline run by, so that it is not too short
_TAKE_MS = 3.0  # Offline, small batches are taken several at a time: a take costs about 10 µs
_MOST_BATCHES = 64
_SAFETY_MS = 1.0  # of a Server batch that leaves before it is full
_PROBE_S, _PROBE_QUERIES = 10.0, 1000
_PRECISION = 0.02  # of the closed loop's rate
_CONFIRMATIONS, _STEP_DOWN = 6, 0.97


@dataclass(frozen=True)
class LoadgenOptions:
    """What the flags say; None where LoadGen's files or the defaults decide. target_qps: samples per second."""

    scenario: str
    accuracy: bool
    samples: int
    log_dir: Path
    duration_s: float | None = None
    target_qps: float | None = None
    find_peak: bool = False
    conf_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class LoadgenTest:
    """One test: what was asked, what LoadGen issued, what it says. items_per_instance: by their own records."""

    request: LoadgenRequest
    samples: int
    items: int
    items_per_instance: tuple[int, ...]
    verdict: Verdict | None  # None in accuracy mode


@dataclass(frozen=True, eq=False)
class LoadgenRun:
    """Everything known after a run. served: per instance, over all tests (queue_service.Served as dicts)."""

    session: Session
    options: LoadgenOptions
    settings: EffectiveSettings
    spec: SampleSpec
    closed_loop: MeasuredRun
    peak_gflops: float
    tests: tuple[LoadgenTest, ...]  # the last one counts
    served: tuple[dict, ...]
    memory_bytes: int
    warnings: tuple[str, ...]
    wait_ms: float


def run_loadgen(
    settings: RunSettings, options: LoadgenOptions, *, warmup_s: float, show: Callable[[str], None]
) -> LoadgenRun:
    """Raises UserError for what does not fit, when a process dies, or LoadGen refuses."""
    _require_loadgen()
    card = open_artifact(settings.model).manifest.model
    spec = plan_samples(card, options.samples, str(settings.ref_data) if settings.ref_data else None)
    if options.accuracy and not spec.has_labels:
        raise UserError("--accuracy needs labels. Give --ref-data a file that has them, such as the demo's npz.")
    _check_room(spec)
    options.log_dir.mkdir(parents=True, exist_ok=True)
    settings = replace(settings, spare_core=True)
    with (
        _shared(spec) as (ends, completions_fd),
        open_session(settings, show, queue=ends) as session,
        _driver(session, ends, completions_fd, show) as driver,
    ):
        return _measured(session, driver, options, spec, warmup_s, show)


def _measured(
    session: Session,
    driver: WorkerProcess,
    options: LoadgenOptions,
    spec: SampleSpec,
    warmup_s: float,
    show: Callable[[str], None],
) -> LoadgenRun:
    instances = session.instances
    request = LoadgenRequest(
        scenario=options.scenario,
        mode="accuracy" if options.accuracy else "performance",
        log_dir=str(options.log_dir),
        conf_files=tuple(map(str, options.conf_files)),
        duration_s=options.duration_s,
        target_qps=options.target_qps,
    )
    driver.send(do="settings", request=request.to_json())
    wanted = EffectiveSettings(**_fields(instances.answer_of(driver)))
    if options.scenario == "server" and not (wanted.target_qps or options.find_peak or options.accuracy):
        raise UserError("--scenario server needs a rate: give --target-qps Q, --find-peak-qps or a --user-conf.")
    peak_before = sum(instances.peak_gflops(PEAK_SECONDS))
    show(peak_line([peak_before]))
    closed_loop = instances.measure(duration_s=_CLOSED_LOOP_S, warmup_s=warmup_s)
    if closed_loop.interrupted:
        raise KeyboardInterrupt
    closed_qps = samples_per_s(session, closed_loop)
    show(
        line("closed loop", f"{closed_qps:,.1f} samples/s of {MLPERF_ITEMS_PER_SAMPLE} items, in {_CLOSED_LOOP_S:g} s")
    )
    batch_ms = percentiles_ms(closed_loop.measurement.latencies_ns[0])
    is_server = options.scenario == "server"
    wait_ms = max(wanted.latency_ms - 2 * batch_ms["p99"] - _SAFETY_MS, 0) if is_server else 0.0
    instances.begin_service(1 if is_server else max(1, min(int(_TAKE_MS / batch_ms["p50"]), _MOST_BATCHES)))

    def test(request: LoadgenRequest) -> LoadgenTest:
        Path(request.log_dir).mkdir(parents=True, exist_ok=True)
        driver.send(do="test", request=request.to_json(), wait_ns=int(wait_ms * 1e6))
        done = _fields(instances.answer_of(driver))
        verdict = None if options.accuracy else read_verdict(Path(request.log_dir))
        return LoadgenTest(request, done["samples"], done["items"], tuple(done["items_per_instance"]), verdict)

    before = instances.snapshot()
    if options.find_peak:
        tests = find_peak_qps(test, request, closed_qps, wanted.duration_s, show)
    else:
        rate = wanted.target_qps or closed_qps * _HEADROOM
        tests = [test(replace(request, target_qps=rate))]
    after = instances.snapshot()
    driver.send(do="stop")
    instances.answer_of(driver)
    served = tuple(_fields(each) for each in instances.end_service())
    memory_bytes = sum(memory_use(pid).pss_bytes for pid in instances.pids)
    peak_after = sum(instances.peak_gflops(PEAK_SECONDS))
    warnings = [
        *session.tables.warnings(),
        *disturbances.load_warnings(session.busiest),
        *disturbances.window_warnings(before, after),
        *disturbances.peak_warnings(peak_before, peak_after),
    ]
    return LoadgenRun(
        session=session,
        options=options,
        settings=wanted,
        spec=spec,
        closed_loop=closed_loop,
        peak_gflops=max(peak_before, peak_after),
        tests=tuple(tests),
        served=served,
        memory_bytes=memory_bytes,
        warnings=tuple(warnings),
        wait_ms=wait_ms,
    )


def samples_per_s(session: Session, run: MeasuredRun) -> float:
    """A closed loop's rate in MLPerf's samples."""
    items_per_s = run.measurement.total_batches_per_s * session.artifact.manifest.batch_size
    return items_per_s / MLPERF_ITEMS_PER_SAMPLE


def find_peak_qps(
    test: Callable[[LoadgenRequest], LoadgenTest],
    request: LoadgenRequest,
    most_qps: float,
    duration_s: float,
    show: Callable[[str], None],
) -> list[LoadgenTest]:
    """Tests in order; the last is of full length, and valid if any of those was. most_qps: beyond reach.

    A short test can be lucky, so that the rate goes down in steps until one of full length is valid.
    """
    tests: list[LoadgenTest] = []

    def is_valid(qps: float, seconds: float, name: str) -> bool:
        asked = replace(request, target_qps=qps, duration_s=seconds, log_dir=os.path.join(request.log_dir, name))
        tests.append(test(asked))
        verdict = tests[-1].verdict
        why = "valid" if verdict.is_valid else "; ".join(verdict.reasons)
        show(line("probe", f"{qps:,.1f} samples/s for {seconds:.0f} s: p99 {verdict.latency_ms['p99']:.1f} ms, {why}"))
        return verdict.is_valid

    low, high = 0.0, most_qps
    while high - low > _PRECISION * most_qps:
        middle = (low + high) / 2
        seconds = min(max(_PROBE_S, _PROBE_QUERIES / middle), duration_s)
        if is_valid(middle, seconds, f"probe_{len(tests):02}"):
            low = middle
        else:
            high = middle
    qps = low or high
    for attempt in range(_CONFIRMATIONS):
        if is_valid(qps * _STEP_DOWN**attempt, duration_s, f"full_{attempt}"):
            break
    return tests


def _fields(answer: dict) -> dict:
    return {key: value for key, value in answer.items() if key != "payload_bytes"}


def _require_loadgen() -> None:
    if find_spec("mlperf_loadgen") is None:
        raise UserError(
            "--scenario needs MLPerf's LoadGen, which is not installed. Try "
            f"{os.path.relpath(sys.executable)} -m pip install -r requirements-loadgen.txt"
        )


def _check_room(spec: SampleSpec) -> None:
    available = available_bytes()
    if spec.nbytes + _ROOM > available:
        fit = int(spec.samples * max(available - _ROOM, 0) / spec.nbytes)
        raise UserError(
            f"{spec.samples:,} samples take {spec.nbytes / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are "
            f"available, and 1 is left to the rest. Try --samples {max(fit, 1)}."
        )


@contextmanager
def _shared(spec: SampleSpec) -> Iterator[tuple[QueueEnds, int]]:
    """Queue, samples and pipe, as the instances inherit them, and the pipe's reading end."""
    queue, samples = WorkQueue.create(), SharedArrays.create(spec.layout)
    reading, writing = os.pipe()
    try:
        yield QueueEnds(queue.descriptor, samples.descriptor, writing, spec.to_json()), reading
    finally:
        queue.close()
        samples.close()
        os.close(reading)
        os.close(writing)


@contextmanager
def _driver(
    session: Session, ends: QueueEnds, completions_fd: int, show: Callable[[str], None]
) -> Iterator[WorkerProcess]:
    """LoadGen's process, its samples loaded. It is killed if it is still at something: LoadGen takes no orders."""
    spec = SampleSpec.from_json(ends.spec)
    show(line("samples", f"{spec.samples:,} of {spec.items / spec.samples:.1f} items, {spec.nbytes / 1e9:.2f} GB"))
    assignment = DriverAssignment(
        library=str(session.settings.model),
        queue=ends,
        completions_fd=completions_fd,
        cores=list(session.other_cpus),
        load_threads=len(session.cores),
        instances=len(session.cores),
        parent_pid=os.getpid(),
    )
    with interrupts_blocked():
        driver = WorkerProcess(assignment, DRIVER_COMMAND)
    leave_s = 0.0
    try:
        session.instances.answer_of(driver)
        yield driver
        leave_s = 2.0
    finally:
        driver.close()
        driver.end(time.monotonic() + leave_s)
