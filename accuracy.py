"""Score a compiled library on reference data: errors, AUC, log loss; PASS or FAIL.

    python accuracy.py --model __prebuilt/dlrm_avx512_b100.so --ref-data __data/demo_data_small.npz
    python accuracy.py --ref-data day_*.parquet --predictions predicted

Reads the library with its parameters and one data file (kinds: dlrm_tvm/data/reference_data.py); leaves no files, but
with --predictions what was predicted of any number of files (dlrm_tvm/predictions/run.py).
What is judged depends on the library's precision and on what the data holds (dlrm_tvm/data/scoring.py), and is printed.
Exit status 0 for PASS, 3 for FAIL. Ctrl-C scores what there is.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # python -I and -P leave it out
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from dlrm_tvm.errors import (
    FOUND_WANTING,
    UserError,
    interrupted_status,
    interrupts_blocked,
    printable,
    reported,
    run_script,
)

with reported(), interrupts_blocked():
    import argparse
    from contextlib import AbstractContextManager, nullcontext
    from pathlib import Path

    from dlrm_tvm import load
    from dlrm_tvm.console import Bar, Parser, add_output_options, show, terminal
    from dlrm_tvm.data.demo import reference_for
    from dlrm_tvm.data.reference_data import open_reference
    from dlrm_tvm.data.scoring import (
        MIN_AUC_RATIO,
        TOLERANCE,
        Verdict,
        gate_for,
        judge,
        score,
        verdict_json,
        verdict_text,
    )
    from dlrm_tvm.data.splits import SPLITS
    from dlrm_tvm.machine.files import check_not_read, check_writable, leave_result
    from dlrm_tvm.paths import DEFAULT_LIBRARY
    from dlrm_tvm.predictions.run import (
        PredictionSettings,
        ScoreShards,
        plan_lines,
        plan_predictions,
        predict_all,
        score_here,
    )
    from dlrm_tvm.runtime.artifact import files_of_library


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_LIBRARY, metavar="SO", help="default: %(default)s")
    parser.add_argument("--ref-data", type=Path, nargs="+", metavar="FILE", help="default: the demo model's own")
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
    add_output_options(parser)
    group = parser.add_argument_group("predictions of many items")
    group.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR|FILE.npz",
        help="keep what is predicted, in parts in a folder or in one file; of several files of --ref-data too",
    )
    group.add_argument("--shard-items", type=int, metavar="N", help="items of a part, about (default: 1000000)")
    group.add_argument("--ray", metavar="HOST:PORT", help="score on all free CPUs of the Ray cluster at this address")
    group.add_argument("--resume", action="store_true", help="go on with what was begun in that folder")
    return checked(parser.parse_args())


def checked(args: argparse.Namespace) -> argparse.Namespace:
    for path in args.ref_data or ():
        if not path.exists():
            raise UserError(f"{path}: no such file. Give reference data with --ref-data FILE.")
    if args.output:
        check_writable("--output", args.output)
        written = {"--predictions": args.predictions, "--output": args.output}
        check_not_read(written, [*files_of_library(args.model), *(args.ref_data or ())])
    if args.predictions:
        folder = PredictionSettings(args.model, (), args.predictions).folder
        if args.output and Path(os.path.realpath(args.output)).is_relative_to(os.path.realpath(folder)):
            raise UserError(f"--output {args.output}: that is in {folder}, which holds the predictions. Move it out.")
        if args.shard_items is not None and args.shard_items < 1:
            raise UserError(f"--shard-items {args.shard_items}: give at least 1.")
        if len(args.ref_data or ()) > 1 and (args.first_item or args.max_items is not None):
            raise UserError("--first-item and --max-items are for one file. Give one of --ref-data, or leave them out.")
        return args
    given = {"--ray": args.ray, "--resume": args.resume, "--shard-items": args.shard_items}
    if flags := [flag for flag, value in given.items() if value is not None and value is not False]:
        raise UserError(f"{flags[0]} is for predictions that are kept. Give --predictions DIR too, or leave it out.")
    if len(args.ref_data or ()) > 1:
        raise UserError("--ref-data has several files: give one, or --predictions DIR to score them all.")
    return args


def main() -> int:
    args = parse_args()
    with terminal(quiet=args.quiet):
        verdict, fields = (predict if args.predictions else score_file)(args)
    leave_result(fields, args.output)
    return interrupted_status() if verdict.left else 0 if verdict.passed else FOUND_WANTING


def score_file(args: argparse.Namespace) -> tuple[Verdict, dict[str, object]]:
    """One file's items: the verdict, and the result."""
    model = load(args.model)
    manifest = model.artifact.manifest
    path = args.ref_data[0] if args.ref_data else reference_for(manifest.model.fingerprint)
    gate = gate_for(manifest.precision, min_auc_ratio=args.min_auc_ratio, rtol=args.rtol, atol=args.atol)
    part = {"split": args.split, "first_item": args.first_item, "max_items": args.max_items}
    data = open_reference(path, manifest.model, **part, max_ind_range=args.max_ind_range)
    bags = "" if data.indices_per_bag == 1 else f", {data.indices_per_bag:.3g} indices per bag"
    show(
        f"model  {printable(str(args.model))}: {manifest.model.name}, {manifest.precision}, batch {manifest.batch_size}"
    )
    show(f"data   {printable(os.path.relpath(path))}: {data.kind}, {data.num_items:,} items{bags}")
    if args.max_ind_range:
        show(f"range  indices are taken modulo {args.max_ind_range:,}")
    if cut := data.cut():
        show(f"split  {cut}")
    scored = score(model, data)
    with Bar("judging"):
        verdict = judge(scored, gate, is_logit=manifest.model.gives_logits)
    show(verdict_text(verdict, gate))
    return verdict, verdict_json(verdict, gate)


def predict(args: argparse.Namespace) -> tuple[Verdict, dict[str, object]]:
    """The same of all items of all files, in shards, each part kept."""
    given = {"resume": args.resume, "split": args.split, "first_item": args.first_item}
    given |= {"max_items": args.max_items, "max_ind_range": args.max_ind_range}
    given |= {"shard_items": args.shard_items} if args.shard_items else {}
    settings = PredictionSettings(args.model, tuple(args.ref_data or ()), args.predictions, **given)
    manifest, inputs, job = plan_predictions(settings)
    gate = gate_for(manifest.precision, min_auc_ratio=args.min_auc_ratio, rtol=args.rtol, atol=args.atol)
    show(
        f"model  {printable(str(args.model))}: {manifest.model.name}, {manifest.precision}, batch {manifest.batch_size}"
    )
    show("\n".join(plan_lines(settings, inputs, job)))
    with scoring(args.ray, resume=args.resume) as score:
        predictions = predict_all(settings, job, gate, is_logit=manifest.model.gives_logits, score=score)
    verdict = predictions.verdict
    show(verdict_text(verdict, gate))
    return verdict, verdict_json(verdict, gate) | predictions.to_json(settings.output)


def scoring(ray: str | None, *, resume: bool) -> AbstractContextManager[ScoreShards]:
    """Here, or on the Ray cluster at this address."""
    if ray is None:
        return nullcontext(score_here)
    from dlrm_tvm.cluster.pool import on_ray

    return on_ray(ray, resume=resume)


def command() -> None:
    run_script(main)


if __name__ == "__main__":
    command()
