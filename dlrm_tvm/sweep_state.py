"""The state file of a sweep: written whole after every run, read by --resume. It is the sweep's JSON, no more.

What was measured goes on only under the settings it began with; the seed in it gives the same order again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from .errors import UserError
from .output_files import write_whole_file
from .sweep_report import outcomes_of, typed
from .sweep_results import Outcome

_KIND = "dlrm_tvm sweep"


@dataclass(frozen=True)
class State:
    """What an earlier sweep left. settings: under which it measured; environments: of it and those it went on from."""

    seed: int
    settings: dict[str, object]
    outcomes: list[Outcome]
    finished: bool
    environments: list[dict]

    @property
    def command(self) -> str:
        return self.environments[0]["command"]

    @property
    def measured(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.figures is not None]


def write_state(path: Path, fields: Mapping[str, object]) -> None:
    write_whole_file(path, json.dumps({"kind": _KIND, **fields}, indent=1, allow_nan=False).encode() + b"\n")


def is_state(path: Path) -> bool:
    """Whether a sweep wrote it, readable by this version or not."""
    fields = _load(path)
    return isinstance(fields, dict) and fields.get("kind") == _KIND


def read_state(path: Path) -> State:
    """Raises UserError where there is none to resume."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, so there is no sweep to resume. Leave --resume out.")
    state = _parse(path)
    if state is None:
        raise UserError(f"{path} is not what a sweep of this version leaves. Leave --resume out, or name it by --json.")
    return state


def keep_earlier(path: Path) -> str | None:
    """Rename a state that a sweep without --resume would overwrite -> what to say about it; None: nothing is lost."""
    state = _parse(path) if path.is_file() else None
    if not path.is_file() or (state is not None and not state.measured):
        return None
    kept = _free_name(path)
    os.replace(path, kept)
    if state is None:
        return f"{path}, which no sweep of this version left, is kept as {kept}"
    runs = f"{len(state.measured)} run{'s' * (len(state.measured) > 1)}"
    if state.finished:
        return f"a finished sweep's {runs} were in {path}, kept as {kept}"
    return f"an unfinished sweep's {runs} were in {path}, kept as {kept}: --resume would have gone on with them"


def _free_name(path: Path) -> Path:
    """state.json.old, state.json.old2, .. : the first that is no file yet."""
    names = (path.with_name(f"{path.name}.old{number if number > 1 else ''}") for number in count(1))
    return next(name for name in names if not name.exists())


def check_same(path: Path, state: State, settings: Mapping[str, object]) -> None:
    """Raises UserError that names the first setting which is another one than the state's."""
    for name, now in settings.items():
        then = state.settings.get(name)
        if then != now:
            raise UserError(
                f"{path} was measured with {name} {_shown(then)}, now it is {_shown(now)}. Type what was typed then "
                f"({state.command}) and --resume, or leave --resume out to begin anew."
            )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _load(path: Path) -> object:
    """None: no JSON, or JSON of numbers that none of ours is."""
    try:
        return json.loads(path.read_text(), parse_constant=_finite, parse_float=_finite, parse_int=_bounded)
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float:
    """Raises ValueError for NaN and infinities, which 1e999 is too."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _bounded(text: str) -> int:
    """Raises ValueError for what no float can be made of."""
    _finite(text)
    return int(text)


def _parse(path: Path) -> State | None:
    fields = _load(path)
    try:
        if fields["kind"] != _KIND:
            return None
        environments = [*fields["earlier_environments"], fields["environment"]]
        state = State(
            seed=typed(fields["seed"], int),
            settings=typed(fields["settings"], dict),
            outcomes=outcomes_of(fields),
            finished=typed(fields["finished"], bool),
            environments=[typed(each, dict) for each in environments],
        )
        typed(state.command, str)
        return state
    except (ValueError, KeyError, TypeError):
        return None
