"""Model -> verified library on disk: lower, write beside the destination, check, and only then put in place."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime, timezone
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

import numpy as np
import tvm
from tqdm import tqdm

from .artifact import open_artifact
from .cpu import host_flags
from .errors import UserError
from .lower import BAG_INPUTS, INPUTS, OUTPUTS, Lowered
from .manifest import FORMAT_VERSION, PLAIN_KERNELS, Manifest, describe, describe_numerics
from .model import Dlrm
from .numerics import Numerics, numerics_of
from .parameters import TABLES, ParameterSource, lay_out, write_parameters
from .selection import Selection
from .target import CpuTarget
from .verification import Verification, verify

COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
_STALE_SECONDS = 60  # a build that goes on writes, or creates a file, more often
LINK_BYTES = 16 << 20  # object files and library; those of the MLPerf model take 0.3 MB


def check_compiler() -> None:
    """Raises UserError where TVM would find nothing to link a shared library with."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    if not any(shutil.which(name) for name in ((named,) if named else COMPILERS)):
        what = f"{named} (from $CXX or $CC)" if named else ", ".join(COMPILERS)
        raise UserError(f"no C compiler found: looked for {what}. Install one: apt-get install gcc")


def check_finite(model: Dlrm) -> None:
    """MLP weights must be finite: kernels skip inputs that are zero, which is only right when 0 * w is 0."""
    for number, layer in enumerate(model.layers):
        if not (np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all()):
            raise UserError(f"{model.name}: layer {number} has weights that are not finite. Export the model anew.")


@contextmanager
def staging_directory(destination: Path):
    """A directory beside the destination, on its file system, that vanishes whatever happens."""
    destination.mkdir(parents=True, exist_ok=True)
    for left in destination.glob(".building-*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    staging = destination / f".building-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_abandoned(staging: Path) -> bool:
    """Whether the process that made it was killed outright. Its number may be that of a process in another container,
    so what is still being written to is not abandoned either."""
    pid = staging.name.split("-")[1]
    if pid.isdecimal() and Path(f"/proc/{pid}").exists():
        return False
    try:
        newest = max(path.stat().st_mtime for path in (staging, *staging.iterdir()))
    except OSError:  # it vanishes right now
        return False
    return time.time() - newest > _STALE_SECONDS


def build_library(
    model: Dlrm,
    lowered: Lowered,
    selection: Selection | None,
    target: CpuTarget,
    *,
    batch: int,
    name: str,
    directory: Path,
    onnx_model: Path | None = None,
    numerics: Numerics | None = None,
    accept: Callable[[Path], bool] | None = None,
) -> tuple[Path | None, Verification | None]:
    """Write directory/name_bBATCH.so with manifest and parameters, verified; nothing is left behind on failure.
    onnx_model: where the model came from, for the manifest; numerics: what `lowered` computes in, by default float32.
    accept: asked about the verified library before it is put in place; where it says no, nothing is put there, and the
    path is None.

    The verification is None where this CPU cannot run the library. Raises UserError when the disk is full, linking
    fails, or the library's predictions are wrong.
    """
    numerics = numerics or numerics_of(model, "fp32")
    with staging_directory(directory) as staging:
        staged = staging / f"{name}_b{batch}.so"
        try:
            _save(model, lowered, selection, target, staged, batch, onnx_model, numerics)
        except OSError as error:
            remedy = " Free some space." if error.errno in (ENOSPC, EDQUOT, EFBIG) else ""
            raise UserError(f"{directory}: {error.strerror} while writing; nothing was left behind.{remedy}") from error
        runs_here = set(target.flags) <= host_flags()
        verification = verify(open_artifact(staged, whole_tables=False), model, numerics) if runs_here else None
        if accept is not None and not accept(staged):
            return None, verification
        for suffix in (".params", ".json", ".so"):  # the library, which needs the others, comes last
            os.replace(staged.with_suffix(suffix), directory / staged.with_suffix(suffix).name)
    return directory / staged.name, verification


def _save(
    model: Dlrm,
    lowered: Lowered,
    selection: Selection | None,
    target: CpuTarget,
    path: Path,
    batch: int,
    onnx_model: Path | None,
    numerics: Numerics,
) -> None:
    build = uuid.uuid4().hex
    sources = [*lowered.tables.sources, lowered.mlp]
    entries, size = lay_out(sources)
    _check_free(path.parent.parent, size + LINK_BYTES)
    parameters = path.with_suffix(".params")
    with _progress(sources) as bar:
        parameter_sha256 = write_parameters(parameters, build, sources, entries, bar.update)
    _link(lowered, path)
    copied_at = next((entry.offset for entry in entries if entry.name == TABLES), 0)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        build=build,
        model=describe(model, numerics),
        batch_size=batch,
        precision=numerics.precision,
        target_cpu=target.cpu,
        cpu_features=target.flags,
        inputs=INPUTS,
        bag_inputs=BAG_INPUTS,
        outputs=OUTPUTS,
        library_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        parameter_file=parameters.name,
        parameter_bytes=size,
        parameter_sha256=parameter_sha256,
        parameters=entries,
        table_range=lowered.tables.table_range(parameters.name, copied_at),
        peak_flops_per_round=lowered.peak_flops_per_round,
        tuned_kernels=tuple(selection.tuned) if selection else (),
        untuned_kernels=tuple(selection.untuned) if selection else PLAIN_KERNELS,
        tvm_version=tvm.__version__,
        command=shlex.join(sys.argv),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        profile=lowered.parts,
        onnx_model=None if onnx_model is None else str(onnx_model.resolve()),
        directory=os.getcwd(),
        numerics=describe_numerics(numerics),
    )
    path.with_suffix(".json").write_text(manifest.to_json())


def _progress(sources: list[ParameterSource]) -> tqdm:
    """Shown on a terminal, where copying tables takes longer than a moment."""
    nbytes = sum(source.nbytes for source in sources)
    return tqdm(total=nbytes, desc="writing tables", unit="B", unit_scale=True, delay=1, leave=False, disable=None)


def check_room(directory: Path, table_bytes: int) -> None:
    """Raises UserError where the disk under `directory` cannot take so many bytes of tables and a library."""
    directory.mkdir(parents=True, exist_ok=True)
    _check_free(directory, LINK_BYTES + table_bytes)


def _check_free(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(f"{directory}: {free >> 20} MiB free, {-(-needed >> 20)} MiB needed. Free some space.")


def _link(lowered: Lowered, path: Path) -> None:
    """Object files go beside the library, on a disk that was looked at: LLVM ends the process where one is full."""
    _check_free(path.parent.parent, LINK_BYTES)
    try:
        lowered.executable.export_library(str(path), workspace_dir=str(path.parent))
    except RuntimeError as error:  # what TVM raises when the linker fails
        lines = [line.strip() for line in str(error).splitlines()]
        reason = [line for line in lines if line and not line.startswith("Command line:")][-1]
        raise UserError(f"{path.name} could not be linked: {reason}. Check the C compiler and the disk.") from error
