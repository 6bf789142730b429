"""Results of a multi-instance run -> lines for people, one JSON object for programs. One schema gives both.

    items_per_s    = batches_per_s x batch_size
    gflops         = items_per_s x 2 x the model's multiply-adds per item
    (adding up the rows of a bag counts neither as multiply-adds nor in the peak share; its bytes are counted)
    peak_fraction  = gflops / the larger peak of these very cores, measured right before and right after

MB are 10^6 bytes. What it does not know: accuracy, power, and what the model would do behind a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .arrivals import CLOSED, Arrivals
from .memory import MemoryUse
from .metrics import percentiles_ms
from .peers import OURS, PeerGraph
from .profile_report import Profile, profile_json, profile_lines
from .topology import format_cpu_list
from .window import Measurement

if TYPE_CHECKING:
    from .manifest import Manifest, ModelCard
    from .weight_copies import TableSetup

# MLPerf Inference's DLRM sample is a query of 100 to 700 user-item pairs; its fixed draw averages 270.06.
MLPERF_ITEMS_PER_SAMPLE = 270.06
TAIL = ("p50", "p90", "p99", "p999", "max")  # of latencies, as people are shown them


@dataclass(frozen=True, eq=False)
class RunReport:
    """Everything known after a run. Per instance: cores, peaks, memory, streams; peaks in GFLOP/s, streams in GB/s.

    peak_after_gflops and stream_gbps are empty where that phase was not run.
    """

    manifest: Manifest
    library: str
    cores: tuple[tuple[int, ...], ...]
    measurement: Measurement
    memory: Sequence[MemoryUse]
    peak_before_gflops: Sequence[float]
    peak_after_gflops: Sequence[float]
    stream_gbps: Sequence[float]
    warnings: Sequence[str]
    tables: TableSetup
    environment: dict[str, object]
    interrupted: bool
    indices_per_bag: float = 1
    arrivals: Arrivals = CLOSED
    stable: bool | None = None  # whether throughput became so; None where nobody asked
    profile: Profile | None = None
    ref_data: str | None = None  # the file of the inputs; None: random rows
    peer: PeerGraph | None = None  # the other engine that ran; None: ours

    @property
    def precision(self) -> str:
        """What was measured ran at it: the other engine, or the library."""
        return self.peer.precision if self.peer else self.manifest.precision

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
    def pss_bytes(self) -> int:
        return sum(use.pss_bytes for use in self.memory)

    @property
    def private_bytes(self) -> int:
        return sum(use.private_bytes for use in self.memory)

    @property
    def shared_bytes(self) -> int:
        return sum(use.shared_bytes for use in self.memory)

    @property
    def streamed_fraction(self) -> float | None:
        """Bytes of MLP weights that the calls read, over what these cores can read of them in that time."""
        if not self.stream_gbps:
            return None
        bytes_per_s = self.manifest.model.mlp_bytes * self.measurement.total_batches_per_s
        return bytes_per_s / (sum(self.stream_gbps) * 1e9)


def static_card(
    manifest: Manifest, library: str, cores: tuple[tuple[int, ...], ...], inputs: str, indices_per_bag: float = 1
) -> str:
    """What is about to be measured."""
    card = manifest.model
    bags = "" if indices_per_bag == 1 else f" ({indices_per_bag:.3g} indices per bag)"
    rows_kb = card.gather_bytes_per_item * indices_per_bag / 1e3
    lines = [
        f"{card.name}, {manifest.precision}, batch {manifest.batch_size}  ({library})",
        line("per item", f"{card.flops_per_item / 1e6:.3f} MFLOP, {rows_kb:.1f} KB of rows{bags}"),
        line("weights", _weights(card)),
        line("inputs", inputs),
        line("placement", describe_placement(cores)),
    ]
    return "\n".join(lines)


def peak_line(peak_gflops: Sequence[float]) -> str:
    return line("peak", f"{sum(peak_gflops):,.1f} GFLOP/s, measured on these cores, all at once")


def results_text(report: RunReport) -> str:
    """The measured table, each figure beside the limit it is held against."""
    latency = report.latency_ms
    measurement = report.measurement
    lines = [
        line(
            "throughput",
            f"{report.items_per_s:,.0f} items/s = {measurement.total_batches_per_s:,.1f} batches/s "
            f"({measurement.batches:,} {_counted(report)} in {measurement.duration_s:.2f} s)",
        ),
        *_arrival_lines(report),
        line("latency", f"{percentiles_text(latency, 'min', *TAIL)}  ms per batch"),
        line("peak share", f"{report.peak_fraction:.3f}: {report.gflops:,.1f} of {_peaks(report)}"),
        *_streamed_lines(report),
        line("MLPerf", f"{report.mlperf_qps:,.1f} samples/s (items/s ÷ {MLPERF_ITEMS_PER_SAMPLE} items per sample)"),
        line("memory", _memory(report)),
        *_instance_lines(report),
        *profile_lines(report.profile),
        *(f"Warning: {warning}" for warning in report.warnings),
    ]
    return "\n".join(lines)


def percentiles_text(latency_ms: Mapping[str, float], *names: str) -> str:
    """ "p50 1.234  p99.9 5.678": those that are named, as metrics.percentiles_ms names them."""
    return "  ".join(f"{name.replace('p999', 'p99.9')} {latency_ms[name]:.3f}" for name in names)


def results_json(report: RunReport) -> dict[str, object]:
    """The object of the last stdout line."""
    manifest, measurement = report.manifest, report.measurement
    card = manifest.model
    return {
        "model": card.name,
        "fingerprint": card.fingerprint,
        "library": report.library,
        "engine": report.peer.engine if report.peer else OURS,
        "engine_version": report.peer.version if report.peer else f"TVM {manifest.tvm_version}",
        "precision": report.precision,
        "library_precision": manifest.precision,
        "engine_calibration": report.peer.calibration if report.peer else None,
        "target_cpu": manifest.target_cpu,
        "batch_size": manifest.batch_size,
        "instances": len(report.cores),
        "threads": len(report.cores[0]),
        "cores": [core for cores in report.cores for core in cores],
        "duration_s": measurement.duration_s,
        "batches": measurement.batches,
        "batches_per_s": measurement.total_batches_per_s,
        "arrivals": report.arrivals.kind,
        "rate": report.arrivals.rate,
        "offered_batches_per_s": measurement.offered_per_s,
        "late_batches": measurement.late,
        "given_up_batches": measurement.given_up,
        "stable": report.stable,
        "items_per_s": report.items_per_s,
        "window_items_per_s": [rate * manifest.batch_size for rate in measurement.sub_windows_per_s],
        "mlperf_qps_equivalent": report.mlperf_qps,
        "latency_ms": report.latency_ms,
        "ref_data": report.ref_data,
        "flops_per_item": card.flops_per_item,
        "indices_per_bag": report.indices_per_bag,
        "gather_bytes_per_item": card.gather_bytes_per_item * report.indices_per_bag,
        "gflops": report.gflops,
        "peak_gflops": report.peak_gflops,
        "peak_before_gflops": sum(report.peak_before_gflops),
        "peak_after_gflops": sum(report.peak_after_gflops) if report.peak_after_gflops else None,
        "peak_fraction": report.peak_fraction,
        "stream_gbps": sum(report.stream_gbps) if report.stream_gbps else None,
        "streamed_fraction": report.streamed_fraction,
        "pss_mb": report.pss_bytes / 1e6,
        "private_mb": report.private_bytes / 1e6,
        "shared_mb": report.shared_bytes / 1e6,
        **report.tables.to_json(),
        "weights_mb": (card.mlp_bytes + card.table_bytes) / 1e6,
        "per_instance": [_instance_json(report, instance) for instance in range(len(report.cores))],
        **profile_json(report.profile),
        "interrupted": report.interrupted,
        "warnings": list(report.warnings),
        "environment": report.environment,
    }


def describe_placement(cores: tuple[tuple[int, ...], ...]) -> str:
    """ "2 instances × 1 thread on cores 0 | 1", shortened where the list is long."""
    count, threads = len(cores), len(cores[0])
    shown = " | ".join(format_cpu_list(each) for each in cores)
    if len(shown) > 60:
        shown = format_cpu_list(core for each in cores for core in each)
    instances = "instance" if count == 1 else "instances"
    return f"{count} {instances} × {threads} thread{'s' * (threads > 1)} on cores {shown}"


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
    """One line each where there are several, for people to find the odd one."""
    if len(report.cores) == 1:
        return []
    lines = []
    for instance, cores in enumerate(report.cores):
        fields = _instance_json(report, instance)
        latency = fields["latency_ms"]
        tail = f"p50 {latency['p50']:.3f}  p99 {latency['p99']:.3f} ms" if latency else "no whole batch"
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


def _counted(report: RunReport) -> str:
    return "batches asked for" if report.arrivals.is_open else "whole batches"


def _arrival_lines(report: RunReport) -> list[str]:
    measurement, lines = report.measurement, []
    if report.arrivals.is_open:
        text = f"{report.arrivals.kind}, {report.arrivals.rate:,.6g} batches/s wanted, {measurement.offered_per_s:,.1f}"
        lines.append(line("arrivals", f"{text} asked for; latency counts from then"))
    if report.stable:
        lines.append(line("stable", f"within 1 % over three windows, after {measurement.duration_s:.1f} s"))
    return lines


def _peaks(report: RunReport) -> str:
    after = f"{sum(report.peak_after_gflops):,.1f}" if report.peak_after_gflops else "not measured"
    return f"{report.peak_gflops:,.1f} GFLOP/s (before {sum(report.peak_before_gflops):,.1f}, after {after})"


def _memory(report: RunReport) -> str:
    pss_mb, shared_mb, private_mb = (
        size / 1e6 for size in (report.pss_bytes, report.shared_bytes, report.private_bytes)
    )
    return f"{pss_mb:,.0f} MB PSS together: {shared_mb:,.0f} shared, {private_mb:,.0f} private"


def _weights(card: ModelCard) -> str:
    tables = len(card.table_rows)
    return f"{card.mlp_bytes / 1e6:.1f} MB MLPs, {card.table_bytes / 1e6:,.1f} MB in {tables} tables"


def line(label: str, text: str) -> str:
    """One labelled line of the table."""
    return f"  {label:<18}{text}"
