"""Step 1 of 3: turn an ONNX DLRM into a tuned shared library, `__prebuilt/NAME_bN.so`, with TVM.

Reads --onnx-model (default: the built-in demo model) and --tuning-log-file; leaves NAME_bN.so, its parameters and
its manifest. The library is checked against a NumPy reference of the model before success is reported.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from dlrm_tvm.errors import UserError, run_script
from dlrm_tvm.result_line import result_line

if TYPE_CHECKING:
    from dlrm_tvm.lower import Lowered
    from dlrm_tvm.manifest import Piece
    from dlrm_tvm.model import Dlrm
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
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32")
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
    if args.precision != "fp32":
        raise UserError(f"--precision {args.precision} is not supported yet. Use --precision fp32.")
    plain = Path(args.output_name).name == args.output_name and not args.output_name.startswith(".")
    if not plain or not 1 <= len(args.output_name) <= 100:
        raise UserError(f"--output-name {args.output_name}: a plain name was wanted, without a directory.")
    if args.profile and args.tuning_log_file == "none":
        raise UserError("--profile times kernels of ours; --tuning-log-file none has none. Give one of the two.")
    if args.tune and args.tuning_log_file == "none":
        raise UserError("--tune needs a log to append to. Give --tuning-log-file a path.")


def main() -> int:
    args = parse_args()
    check(args)
    # As Ctrl-C does: what was begun is removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start = time.perf_counter()
    # Imported here: --help and wrong flags should not wait for TVM.
    from dlrm_tvm import building
    from dlrm_tvm.demo import demo_model_path
    from dlrm_tvm.onnx_reader import read_dlrm
    from dlrm_tvm.table_files import expect_single_rows
    from dlrm_tvm.table_layout import lay_out_tables
    from dlrm_tvm.target import cpu_target

    building.check_compiler()
    cpu = cpu_target(args.target_cpu)
    onnx_model = args.onnx_model or demo_model_path(args.demo_table_rows)
    model = read_dlrm(onnx_model)
    building.check_finite(model)
    for table in model.tables:
        expect_single_rows(table.rows)
    tables = lay_out_tables(model, copy=args.copy_tables)
    building.check_room(PREBUILT, tables)
    print_card(model, cpu, args)
    print_tables(tables)
    lowered, chosen = lower(model, cpu, args, tables)
    library, verification = building.build_library(
        model,
        lowered,
        chosen,
        cpu,
        batch=args.batch_size,
        name=args.output_name,
        directory=PREBUILT,
        onnx_model=onnx_model,
    )
    print_result(library, verification, cpu)
    report = {
        "library": os.path.relpath(library),
        "batch_size": args.batch_size,
        "precision": args.precision,
        "target_cpu": cpu.cpu,
        "tuned_kernels": len(chosen.tuned) if chosen else 0,
        "untuned_kernels": len(chosen.untuned) if chosen else len(model.layers),
        "max_abs_error": verification.max_abs_error if verification else None,
        "compile_s": round(time.perf_counter() - start, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    print(result_line(report))
    return 0


def lower(
    model: Dlrm, cpu: CpuTarget, args: argparse.Namespace, tables: TableLayout
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

        tune(model, args.batch_size, cpu, path)
    chosen = Selection(read_log(path, must_exist=path != DEFAULT_LOG), cpu.cpu, args.batch_size, cpu.registers)
    lowered = lower_tuned(
        model, args.batch_size, chosen.network(), chosen.dense, cpu, dump, tables, profile=args.profile
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
    if tables.copied is not None:
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
