"""One node of a run, in an actor there: it checks, starts the script at its gate, and hands back what that printed.

Knows nothing of the other nodes, nor of Ray.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any

from ..bench.session import RunSettings, plan_run
from ..console import VERSION
from ..errors import UserError
from ..paths import MEASURE_SCRIPT, ROOT
from .connection import check_tables_fit
from .start_gate import READY

_SHED = ("RAY_", "OMP_")  # what Ray sets for its own workers
_END_S = 5.0


class Node:
    """cpus: that Ray counts here; folder: the driver's, which is this script's too."""

    def __init__(self, cpus: int, folder: str) -> None:
        self._cpus, self._folder = cpus, folder
        self._process: subprocess.Popen | None = None
        self._printed: list[str] = []
        self._errors: list[str] = []
        self._is_ready, self._readers = threading.Event(), []

    def check(self, version: str, settings: dict[str, Any]) -> dict[str, Any]:
        """What this node is, and warnings. Raises UserError or OSError for what is in the way."""
        if version != VERSION:
            raise UserError(f"dlrm_tvm {VERSION} in {ROOT}, the driver has {version}: install the same")
        os.chdir(self._folder)
        manifest = plan_run(RunSettings(**settings)).manifest
        check_tables_fit(manifest)
        usable, niceness = len(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0)
        if usable < self._cpus:
            raise UserError(f"{usable} CPUs are usable, Ray counts {self._cpus}: give ray start --num-cpus {usable}")
        warnings = []
        if niceness > 0:
            warnings.append(f"runs at nice {niceness}: start Ray with RAY_worker_niceness=0 on every node")
        if usable > self._cpus:
            warnings.append(f"{usable} CPUs are usable, Ray counts {self._cpus}: others may run beside the instances")
        return {
            "host": socket.gethostname(),
            "build": manifest.build,
            "library_sha256": manifest.library_sha256,
            "warnings": warnings,
        }

    def start(self, words: list[str]) -> None:
        """The script with these words, up to its gate. Returns when it is there; raises UserError where it ends."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_SHED)}
        begun = threading.Event()

        def run() -> None:  # the thread that starts it lives as long as it: its end would end the script
            self._process = subprocess.Popen(
                [sys.executable, str(MEASURE_SCRIPT), *words, "--start-gate", str(os.getppid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                cwd=self._folder,
                env=environment,
                start_new_session=True,
            )
            begun.set()
            self._read(self._process.stdout, self._printed)

        self._thread(run)
        begun.wait()
        self._thread(lambda: self._read(self._process.stderr, self._errors))
        while not self._is_ready.wait(0.05):
            if self._process.poll() is not None:
                raise UserError(self._said())

    def go(self) -> None:
        with suppress(OSError):  # it ended: the outcome says so
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def outcome(self) -> dict[str, Any]:
        """The script's JSON line, at its end. Raises UserError where it has none."""
        status = self._process.wait()
        for reader in self._readers:
            reader.join()
        try:
            fields = json.loads(self._printed[-1])
            return {**fields, "status": status}
        except (IndexError, ValueError, TypeError):
            raise UserError(self._said()) from None

    def interrupt(self) -> None:
        """Ctrl-C: partial figures."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Nothing of it is left."""
        if self._process is not None:
            with suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _said(self) -> str:
        status = self._process.poll()
        how = f"killed by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
        return self._errors[-1] if self._errors else f"{MEASURE_SCRIPT.name} {how}"

    def _thread(self, target: Any) -> None:
        self._readers.append(threading.Thread(target=target, daemon=True))
        self._readers[-1].start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            if line.strip() == READY:
                self._is_ready.set()
            elif line.strip():
                lines.append(line.rstrip("\n"))
