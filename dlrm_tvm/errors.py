"""The one exception type for a user's mistake, and what a script does with it.

A `UserError` is a sentence: what was found, where, what was wanted, what to type next. Scripts print it as one
line on stderr; the Python API lets it pass as a `ValueError`. Anything else that escapes is our own bug and keeps its
traceback. Exit status of a script:

    0    good                                  3          measured, and found wanting
    1    a user's mistake, or the machine's    130, 143   ended by Ctrl-C, by SIGTERM; what was measured is printed
    2    wrong usage (console.Parser)
"""

from __future__ import annotations

import _thread
import mmap
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EAGAIN
from typing import IO, NoReturn

FOUND_WANTING = 3

_NO_THREAD = "No process or thread can be started. Raise the limit: ulimit -u, ulimit -v or the cgroup's pids.max."
_MORE_MEMORY = "Give a smaller file or batch, or a machine with more memory."
_OF_TVM = 512 << 20
# No path: a name in one has 255 bytes at most, the whole 4096. Numbers with commas are a list of cores to type.
_LONG_WORD = re.compile(r"(?<![^\s/,])([^\s/,]{200})[^\s/,]{200,}([^\s/,]{50})|(?<!\S)(\S{200})\S{4000,}(\S{50})")
_MOMENT_S = 0.01
_LONGEST = 300  # characters of an error that somebody else raised
_ENDING_SIGNALS = {  # with the handlers that are replaced; another one ignores, as under nohup, or is somebody's
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}

_ended_by: signal.Signals | None = None  # where KeyboardInterrupt was raised
_spare = [bytearray(1 << 20)]  # given back where memory ran out, so that there is some to say so
_is_ignored = False  # Python ignored one, which is to come again


class UserError(ValueError):
    """Bad input, said in one line that tells what to do about it. Names from files in it cannot steer a terminal, nor
    fill it: of a number of thousands of digits some are shown."""

    status = 1

    def __init__(self, message: str) -> None:
        super().__init__(_LONG_WORD.sub(r"\1\3...\2\4", printable(message)))


class FoundWantingError(UserError):
    """The input is good, what was measured is not."""

    status = FOUND_WANTING


def printable(text: str) -> str:
    """Newlines, terminal escapes and other control characters of a name as a programmer writes them: \\n, \\x1b."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def one_line(error: Exception) -> str:
    """Its text as one line; of an error that is not a user's with its kind, and not all of it where it is long."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{str(error.filename)[:_LONGEST]}: {error.strerror}" if error.filename else error.strerror)
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}")


def run_script(main: Callable[[], int]) -> None:
    """Run a script's `main` and exit with its status; see `reported`."""
    with reported():
        status = main()
        sys.stdout.flush()
    sys.exit(status)


@contextmanager
def reported() -> Iterator[None]:
    """Whatever goes wrong for the user's reasons becomes one line on stderr and the exit status: a UserError, a full
    disk or an unreadable file (`OSError`, whose own text names the file), Ctrl-C. SIGTERM, as Slurm and Kubernetes send
    it, and SIGHUP do what Ctrl-C would at that moment, so that what was begun is removed and what was measured shown.

    Streams that are missing are opened on /dev/null; what their encoding lacks is written as an escape. Scripts import
    within such a context too, as that takes seconds. An interrupt while an object is destroyed, where Python ignores
    what is raised, comes again a moment later.
    """
    global _ended_by
    _ended_by = None
    hook = sys.unraisablehook
    taken = {number: each for number, each in _ENDING_SIGNALS.items() if signal.getsignal(number) == each}
    try:
        _open_streams()
        os.getcwd()  # fails where it was deleted
        for number in taken:
            signal.signal(number, _interrupt)
        sys.unraisablehook = _again if hook is sys.__unraisablehook__ else hook
        yield
        if _is_ignored:
            raise KeyboardInterrupt
    except SystemExit:
        _flush()
        raise
    except UserError as error:
        _fail(str(error), error.status)
    except KeyboardInterrupt:
        _fail_interrupted()
    except BrokenPipeError:
        _fail("Whoever read the output is gone.")
    except MemoryError:
        _spare.clear()
        _fail(f"Out of memory. {_MORE_MEMORY}")
    except OSError as error:
        limited = _NO_THREAD if error.errno == EAGAIN and not error.filename else one_line(error)
        _fail(limited if _has_folder() else "The current folder was deleted. Change to another one.")
    except Exception as error:
        if _ended_by and _is_interrupt(error):
            _fail_interrupted()
        if "Symlink loop" in str(error):  # pathlib's, before Python 3.13
            _fail(f"{error}. Give a path without it.")
        if "can't start new thread" in str(error):
            _fail(_NO_THREAD)
        if _is_of_loading(error) and _is_out_of_memory():
            _fail(f"Out of memory ({one_line(error)}). {_MORE_MEMORY}")
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in taken.items():
            signal.signal(number, handler)


def _again(ignored: sys.UnraisableHookArgs) -> None:
    """For an interrupt in a finalizer: to unmap large tables takes a second. It cannot be raised from here, so a thread
    sends it, unless the script ends before; threading's own are started under a lock that may be held now."""
    global _is_ignored
    if not isinstance(ignored.exc_value, KeyboardInterrupt):
        return sys.__unraisablehook__(ignored)
    if _is_ignored:
        return  # two within a moment are one
    _is_ignored, number = True, _ended_by or signal.SIGINT

    def send() -> None:
        global _is_ignored
        time.sleep(_MOMENT_S)
        if _is_ignored:
            _is_ignored = False
            os.kill(os.getpid(), number)

    with suppress(RuntimeError):  # where no thread can be started, at the script's end
        _thread.start_new_thread(send, ())


def _is_interrupt(error: Exception) -> bool:
    """What Python up to 3.11 makes of one while it makes a class; and TVM in a function that it calls, without text."""
    return isinstance(error.__cause__, KeyboardInterrupt) or (hasattr(error, "__tvm_ffi_error__") and not str(error))


def _is_of_loading(error: Exception) -> bool:
    """Raised while a module is imported, or by TVM. A library that is loaded in part, or gets no memory, raises errors
    of any kind there; our own bugs elsewhere keep their traceback."""
    in_module = any(frame.f_code.co_name == "<module>" for frame, _ in traceback.walk_tb(error.__traceback__))
    return in_module or isinstance(error, ImportError) or hasattr(error, "__tvm_ffi_error__")


def _is_out_of_memory() -> bool:
    """Whether a limit (ulimit -v) leaves less than TVM takes."""
    try:
        mmap.mmap(-1, _OF_TVM).close()
    except OSError:
        return True
    return False


def _starts_threads() -> bool:
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        return False
    return True


def _interrupt(number: int, frame: object) -> None:
    global _ended_by
    _ended_by = signal.Signals(number)
    handler = signal.getsignal(signal.SIGINT)
    if handler is _interrupt or not callable(handler):  # Ctrl-C is ignored, as after a shell's &
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


@contextmanager
def interrupts_blocked(numbers: Iterable[int] = _ENDING_SIGNALS) -> Iterator[set[int]]:
    """No Ctrl-C and none of its kind between starting a process and knowing of it: what a handler raises while Python
    forks is ignored. They come afterwards, also those that another thread took, whose mask is its own.

    A blocked signal stays blocked over exec: workers never see a Ctrl-C, nor the SIGTERM that Slurm and systemd send to
    all processes of a job; the parent decides. Gives the mask from before, for children that shall see them."""
    waiting: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    handlers = {number: each for number in numbers if is_main and callable(each := signal.getsignal(number))}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: waiting.append(number))
        yield previous
    finally:
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        finally:  # what a handler that is back raises must not leave them blocked
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        if waiting:
            signal.raise_signal(waiting[0])


def interrupted_status() -> int:
    """The exit status after a KeyboardInterrupt, as a shell has it: 130, or 143 where it was SIGTERM."""
    return 128 + (_ended_by or signal.SIGINT)


def _fail_interrupted() -> NoReturn:
    global _is_ignored
    _is_ignored = False
    by_ctrl_c = _ended_by in (None, signal.SIGINT)
    if by_ctrl_c and not _starts_threads():  # OpenBLAS raises SIGINT where it cannot start its own
        _fail(_NO_THREAD)
    _fail("Interrupted." if by_ctrl_c else f"Ended by {_ended_by.name}.", interrupted_status())


def _fail(message: str, status: int = 1) -> NoReturn:
    try:
        print(printable(message), file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _give_up(sys.stdout)  # after the message above, which says why
    sys.exit(status)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        _give_up(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            _fail(f"stdout: {one_line(error)}")
        sys.exit(1)


def _give_up(stream: IO[str]) -> None:
    """What cannot be written now must not be tried again at the interpreter's end, which would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> None:
    """A descriptor below 3 that is free would become that of the next file opened, and messages would go there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _has_folder() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False
