"""Ray clusters for tests: nodes on this machine, one core each, which are always ended again.

A node is `ray start --block` with its raylet. All that it starts is in its session, and ended by that.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from hosts import Host
from scripts import CORES

_START_S = 60
_STORE_BYTES = 80_000_000


class RayNode:
    """prefix: words before ray's, such as those of another network namespace."""

    def __init__(self, folder: Path, *options: object, core: int, prefix: tuple = (), cpus: int = 1) -> None:
        self._log = folder / f"node_{core}_{time.monotonic_ns()}.log"
        words = [*prefix, "taskset", "-c", core, sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        words += ["--num-cpus", cpus, "--object-store-memory", _STORE_BYTES, "--disable-usage-stats", *options]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = {
            **kept,
            "RAY_worker_niceness": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_num_prestart_python_workers": "0",
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, words)),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while "Ray runtime started" not in self._log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                pytest.fail(f"ray start failed: {self._log.read_text()[-2000:]}")
            time.sleep(0.1)

    @property
    def raylet(self) -> int:
        return next(each.pid for each in psutil.Process(self.process.pid).children() if each.name() == "raylet")

    def end(self) -> None:
        session = [self.process.pid, *_of_session(self.process.pid)]
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        for pid in {*session, *_of_session(self.process.pid)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _of_session(session: int) -> list[int]:
    found = []
    for each in psutil.process_iter():
        with suppress(OSError):
            if os.getsid(each.pid) == session:
                found.append(each.pid)
    return found


class RayCluster:
    """Two nodes of one core each, the first of which is the head; on this machine, or on `hosts`."""

    def __init__(self, folder: Path, hosts: Sequence[Host] = ()) -> None:
        self.folder = folder
        self.places = [(host.address, host.prefix) for host in hosts] or [("127.0.0.1", ())] * 2
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        address, prefix = self.places[0]
        options = ("--head", "--node-ip-address", address, "--port", self.port, "--include-dashboard", "false")
        self.nodes = [RayNode(folder, *options, "--temp-dir", folder, core=CORES[0], prefix=prefix)]

    @property
    def address(self) -> str:
        return f"{self.places[0][0]}:{self.port}"

    def add(self, prefix: tuple = ()) -> RayNode:
        """The second node. prefix: words before its command."""
        address, place = self.places[1]
        options = ("--address", self.address, "--node-ip-address", address)
        self.nodes.append(RayNode(self.folder, *options, core=CORES[1], prefix=(*place, *prefix)))
        return self.nodes[-1]

    def running(self, what: str = "") -> list[psutil.Process]:
        """Of all that its raylets started, and what that started: the nodes' scripts and their instances."""
        found = []
        for each in [child for node in self.nodes for child in psutil.Process(node.raylet).children(recursive=True)]:
            with suppress(psutil.Error):
                words = " ".join(each.cmdline())
                if what in words and ("--start-gate" in words or "instances.worker" in words):
                    found.append(each)
        return found

    def wait_for_instances(self, count: int) -> list[psutil.Process]:
        deadline = time.monotonic() + _START_S
        while len(found := self.running("instances.worker")) < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    def wait_for_window(self, process: subprocess.Popen) -> list[psutil.Process]:
        """What runs on the nodes as soon as this run of one instance a node, warmed up for 0.2 s, is in its window.

        After its start an instance computes for 1 s at most to find its peak, then it warms up.
        """
        assert any("all nodes are ready" in line for line in iter(process.stdout.readline, ""))
        begun = {each: each.cpu_times().user for each in self.wait_for_instances(len(self.nodes))}
        deadline = time.monotonic() + _START_S
        while min(each.cpu_times().user - before for each, before in begun.items()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self.running()

    def end(self) -> None:
        for node in reversed(self.nodes):
            node.end()


@contextmanager
def ray_cluster(hosts: Sequence[Host] = ()) -> Iterator[RayCluster]:
    """Two nodes; skips without ray or a second core. Its sockets' names must be short."""
    pytest.importorskip("ray", reason="ray is not installed (requirements-ray.txt)")
    if len(CORES) < 2:
        pytest.skip("needs two cores")
    folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))
    cluster = None
    try:
        cluster = RayCluster(folder, hosts)
        cluster.add()
        yield cluster
    finally:
        if cluster is not None:
            cluster.end()
        shutil.rmtree(folder, ignore_errors=True)
