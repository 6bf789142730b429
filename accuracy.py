"""Score a compiled library on reference data: errors, AUC, log loss; PASS or FAIL.

    python accuracy.py --model __prebuilt/dlrm_avx512_b100.so --ref-data __data/demo_data_small.npz

Reads the library with its parameters and one data file (kinds: dlrm_tvm/reference_data.py); leaves no files.
What is judged depends on the library's precision and on what the data holds (dlrm_tvm/scoring.py), and is printed.
Exit status 0 or 1.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dlrm_tvm import load
from dlrm_tvm.demo import DEMO_REFERENCE
from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.reference_data import open_reference
from dlrm_tvm.result_line import result_line
from dlrm_tvm.scoring import MIN_AUC_RATIO, TOLERANCE, Gate, Verdict, gate_for, judge, score

_DEFAULT_MODEL = Path(os.path.relpath(Path(__file__).parent / "__prebuilt" / "dlrm_avx512_b100.so"))


def print_table(verdict: Verdict, gate: Gate) -> None:
    def row(name: str, *values: float | None, digits: str = ".6f") -> None:
        print(f"{name:<22}" + "".join(f"{'-' if v is None else format(v, digits):>14}" for v in values))

    print(f"{'':<22}{'this library':>14}{'reference':>14}{'ratio':>14}")
    row("AUC", verdict.auc, verdict.reference_auc, verdict.auc_ratio)
    row("log loss", verdict.log_loss, verdict.reference_log_loss)
    row("largest |error|", verdict.max_abs_error, digits=".3g")
    row("mean |error|", verdict.mean_abs_error, digits=".3g")
    row("largest |logit error|", verdict.max_logit_error, digits=".3g")
    row("mean |logit error|", verdict.mean_logit_error, digits=".3g")
    outside = "no reference outputs" if verdict.mismatches is None else f"{verdict.mismatches:,} of {verdict.items:,}"
    print(f"{'outside tolerance':<22}{outside:>14}   (rtol {gate.rtol:g}, atol {gate.atol:g})")
    if verdict.not_finite:
        print(f"{'not finite':<22}{verdict.not_finite:>14,}")
    for rule in verdict.rules:
        found = f"not judged, {rule.reason}" if rule.kept is None else "yes" if rule.kept else "NO"
        print(f"{rule.name + '?':<30}{found}")
    print("PASS" if verdict.passed else "FAIL")


def to_json(verdict: Verdict, gate: Gate) -> str:
    errors = ("max_abs_error", "mean_abs_error", "max_logit_error", "mean_logit_error", "mismatches")
    fields = {key: getattr(verdict, key) for key in ("items", *errors, "auc", "reference_auc", "auc_ratio")}
    fields |= {"min_auc_ratio": gate.min_auc_ratio, "log_loss": verdict.log_loss, "passed": verdict.passed}
    return result_line(fields)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=_DEFAULT_MODEL, metavar="SO", help="default: %(default)s")
    parser.add_argument("--ref-data", type=Path, default=DEMO_REFERENCE, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--max-items", type=int, metavar="N", help="score the first N items (default: all)")
    parser.add_argument("--rtol", type=float, help=f"relative tolerance (default: {TOLERANCE:g})")
    parser.add_argument("--atol", type=float, help=f"absolute tolerance (default: {TOLERANCE:g})")
    parser.add_argument(
        "--min-auc-ratio",
        type=float,
        default=MIN_AUC_RATIO,
        metavar="X",
        help="least AUC of this library / AUC of the reference, above 0 and at most 1 (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if not args.ref_data.is_file():
        raise UserError(f"{args.ref_data}: no such file. Give reference data with --ref-data FILE.")
    model = load(args.model)
    manifest = model.artifact.manifest
    gate = gate_for(manifest.precision, min_auc_ratio=args.min_auc_ratio, rtol=args.rtol, atol=args.atol)
    data = open_reference(args.ref_data, manifest.model, max_items=args.max_items)
    bags = "" if data.indices_per_bag == 1 else f", {data.indices_per_bag:.3g} indices per bag"
    print(f"model  {args.model}: {manifest.model.name}, {manifest.precision}, batch {manifest.batch_size}")
    print(f"data   {os.path.relpath(args.ref_data)}: {data.kind}, {data.num_items:,} items{bags}")
    verdict = judge(score(model, data), gate)
    print_table(verdict, gate)
    print(to_json(verdict, gate))
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    run_script(main)
