"""The files that a sweep leaves, against each other and those that it reads: nothing of value is overwritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from .errors import UserError
from .manifest import Manifest
from .output_files import check_writable
from .sweep_plot import check_plot
from .sweep_state import is_state


def check_outputs(files: Mapping[str, Path | None], *, resume: bool) -> None:
    """Raises UserError where one cannot be written, or would replace what is no sweep's. files: by their option.

    resume: the state will be read, which refuses what is none.
    """
    if files["--plot"]:
        check_plot(files["--plot"])
    named = {option: path for option, path in files.items() if path}
    for option, path in named.items():
        check_writable(option, path)
    if len({path.resolve() for path in named.values()}) < len(named):
        raise UserError("--csv, --json and --plot name one file twice. Give each a name of its own.")
    state = files["--json"]
    if not resume and state.exists() and not is_state(state):
        raise UserError(f"--json {state}: a file that no sweep left has that name. Give another name.")


def check_not_read(files: Mapping[str, Path | None], read: Iterable[Path | str | None]) -> None:
    """Raises UserError where the run reads what it would write."""
    taken = {Path(path).resolve() for path in read if path is not None}
    for option, path in files.items():
        if path and path.resolve() in taken:
            raise UserError(f"{option} {path}: the sweep reads that file. Give another name.")


def files_of_library(library: Path) -> list[Path]:
    return [library.with_suffix(suffix) for suffix in (".so", ".json", ".params")] + [library]


def files_of_model(manifest: Manifest, onnx_model: Path | None) -> list[str]:
    """What lies elsewhere: the ONNX file with what is beside it, tables that are used in place."""
    graphs = [str(path) for path in (onnx_model, manifest.onnx_model) if path]
    in_place = [piece.file for piece in manifest.table_range.pieces if piece.is_in_place]
    return [*graphs, *(f"{path}.data" for path in graphs), *in_place]
