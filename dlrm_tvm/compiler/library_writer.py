"""A compiled model -> files: written to a directory beside the destination, and put in place once they are verified."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import NoReturn

import tvm
from tvm import relax

from ..console import Bar
from ..errors import UserError, interrupts_blocked
from ..machine.files import locked
from ..model.card import describe, describe_numerics
from ..runtime.manifest import FORMAT_VERSION, Manifest, Parameter, Peak
from ..runtime.parameters import TABLES, lay_out, rest_sha256, write_parameters
from .conversion_journal import NoRoomError
from .job import Job
from .lower import BAG_INPUTS, INPUTS, OUTPUTS, other_peaks, peak_loop
from .options import repeatable_options
from .roofline import roofline

COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
_STALE_SECONDS = 60  # a running build writes, or creates a file, more often
_NO_REASONS = ("Command line:", "compilation terminated", "collect2: error: ld returned")  # how a compiler's text ends
LINK_BYTES = 16 << 20  # for object files and the library; those of the MLPerf model take 0.3 MB


def check_compiler() -> None:
    """Raises UserError where TVM would find no compiler to link a shared library with."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    if not any(shutil.which(name) for name in ((named,) if named else COMPILERS)):
        what = f"{named} (from $CXX or $CC)" if named else ", ".join(COMPILERS)
        raise UserError(f"no C compiler found: looked for {what}. Install one: apt-get install gcc")


@contextmanager
def staging_directory(destination: Path):
    """A directory beside the destination, on its file system, that is removed whatever happens."""
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
    """Whether the process that made it was killed outright. Its number may mean another process in another container,
    so a directory that is still written to is not abandoned either."""
    pid = staging.name.split("-")[1]
    if pid.isdecimal() and Path(f"/proc/{pid}").exists():
        return False
    try:
        newest = max(path.stat().st_mtime for path in (staging, *staging.iterdir()))
    except OSError:  # it vanishes right now
        return False
    return time.time() - newest > _STALE_SECONDS


@dataclass(frozen=True)
class _ParameterFile:
    path: Path
    nbytes: int
    sha256: str
    rest_sha256: str
    entries: tuple[Parameter, ...]

    @property
    def copied_at(self) -> int:
        """Where the tables begin that are copied into it; 0 where none are."""
        return next((entry.offset for entry in self.entries if entry.name == TABLES), 0)


def stage(job: Job) -> Job:
    """Write NAME_bBATCH.so, its parameters and its manifest to job.staging.

    Raises UserError when the disk is full or linking fails.
    """
    path = job.staging / f"{job.file_name}.so"
    build = uuid.uuid4().hex if job.journal is None else job.journal.build
    try:
        parameters = _write_parameters(job, path.with_suffix(".params"), build)
        _link(job.executable, path)
        path.with_suffix(".json").write_text(_manifest(job, path, parameters, build).to_json())
    except OSError as error:
        left = "nothing was left behind" if job.journal is None else "no library was left behind"
        said = f"{job.settings.directory}: {error.strerror} while writing; {left}."
        if error.errno in (ENOSPC, EDQUOT, EFBIG):
            raise NoRoomError(f"{said} Free some space.") from error
        raise UserError(said) from error
    return replace(job, staged=path)


def put_in_place(job: Job) -> Job:
    """Move the staged files to the destination; an older library there is replaced."""
    library = job.settings.directory / job.staged.name
    if job.journal is not None:
        job.journal.release()
    # Neither two compilations of one name nor Ctrl-C may leave files of two builds.
    with locked(job.settings.directory), interrupts_blocked():
        for suffix in (".params", ".json", ".so"):  # the library needs the others and comes last
            os.replace(job.staged.with_suffix(suffix), library.with_suffix(suffix))
    return replace(job, library=library)


def _write_parameters(job: Job, path: Path, build: str) -> _ParameterFile:
    sources, journal = [*job.tables.sources, job.mlp], job.journal
    entries, size = lay_out(sources)
    _check_free(path.parent.parent, size + LINK_BYTES - job.kept_bytes)
    with Bar("writing tables", sum(source.nbytes for source in sources), "B") as bar:
        if journal is None:
            sha256 = write_parameters(path, build, sources, entries, bar.update)
        else:
            kept = {"kept": journal.kept, "keep": journal.keep}
            sha256 = write_parameters(journal.file, build, sources, entries, bar.update, **kept)
            journal.hand_over(path)
    return _ParameterFile(path, size, sha256, rest_sha256(path, entries), entries)


def _link(executable: relax.VMExecutable, path: Path) -> None:
    """Object files go beside the library, to a disk with enough room."""
    _check_free(path.parent.parent, LINK_BYTES)
    status, said = _in_child(lambda: executable.export_library(str(path), workspace_dir=str(path.parent)))
    if status:
        lines = [line.strip() for line in said.splitlines()]
        lines = [line for line in lines if line and not line.startswith(_NO_REASONS)]
        of_llvm = [line for line in lines if line.startswith("LLVM ERROR")]
        reason = (of_llvm or lines or [f"its process ended with status {status}"])[-1]
        kind = NoRoomError if os.strerror(ENOSPC) in said else UserError
        raise kind(f"{path.name} could not be linked: {reason}. Check the C compiler and the disk.")


def _in_child(work: Callable[[], None]) -> tuple[int, str]:
    """Do it in a fork of this process: on a full disk LLVM ends the process that it is in. (status as of waitpid, what
    it wrote to stderr, its exception last); 0 for success."""
    reading, writing = os.pipe()
    pid = None
    try:
        with interrupts_blocked() as mask:
            pid = os.fork()
            if pid == 0:
                _work_and_exit(work, writing, mask)
        os.close(writing)
        with os.fdopen(reading, "rb") as stderr:
            said = stderr.read().decode(errors="replace")
        return os.waitpid(pid, 0)[1], said
    except BaseException:
        if pid:
            _kill(pid)
        raise


def _work_and_exit(work: Callable[[], None], stderr: int, mask: set[int]) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(stderr, 2)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        work()
        status = 0
    except Exception as error:
        os.write(2, str(error).encode())
    finally:
        os._exit(status)


def _kill(child: int) -> None:
    """With what it started; it may not have a group of its own yet, or have been waited for."""
    for number in (child, -child):
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(child, 0)


def _manifest(job: Job, library: Path, parameters: _ParameterFile, build: str) -> Manifest:
    profiled = job.settings.profile and job.planned is not None
    return Manifest(
        format_version=FORMAT_VERSION,
        build=build,
        model=describe(job.model, job.numerics, job.family.parts),
        batch_size=job.settings.batch_size,
        precision=job.numerics.precision,
        family=job.family.name,
        target_cpu=job.cpu.cpu,
        cpu_features=job.cpu_features,
        inputs=INPUTS,
        bag_inputs=BAG_INPUTS,
        outputs=OUTPUTS,
        library_sha256=hashlib.sha256(library.read_bytes()).hexdigest(),
        parameter_file=parameters.path.name,
        parameter_bytes=parameters.nbytes,
        parameter_sha256=parameters.sha256,
        parameters=parameters.entries,
        table_range=job.tables.table_range(parameters.path.name, parameters.copied_at),
        peak_flops_per_round=peak_loop(job).flops_per_round,
        other_peaks=tuple(
            Peak(precision, loop.family.name, loop.flops_per_round) for precision, loop in other_peaks(job).items()
        ),
        tuned_kernels=job.schedules.tuned,
        untuned_kernels=job.schedules.untuned,
        tvm_version=tvm.__version__,
        command=shlex.join(sys.argv),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        profile=roofline(job.model, job.planned.plan) if profiled else (),
        onnx_model=None if job.onnx_model is None else str(job.onnx_model.resolve()),
        directory=os.getcwd(),
        numerics=describe_numerics(job.numerics),
        machine=None if job.machine is None else job.machine.fields,
        rest_sha256=parameters.rest_sha256,
        options=None if job.onnx_model is None else repeatable_options(job.settings, job.numerics.precision),
    )


def check_room(directory: Path, table_bytes: int) -> None:
    """Raises NoRoomError where the disk under `directory` has no room for so many bytes of tables and a library."""
    directory.mkdir(parents=True, exist_ok=True)
    _check_free(directory, LINK_BYTES + table_bytes)


def _check_free(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise NoRoomError(f"{directory}: {free >> 20} MiB free, {-(-needed >> 20)} MiB needed. Free some space.")
