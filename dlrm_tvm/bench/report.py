"""Results of a multi-instance run -> lines for people, one JSON object for programs.

    items_per_s    = batches_per_s x batch_size
    gflops         = items_per_s x 2 x the model's multiply-adds per item
    (adding up the rows of a bag counts neither as multiply-adds nor in the peak share; its bytes are counted)
    peak_fraction  = gflops / the larger peak of these very cores, measured right before and right after

MB are 10^6 bytes. Not known here: accuracy, power, and the behaviour of a service behind a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..console import TAIL, line, percentiles_text
from ..engines.interface import OURS
from ..instances.arrivals import CLOSED, Arrivals
from ..instances.window import Measurement
from ..machine.memory import MemoryUse
from ..machine.topology import format_cpu_list
from .profile import Profile, profile_json, profile_lines
from .statistics import percentiles_ms

if TYPE_CHECKING:
    from ..runtime.manifest import Manifest
    from ..runtime.weight_copies import TableSetup
    from .session import RunPlan

# MLPerf Inference's DLRM sample is a query of 100 to 700 user-item pairs; its fixed draw averages 270.06.
MLPERF_ITEMS_PER_SAMPLE = 270.06
_MEMORY = ("pss", "private", "shared")


@dataclass(frozen=True, eq=False)
class RunReport:
    """All that is known after a run. Per instance: memory, peaks in GFLOP/s, streams in GB/s.

    peak_after_gflops and stream_gbps are empty where that phase was not run. stable: whether throughput became so,
    None where nobody asked. clocks_mhz: mean of these cores, at moments in the window. opened_at: of the window,
    seconds since 1970.
    """

    plan: RunPlan
    tables: TableSetup
    measurement: Measurement
    memory: Sequence[MemoryUse]
    peak_before_gflops: Sequence[float]
    peak_after_gflops: Sequence[float]
    stream_gbps: Sequence[float]
    warnings: Sequence[str]
    interrupted: bool
    arrivals: Arrivals = CLOSED
    stable: bool | None = None
    profile: Profile | None = None
    clocks_mhz: Sequence[float] = ()
    opened_at: float = 0.0

    @property
    def manifest(self) -> Manifest:
        return self.plan.manifest

    @property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        return self.plan.cores

    @property
    def precision(self) -> str:
        """Of the engine that ran."""
        other = self.plan.other_engine
        return other.precision if other else self.manifest.precision

    @property
    def peak_family(self) -> str:
        """The instructions that the peak is of."""
        return self.manifest.peak_of(self.precision).family

    @property
    def items_per_s(self) -> float:
        return self.measurement.total_batches_per_s * self.manifest.batch_size

    @property
    def gflops(self) -> float:
        return self.items_per_s * self.manifest.model.flops_per_item / 1e9

    @property
    def peak_gflops(self) -> float:
        return max(sum(self.peak_before_gflops), sum(self.peak_after_gflops))

    @property
    def peak_fraction(self) -> float:
        return self.gflops / self.peak_gflops

    @property
    def mlperf_qps(self) -> float:
        return self.items_per_s / MLPERF_ITEMS_PER_SAMPLE

    @property
    def latency_ms(self) -> dict[str, float]:
        return percentiles_ms(np.concatenate(self.measurement.latencies_ns))

    @property
    def memory_mb(self) -> dict[str, float]:
        """Of all instances together."""
        return {kind: sum(getattr(use, f"{kind}_bytes") for use in self.memory) / 1e6 for kind in _MEMORY}

    @property
    def streamed_fraction(self) -> float | None:
        """Rate at which the calls read the MLP's weights / the rate at which these cores can."""
        if not self.stream_gbps:
            return None
        bytes_per_s = self.manifest.model.mlp_bytes * self.measurement.total_batches_per_s
        return bytes_per_s / (sum(self.stream_gbps) * 1e9)


def results_text(report: RunReport) -> str:
    """The measured table, each figure beside its limit."""
    latency = report.latency_ms
    measurement, counted = report.measurement, "batches asked for" if report.arrivals.is_open else "whole batches"
    lines = [
        line(
            "throughput",
            f"{report.items_per_s:,.0f} items/s = {measurement.total_batches_per_s:,.1f} batches/s "
            f"({measurement.batches:,} {counted} in {measurement.duration_s:.2f} s)",
        ),
        *_arrival_lines(report),
        line("latency", f"{percentiles_text(latency, 'min', *TAIL)}  ms per batch"),
        line("peak share", f"{report.peak_fraction:.3f}: {report.gflops:,.1f} of {_peaks(report)}"),
        *_streamed_lines(report),
        *_clock_lines(report),
        line("MLPerf", f"{report.mlperf_qps:,.1f} samples/s (items/s ÷ {MLPERF_ITEMS_PER_SAMPLE} items per sample)"),
        line(
            "memory",
            "{pss:,.0f} MB PSS together: {shared:,.0f} shared, {private:,.0f} private".format(**report.memory_mb),
        ),
        *_instance_lines(report),
        *profile_lines(report.profile),
        *(f"Warning: {warning}" for warning in report.warnings),
    ]
    return "\n".join(lines)


def results_json(report: RunReport) -> dict[str, object]:
    """The object of the last stdout line."""
    plan, manifest, measurement = report.plan, report.manifest, report.measurement
    card, other = manifest.model, plan.other_engine
    return {
        "model": card.name,
        "fingerprint": card.fingerprint,
        "library": str(plan.settings.model),
        "engine": other.engine if other else OURS,
        "engine_version": other.version if other else f"TVM {manifest.tvm_version}",
        "precision": report.precision,
        "library_precision": manifest.precision,
        "engine_calibration": other.calibration if other else None,
        "family": report.peak_family,
        "target_cpu": manifest.target_cpu,
        "batch_size": manifest.batch_size,
        "instances": len(report.cores),
        "threads": len(report.cores[0]),
        "cores": [core for cores in report.cores for core in cores],
        "duration_s": measurement.duration_s,
        "window_opened_at": report.opened_at,
        "batches": measurement.batches,
        "batches_per_s": measurement.total_batches_per_s,
        "arrivals": report.arrivals.kind,
        "rate": report.arrivals.rate,
        "burst": report.arrivals.burst,
        "trace": report.arrivals.trace,
        "arrival_seed": report.arrivals.seed if report.arrivals.kind == "poisson" else None,
        "offered_batches_per_s": measurement.offered_per_s,
        "late_batches": measurement.late,
        "given_up_batches": measurement.given_up,
        "stable": report.stable,
        "items_per_s": report.items_per_s,
        "window_items_per_s": [rate * manifest.batch_size for rate in measurement.sub_windows_per_s],
        "mlperf_qps_equivalent": report.mlperf_qps,
        "latency_ms": report.latency_ms,
        "ref_data": str(plan.settings.ref_data) if plan.settings.ref_data else None,
        "max_ind_range": plan.settings.max_ind_range,
        "flops_per_item": card.flops_per_item,
        "indices_per_bag": plan.indices_per_bag,
        "gather_bytes_per_item": card.gather_bytes_per_item * plan.indices_per_bag,
        "gflops": report.gflops,
        "peak_gflops": report.peak_gflops,
        "peak_before_gflops": sum(report.peak_before_gflops),
        "peak_after_gflops": sum(report.peak_after_gflops) if report.peak_after_gflops else None,
        "peak_fraction": report.peak_fraction,
        "stream_gbps": sum(report.stream_gbps) if report.stream_gbps else None,
        "streamed_fraction": report.streamed_fraction,
        "clocks_mhz": list(report.clocks_mhz),
        **{f"{kind}_mb": size for kind, size in report.memory_mb.items()},
        **report.tables.to_json(),
        "weights_mb": (card.mlp_bytes + card.table_bytes) / 1e6,
        "per_instance": [_instance_json(report, instance) for instance in range(len(report.cores))],
        **profile_json(report.profile),
        "interrupted": report.interrupted,
        "warnings": list(report.warnings),
        "environment": plan.environment,
    }


def _instance_json(report: RunReport, instance: int) -> dict[str, object]:
    measurement = report.measurement
    latencies_ns = measurement.latencies_ns[instance]
    return {
        "cores": list(report.cores[instance]),
        "batches": len(latencies_ns),
        "batches_per_s": measurement.batches_per_s[instance],
        "items_per_s": measurement.batches_per_s[instance] * report.manifest.batch_size,
        "latency_ms": percentiles_ms(latencies_ns) if len(latencies_ns) else None,
        "peak_gflops": max(
            report.peak_before_gflops[instance], report.peak_after_gflops[instance] if report.peak_after_gflops else 0
        ),
        "pss_mb": report.memory[instance].pss_bytes / 1e6,
        "private_mb": report.memory[instance].private_bytes / 1e6,
    }


def _instance_lines(report: RunReport) -> list[str]:
    """One line each where there are several."""
    if len(report.cores) == 1:
        return []
    lines = []
    for instance, cores in enumerate(report.cores):
        fields = _instance_json(report, instance)
        latency = fields["latency_ms"]
        tail = f"{percentiles_text(latency, 'p50', 'p99')} ms" if latency else "no whole batch"
        where = f"cores {format_cpu_list(cores)}"
        lines.append(line(f"instance {instance}", f"{where}  {fields['items_per_s']:,.0f} items/s  {tail}"))
    return lines


def _streamed_lines(report: RunReport) -> list[str]:
    if report.streamed_fraction is None:
        return []
    limit_gbps = sum(report.stream_gbps)
    gbps = report.streamed_fraction * limit_gbps
    text = f"{gbps:,.1f} of {limit_gbps:,.1f} GB/s that these cores read them with, skipped ones (zero inputs) counted"
    return [line("weights streamed", f"{report.streamed_fraction:.3f}: {text}")]


def _clock_lines(report: RunReport) -> list[str]:
    if not report.clocks_mhz:
        return []
    lowest, highest, mean = min(report.clocks_mhz), max(report.clocks_mhz), float(np.mean(report.clocks_mhz))
    return [line("clock", f"{mean:,.0f} MHz in the window ({lowest:,.0f} to {highest:,.0f}), mean of these cores")]


def _arrival_lines(report: RunReport) -> list[str]:
    measurement, lines = report.measurement, []
    if report.arrivals.is_open:
        text = f"{report.arrivals}, {measurement.offered_per_s:,.1f} asked for; latency counts from then"
        lines.append(line("arrivals", text))
    if report.stable:
        lines.append(line("stable", f"within 1 % over three windows, after {measurement.duration_s:.1f} s"))
    return lines


def _peaks(report: RunReport) -> str:
    after = f"{sum(report.peak_after_gflops):,.1f}" if report.peak_after_gflops else "not measured"
    rates = f"before {sum(report.peak_before_gflops):,.1f}, after {after}"
    return f"{report.peak_gflops:,.1f} GFLOP/s of {report.peak_family} ({rates})"
