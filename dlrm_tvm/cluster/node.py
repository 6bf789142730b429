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
import tempfile
import time
from contextlib import suppress
from typing import Any

from ..bench.session import RunSettings, plan_run
from ..console import VERSION
from ..errors import UserError
from ..machine.memory import available_bytes
from ..paths import MEASURE_SCRIPT, ROOT
from ..runtime.residency import check_tables_fit, table_memory
from .start_gate import READY

_SHED = ("RAY_", "OMP_")  # what Ray sets for its own workers


class Node:
    """number: of this one; cpus: that Ray counts here; folder: the driver's, which is the script's too."""

    def __init__(self, number: int, cpus: int, folder: str) -> None:
        self._number, self._cpus, self._folder = number, cpus, folder
        self._process: subprocess.Popen | None = None
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def check(self, version: str, settings: dict[str, Any]) -> dict[str, Any]:
        """What this node is, and warnings. Raises UserError or OSError for what is in the way."""
        if version != VERSION:
            raise UserError(f"dlrm_tvm {VERSION} in {ROOT}, the driver has {version}: install the same")
        os.chdir(self._folder)
        artifact = plan_run(RunSettings(**settings)).artifact
        check_tables_fit(table_memory(artifact, available_bytes()))
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
            "build": artifact.manifest.build,
            "library_sha256": artifact.manifest.library_sha256,
            "warnings": warnings,
        }

    def start(self, words: list[str], arrival_seed: int | None) -> None:
        """The script with these words, up to its gate; arrival_seed: of node 0, counted on from for the others.

        Returns when it is there; raises UserError where it ends.
        """
        seed = [] if arrival_seed is None else ["--arrival-seed", str(arrival_seed + self._number)]
        self._process = subprocess.Popen(
            [sys.executable, str(MEASURE_SCRIPT), *words, *seed, "--start-gate", str(os.getppid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            errors="replace",
            cwd=self._folder,
            env={name: value for name, value in os.environ.items() if not name.startswith(_SHED)},
            start_new_session=True,
        )
        if READY not in map(str.strip, self._process.stdout):
            raise UserError(self._said())

    def go(self) -> None:
        with suppress(OSError):  # it ended: the outcome says so
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def outcome(self) -> dict[str, Any]:
        """The script's JSON line, at its end. Raises UserError where it has none."""
        printed = self._process.stdout.read().splitlines()
        try:
            return {**json.loads(printed[-1]), "status": self._process.wait()}
        except (IndexError, ValueError, TypeError):
            raise UserError(self._said()) from None

    def interrupt(self) -> None:
        """Ctrl-C: partial figures."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Nothing of it is left."""
        if self._process is not None:
            self._process.kill()  # its instances die with it
            self._process.wait()

    def _said(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return lines[-1] if lines else f"{MEASURE_SCRIPT.name} {how}"
