"""Step 1 of 3: turn an ONNX DLRM into a tuned shared library, `__prebuilt/NAME_bN.so`, with TVM.

Reads --onnx-model or --torch-weights (default: the built-in demo model), --tuning-log-file and, where they are given,
sample items for int8's activations or reference data; leaves NAME_bN.so, its parameters and its manifest, and beside
PyTorch's weights an ONNX file. The library is checked against a NumPy reference before success is reported.
The phases are listed in dlrm_tvm/compiler/pipeline.py.
"""

from __future__ import annotations

from dlrm_tvm.errors import UserError, reported, run_script

with reported():
    import argparse
    import time

    from dlrm_tvm.compiler.options import add_compile_options, compile_settings
    from dlrm_tvm.console import add_version, result_line, summary
    from dlrm_tvm.paths import PREBUILT


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=summary(__doc__))
    add_version(parser)
    add_compile_options(parser)
    return parser.parse_args()


def main() -> int:
    settings = compile_settings(parse_args(), PREBUILT)
    start = time.perf_counter()
    # Imported here: --help and wrong flags should not wait for TVM.
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
    job = compile_model(job)
    print(result_line(result(job, time.perf_counter() - start)))
    return 0


def command() -> None:
    run_script(main)


if __name__ == "__main__":
    command()
