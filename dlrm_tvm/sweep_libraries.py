"""Libraries of one model for several batch sizes: NAME_b1.so, NAME_b100.so, .. side by side; missing ones compiled.

A library's manifest has the command that made it. The one for another batch is made by the same command with another
--batch-size, in the folder where it was typed; compile.py runs as a process of its own, for this side knows no TVM
compiler. What was compiled must be the same model as --model: equal in its fingerprint and precision, and made in the
same way: for the same CPU, of kernels of ours or of TVM's. Which of them were tuned is said, for logs differ by batch.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .artifact import open_artifact
from .control import die_with_parent
from .errors import UserError
from .manifest import Manifest

_ROOT = Path(__file__).resolve().parents[1]
_COMPILE = _ROOT / "compile.py"
_PREBUILT = _ROOT / "__prebuilt"
_END_WAIT_S = 30  # one call into TVM's code generation takes up to ten, on a busy machine more
_OF_ONE_CALL = ("--batch-size", "--output-name", "--dump-ir")
_STEM = re.compile(r"(?P<name>.+)_b\d+")


def sweep_name(library: Path) -> str:
    """The NAME that libraries of all batches share; the whole stem where it does not end in _bN."""
    found = _STEM.fullmatch(library.stem)
    return found["name"] if found else library.stem


def ensure_default(library: Path, show: Callable[[str], None]) -> None:
    """Compile the demo where the library that is run by default is missing."""
    if not library.exists():
        show(f"compiling {os.path.relpath(library)}: the demo model, for there is no library yet")
        _compile(["--output-name", sweep_name(library)], _ROOT, library, show)


def name_libraries(library: Path, base: Manifest, batches: Sequence[int]) -> dict[int, Path]:
    """batch -> library, there or not. `base`: the manifest of `library`, whose model they all are."""
    return {batch: _sibling(library, base, batch) for batch in batches}


def ensure_libraries(library: Path, base: Manifest, libraries: Mapping[int, Path], show: Callable[[str], None]) -> None:
    """Compile those of name_libraries that are missing.

    Raises UserError where one cannot be compiled or is of another model, before anything is compiled if possible.
    """
    missing = [batch for batch, path in libraries.items() if not path.exists()]
    for batch in libraries.keys() - set(missing):
        _check_same_model(libraries[batch], base, batch)
    commands = {batch: _command(library, base, batch) for batch in missing}
    for number, batch in enumerate(missing, 1):
        show(f"compiling {os.path.relpath(libraries[batch])} ({number} of {len(missing)})")
        _compile(*commands[batch], libraries[batch], show)
        _check_same_model(libraries[batch], base, batch)


def _sibling(library: Path, base: Manifest, batch: int) -> Path:
    if batch == base.batch_size:
        return library
    if not _STEM.fullmatch(library.stem):
        raise UserError(
            f"{library}: a sweep over batches finds libraries by names that end in _bN.so. Rename it with its .json "
            f"and .params, or compile anew: python compile.py --output-name NAME --batch-size {base.batch_size}"
        )
    return library.with_name(f"{sweep_name(library)}_b{batch}.so")


def _check_same_model(path: Path, base: Manifest, batch: int) -> None:
    """Raises UserError unless the library is of this batch, model and precision."""
    found = open_artifact(path).manifest
    if found.batch_size != batch:
        raise UserError(f"{path} is for batches of {found.batch_size}, its name says {batch}. Compile it again.")
    if found.model.fingerprint != base.model.fingerprint or found.precision != base.precision:
        raise UserError(
            f"{path} is of another model ({found.model.name}, {found.precision}) than --model "
            f"({base.model.name}, {base.precision}). Delete it, and the sweep compiles it anew; or compile --model "
            "again, if its ONNX file has changed."
        )
    for what, theirs, ours in (
        ("for", found.target_cpu, base.target_cpu),
        ("with", _kernels(found), _kernels(base)),
    ):
        if theirs != ours:
            raise UserError(
                f"{path} was compiled {what} {theirs}, --model {what} {ours}. Delete it, and the sweep compiles it as "
                f"--model was; or compile it so: {_typed(batch, path)} --target-cpu {base.target_cpu}"
                + (" --tuning-log-file none" if base.is_plain else "")
            )


def _kernels(manifest: Manifest) -> str:
    return "TVM's default kernels" if manifest.is_plain else "kernels of ours"


def kernel_counts(manifest: Manifest) -> dict[str, int]:
    return {"tuned": len(manifest.tuned_kernels), "by_rule": 0 if manifest.is_plain else len(manifest.untuned_kernels)}


def difference_lines(manifests: Mapping[int, Manifest]) -> list[str]:
    """What still differs between the libraries of these batches, in a line each; none where nothing does."""
    kernels = {
        batch: "{tuned} tuned, {by_rule} by rule".format(**kernel_counts(each)) for batch, each in manifests.items()
    }
    flags = {
        batch: shlex.join(repeatable_flags(shlex.split(each.command)[1:], (*_OF_ONE_CALL, "--target-cpu"))) or "none"
        for batch, each in manifests.items()
    }
    named = (("kernels", kernels), ("compiled by", flags))
    return [
        f"  {label:<11} {'; '.join(f'batch {batch}: {text}' for batch, text in found.items())}"
        for label, found in named
        if len(set(found.values())) > 1
    ]


def _command(library: Path, base: Manifest, batch: int) -> tuple[list[str], Path]:
    """compile.py's arguments for another batch, and the folder to run it in. Raises UserError where nobody knows."""
    words = shlex.split(base.command)
    why = None
    if not words or Path(words[0]).name != _COMPILE.name:
        why = f"{library} was not made by compile.py"
    elif library.resolve().parent != _PREBUILT.resolve():
        why = f"compile.py writes to {os.path.relpath(_PREBUILT)} only, {library} lies elsewhere"
    elif base.directory is None and _has_relative_path(words[1:]):
        why = f"{library} was compiled by an older program that did not record where"
    elif base.directory is not None and not Path(base.directory).is_dir():
        why = f"{base.directory}, where {library} was compiled, is gone"
    if why:
        raise UserError(f"No library for batch {batch}, and {why}. Compile it: {_typed(batch, library)}")
    kept = repeatable_flags(words[1:])
    cpu = ["--target-cpu", base.target_cpu]  # this host may be another than the one which --model was compiled on
    arguments = [*kept, *cpu, "--batch-size", str(batch), "--output-name", sweep_name(library)]
    return arguments, Path(base.directory or _ROOT)


def deleted_text(batch: int, library: Path) -> str:
    return f"{library} for batch {batch} was deleted since the sweep began. Compile it: {_typed(batch, library)}"


def _typed(batch: int, library: Path) -> str:
    return f"python compile.py --onnx-model FILE --batch-size {batch} --output-name {sweep_name(library)}"


def repeatable_flags(arguments: Sequence[str], left_out: Sequence[str] = _OF_ONE_CALL) -> list[str]:
    """Without those that belong to one call: batch and name, the search for schedules, the dump."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tune", action="store_true")
    for option in left_out:
        parser.add_argument(option)
    return parser.parse_known_args(arguments)[1]


def _has_relative_path(arguments: Sequence[str]) -> bool:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--onnx-model", type=Path)
    parser.add_argument("--tuning-log-file", type=Path)
    named = parser.parse_known_args(arguments)[0]
    paths = [path for path in vars(named).values() if path is not None and str(path) != "none"]
    return not all(path.is_absolute() for path in paths)


def _compile(arguments: list[str], directory: Path, library: Path, show: Callable[[str], None]) -> None:
    """Run compile.py to its end; ended itself when this is interrupted. Raises UserError with compile.py's own line."""
    began = time.monotonic()
    command = [sys.executable, str(_COMPILE), *arguments]
    process = None
    try:
        with _signals_held():
            process = subprocess.Popen(
                command,
                cwd=directory,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                # SIGTERM, on which compile.py removes what it began; it outlives the exec
                preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),
            )
        errors = process.communicate()[1]
    except BaseException:
        if process is not None:
            _end(process)
        raise
    if process.returncode or not library.exists():
        reason = (errors.strip().splitlines() or [f"status {process.returncode}"])[-1]
        raise UserError(f"{os.path.relpath(library)} could not be compiled: {reason}")
    show(f"compiled {os.path.relpath(library)} in {time.monotonic() - began:.0f} s")


def _end(process: subprocess.Popen) -> None:
    """SIGTERM first: compile.py removes what it began, once TVM lets it."""
    process.terminate()
    try:
        process.wait(_END_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _signals_held() -> Iterator[None]:
    """No interrupt between starting a process and knowing of it. Handlers, unlike masks, do not outlive exec."""
    held: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, frame: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for number in held:
        signal.raise_signal(number)
