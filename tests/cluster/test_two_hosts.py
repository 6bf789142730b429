"""multi_instance.py --ray on two nodes with addresses of their own, and a cable that is cut. Skips without ray."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Host, two_hosts
from models import build_plain, random_dlrm
from ray_nodes import RayCluster, ray_cluster
from scripts import changed, read_result

pytest.importorskip("ray", reason="ray is not installed (requirements-ray.txt)")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return build_plain(random_dlrm(), 32, tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(hosts) -> Iterator[RayCluster]:
    with ray_cluster(hosts) as started:
        yield started


def start(hosts: tuple[Host, Host], cluster: RayCluster, library: Path, duration: float) -> subprocess.Popen:
    words = changed("--model", library, "--ray", cluster.address, "--warmup", 0.2, "--duration", duration)
    return subprocess.Popen([*hosts[0].prefix, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_hosts_are_measured_together_and_a_cut_cable_ends_the_run_without_a_sum(hosts, cluster, library):
    process = start(hosts, cluster, library, 1)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    nodes = read_result(out)["nodes"]
    assert {node["address"].partition(":")[0] for node in nodes} == {host.address for host in hosts}
    process = start(hosts, cluster, library, 500)
    cluster.wait_for_window(process)
    hosts[1].cut_cable()
    begun = time.monotonic()
    out, err = process.communicate(timeout=100)
    assert time.monotonic() - begun < 45  # Ray alone takes 62 s
    result = read_result(out)
    assert process.returncode == 3, err
    lost = {node["address"].partition(":")[0]: node["lost"] for node in result["nodes"]}
    assert lost[hosts[0].address] is None and lost[hosts[1].address] and result["items_per_s"] is None
