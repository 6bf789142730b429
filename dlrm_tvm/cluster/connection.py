"""A running Ray cluster, connected to; our own classes in its processes. Ray is imported here, behind --ray alone.

What Ray would say slowly or in many lines is asked beforehand: a wrong address in 3 s, a missing package at once.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import UserError, one_line
from ..machine.memory import available_bytes
from ..paths import ROOT, packages_command

if TYPE_CHECKING:
    from ..runtime.manifest import Manifest

_PROBE_S = 3.0
_SETTINGS = b"\x04"  # a frame's type, after three bytes of its length
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)


@contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """The module ray, while this program is a driver of the cluster at HOST:PORT. Raises UserError in one line."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({one_line(error)}). Install it: {packages_command('ray')}") from None
    _probe(address)
    with _own_streams():
        try:
            ray.init(address, log_to_driver=False, configure_logging=False, logging_level="FATAL", namespace="dlrm_tvm")
        except (RuntimeError, ConnectionError, ValueError, ray.exceptions.RayError) as error:
            raise UserError(f"--ray {address}: Ray refuses it ({one_line(error)}). See docs/cluster.md.") from None
        try:
            yield ray
        finally:
            with redirect_stdout(io.StringIO()):  # it prints what its thread has held back
                ray.shutdown()


@contextmanager
def _own_streams() -> Iterator[None]:
    """stdout and stderr for this program alone. A thread of Ray's prints what raylets report to the one in the midst of
    our lines, its C++ writes to descriptor 2, and its Python logs the tracebacks of what it raises."""
    logged, kept, null = logging.root.manager.disable, os.dup(2), os.open(os.devnull, os.O_WRONLY)
    errors = sys.stderr
    if errors is sys.__stderr__:
        errors = open(kept, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    logging.disable(logging.CRITICAL)
    os.dup2(null, 2)
    try:
        with redirect_stdout(_OwnOutput(sys.stdout)), redirect_stderr(errors):
            yield
    finally:
        errors.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
        logging.disable(logged)


class _OwnOutput:
    """A stream for the main thread alone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._stream.write(text) if threading.current_thread() is threading.main_thread() else len(text)


def _probe(address: str) -> None:
    """Whether something speaks HTTP/2 there, as gRPC does (RFC 9113, 3.4: both sides begin with SETTINGS)."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--ray {address}: HOST:PORT was wanted, as ray start --head prints it.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PROBE_S) as there:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return
            there.sendall(_HTTP2_PREFACE)
            if there.recv(9)[3:4] != _SETTINGS:
                raise UserError(f"--ray {address}: something else than Ray listens there. Start one: ray start --head")
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray {address}: no Ray answers ({error}). Start a cluster: ray start --head") from None


def check_tables_fit(manifest: Manifest) -> None:
    """Raises UserError on a node whose memory does not hold them: they are not sharded over nodes."""
    needed, there = manifest.table_range.piece_bytes, available_bytes()
    if needed > there:
        raise UserError(
            f"tables of {needed / 1e9:,.1f} GB do not fit the {there / 1e9:,.1f} GB of memory available here: compile "
            "with --precision bf16 or int8"
        )


def away(module: str, name: str) -> type:
    """A class for Ray's processes, which know nothing of our package: it holds dlrm_tvm.MODULE.NAME(...) of there.

    Ray carries it by value. `call(method, ...)` gives (True, answer) or (False, one line); `__call__` is that of the
    class; `clock()` gives seconds since 1970 before anything is imported.
    """
    root = str(ROOT)

    class Away:
        def __init__(self, *arguments: Any) -> None:
            from threading import Lock

            self.arguments, self.inner, self.lock = arguments, None, Lock()

        def made(self) -> Any:
            import sys
            from importlib import import_module

            with self.lock:
                if root not in sys.path:
                    sys.path.insert(0, root)
                if self.inner is None:
                    self.inner = getattr(import_module(f"dlrm_tvm.{module}"), name)(*self.arguments)
            return self.inner

        def clock(self) -> float:
            from time import time

            return time()

        def call(self, method: str, *arguments: Any) -> tuple[bool, Any]:
            try:
                return True, getattr(self.made(), method)(*arguments)
            except (OSError, ValueError, ImportError) as error:
                return False, " ".join(f"{error}".split()) or type(error).__name__

        def __call__(self, batch: Any) -> Any:
            return self.made()(batch)

    return Away
