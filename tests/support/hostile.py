"""The rule for whatever is thrown at the toolkit: a refusal in one line, or a right answer; nothing else.

answer = refused_or(lambda: open_it(spoilt))     # None where it was refused, else what it gave
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from dlrm_tvm.errors import UserError, one_line, printable
from dlrm_tvm.paths import ROOT

Answer = TypeVar("Answer")
STRANGE = (
    *(None, True, False, -1, 0, 1, 10**30, -(10**30), 1.5, float("nan"), float("inf"), 1e308, 2**63, "9" * 5000),
    *("", "x", "\x1b[2J\n", "\x07", "\udc80", "../../x", [], {}, [1], {"a": 1}, [[[]]]),
)
LONGEST = 600  # characters of a message: a name may be long, a dump of a file is no sentence


def refused_or(attempt: Callable[[], Answer]) -> Answer | None:
    """What the attempt gives; None where it is refused in one printable line. A warning is no refusal: it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return attempt()
        except (UserError, OSError) as error:  # of an OSError run_script and callers of load() show the same
            message = one_line(error)
    assert message and printable(message) == message and not message.startswith(("OSError", "FileNotFoundError"))
    assert len(message) < LONGEST, message
    return None


def run_in_process(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The status of a script run here, as its command would exit. Output goes where it goes (capfd)."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.setattr("dlrm_tvm.console._PRINTED_EVERY_S", 3600.0)  # no progress, however busy the machine is
    with pytest.raises(SystemExit) as exit_:
        spec.loader.exec_module(module)
        module.command()
    return int(exit_.value.code or 0)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoilt(value: object, rng: np.random.Generator) -> object:
    """One or two places of a JSON value changed, left out or put in."""
    value = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, 3))):
        holder, key = (places := list(_places(value)))[rng.integers(len(places))]
        strange = STRANGE[rng.integers(len(STRANGE))]
        if rng.random() < 0.2:
            del holder[key]
        elif rng.random() < 0.2 and isinstance(holder, dict):
            holder["\x1b[31m"] = strange
        else:
            holder[key] = strange
    return value


def _places(value: object) -> Iterator[tuple]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
