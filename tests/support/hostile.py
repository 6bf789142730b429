"""The rule for whatever is thrown at the toolkit: a refusal in one line, or a right answer; nothing else.

answer = refused_or(lambda: open_it(spoilt))     # None where it was refused, else what it gave
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from dlrm_tvm.errors import UserError, one_line, printable
from dlrm_tvm.paths import ROOT

Answer = TypeVar("Answer")
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
