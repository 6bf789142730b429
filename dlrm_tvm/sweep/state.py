"""The state of a sweep: JSON Lines, one appended and synced per finished run, read again by --resume.

    {"kind": "dlrm_tvm sweep", "version": 1, "seed": 3, "settings": {..}, "environment": {..}, "runs": 12}    the start
    {"round": 0, "instances": 2, "threads": 1, "batch_size": 16, "figures": {..}}                  a run that succeeded
    {"round": 0, "instances": 1, "threads": 2, "batch_size": 16, "error": ".."}                    a run that failed

--resume adds another start before its first run. Every line ends in a checksum of its fields, "crc32"; its fields are
those of a dataclass, `_Start` or results.RunEntry, or the file is refused. A last line without its newline is a write
that was cut short: --resume drops it and repeats that run.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..machine.files import write_whole
from ..runtime.typed_json import parse, read_as
from .plan import Combination
from .report import combination_json
from .results import Outcome, read_outcome

KIND = "dlrm_tvm sweep"
_VERSION = 1  # of the lines
_MARK = f'"kind": "{KIND}"'.encode()  # near the beginning of a sweep's states and results
_HEAD_BYTES = 100


@dataclass(frozen=True)
class State:
    """What an earlier sweep left. environments: where it began and was resumed; runs: planned the last time.

    whole_bytes: of the file, without a last line that was cut short.
    """

    seed: int
    settings: dict[str, object]
    environments: list[dict]
    runs: int
    outcomes: list[Outcome]
    whole_bytes: int

    @property
    def measured(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.figures is not None]

    @property
    def is_finished(self) -> bool:
        return len({outcome.planned for outcome in self.outcomes}) >= self.runs


@contextmanager
def open_state(path: Path) -> Iterator[FileIO]:
    """The file to append to, locked; removed again where no run was appended.

    The kernel frees the lock however this process ends. Raises UserError where another sweep has it.
    """
    with path.open("ab", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_taken = os.fstat(file.fileno()).st_nlink == 0  # an ending sweep has just removed it
        except BlockingIOError:
            is_taken = True
        if is_taken:
            raise UserError(
                f"Another sweep is at work on {path}. Wait for it, or give this one files of its own: --output FILE."
            )
        try:
            yield file
        finally:
            if not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)


def append(file: FileIO, *entries: Mapping[str, object]) -> None:
    """One line each, on the disk when this returns."""
    write_whole(file, memoryview(b"".join(map(_line, entries))))
    os.fsync(file.fileno())


def start_entry(seed: int, settings: Mapping[str, object], environment: Mapping[str, object], runs: int) -> dict:
    first = {"kind": KIND, "version": _VERSION, "seed": seed}
    return {**first, "settings": settings, "environment": environment, "runs": runs}


def run_entry(outcome: Outcome) -> dict:
    result = {"figures": outcome.figures} if outcome.error is None else {"error": outcome.error}
    return {"round": outcome.planned.round, **combination_json(outcome.planned.combination), **result}


def _line(entry: Mapping[str, object]) -> bytes:
    return json.dumps({**entry, "crc32": _checksum(entry)}, allow_nan=False).encode() + b"\n"


def _checksum(entry: Mapping[str, object]) -> int:
    return zlib.crc32(json.dumps(entry).encode())


@dataclass(frozen=True)
class _Start:
    kind: str
    version: int
    seed: int
    settings: dict[str, Any]
    environment: dict[str, Any]
    runs: int


def read_state(path: Path) -> State:
    """Raises UserError where there is none to resume."""
    try:
        return _parse(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} is not what a sweep of this version leaves ({error}). Leave --resume out, or give --output."
        ) from None


def _parse(content: bytes) -> State:
    """Raises ValueError where it is not the state of a sweep of this version."""
    whole = content[: content.rfind(b"\n") + 1]
    starts, outcomes = [], []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = _entry(line)
            if "kind" in entry:
                starts.append(read_as(_Start, entry, "start"))
            else:
                outcomes.append(read_outcome(entry))
            if not starts or (starts[-1].kind, starts[-1].version) != (KIND, _VERSION):
                raise ValueError("no start of a sweep")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    if not starts:
        raise ValueError("no whole line")
    environments = [start.environment for start in starts]
    state = State(starts[0].seed, starts[0].settings, environments, starts[-1].runs, outcomes, len(whole))
    if len({outcome.planned for outcome in state.measured}) < len(state.measured):
        raise ValueError("a run that is there twice")
    return state


def _entry(line: bytes) -> dict[str, Any]:
    """Raises ValueError for a line that no sweep wrote."""
    entry = parse(line.decode())
    if not isinstance(entry, dict) or entry.pop("crc32", None) != _checksum(entry):
        raise ValueError("a damaged line")
    return entry


def is_of_a_sweep(path: Path) -> bool:
    """Whether a sweep wrote this state or result, of this version or another."""
    with path.open("rb") as file:
        return _MARK in file.read(_HEAD_BYTES)


def keep_earlier(file: FileIO, state_path: Path, result_path: Path) -> str | None:
    """Empty the open state; what it held, and the result, are kept under other names.

    What to say about it; None where nothing is lost.
    """
    content = state_path.read_bytes()
    try:
        state = _parse(content)
    except ValueError:
        state = None
    lost = [state_path] if content and (state is None or state.measured) else []
    lost += [result_path] if result_path.exists() else []
    kept = {path: _free_name(path) for path in lost}
    for path, name in kept.items():
        shutil.copyfile(path, name)
    file.truncate(0)
    if not lost:
        return None
    if not (state and state.measured):
        return f"{lost[0]}, which another sweep left, is kept as {kept[lost[0]]}"
    runs = len(state.measured)
    what = f"finished sweep's {runs} run{'s' * (runs > 1)} were in {state_path}, kept as {kept[state_path]}"
    return f"a {what}" if state.is_finished else f"an un{what}: --resume would have gone on with them"


def _free_name(path: Path) -> Path:
    """NAME.old, NAME.old2, ..: the first that no file has."""
    names = (path.with_name(f"{path.name}.old{number if number > 1 else ''}") for number in count(1))
    return next(name for name in names if not name.exists())


def check_same(path: Path, state: State, settings: Mapping[str, object]) -> None:
    """Raises UserError that names the first setting which differs from the state's."""
    for name, now in settings.items():
        then = state.settings.get(name)
        if then != now:
            raise UserError(
                f"{path} was measured with {name} {_shown(then)}, now it is {_shown(now)}. Type what was typed then "
                f"({state.environments[0].get('command')}) and --resume, or leave --resume out to begin anew."
            )


def check_known(path: Path, state: State, combinations: Collection[Combination]) -> None:
    """Raises UserError for a measured run that is none of these."""
    for outcome in state.measured:
        if outcome.planned.combination not in combinations:
            what = f"a run that this sweep has not ({outcome.planned.combination})"
            raise UserError(f"{path} holds {what}. Leave --resume out to begin anew.")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
