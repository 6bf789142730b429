"""Two pretended machines: network namespaces with an address each and a cable between them that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """prefix: words before a command that is to run there."""

    name: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def cut_cable(self) -> None:
        _ip("-n", self.name, "link", "set", f"v{self.name}", "down")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Skips where no namespace can be made."""
    name = f"dlrm{os.getpid() % 100_000}"
    hosts = Host(f"{name}a", "10.213.0.1"), Host(f"{name}b", "10.213.0.2")
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command ip")
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        first, second = (host.name for host in hosts)
        _ip("link", "add", f"v{first}", "netns", first, "type", "veth", "peer", "name", f"v{second}", "netns", second)
        for host in hosts:
            _ip("-n", host.name, "address", "add", f"{host.address}/30", "dev", f"v{host.name}")
            for device in ("lo", f"v{host.name}"):
                _ip("-n", host.name, "link", "set", device, "up")
    except subprocess.CalledProcessError as error:
        _remove(hosts)
        pytest.skip(f"no network namespace can be made: {error.stderr.strip()}")
    try:
        yield hosts
    finally:
        _remove(hosts)


def _remove(hosts: tuple[Host, ...]) -> None:
    for host in hosts:
        subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
