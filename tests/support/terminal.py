"""A script on a terminal, as a person sees it, and how long it was silent.

python tests/support/terminal.py python compile.py --precision int8      its output, then the longest silence
"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Session:
    """text: all that was written, with its control characters; silences: (seconds, what was written before it)."""

    status: int
    text: str
    silences: list[tuple[float, str]]

    @property
    def lines(self) -> list[str]:
        """What stays on the screen: of a line that was drawn anew the last state."""
        rows = [row.split("\r")[-1] for row in self.text.replace("\r\n", "\n").split("\n")]
        return [row.replace("\x1b[K", "") for row in rows]

    @property
    def drawn(self) -> list[str]:
        """Every state of the line of progress."""
        return re.findall(r"\r([^\r\n\x1b]+)\x1b\[K", self.text)


def on_terminal(command: list[str], *, columns: int = 80, end_after: tuple[str, int] | None = None) -> Session:
    """Run it on a terminal of its own. end_after: (pattern, signal): send it once that was written."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
    last = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(command, **streams, env=environment, start_new_session=True)
    os.close(theirs)
    text, silences, ends = "", [], end_after
    while True:
        select.select([ours], [], [], 1.0)
        try:
            chunk = os.read(ours, 65536).decode(errors="replace")
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            chunk = ""
        if not chunk:
            break
        now = time.monotonic()
        silences.append((now - last, text[-60:]))
        text, last = text + chunk, now
        if ends and re.search(ends[0], text):
            process.send_signal(ends[1])
            ends = None
    os.close(ours)
    process.wait(timeout=600)
    silences.append((time.monotonic() - last, text[-60:]))
    return Session(process.returncode, text, silences)


def main() -> int:
    session = on_terminal(sys.argv[1:])
    print("\n".join(session.lines))
    for seconds, before in sorted(session.silences, reverse=True)[:3]:
        print(f"silent for {seconds:.2f} s after {before!r}")
    return session.status


if __name__ == "__main__":
    sys.exit(main())
