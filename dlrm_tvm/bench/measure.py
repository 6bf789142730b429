"""One measurement of a session that is open: peak, window, memory, peak again."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..instances.arrivals import CLOSED, Arrivals
from ..instances.group import Instances, MeasuredRun
from ..instances.window import Measurement
from ..machine.cpu import host_flags
from ..machine.memory import memory_use
from .card import peak_line
from .profile import summarize
from .report import RunReport
from .session import Session
from .warnings import (
    beyond_peak_warnings,
    engine_warnings,
    load_warnings,
    overload_warnings,
    peak_warnings,
    run_warnings,
    stability_warnings,
    table_warnings,
)

PEAK_SECONDS = 1.0
_STREAM_SECONDS = 0.3
_PROFILE_SECONDS = 2.0
_LIMIT_SECONDS = 0.3
_STREAMED_UP_TO_BATCH = 1  # above, weights are used more than once, and arithmetic is the limit


def measure(
    session: Session,
    *,
    duration_s: float,
    warmup_s: float,
    show: Callable[[str], None],
    arrivals: Arrivals = CLOSED,
    until_stable: bool = False,
) -> RunReport:
    """Peak, window, memory, peak again, and the streaming rate where the batch is small enough for it to matter.

    until_stable: end the window when throughput is stable, duration_s at the latest.
    """
    plan, instances = session.plan, session.instances
    peak_before = instances.peak_gflops(PEAK_SECONDS)
    show(peak_line(peak_before))
    run = instances.measure(duration_s=duration_s, warmup_s=warmup_s, arrivals=arrivals, until_stable=until_stable)
    memory = [memory_use(pid) for pid in instances.pids]
    peak_after, stream, interrupted = _limits_after(session, run)
    overloaded = overload_warnings(run.measurement)
    stable = run.stable and not overloaded if run.stable is not None else None  # a queue that grows is not stable
    report = RunReport(
        plan=plan,
        tables=session.tables,
        measurement=run.measurement,
        memory=memory,
        peak_before_gflops=peak_before,
        peak_after_gflops=peak_after,
        stream_gbps=stream,
        warnings=[
            *table_warnings(session.tables),
            *engine_warnings(plan.manifest, plan.other_engine, host_flags()),
            *load_warnings(plan.busiest),
            *run_warnings(run, with_arrivals=arrivals.is_open),
            *peak_warnings(sum(peak_before), sum(peak_after or peak_before)),
            *stability_warnings(stable, run.interrupted),
            *overloaded,
        ],
        interrupted=interrupted,
        arrivals=arrivals,
        stable=stable,
        clocks_mhz=run.clocks_mhz,
        opened_at=run.opened_at,
    )
    beyond = beyond_peak_warnings(report.peak_fraction, report.peak_family)
    return replace(report, warnings=[*report.warnings, *beyond])


def latencies_file(path: Path, measurement: Measurement) -> bytes:
    """Of each batch in the window the number of its instance and its latency in ms, instance by instance in order; an
    npz of both or a CSV, by the suffix. With arrivals a latency counts from the arrival.
    """
    counts = [len(latencies) for latencies in measurement.latencies_ns]
    instance, latency_ms = np.repeat(np.arange(len(counts)), counts), np.concatenate(measurement.latencies_ns) / 1e6
    content = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(content, instance=instance, latency_ms=latency_ms)
    else:
        columns, header = np.column_stack([instance, latency_ms]), "instance,latency_ms"
        np.savetxt(content, columns, fmt=("%d", "%.6f"), delimiter=",", header=header, comments="")
    return content.getvalue()


def _limits_after(session: Session, run: MeasuredRun) -> tuple[Sequence[float], Sequence[float], bool]:
    """Peak and streaming rate, empty where they were not measured; whether Ctrl-C came, in the window or now."""
    peak, stream = [], []
    if run.interrupted:
        return peak, stream, True
    try:
        peak = session.instances.peak_gflops(PEAK_SECONDS)
        if session.plan.manifest.batch_size <= _STREAMED_UP_TO_BATCH:
            stream = session.instances.stream_gbps(_STREAM_SECONDS)
    except KeyboardInterrupt:
        return peak, stream, True  # the window itself is whole
    return peak, stream, False


def profiled(session: Session, report: RunReport) -> RunReport:
    """The report with a profile, measured now by all instances at once; without where Ctrl-C comes or came."""
    if report.interrupted:
        return report
    try:
        before = _limits(session.instances)
        calls = session.instances.profile(_PROFILE_SECONDS)
        after = _limits(session.instances)
    except KeyboardInterrupt:
        return replace(report, interrupted=True)
    count, threads = len(session.plan.cores), len(session.plan.cores[0])
    per_bag = session.plan.indices_per_bag
    peak_gflops, stream_gbps = (max(pair) for pair in zip(before, after))
    profile = summarize(
        session.plan.manifest,
        calls,
        peak_gflops=max(peak_gflops, report.peak_gflops) / count,
        stream_gbps=stream_gbps / count * threads,
        indices_per_item=None if per_bag == 1 else per_bag * session.plan.manifest.model.num_tables,
    )
    return replace(report, profile=profile)


def _limits(instances: Instances) -> tuple[float, float]:
    """(GFLOP/s, GB/s) of all instances at once; the latter of one thread each."""
    return sum(instances.peak_gflops(_LIMIT_SECONDS)), sum(instances.stream_gbps(_LIMIT_SECONDS))
