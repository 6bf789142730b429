"""Score a compiled library on reference data: errors, AUC, log loss; PASS or FAIL.

    python accuracy.py --model __prebuilt/dlrm_avx512_b100.so --ref-data __data/demo_data_small.npz

Reads the library with its parameters and one data file (kinds: dlrm_tvm/reference_data.py); leaves no files.
Passes when no prediction lies outside the tolerances; where the data holds no reference outputs (Criteo's own
files), when every prediction is finite. Exit status 0 or 1.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dlrm_tvm import load
from dlrm_tvm.demo import DEMO_REFERENCE
from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.metrics import auc, compare, log_loss
from dlrm_tvm.reference_data import ReferenceData, open_reference
from dlrm_tvm.result_line import result_line

_DEFAULT_MODEL = Path(os.path.relpath(Path(__file__).parent / "__prebuilt" / "dlrm_avx512_b100.so"))


@dataclass(frozen=True)
class Scored:
    """predictions [n] float32; reference [n] float32 and labels [n] uint8, None where the data has none."""

    predictions: np.ndarray
    reference: np.ndarray | None
    labels: np.ndarray | None


@dataclass(frozen=True)
class Summary:
    """What the script reports. None: the data has no reference or no labels, or the value is undefined."""

    items: int
    not_finite: int
    max_abs_error: float | None
    mean_abs_error: float | None
    mismatches: int | None
    auc: float | None
    reference_auc: float | None
    log_loss: float | None
    reference_log_loss: float | None

    @property
    def auc_ratio(self) -> float | None:
        return self.auc / self.reference_auc if self.auc is not None and self.reference_auc else None

    @property
    def passed(self) -> bool:
        return not self.not_finite and not self.mismatches

    def to_json(self) -> str:
        keys = ("items", "max_abs_error", "mean_abs_error", "mismatches", "auc", "reference_auc", "auc_ratio")
        return result_line({key: getattr(self, key) for key in (*keys, "log_loss", "passed")})


def score(predict: Callable[..., np.ndarray], data: ReferenceData) -> Scored:
    """Run every item of the data through `predict`, a model as load() gives it, chunk by chunk."""
    predictions, references, labels = [], [], []
    with tqdm(total=data.num_items, unit=" items", disable=None) as bar:
        for chunk in data:
            predictions.append(np.array(predict(chunk.dense, *chunk.lookups), dtype=np.float32))
            references.append(chunk.reference)
            labels.append(chunk.labels)
            bar.update(len(chunk.dense))
    return Scored(
        np.concatenate(predictions),
        np.concatenate(references) if data.has_reference else None,
        np.concatenate(labels) if data.has_labels else None,
    )


def summarize(scored: Scored, *, rtol: float, atol: float) -> Summary:
    """Errors against the reference and ranking against the labels, each where the data has them."""
    errors = None
    if scored.reference is not None:
        errors = compare(scored.predictions, scored.reference, rtol=rtol, atol=atol)
    our_auc, our_log_loss = _rank(scored.labels, scored.predictions)
    reference_auc, reference_log_loss = _rank(scored.labels, scored.reference)
    return Summary(
        items=len(scored.predictions),
        not_finite=int(np.count_nonzero(~np.isfinite(scored.predictions))),
        max_abs_error=_defined(errors.max_abs) if errors else None,
        mean_abs_error=_defined(errors.mean_abs) if errors else None,
        mismatches=errors.mismatches if errors else None,
        auc=our_auc,
        reference_auc=reference_auc,
        log_loss=our_log_loss,
        reference_log_loss=reference_log_loss,
    )


def _rank(labels: np.ndarray | None, scores: np.ndarray | None) -> tuple[float | None, float | None]:
    """AUC and log loss, or None and None where there is nothing to rank."""
    if labels is None or scores is None or not np.isfinite(scores).all():
        return None, None
    return _defined(auc(labels, scores)), _defined(log_loss(labels, scores))


def _defined(value: float) -> float | None:
    """JSON has no NaN: an undefined value (an AUC without clicks, an error of a NaN) is None."""
    return value if math.isfinite(value) else None


def print_table(summary: Summary, *, rtol: float, atol: float) -> None:
    def row(name: str, *values: float | None, digits: str = ".6f") -> None:
        print(f"{name:<22}" + "".join(f"{'-' if v is None else format(v, digits):>14}" for v in values))

    print(f"{'':<22}{'this library':>14}{'reference':>14}{'ratio':>14}")
    row("AUC", summary.auc, summary.reference_auc, summary.auc_ratio)
    row("log loss", summary.log_loss, summary.reference_log_loss)
    row("largest |error|", summary.max_abs_error, digits=".3g")
    row("mean |error|", summary.mean_abs_error, digits=".3g")
    outside = "no reference outputs" if summary.mismatches is None else f"{summary.mismatches:,} of {summary.items:,}"
    print(f"{'outside tolerance':<22}{outside:>14}   (rtol {rtol:g}, atol {atol:g})")
    if summary.not_finite:
        print(f"{'not finite':<22}{summary.not_finite:>14,}")
    print("PASS" if summary.passed else "FAIL")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=_DEFAULT_MODEL, metavar="SO", help="default: %(default)s")
    parser.add_argument("--ref-data", type=Path, default=DEMO_REFERENCE, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--max-items", type=int, metavar="N", help="score the first N items (default: all)")
    parser.add_argument("--rtol", type=float, default=1e-5, help="relative tolerance (default: %(default)s)")
    parser.add_argument("--atol", type=float, default=1e-5, help="absolute tolerance (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if not args.ref_data.is_file():
        raise UserError(f"{args.ref_data}: no such file. Give reference data with --ref-data FILE.")
    model = load(args.model)
    manifest = model.artifact.manifest
    data = open_reference(args.ref_data, manifest.model, max_items=args.max_items)
    bags = "" if data.indices_per_bag == 1 else f", {data.indices_per_bag:.3g} indices per bag"
    print(f"model  {args.model}: {manifest.model.name}, {manifest.precision}, batch {manifest.batch_size}")
    print(f"data   {os.path.relpath(args.ref_data)}: {data.kind}, {data.num_items:,} items{bags}")
    summary = summarize(score(model, data), rtol=args.rtol, atol=args.atol)
    print_table(summary, rtol=args.rtol, atol=args.atol)
    print(summary.to_json())
    return 0 if summary.passed else 1


if __name__ == "__main__":
    run_script(main)
