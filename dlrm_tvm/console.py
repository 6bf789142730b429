"""What people and programs see: labelled lines and the result on stdout, one line of progress on stderr, wrong usage.

    with terminal(quiet=False):                       once, around a script's work
        with Bar("peak", 1.0): ...                    seconds are counted by themselves
        with Bar("scoring", 32768, "items") as bar:  bar.update(100)
        show("  throughput  45,721 items/s")

One bar is drawn at a time, by a thread: the outermost whose end is known, else the innermost.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TextIO

from tqdm.std import tqdm

from .errors import interrupts_blocked, printable

VERSION = "1.0.0"
SCHEMA_VERSION = 1  # of the JSON: docs/json.md

TAIL = ("p50", "p90", "p99", "p999", "max")  # of latencies, as people are shown them
WIDTH = 100  # columns of a line for people

_DRAWN_EVERY_S, _PRINTED_EVERY_S = 0.5, 10.0  # on a terminal; elsewhere, as a line of its own
_FIRST, _BETWEEN = "starting", "working"  # before the first phase, and between two
_PLAIN = "{desc}: {percentage:.0f}% after {elapsed}, about {remaining} left{postfix}"
_LABEL = re.compile(r" *\S.{0,20}? {2,}(?=\S)")

_open_bars: list[Bar] = []
_lock = threading.RLock()
_drawn = False  # a bar stands on the terminal's last line
_people: TextIO | None = None  # None: stdout


class Bar:
    """What is under way, as a context. total: of so many units, "B" for bytes, or of seconds; None: nobody knows."""

    def __init__(self, what: str, total: float | None = None, unit: str = "s") -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done, self._began_s = 0, time.monotonic()
        self.note = ""

    def __enter__(self) -> Bar:
        _open_bars.append(self)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _open_bars.remove(self)
        if len(_open_bars) == 1 and _open_bars[0]._what == _FIRST:
            _open_bars[0]._what = _BETWEEN

    def update(self, units: float = 1) -> None:
        self._done += units

    @property
    def has_end(self) -> bool:
        return bool(self._total) and self._done <= self._total

    def text(self, columns: int | None) -> str:
        """columns: of the terminal; None: plain text."""
        gone_s, form = time.monotonic() - self._began_s, None
        total = self._total if self.has_end else None
        done = min(gone_s, total or gone_s) if self._unit == "s" else self._done
        if total is None:
            form = "{desc}: {elapsed}{postfix}"
        elif columns is None:
            form = _PLAIN
        elif self._unit == "s":
            form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        shown = {"unit": self._unit, "unit_scale": self._unit == "B", "postfix": self.note or None, "bar_format": form}
        shown |= {"prefix": printable(self._what), "ascii": "utf" not in (sys.stderr.encoding or "").lower()}
        return tqdm.format_meter(done, total, gone_s, ncols=columns, **shown)


@contextmanager
def terminal(*, quiet: bool = False, stdout_for_programs: bool = False) -> Iterator[None]:
    """While this lasts, stderr says what is under way: twice a second on a terminal, elsewhere a line every 10 s.

    stdout_for_programs: from now on lines for people go to stderr too.
    """
    global _people
    _people = sys.stderr if stdout_for_programs else None
    if quiet:
        yield
        return
    ended, on_terminal = threading.Event(), sys.stderr.isatty()
    every_s = _DRAWN_EVERY_S if on_terminal else _PRINTED_EVERY_S

    def tick() -> None:
        while not ended.wait(every_s):
            _draw(on_terminal)

    thread = threading.Thread(target=tick, daemon=True)
    with interrupts_blocked(signal.valid_signals()):  # they are the main thread's alone
        thread.start()
    try:
        with Bar(_FIRST):
            if on_terminal:
                _draw(on_terminal)
            yield
    finally:
        ended.set()
        thread.join()
        _erase()


def _draw(on_terminal: bool) -> None:
    global _drawn
    with _lock:
        bars = tuple(_open_bars)
        shown = next((bar for bar in bars if bar.has_end), bars[-1] if bars else None)
        if shown is None:
            return
        if not on_terminal:
            return _write(shown.text(None) + "\n")
        columns = min(shutil.get_terminal_size().columns, WIDTH) - 1
        _write(f"\r{shown.text(columns)[:columns]}\x1b[K")
        _drawn = True


def _erase() -> None:
    global _drawn
    with _lock:
        if _drawn:
            _write("\r\x1b[K")
        _drawn = False


def _write(text: str) -> None:
    """Past Python's buffers, whose lock a fork of this process must not find taken."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode(sys.stderr.encoding or "ascii", "replace"))


def show(text: str, to: TextIO | None = None) -> None:
    """Lines for people, on stdout folded at WIDTH. to: stderr, for a message of one line."""
    with _lock:
        _erase()
        lines = map(printable, text.split("\n"))  # a name from a file cannot steer the terminal
        stream = to or _people or sys.stdout
        # With its end in one write: print's two are two under python -u, and Ctrl-C between them joins two lines.
        stream.write("\n".join(lines if to else map(folded, lines)) + "\n")
        stream.flush()


def folded(text: str) -> str:
    """A line that is too long, in several; those after the first begin where the text beside the label does."""
    if len(text) <= WIDTH:
        return text
    label = _LABEL.match(text)
    at = label.end() if label else len(text) - len(text.lstrip())
    indent = {"initial_indent": " " * at, "subsequent_indent": " " * (at if label else at + 2)}
    lines = textwrap.wrap(text[at:], WIDTH, **indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join([text[:at] + lines[0][at:], *lines[1:]])


def show_result(fields: Mapping[str, object]) -> bool:
    """The last line of stdout, for programs: people on a terminal have read all that is in it. Whether it was shown."""
    if is_shown := not sys.stdout.isatty():
        print(result_line(fields), flush=True)
    return is_shown


def result_line(fields: Mapping[str, object]) -> str:
    """JSON has no NaN and no infinity: what is undefined is null."""
    return json.dumps(_defined({"schema_version": SCHEMA_VERSION, **fields}), allow_nan=False)


def _defined(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _defined(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_defined(each) for each in value]
    return value


def ms_text(ms: float) -> str:
    """Four digits, "123.4", "1.234" or "0.01234", but none below a nanosecond: small models take microseconds."""
    digits = 3 - int(f"{ms:.3e}"[-3:]) if 0 < ms < math.inf else 3
    return f"{ms:.{min(max(digits, 1), 6)}f}"


def percentiles_text(latency_ms: Mapping[str, float], *names: str) -> str:
    """ "p50 1.234  p99.9 56.78": those that are named, as bench.statistics.percentiles_ms names them."""
    return "  ".join(f"{name.replace('p999', 'p99.9')} {ms_text(latency_ms[name])}" for name in names)


def line(label: str, text: str) -> str:
    """One labelled line of the table, whatever names are in it."""
    return f"  {label:<18}{printable(text)}"


class Parser(argparse.ArgumentParser):
    """doc: the script's docstring, which python -OO takes away. Wrong usage is one line and exit status 2."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(description=doc and doc.split("\n", 1)[0])
        self.add_argument("--version", action="version", version=f"dlrm_tvm {VERSION}")

    def parse_args(self, *given, **more) -> argparse.Namespace:
        """Refuses whole numbers of more than 64 bits, which nothing here counts and no message should repeat."""
        args = super().parse_args(*given, **more)
        for action in self._actions:
            value = getattr(args, action.dest, None)
            numbers = [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, int)]
            if any(not -(1 << 63) <= each < 1 << 63 for each in numbers):
                self.error(f"argument {'/'.join(action.option_strings)}: a number of more than 64 bits")
        return args

    def error(self, message: str) -> NoReturn:
        short = re.sub(r"\S{100,}", lambda word: f"{word[0][:60]}...", message)
        self.exit(2, f"{printable(short)}. All flags: {self.prog} --help\n")

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        """argparse's own hides what a full disk does not take: --help would have been a success."""
        if file is not None and file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


def add_output_options(parser: argparse.ArgumentParser, of_a_sweep: str = "") -> argparse._ArgumentGroup:
    group = parser.add_argument_group("output")
    group.add_argument("--output", type=Path, metavar="FILE", help=f"write the result there, as JSON{of_a_sweep}")
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return group
