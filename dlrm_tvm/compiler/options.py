"""The flags of compile.py, and the mistakes in them that can be found without reading the model."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ..data.demo import DEMO_TABLE_ROWS, DEMOS
from ..data.scoring import check_auc_ratio
from ..errors import UserError
from ..machine.files import check_writable
from ..model.precision import PRECISIONS
from ..paths import DEFAULT_LOG, PREBUILT, log_to_extend
from ..schedules.tuning_log import check_appendable, read_log

ISAS = ("auto", "avx512", "amx")
_TUNE_SECONDS = 120.0
_LARGEST_BATCH = 1_000_000
_LONGEST_NAME = 100
_OF_ONE_CALL = (
    *("batch_size", "output_name", "directory", "target_cpu"),
    *("tune", "tune_seconds", "dump_ir", "ref_data", "min_auc_ratio"),
)


@dataclass(frozen=True)
class CompileSettings:
    """One field per flag, and the directory for the library. onnx_model and torch_weights None: a demo model;
    precision "auto": the fastest that passes the gate; tuning_log_file None: TVM's default code generation;
    tune_seconds: None without tune; target_cpu None: this host.
    """

    onnx_model: Path | None = None
    torch_weights: Path | None = None
    demo: str | None = None
    demo_table_rows: int = DEMO_TABLE_ROWS
    batch_size: int = 100
    precision: str = "fp32"
    calibration_data: Path | None = None
    ref_data: Path | None = None
    max_ind_range: int | None = None
    min_auc_ratio: float | None = None
    tuning_log_file: Path | None = DEFAULT_LOG
    tune: bool = False
    tune_seconds: float | None = None
    output_name: str = "dlrm_avx512"
    copy_tables: bool = False
    profile: bool = False
    target_cpu: str | None = None
    isa: str = "auto"
    dump_ir: Path | None = None
    directory: Path = PREBUILT

    @property
    def is_demo(self) -> bool:
        return self.onnx_model is None and self.torch_weights is None

    @property
    def library(self) -> Path:
        return self.directory / f"{self.output_name}_b{self.batch_size}.so"


def add_compile_options(parser: argparse.ArgumentParser) -> None:
    _add_model_options(parser)
    _add_precision_options(parser)
    _add_schedule_options(parser)
    _add_output_options(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--onnx-model", type=Path, help="the ONNX DLRM; default: the built-in demo model")
    parser.add_argument(
        "--torch-weights",
        type=Path,
        metavar="FILE",
        help="in its place a state dict of PyTorch, .pt, .safetensors or the index of several files: writes FILE.onnx, "
        "which points into it",
    )
    parser.add_argument(
        "--demo",
        choices=DEMOS,
        help="which demo model: MLPerf's first DLRM, or v2, the second one (DLRM-DCNv2); default v1",
    )
    parser.add_argument(
        "--demo-table-rows",
        type=int,
        default=DEMO_TABLE_ROWS,
        help="cap the demo model's tables at so many rows; default %(default)s",
    )
    parser.add_argument(
        "--batch-size", type=int, default=100, help="items per call of the library; default %(default)s"
    )


def _add_precision_options(parser: argparse.ArgumentParser) -> None:
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
        help="int8: take the activations' scales from these items, a file of any kind that accuracy.py reads; "
        "default: a scale for each row, which needs no data",
    )
    parser.add_argument(
        "--ref-data", type=Path, metavar="FILE", help="auto: data to judge accuracy on; the demo model has its own"
    )
    parser.add_argument(
        "--max-ind-range",
        type=int,
        metavar="N",
        help="take the indices of both files modulo N, as facebookresearch/dlrm's --max-ind-range does in training",
    )
    parser.add_argument(
        "--min-auc-ratio", type=float, help="auto: least AUC of the library / AUC of the reference; default 0.999"
    )


def _add_schedule_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tuning-log-file",
        type=_log_file,
        default=DEFAULT_LOG,
        help="schedules to use; none: TVM's default code generation",
    )
    parser.add_argument(
        "--tune", action="store_true", help="search schedules on this machine and append them to the log"
    )
    parser.add_argument(
        "--tune-seconds",
        type=float,
        metavar="N",
        help=f"--tune: begin no trial after so many seconds; default {_TUNE_SECONDS:g}",
    )


def _log_file(text: str) -> Path | None:
    return None if text == "none" else Path(text)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output-name", default="dlrm_avx512", help="NAME of __prebuilt/NAME_bN.so; default %(default)s"
    )
    parser.add_argument(
        "--copy-tables",
        action="store_true",
        help="copy the tables beside the library, so that the ONNX model can be deleted; default: use them in place",
    )
    parser.add_argument(
        "--profile", action="store_true", help="add the functions that multi_instance.py --profile needs"
    )
    parser.add_argument("--target-cpu", help="LLVM -mcpu, such as sapphirerapids; default: this host")
    parser.add_argument(
        "--isa",
        choices=ISAS,
        default="auto",
        help="avx512: vectors alone; amx: tiles, or an error; auto: tiles where CPU and kernel grant them and the "
        "batch has 4 items or more, in int8 8, in fp32 16; default %(default)s",
    )
    parser.add_argument("--dump-ir", type=Path, metavar="DIR", help="write what each phase made, the assembly included")


def compile_settings(args: argparse.Namespace, directory: Path) -> CompileSettings:
    """The flags of add_compile_options as settings. Raises UserError for mistakes that show without the model."""
    chosen = {each.name: getattr(args, each.name) for each in fields(CompileSettings) if each.name != "directory"}
    settings = CompileSettings(**chosen, directory=directory)
    checks = (_check_numbers, _check_name, _check_tuning, _check_schedules, _check_precision, _check_auto)
    for check in (_check_model, *checks):
        check(settings)
    if settings.tune:
        seconds = settings.tune_seconds or _TUNE_SECONDS
        settings = replace(settings, tuning_log_file=log_to_extend(settings.tuning_log_file), tune_seconds=seconds)
    _check_files(settings)
    return settings


def repeatable_options(settings: CompileSettings, precision: str) -> dict[str, object]:
    """The flags, for the manifest, that make the same library for another batch size. precision: of this one."""
    options = {name: value for name, value in asdict(settings).items() if name not in _OF_ONE_CALL}
    options["precision"] = precision
    if precision != "int8":
        options["calibration_data"] = None  # "auto" may have tried int8 first
    if options["calibration_data"] is None:
        options["max_ind_range"] = None
    if settings.tuning_log_file in (None, DEFAULT_LOG):
        options["tuning_log_file"] = "none" if settings.tuning_log_file is None else None
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in options.items()}


def _check_numbers(settings: CompileSettings) -> None:
    if settings.batch_size < 1:
        raise UserError(f"--batch-size {settings.batch_size}: at least 1 was wanted.")
    if settings.batch_size > _LARGEST_BATCH:
        raise UserError(f"--batch-size {settings.batch_size}: at most {_LARGEST_BATCH} was wanted.")
    if settings.demo_table_rows < 1:
        raise UserError(f"--demo-table-rows {settings.demo_table_rows}: at least 1 was wanted.")


def _check_model(settings: CompileSettings) -> None:
    named = {"--demo": settings.demo, "--onnx-model": settings.onnx_model, "--torch-weights": settings.torch_weights}
    given = [f"{flag} {value}" for flag, value in named.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} name {len(given)} models. Give one of them.")
    if settings.torch_weights is not None and not settings.torch_weights.is_file():
        raise UserError(f"{settings.torch_weights}: no such file; PyTorch weights were wanted. Check --torch-weights.")


def _check_name(settings: CompileSettings) -> None:
    name = settings.output_name
    is_file_name = Path(name).name == name and not name.startswith(".")
    if not is_file_name or not 1 <= len(name) <= _LONGEST_NAME:
        raise UserError(f"--output-name {name}: a plain name was wanted, without a directory.")


def _check_tuning(settings: CompileSettings) -> None:
    seconds = settings.tune_seconds
    if seconds is not None and not settings.tune:
        raise UserError("--tune-seconds limits the search of --tune. Give both, or neither.")
    if seconds is not None and not 0 < seconds < math.inf:  # a NaN is neither
        raise UserError(f"--tune-seconds {seconds:g}: a number of seconds above 0 was wanted.")


def _check_schedules(settings: CompileSettings) -> None:
    if settings.tuning_log_file is not None:
        return
    if settings.precision != "fp32":
        raise UserError("--tuning-log-file none compiles in fp32 alone: TVM's operators have no others. Leave one out.")
    if settings.isa == "amx":
        raise UserError("--isa amx asks for kernels of ours; --tuning-log-file none has none. Give one of the two.")
    if settings.profile:
        raise UserError("--profile times kernels of ours; --tuning-log-file none has none. Give one of the two.")
    if settings.tune:
        raise UserError("--tune needs a log to append to. Give --tuning-log-file a path.")


def _check_precision(settings: CompileSettings) -> None:
    quantizes = settings.precision in ("int8", "auto")
    if settings.calibration_data is not None and not quantizes:
        raise UserError(f"--calibration-data is for int8, not for --precision {settings.precision}. Leave one out.")
    files = (("--calibration-data", settings.calibration_data), ("--ref-data", settings.ref_data))
    if settings.max_ind_range is not None and not any(path for _, path in files):
        raise UserError(
            "--max-ind-range is for the indices of data. Give --calibration-data FILE too, or leave it out."
        )
    for flag, path in files:
        if path is not None and quantizes and not path.exists():
            raise UserError(f"{path}: no such file. Give {flag} another.")


def _check_auto(settings: CompileSettings) -> None:
    if settings.precision != "auto":
        for flag, value in (("--ref-data", settings.ref_data), ("--min-auc-ratio", settings.min_auc_ratio)):
            if value is not None:
                raise UserError(f"{flag} is what --precision auto judges by. Leave it out, or give --precision auto.")
    elif settings.ref_data is None and not settings.is_demo:
        raise UserError("--precision auto judges accuracy on reference data. Give it with --ref-data FILE.")
    elif settings.tune:
        raise UserError("--tune searches for one precision. Give --precision fp32, bf16 or int8.")
    elif settings.min_auc_ratio is not None:
        check_auc_ratio(settings.min_auc_ratio)


def _check_files(settings: CompileSettings) -> None:
    """The log is read twice, to be refused before a model is read or generated. Folders to write to come last: they are
    made."""
    log = settings.tuning_log_file
    if log is not None:
        read_log(log, must_exist=log != DEFAULT_LOG and not settings.tune)
    if settings.tune:
        check_appendable(log)
    check_writable("--output-name", settings.library, missing_folder_is_made=True)
    if settings.dump_ir is not None:
        check_writable("--dump-ir", settings.dump_ir / "1_model.json", missing_folder_is_made=True)
