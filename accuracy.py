"""Score a compiled library on reference data: errors, AUC, log loss; PASS or FAIL.

    python accuracy.py --model __prebuilt/dlrm_avx512_b100.so --ref-data __data/demo_data_small.npz

Reads the library with its parameters and one data file (kinds: dlrm_tvm/data/reference_data.py); leaves no files.
What is judged depends on the library's precision and on what the data holds (dlrm_tvm/data/scoring.py), and is printed.
Exit status 0 or 1.
"""

from __future__ import annotations

from dlrm_tvm.errors import UserError, printable, reported, run_script

with reported():
    import argparse
    import os
    from pathlib import Path

    from dlrm_tvm import load
    from dlrm_tvm.console import add_version, summary
    from dlrm_tvm.data.demo import reference_for
    from dlrm_tvm.data.reference_data import open_reference
    from dlrm_tvm.data.scoring import MIN_AUC_RATIO, TOLERANCE, gate_for, judge, score, verdict_json, verdict_text
    from dlrm_tvm.data.splits import SPLITS
    from dlrm_tvm.paths import DEFAULT_LIBRARY


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=summary(__doc__))
    add_version(parser)
    parser.add_argument("--model", type=Path, default=DEFAULT_LIBRARY, metavar="SO", help="default: %(default)s")
    parser.add_argument("--ref-data", type=Path, metavar="FILE", help="default: the demo model's own")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="the part of Criteo's day 23 to score, as MLPerf cuts it (default: the half that MLPerf scores; of other "
        "data, all)",
    )
    parser.add_argument(
        "--first-item", type=int, default=0, metavar="N", help="leave out N items of it (default: %(default)s)"
    )
    parser.add_argument("--max-items", type=int, metavar="N", help="score at most N items of it (default: all)")
    parser.add_argument(
        "--max-ind-range",
        type=int,
        metavar="N",
        help="take indices modulo N, as facebookresearch/dlrm's --max-ind-range does in training",
    )
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
    if args.ref_data is not None and not args.ref_data.exists():
        raise UserError(f"{args.ref_data}: no such file. Give reference data with --ref-data FILE.")
    model = load(args.model)
    manifest = model.artifact.manifest
    path = args.ref_data or reference_for(manifest.model.fingerprint)
    gate = gate_for(manifest.precision, min_auc_ratio=args.min_auc_ratio, rtol=args.rtol, atol=args.atol)
    part = {"split": args.split, "first_item": args.first_item, "max_items": args.max_items}
    data = open_reference(path, manifest.model, **part, max_ind_range=args.max_ind_range)
    bags = "" if data.indices_per_bag == 1 else f", {data.indices_per_bag:.3g} indices per bag"
    print(
        f"model  {printable(str(args.model))}: {manifest.model.name}, {manifest.precision}, batch {manifest.batch_size}"
    )
    print(f"data   {printable(os.path.relpath(path))}: {data.kind}, {data.num_items:,} items{bags}")
    if args.max_ind_range:
        print(f"range  indices are taken modulo {args.max_ind_range:,}")
    if cut := data.cut():
        print(f"split  {cut}")
    last = getattr(manifest.model, "last_activation", None)  # None: of a library compiled earlier
    verdict = judge(score(model, data), gate, is_logit=last == "none" and manifest.model.clamp is None)
    print(verdict_text(verdict, gate))
    print(verdict_json(verdict, gate))
    return 0 if verdict.passed else 1


def command() -> None:
    run_script(main)


if __name__ == "__main__":
    command()
