"""A running Ray cluster, connected to. Ray is imported here, behind --ray alone.

What Ray would say slowly or in many lines is asked beforehand: a wrong address in 3 s, a missing package at once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from types import ModuleType

from ..errors import UserError, one_line
from ..paths import ROOT, packages_command

_PROBE_S = 3.0
_SETTINGS = b"\x04"  # a frame's type, after three bytes of its length
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)


@contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """The module ray, while this program is a driver of the cluster at HOST:PORT, whose processes import this very
    package. Raises UserError in one line."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({one_line(error)}). Install it: {packages_command('ray')}") from None
    _probe(address)
    logging.disable(logging.CRITICAL)  # what Ray says is in its exceptions too: it logs their tracebacks besides
    ray._private.worker._worker_logs_enabled = False  # no public name; prints reports of raylets amid our lines
    with _own_stderr():
        try:
            _init(ray, address)
            yield ray
        finally:
            ray.shutdown()
            logging.disable(logging.NOTSET)


@contextmanager
def _own_stderr() -> Iterator[None]:
    """Python's stderr for this program, whose descriptor is another meanwhile: Ray's C++ writes to 2."""
    with open(os.devnull, "w") as null, open(os.dup(2), "w", buffering=1, errors="backslashreplace") as errors:
        os.dup2(null.fileno(), 2)
        try:
            with redirect_stderr(errors if sys.stderr is sys.__stderr__ else sys.stderr):
                yield
        finally:
            os.dup2(errors.fileno(), 2)


def _init(ray: ModuleType, address: str) -> None:
    folder, at_sigterm = os.getcwd(), signal.getsignal(signal.SIGTERM)
    os.chdir(ROOT)  # the cluster's processes import from the folder that this one is in now, before all others
    try:
        ray.init(address, log_to_driver=False, configure_logging=False, namespace="dlrm_tvm")
    except (RuntimeError, ConnectionError, ValueError, ray.exceptions.RayError) as error:
        why = f"--ray {address}: Ray refuses it ({one_line(error)})"
        raise UserError(f"{why}. Version, RAY_AUTH_MODE and token are to be the cluster's: docs/cluster.md.") from None
    finally:
        os.chdir(folder)
        signal.signal(signal.SIGTERM, at_sigterm)  # Ray's would print a stack and leave


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
