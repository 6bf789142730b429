"""Libraries of one model side by side, for several batch sizes and precisions; missing ones are compiled.

    NAME_b100.so              --model, whose precision is the default
    NAME_b16.so               the same for batches of 16
    NAME_int8_b16.so          the same at another precision

A library's manifest records compile.py's options. Missing libraries are compiled by the same options, by compile.py
in its own process: this wing knows no TVM compiler. All libraries must be the same model for the same CPU, and all of
our kernels or all of TVM's. Which kernels were tuned is printed, because tuning logs differ by batch.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..console import Bar
from ..errors import UserError, interrupts_blocked
from ..instances.protocol import die_with_parent
from ..paths import COMPILE_COMMAND, COMPILE_SCRIPT, PREBUILT, WORK
from ..runtime.artifact import open_artifact
from ..runtime.manifest import Manifest
from .plan import Combination

_STEM = re.compile(r"(?P<name>.+)_b\d+")


class Kind(NamedTuple):
    """What tells the libraries of one sweep apart."""

    precision: str
    batch: int

    @staticmethod
    def of(combination: Combination, base: Manifest) -> Kind:
        """The library that a combination runs. base: --model's."""
        return Kind(combination.precision or base.precision, combination.batch)

    def label(self, base: Manifest) -> str:
        """ "16", or "16 int8" where the precision is not the base's."""
        return f"{self.batch}" if self.precision == base.precision else f"{self.batch} {self.precision}"


def sweep_name(library: Path) -> str:
    """The NAME that libraries of all batches share; the whole stem where it does not end in _bN."""
    found = _STEM.fullmatch(library.stem)
    return found["name"] if found else library.stem


def ensure_default(library: Path, show: Callable[[str], None]) -> None:
    """Compile the demo where the library that is run by default is missing."""
    if not library.exists():
        show(f"compiling {os.path.relpath(library)}: the demo model, for there is no library yet")
        _compile(["--output-name", sweep_name(library)], library, show)


def name_libraries(library: Path, base: Manifest, kinds: Iterable[Kind]) -> dict[Kind, Path]:
    """The library of each kind, there or not. base: the manifest of `library`, whose model they all are."""
    return {kind: _sibling(library, base, kind) for kind in kinds}


def ensure_libraries(
    library: Path, base: Manifest, libraries: Mapping[Kind, Path], show: Callable[[str], None]
) -> None:
    """Compile those of name_libraries that are missing.

    Raises UserError where one cannot be compiled or is another model, before anything is compiled if possible.
    """
    missing = [kind for kind, path in libraries.items() if not path.exists()]
    for kind in libraries.keys() - set(missing):
        _check_same_model(libraries[kind], base, kind)
    options = {kind: _compile_options(library, base, kind, libraries[kind]) for kind in missing}
    for number, kind in enumerate(missing, 1):
        show(f"compiling {os.path.relpath(libraries[kind])} ({number} of {len(missing)})")
        _compile(options[kind], libraries[kind], show)
        _check_same_model(libraries[kind], base, kind)


def _sibling(library: Path, base: Manifest, kind: Kind) -> Path:
    if kind == (base.precision, base.batch_size):
        return library
    if not _STEM.fullmatch(library.stem):
        raise UserError(
            f"{library}: a sweep over batches or precisions finds libraries by names that end in _bN.so. Rename it "
            "with its .json and .params, or compile anew: "
            f"{COMPILE_COMMAND} --output-name NAME --batch-size {base.batch_size}"
        )
    precision = "" if kind.precision == base.precision else f"_{kind.precision}"
    return library.with_name(f"{sweep_name(library)}{precision}_b{kind.batch}.so")


def _check_same_model(path: Path, base: Manifest, kind: Kind) -> None:
    """Raises UserError unless the library is of this kind, the base's model, and compiled in the same way."""
    found = open_artifact(path).manifest
    if found.batch_size != kind.batch:
        raise UserError(f"{path} is for batches of {found.batch_size}, its name says {kind.batch}. Compile it again.")
    if found.model.fingerprint != base.model.fingerprint or found.precision != kind.precision:
        raise UserError(
            f"{path} is of another model ({found.model.name}, {found.precision}) than --model "
            f"({base.model.name}, {kind.precision}). Delete it, and the sweep compiles it anew; or compile --model "
            "again, if its ONNX file has changed."
        )
    ways = (("for", found.target_cpu, base.target_cpu), ("with", _kernels(found), _kernels(base)))
    for what, theirs, ours in ways:
        if theirs != ours:
            none = " --tuning-log-file none" if base.is_plain else ""
            raise UserError(
                f"{path} was compiled {what} {theirs}, --model {what} {ours}. Delete it, and the sweep compiles it as "
                f"--model was; or compile it so: {_typed(path, kind)} --target-cpu {base.target_cpu}{none}"
            )


def _kernels(manifest: Manifest) -> str:
    return "TVM's default kernels" if manifest.is_plain else "kernels of ours"


def kernel_counts(manifest: Manifest) -> dict[str, int]:
    return {"tuned": len(manifest.tuned_kernels), "by_rule": 0 if manifest.is_plain else len(manifest.untuned_kernels)}


def difference_lines(manifests: Mapping[str, Manifest]) -> list[str]:
    """What differs between these libraries besides batch and precision, by their labels; no line where nothing does."""
    kernels = {
        label: "{tuned} tuned, {by_rule} by rule".format(**kernel_counts(each)) for label, each in manifests.items()
    }
    typed = {label: _flags({**(each.options or {}), "precision": None}) for label, each in manifests.items()}
    common = set.intersection(*map(set, typed.values()))
    flags = {label: " ".join(flag for flag in each if flag not in common) or "none" for label, each in typed.items()}
    return [
        f"  {title:<11} {'; '.join(f'batch {label}: {text}' for label, text in found.items())}"
        for title, found in (("kernels", kernels), ("compiled by", flags))
        if len(set(found.values())) > 1
    ]


def _compile_options(library: Path, base: Manifest, kind: Kind, wanted: Path) -> list[str]:
    """compile.py's arguments for the library `wanted`. Raises UserError where there is no way to make it."""
    why = None
    if base.options is None:
        why = f"{library} was not made by compile.py"
    elif library.resolve().parent != PREBUILT.resolve():
        why = f"{COMPILE_COMMAND} writes to {os.path.relpath(PREBUILT)} only, {library} lies elsewhere"
    if why:
        raise UserError(f"No library for batch {kind.label(base)}, and {why}. Compile it: {_typed(wanted, kind)}")
    options = base.options | {"precision": kind.precision, "target_cpu": base.target_cpu}
    if kind.precision != "int8":
        options["calibration_data"] = options["max_ind_range"] = None
    return _flags(options | {"batch_size": kind.batch, "output_name": sweep_name(wanted)})


def _flags(options: Mapping[str, object]) -> list[str]:
    """A manifest's options as they are typed."""
    return [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in options.items()
        if value is not None and value is not False
    ]


def deleted_text(library: Path, kind: Kind) -> str:
    return f"{library} for batch {kind.batch} was deleted since the sweep began. Compile it: {_typed(library, kind)}"


def _typed(library: Path, kind: Kind) -> str:
    precision = "" if kind.precision == "fp32" else f" --precision {kind.precision}"
    return (
        f"{COMPILE_COMMAND} --onnx-model FILE --batch-size {kind.batch} --output-name {sweep_name(library)}{precision}"
    )


def _in_child(parent_pid: int, mask: set[signal.Signals]) -> None:
    """Both outlive the exec."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    die_with_parent(parent_pid, signal.SIGTERM)


def _compile(arguments: list[str], library: Path, show: Callable[[str], None]) -> None:
    """Run compile.py to its end. Raises UserError with compile.py's own line.

    An interrupt ends compile.py too: by SIGTERM, on which it removes what it began, and is waited for.
    """
    began = time.monotonic()
    with ExitStack() as running:
        with interrupts_blocked() as mask:
            process = subprocess.Popen(
                [sys.executable, str(COMPILE_SCRIPT), *arguments],
                cwd=WORK,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                preexec_fn=partial(_in_child, os.getpid(), mask),
            )
            running.enter_context(process)
            running.callback(process.terminate)  # nothing where it has ended
        with Bar(f"compiling {library.name}"):
            errors = process.communicate()[1]
    if process.returncode or not library.exists():
        reason = (errors.strip().splitlines() or [f"status {process.returncode}"])[-1]
        raise UserError(f"{os.path.relpath(library)} could not be compiled: {reason}")
    show(f"compiled {os.path.relpath(library)} in {time.monotonic() - began:.0f} s")
