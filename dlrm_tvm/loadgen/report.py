"""A run under LoadGen -> lines for people, one JSON object for programs.

    offline   items_per_s = items issued / LoadGen's time from the first sample issued to the last one done
    server    items_per_s = completed samples per second x items per sample
    streams   items_per_s = samples of a query / its mean latency x items per sample

All are LoadGen's figures; the closed loop's stand beside them. Of a test that was cut short: items done / its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from pathlib import Path

import numpy as np

from ..console import TAIL, line, ms_text, percentiles_text
from ..data.metrics import auc, log_loss, logit_loss
from ..errors import FoundWantingError
from .logs import read_accuracy
from .run import LoadgenRun


@dataclass(frozen=True)
class AccuracyResult:
    """Scores of the pairs in LoadGen's accuracy log, as MLPerf's accuracy-dlrm.py has them.

    is_logit: the predictions are logits, and the log loss that of their sigmoid."""

    items: int
    auc: float | None  # None where there are no clicks, or nothing but clicks
    log_loss: float
    is_logit: bool = False


def score_accuracy_log(run: LoadgenRun) -> AccuracyResult:
    """Raises FoundWantingError where predictions are not finite."""
    pairs = read_accuracy(Path(run.tests[-1].request.log_dir))
    return score_pairs(*pairs, gives_logits=run.session.plan.manifest.model.gives_logits)


def score_pairs(predictions: np.ndarray, labels: np.ndarray, *, gives_logits: bool) -> AccuracyResult:
    """predictions: [n] float32, logits where the model gives them or a value lies outside 0..1; labels: [n] 0 or 1."""
    if bad := int(np.count_nonzero(~np.isfinite(predictions))):
        raise FoundWantingError(
            f"{bad:,} of {len(predictions):,} predictions in LoadGen's accuracy log are not finite. Which: accuracy.py."
        )
    is_logit = gives_logits or bool(((predictions < 0) | (predictions > 1)).any())
    loss = (logit_loss if is_logit else log_loss)(labels, predictions)
    area = auc(labels, predictions)
    return AccuracyResult(len(predictions), None if isnan(area) else area, loss, is_logit)


def loadgen_text(run: LoadgenRun, accuracy: AccuracyResult | None) -> str:
    last = run.tests[-1]
    if accuracy is not None:
        of_logits = " of the logits' sigmoid" * accuracy.is_logit
        area = "undefined (all labels are the same)" if accuracy.auc is None else f"{accuracy.auc:.6f}"
        lines = [
            line("LoadGen", f"{last.samples:,} samples, {last.items:,} items, accuracy mode"),
            line("AUC", f"{area} from its accuracy log, log loss {accuracy.log_loss:.6f}{of_logits}"),
        ]
    elif last.cut_after_s:
        lines = _cut_lines(run)
    else:
        lines = _performance_lines(run)
    if run.interrupted and not last.cut_after_s:  # between two tests, or after the last
        lines[0] += " (interrupted)"
    lines += [
        line("memory", f"{run.memory_bytes / 1e6:,.0f} MB PSS together, their part of the samples included"),
        *([] if last.cut_after_s else [line("LoadGen", f"its process took {last.cpu_share:.1%} of a core")]),
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
        "scenario": last.request.scenario,
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
        "interrupted": run.interrupted,
        "warnings": list(run.warnings),
        "environment": plan.environment,
    }
    if last.request.is_accuracy:
        return result | {key: getattr(accuracy, key, None) for key in ("auc", "log_loss")}
    verdict, items_per_s = last.verdict, last.items_per_s
    return result | {
        "peak_gflops": run.peak_gflops,
        "closed_loop_items_per_s": run.closed_loop.items_per_s,
        "samples_per_s": last.samples_per_s,
        "items_per_s": items_per_s,
        "of_closed_loop": items_per_s / run.closed_loop.items_per_s,
        "peak_fraction": items_per_s * manifest.model.flops_per_item / 1e9 / run.peak_gflops,
        "latency_ms": verdict and verdict.latency_ms,
        "early_stopping_ms": verdict and verdict.estimate_ms,
        "latency_bound_ms": run.settings.latency_ms if last.request.is_server else None,
        "target_qps": last.request.target_qps,
        "tests": [
            {
                "target_qps": test.request.target_qps,
                "valid": test.verdict.is_valid,
                "items": test.items,
                **test.verdict.latency_ms,
            }
            for test in run.tests
            if test.verdict
        ],
        "loadgen_version": verdict and verdict.version,
        "loadgen": verdict and verdict.all_results,
    }


def _performance_lines(run: LoadgenRun) -> list[str]:
    last = run.tests[-1]
    verdict = last.verdict
    said = "VALID" if verdict.is_valid else f"INVALID: {', '.join(verdict.reasons)}"
    rate = f"{verdict.samples_per_s:,.1f} samples/s"
    if last.request.is_server:
        rate += f" of {last.request.target_qps:,.1f} asked for"
    lines = [
        line("LoadGen says", f"{said}: {rate} ({last.samples:,} samples)"),
        _throughput_line(run),
    ]
    latency = percentiles_text(verdict.latency_ms, *TAIL)
    if verdict.estimate_ms:
        query = "query" if last.request.scenario == "multistream" else "sample"
        result = f"LoadGen's result {ms_text(verdict.estimate_ms)}"
        lines.append(line("latency", f"{latency}  ms per {query}, {result}"))
    if last.request.is_server:
        bound = f"p{100 * run.settings.latency_percentile:g} within {run.settings.latency_ms:g} wanted"
        lines.append(line("latency", f"{latency}  ms per sample, {bound}"))
        lines.append(line("batches", f"leave when full, or after {run.wait_ms:.1f} ms"))
    gflops = last.items_per_s * run.session.plan.manifest.model.flops_per_item / 1e9
    lines.append(line("peak share", f"{gflops / run.peak_gflops:.3f}: {gflops:,.1f} of {run.peak_gflops:,.1f} GFLOP/s"))
    return lines


def _cut_lines(run: LoadgenRun) -> list[str]:
    """Of a test without a verdict, and what those before it found."""
    last = run.tests[-1]
    done = f"{last.samples:,} samples, {last.items:,} items done"
    valid = [test.request.target_qps for test in run.tests if test.is_valid]
    return [
        line("LoadGen", f"no verdict: ended after {last.cut_after_s:.1f} s with {done}"),
        *([] if last.request.is_accuracy else [_throughput_line(run)]),
        *([line("until then", f"{max(valid):,.1f} samples/s were valid")] if valid else []),
    ]


def _throughput_line(run: LoadgenRun) -> str:
    items_per_s = run.tests[-1].items_per_s
    share = items_per_s / run.closed_loop.items_per_s
    return line("throughput", f"{items_per_s:,.0f} items/s, {share:.3f} of the closed loop's")
