"""Step 1 of 3: turn an ONNX DLRM into a tuned shared library, `__prebuilt/NAME_bN.so`, with TVM.

Reads --onnx-model or --torch-weights (default: the built-in demo model), --tuning-log-file and, where they are given,
sample items for int8's activations or reference data; leaves NAME_bN.so, its parameters and its manifest, and beside
PyTorch's weights an ONNX file. The library is checked against a NumPy reference before success is reported.
The phases are listed in dlrm_tvm/compiler/pipeline.py. Exit status 3: no precision of auto is accurate enough.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # python -I and -P leave it out
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from dlrm_tvm.errors import UserError, interrupts_blocked, reported, run_script

with reported(), interrupts_blocked():
    import argparse
    import time
    from pathlib import Path

    from dlrm_tvm.compiler.options import CompileSettings, add_compile_options, compile_settings
    from dlrm_tvm.console import Parser, add_output_options, terminal
    from dlrm_tvm.data.state_dict import graph_path
    from dlrm_tvm.machine.files import check_not_read, check_writable, leave_result
    from dlrm_tvm.paths import PREBUILT
    from dlrm_tvm.runtime.artifact import files_of_library


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add_compile_options(parser)
    add_output_options(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    settings = compile_settings(args, PREBUILT)
    if args.output:
        check_writable("--output", args.output)
        check_not_read({"--output": args.output}, files_of_compilation(settings))
    with terminal(quiet=args.quiet):
        fields = compile_library(settings)
    leave_result(fields, args.output)
    return 0


def files_of_compilation(settings: CompileSettings) -> list[Path | str | None]:
    """All that is read, and what is written besides a result."""
    weights = settings.torch_weights
    files = [settings.tuning_log_file, settings.calibration_data, settings.ref_data, weights]
    graph = graph_path(weights) if weights else settings.onnx_model
    return [*files, *files_of_library(settings.library, graph)]


def compile_library(settings: CompileSettings) -> dict[str, object]:
    start = time.perf_counter()
    # Imported here: --help and wrong flags should not wait for TVM.
    from dlrm_tvm.runtime.tvm_alone import import_compiler

    import_compiler()  # before all others that import it
    from dlrm_tvm.compiler.job import Job
    from dlrm_tvm.compiler.pipeline import compile_model, numbers_chosen
    from dlrm_tvm.compiler.summary import result
    from dlrm_tvm.frontend.reader import read_dlrm

    job = Job(settings, read_dlrm)
    if settings.tune:
        from dlrm_tvm.tuning.search import tune

        job = numbers_chosen(job)
        if job.family.tiles:
            raise UserError("--tune searches schedules of vectors; those of tiles follow a rule. Give --isa avx512.")
        log, seconds = settings.tuning_log_file, settings.tune_seconds
        tune(job.model, settings.batch_size, job.cpu, log, job.numerics, seconds)
    return result(compile_model(job), time.perf_counter() - start)


def command() -> None:
    run_script(main)


if __name__ == "__main__":
    command()
