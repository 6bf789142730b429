"""Step 1 of 3: turn an ONNX DLRM into a tuned shared library, `__prebuilt/NAME_bN.so`, with TVM.

Reads --onnx-model (default: the built-in demo model), --tuning-log-file and, where they are given, sample items for
int8's activations or reference data; leaves NAME_bN.so, its parameters and its manifest. The library is checked against
a NumPy reference of the model before success is reported.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.numerics import INSTRUCTION_FLAG, PRECISIONS
from dlrm_tvm.result_line import result_line

if TYPE_CHECKING:
    from dlrm_tvm.lower import Lowered
    from dlrm_tvm.manifest import Piece
    from dlrm_tvm.model import Dlrm
    from dlrm_tvm.numerics import Numerics
    from dlrm_tvm.selection import Selection
    from dlrm_tvm.table_layout import TableLayout
    from dlrm_tvm.target import CpuTarget
    from dlrm_tvm.verification import Verification

ROOT = Path(__file__).resolve().parent
PREBUILT = ROOT / "__prebuilt"
DEFAULT_LOG = ROOT / "__data" / "dlrm_tune_100.tune_log"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx-model", type=Path, help="the ONNX DLRM; default: the built-in demo model")
    parser.add_argument(
        "--demo-table-rows", type=int, default=10_000, help="rows the demo's tables are capped at; default %(default)s"
    )
    parser.add_argument(
        "--batch-size", type=int, default=100, help="items per call of the library; default %(default)s"
    )
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, "auto"),
        default="fp32",
        help="auto: the fastest whose AUC on --ref-data keeps to --min-auc-ratio; default %(default)s",
    )
    parser.add_argument(
        "--calibration-data",
        type=Path,
        metavar="FILE",
        help="int8: find the activations' steps on these items, any kind that accuracy.py reads; "
        "default: each row has its own, which needs no data",
    )
    parser.add_argument(
        "--ref-data",
        type=Path,
        metavar="FILE",
        help="auto: what accuracy is judged on; default for the demo model: its own",
    )
    parser.add_argument(
        "--min-auc-ratio", type=float, help="auto: AUC of the library / of the reference, at least; default 0.999"
    )
    parser.add_argument(
        "--tuning-log-file", default=str(DEFAULT_LOG), help="schedules to use; none: TVM's default code generation"
    )
    parser.add_argument(
        "--tune", action="store_true", help="search schedules on this machine and append them to the log"
    )
    parser.add_argument(
        "--output-name", default="dlrm_avx512", help="NAME of __prebuilt/NAME_bN.so; default %(default)s"
    )
    parser.add_argument(
        "--copy-tables",
        action="store_true",
        help="copy the tables beside the library, so that the ONNX model can be deleted; default: use them in place",
    )
    parser.add_argument(
        "--profile", action="store_true", help="with the function that multi_instance.py --profile needs"
    )
    parser.add_argument("--target-cpu", help="LLVM -mcpu, such as sapphirerapids; default: this host")
    parser.add_argument("--dump-ir", type=Path, metavar="DIR", help="write the IR after each phase, and the assembly")
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """What can be known to be wrong before the slow part."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: at least 1 was wanted.")
    if args.batch_size > 1_000_000:
        raise UserError(f"--batch-size {args.batch_size}: at most 1000000 was wanted.")
    if args.demo_table_rows < 1:
        raise UserError(f"--demo-table-rows {args.demo_table_rows}: at least 1 was wanted.")
    check_precision_flags(args)
    plain = Path(args.output_name).name == args.output_name and not args.output_name.startswith(".")
    if not plain or not 1 <= len(args.output_name) <= 100:
        raise UserError(f"--output-name {args.output_name}: a plain name was wanted, without a directory.")
    if args.profile and args.tuning_log_file == "none":
        raise UserError("--profile times kernels of ours; --tuning-log-file none has none. Give one of the two.")
    if args.tune and args.tuning_log_file == "none":
        raise UserError("--tune needs a log to append to. Give --tuning-log-file a path.")


def check_precision_flags(args: argparse.Namespace) -> None:
    if args.tuning_log_file == "none" and args.precision != "fp32":
        raise UserError("--tuning-log-file none compiles in fp32 alone: TVM's operators have no others. Leave one out.")
    if args.calibration_data is not None and args.precision not in ("int8", "auto"):
        raise UserError(f"--calibration-data is for int8, not for --precision {args.precision}. Leave one out.")
    for flag, path in (("--calibration-data", args.calibration_data), ("--ref-data", args.ref_data)):
        if path is not None and args.precision in ("int8", "auto") and not path.is_file():
            raise UserError(f"{path}: no such file. Give {flag} another.")
    if args.precision != "auto":
        for flag, value in (("--ref-data", args.ref_data), ("--min-auc-ratio", args.min_auc_ratio)):
            if value is not None:
                raise UserError(f"{flag} is what --precision auto judges by. Leave it out, or give --precision auto.")
        return
    if args.ref_data is None and args.onnx_model is not None:
        raise UserError("--precision auto judges accuracy on reference data. Give it with --ref-data FILE.")
    if args.tune:
        raise UserError("--tune searches for one precision. Give --precision fp32, bf16 or int8.")


def main() -> int:
    args = parse_args()
    check(args)
    # As Ctrl-C does: what was begun is removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start = time.perf_counter()
    # Imported here: --help and wrong flags should not wait for TVM.
    from dlrm_tvm import building
    from dlrm_tvm.candidates import candidates, gate_on
    from dlrm_tvm.demo import demo_model_path
    from dlrm_tvm.onnx_reader import read_dlrm
    from dlrm_tvm.table_files import expect_single_rows
    from dlrm_tvm.target import cpu_target

    building.check_compiler()
    cpu = cpu_target(args.target_cpu)
    onnx_model = args.onnx_model or demo_model_path(args.demo_table_rows)
    model = read_dlrm(onnx_model)
    building.check_finite(model)
    for table in model.tables:
        expect_single_rows(table.rows)
    precisions = candidates(model, cpu, args.precision)
    accept = gate_on(model, args.ref_data, args.min_auc_ratio) if args.precision == "auto" else None
    print_card(model, cpu, args)
    for precision in precisions:
        made = compile_one(model, cpu, args, precision, onnx_model, accept)
        if made is not None:
            break
    else:
        raise UserError(
            f"no precision keeps to the AUC ratio on {args.ref_data or 'the demo data'}: nothing was written."
        )
    made |= {
        "compile_s": round(time.perf_counter() - start, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    print(result_line(made))
    return 0


def compile_one(
    model: Dlrm, cpu: CpuTarget, args: argparse.Namespace, precision: str, onnx_model: Path, accept: Callable | None
) -> dict | None:
    """Compile in one precision, say what is done, and return the result's fields; None where it was not accepted."""
    from dlrm_tvm import building
    from dlrm_tvm.narrowing import narrow
    from dlrm_tvm.table_layout import lay_out_tables
    from dlrm_tvm.table_rows import stored_bytes

    if precision != "fp32":  # before the tables are read to be converted
        stored = stored_bytes(model, precision)
        building.check_room(PREBUILT, stored)
        sizes = f"{model.table_bytes / 1e6:,.1f} MB become {stored / 1e6:,.1f} MB in {precision}"
        print(f"tables      {sizes}, written beside the library")
    numerics = narrow(model, precision, args.calibration_data if precision == "int8" else None)
    print_numerics(model, numerics, cpu)
    tables = lay_out_tables(model, copy=args.copy_tables, numerics=numerics)
    building.check_room(PREBUILT, 0 if tables.copied is None else tables.copied.nbytes)
    print_tables(tables)
    lowered, chosen = lower(model, cpu, args, tables, numerics)
    library, verification = building.build_library(
        model,
        lowered,
        chosen,
        cpu,
        batch=args.batch_size,
        name=args.output_name,
        directory=PREBUILT,
        onnx_model=onnx_model,
        numerics=numerics,
        accept=accept,
    )
    if library is None:
        return None
    print_result(library, verification, cpu)
    return {
        "library": os.path.relpath(library),
        "batch_size": args.batch_size,
        "precision": precision,
        "activation_scales": numerics.scales,
        "target_cpu": cpu.cpu,
        "tuned_kernels": len(chosen.tuned) if chosen else 0,
        "untuned_kernels": len(chosen.untuned) if chosen else len(model.layers),
        "max_abs_error": verification.max_abs_error if verification else None,
    }


def lower(
    model: Dlrm, cpu: CpuTarget, args: argparse.Namespace, tables: TableLayout, numerics: Numerics
) -> tuple[Lowered, Selection | None]:
    """The model lowered with the schedules that the flags ask for, and which those are (None: none of ours)."""
    from dlrm_tvm.lower import Dump, lower_plain, lower_tuned
    from dlrm_tvm.selection import Selection
    from dlrm_tvm.tuning_log import read_log

    dump = Dump(args.dump_ir)
    if args.tuning_log_file == "none":
        print("schedules   none: TVM's default code generation")
        return lower_plain(model, args.batch_size, cpu, dump, tables), None
    path = Path(args.tuning_log_file)
    if args.tune:
        from dlrm_tvm.tuning import tune

        tune(model, args.batch_size, cpu, path, numerics)
    log = read_log(path, must_exist=path != DEFAULT_LOG)
    chosen = Selection(log, cpu.cpu, args.batch_size, cpu.registers, numerics.precision)
    lowered = lower_tuned(
        model, args.batch_size, chosen.network(), chosen.dense, cpu, dump, tables, args.profile, numerics
    )
    print(f"schedules   {len(chosen.tuned)} kernels tuned, {len(chosen.untuned)} by rule ({os.path.relpath(path)})")
    if chosen.borrowed:
        print(
            f"            tuned on {', '.join(sorted(chosen.borrowed))}, not on {cpu.cpu}: --tune may find better ones"
        )
    return lowered, chosen


def print_card(model: Dlrm, cpu: CpuTarget, args: argparse.Namespace) -> None:
    sizes = f"MLPs {model.mlp_bytes / 1e6:.1f} MB, tables {model.table_bytes / 1e6:,.1f} MB"
    work = f"{model.macs_per_item:,} multiply-adds per item"
    print(f"model       {model.name}: {len(model.tables)} tables of dimension {model.dim}, {work}, {sizes}")
    print(f"target      {cpu.cpu}{' (this machine)' if cpu.is_host else ''}, batch {args.batch_size}, {args.precision}")


def print_numerics(model: Dlrm, numerics: Numerics, cpu: CpuTarget) -> None:
    """Which numbers the library computes in, and why: the instruction, the layers that stay wider, the steps."""
    if numerics.precision == "fp32":
        return
    wider = [str(at + 1) for at, layer in enumerate(numerics.layers) if layer.precision == "fp32"]
    share = 1 - sum(layer.weight.size for layer in model.layers[1:-1]) / sum(
        layer.weight.size for layer in model.layers
    )
    print(f"precision   {numerics.precision}: {INSTRUCTION_FLAG[numerics.precision]} found for {cpu.cpu}")
    print(
        f"            layers {' and '.join(wider)} of {len(model.layers)} stay fp32 ({share:.1%} of the MLPs' weights):"
    )
    print("            inputs of any size and the logit round worst there")
    if numerics.precision == "int8":
        if numerics.scales == "dynamic":
            activations = "of each row's own largest value: no data needed, outliers stay in their row"
        else:
            activations = f"found on {numerics.calibration}"
        print("scales      weights per output, tables per table, activations")
        print(f"            {numerics.scales}, {activations}")


def print_tables(tables: TableLayout) -> None:
    """Where the tables will be read from, and why not in place where they are not."""
    files: dict[str, list[Piece]] = defaultdict(list)
    for piece in tables.pieces:
        files[os.path.relpath(Path(piece.file).parent)].append(piece)
    for folder, pieces in files.items():
        size = f"{sum(piece.nbytes for piece in pieces) / 1e6:,.1f} MB"
        one = len(pieces) == 1
        where = os.path.relpath(pieces[0].file) if one else f"{len(pieces)} files of {folder}"
        print(f"tables      {size} used in place in {where}: keep {'that file' if one else 'those files'}")
    if tables.copied is not None and not tables.converted:
        print(f"tables      {tables.copied.nbytes / 1e6:,.1f} MB copied beside the library")
    for name, reason in tables.reasons[:3]:
        print(f"            {name} is copied: {reason}")
    if len(tables.reasons) > 3:
        print(f"            and {len(tables.reasons) - 3} more tables, for such reasons")


def print_result(library: Path, verification: Verification | None, cpu: CpuTarget) -> None:
    if verification is None:
        print(f"verified    no: this CPU cannot run code for {cpu.cpu}. Run accuracy.py on a machine that can.")
    else:
        found = f"{verification.items} random items, largest error {verification.max_abs_error:.2g}"
        print(f"verified    {found} against the NumPy reference")
    print(f"wrote       {os.path.relpath(library)} with its manifest and parameters")


if __name__ == "__main__":
    run_script(main)
