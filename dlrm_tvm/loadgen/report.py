"""A run under LoadGen -> lines for people, one JSON object for programs.

    offline   items_per_s = items issued / LoadGen's time from the first sample issued to the last one done
    server    items_per_s = completed samples per second x items per sample
    streams   items_per_s = samples of a query / its mean latency x items per sample

All are LoadGen's figures; the closed loop's stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

from ..console import TAIL, line, percentiles_text
from ..data.metrics import auc, log_loss
from .logs import read_accuracy
from .run import LoadgenRun


@dataclass(frozen=True)
class AccuracyResult:
    """Scores of the pairs in LoadGen's accuracy log, as MLPerf's accuracy-dlrm.py has them."""

    items: int
    auc: float | None  # None where there are no clicks, or nothing but clicks
    log_loss: float


def score_accuracy_log(run: LoadgenRun) -> AccuracyResult:
    predictions, labels = read_accuracy(run.options.log_dir)
    area = auc(labels, predictions)
    return AccuracyResult(len(predictions), None if isnan(area) else area, log_loss(labels, predictions))


def loadgen_text(run: LoadgenRun, accuracy: AccuracyResult | None) -> str:
    last = run.tests[-1]
    if accuracy is not None:
        lines = [
            line("LoadGen", f"{last.samples:,} samples, {last.items:,} items, accuracy mode"),
            line("AUC", f"{_auc(accuracy)} from its accuracy log, log loss {accuracy.log_loss:.6f}"),
        ]
    else:
        lines = _performance_lines(run)
    lines += [
        line("memory", f"{run.memory_bytes / 1e6:,.0f} MB PSS together, their part of the samples included"),
        line("LoadGen", f"its process took {last.cpu_share:.1%} of a core"),
        line("logs", last.request.log_dir),
        *(f"Warning: {warning}" for warning in run.warnings),
    ]
    return "\n".join(lines)


def loadgen_json(run: LoadgenRun, accuracy: AccuracyResult | None) -> dict[str, object]:
    """The object of the last stdout line."""
    plan, last = run.session.plan, run.tests[-1]
    manifest = plan.manifest
    result = {
        "model": manifest.model.name,
        "library": str(plan.settings.model),
        "precision": manifest.precision,
        "batch_size": manifest.batch_size,
        "instances": len(plan.cores),
        "threads": len(plan.cores[0]),
        "cores": [core for cores in plan.cores for core in cores],
        "scenario": run.options.scenario,
        "mode": last.request.mode,
        "valid": last.verdict.is_valid if last.verdict else None,
        "samples": last.samples,
        "items": last.items,
        "library_samples": run.spec.samples,
        "items_per_instance": list(last.items_per_instance),
        "served": list(run.served),
        "loadgen_cpu_share": last.cpu_share,
        "pss_mb": run.memory_bytes / 1e6,
        "log_dir": last.request.log_dir,
        "warnings": list(run.warnings),
        "environment": plan.environment,
    }
    if accuracy is not None:
        return result | {"auc": accuracy.auc, "log_loss": accuracy.log_loss}
    items_per_s = _items_per_s(run)
    return result | {
        "peak_gflops": run.peak_gflops,
        "closed_loop_items_per_s": run.closed_loop.items_per_s,
        "samples_per_s": last.verdict.samples_per_s,
        "items_per_s": items_per_s,
        "of_closed_loop": items_per_s / run.closed_loop.items_per_s,
        "peak_fraction": items_per_s * manifest.model.flops_per_item / 1e9 / run.peak_gflops,
        "latency_ms": last.verdict.latency_ms,
        "early_stopping_ms": last.verdict.estimate_ms,
        "latency_bound_ms": run.settings.latency_ms if run.options.scenario == "server" else None,
        "target_qps": last.request.target_qps,
        "tests": [
            {
                "target_qps": test.request.target_qps,
                "valid": test.verdict.is_valid,
                "items": test.items,
                **test.verdict.latency_ms,
            }
            for test in run.tests
        ],
        "loadgen_version": last.verdict.version,
        "loadgen": last.verdict.all_results,
    }


def _auc(accuracy: AccuracyResult) -> str:
    return "undefined (all labels are the same)" if accuracy.auc is None else f"{accuracy.auc:.6f}"


def _performance_lines(run: LoadgenRun) -> list[str]:
    last = run.tests[-1]
    verdict, items_per_s = last.verdict, _items_per_s(run)
    gflops = items_per_s * run.session.plan.manifest.model.flops_per_item / 1e9
    closed = run.closed_loop.items_per_s
    said = "VALID" if verdict.is_valid else f"INVALID: {', '.join(verdict.reasons)}"
    rate = f"{verdict.samples_per_s:,.1f} samples/s"
    if run.options.scenario == "server":
        rate += f" of {last.request.target_qps:,.1f} asked for"
    lines = [
        line("LoadGen says", f"{said}: {rate} ({last.samples:,} samples)"),
        line("throughput", f"{items_per_s:,.0f} items/s, {items_per_s / closed:.3f} of the closed loop's"),
    ]
    latency = percentiles_text(verdict.latency_ms, *TAIL)
    if verdict.estimate_ms:
        query = "query" if run.options.scenario == "multistream" else "sample"
        result = f"LoadGen's result {verdict.estimate_ms:.3f}"
        lines.append(line("latency", f"{latency}  ms per {query}, {result}"))
    if run.options.scenario == "server":
        bound = f"p{100 * run.settings.latency_percentile:g} within {run.settings.latency_ms:g} wanted"
        lines.append(line("latency", f"{latency}  ms per sample, {bound}"))
        lines.append(line("batches", f"leave when full, or after {run.wait_ms:.1f} ms"))
    lines.append(line("peak share", f"{gflops / run.peak_gflops:.3f}: {gflops:,.1f} of {run.peak_gflops:,.1f} GFLOP/s"))
    return lines


def _items_per_s(run: LoadgenRun) -> float:
    last = run.tests[-1]
    return last.verdict.samples_per_s * last.items / last.samples
