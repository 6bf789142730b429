"""The one exception type for a user's mistake.

A `UserError` is a sentence: what was found, where, what was wanted, what to type next. Scripts print it as one
line on stderr and exit with status 1 (`run_script`); the Python API lets it pass as a `ValueError`. Anything else
that escapes is our own bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

_LONGEST = 300  # characters of an error that somebody else raised


class UserError(ValueError):
    """Bad input, said in one line that tells what to do about it."""


def one_line(error: Exception) -> str:
    """Its text as one line; of an error that is not a user's with its kind, and not all of it where it is long."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}"


def run_script(main: Callable[[], int]) -> None:
    """Run a script's `main` and exit with its status; a user's mistake becomes one line and status 1.

    A full disk or an unreadable file (`OSError`) is a user's matter too: its own text names the file.
    """
    try:
        status = main()
    except UserError as error:
        print(f"{error}", file=sys.stderr)
        status = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror or error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.exit(status)
