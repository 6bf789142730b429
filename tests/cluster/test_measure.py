"""multi_instance.py --ray on two pretended nodes of this machine, a core each. Skips without ray."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from models import build_plain, random_dlrm
from ray_nodes import RayCluster, ray_cluster
from scripts import assert_one_line, changed, read_result, run

from dlrm_tvm.paths import ROOT

WINDOW = ("--num-instances", 1, "--warmup", 0.2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as started:
        yield started


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return build_plain(random_dlrm(), 32, tmp_path_factory.mktemp("library"))


def start(cluster: RayCluster, library: Path, *options: object, setup: str = "") -> subprocess.Popen:
    words = ("--model", library, "--ray", cluster.address, "--quiet", *WINDOW, *options)
    return subprocess.Popen(changed(*words, setup=setup), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_ended(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []


def test_the_nodes_are_measured_at_once_and_their_items_added_up(cluster, library):
    process = start(cluster, library, "--duration", 2, "--arrivals", "poisson", "--rate", 200, "--arrival-seed", 5)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    result = read_result(out)
    nodes = result["nodes"]
    assert len({node["address"] for node in nodes}) == 2 and len({tuple(node["cores"]) for node in nodes}) == 2
    assert (
        result["items_per_s"] == pytest.approx(sum(node["items_per_s"] for node in nodes)) and result["items_per_s"] > 0
    )
    assert 0 <= result["window_spread_ms"] < 2000 and result["window_spread_within_ms"] > 0
    assert "latency_ms" not in result and all(node["latency_ms"]["p99"] > 0 for node in nodes)
    assert all(node["environment"]["command"].count("--start-gate") == 1 and node["lost"] is None for node in nodes)
    assert [(node["arrival_seed"], node["rate"]) for node in nodes] == [(5, 100), (6, 100)]
    for number, node in enumerate(nodes):
        assert f"node {number}" in out and f"{node['items_per_s']:,.0f} items/s" in out
    assert f"{result['items_per_s']:,.0f} items/s, the sum of 2 nodes" in out
    assert_ended(cluster.running())


def test_one_node_of_two_is_measured_where_one_is_asked_for(cluster, library):
    process = start(cluster, library, "--duration", 0.3, "--ray-nodes", 1)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert len(read_result(out)["nodes"]) == 1 and read_result(out)["window_spread_ms"] is None
    process = start(cluster, library, "--ray-nodes", 3)
    assert process.communicate(timeout=100) == (
        "",
        "--ray-nodes 3: the cluster has 2. Give as many at most, or start more nodes.\n",
    )
    assert process.returncode == 1


def test_ctrl_c_gives_partial_figures_of_all_nodes_soon(cluster, library):
    process = start(cluster, library, "--duration", 500)
    running = cluster.wait_for_window(process)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    out, err = process.communicate(timeout=60)
    result = read_result(out)
    assert time.monotonic() - begun < 15, err  # 5 s on a machine that is not loaded
    assert process.returncode not in (0, 3) and result["interrupted"]
    assert [node["interrupted"] for node in result["nodes"]] == [True, True]
    assert all(0 < node["duration_s"] < 100 for node in result["nodes"]) and result["items_per_s"] > 0
    assert_ended(running)


def test_all_refusals_come_at_once_a_line_for_each_node(cluster, library, tmp_path):
    process = start(cluster, tmp_path / "nowhere.so")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (1, "")
    lines = err.splitlines()
    assert len(lines) == 3 and lines[2] == "2 of 2 nodes cannot take part; nothing was measured."
    assert all(line.startswith("node ") and "nowhere.so: no such file" in line for line in lines[:2])


def test_a_cluster_whose_cpus_are_taken_is_refused(cluster, library):
    setup = "from dlrm_tvm.cluster import fleet; fleet._PLACE_S = 1.0"
    first = start(cluster, library, "--duration", 500, "--ray-nodes", 1)
    running = cluster.wait_for_instances(1)
    process = start(cluster, library, setup=setup)
    out, err = process.communicate(timeout=100)
    first.terminate()
    first.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("The cluster's CPUs are taken: 1 are free, 2 on 2 whole nodes were wanted for 1 s.")
    assert len(err.splitlines()) == 1
    assert_ended(running)


def test_a_killed_raylet_ends_the_run_with_what_came_and_without_a_sum(library):
    with ray_cluster() as cluster:
        process = start(cluster, library, "--duration", 500)
        running = cluster.wait_for_window(process)
        lost = cluster.nodes[1].raylet
        os.kill(lost, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (3, ""), out
        result = read_result(out)
        assert "(raylet)" not in out  # as Ray prefixes what it prints
        assert result["items_per_s"] is None and "no sum: 1 of 2 nodes have no figures" in out
        told, missing = sorted(result["nodes"], key=lambda node: node["lost"] is not None)
        assert told["items_per_s"] > 0 and missing["lost"] and "items_per_s" not in missing
        assert_ended(running)


def test_a_node_without_this_package_is_refused(library, tmp_path):
    """The second node sees an empty folder in its place, and the driver's folder has another package of that name."""
    hidden = f'mount --bind {tmp_path} {ROOT / "dlrm_tvm"} && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", hidden, "sh", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    (tmp_path / "dlrm_tvm").mkdir()
    (tmp_path / "dlrm_tvm" / "__init__.py").write_text("raise RuntimeError('somebody else's')")
    with ray_cluster() as cluster:
        cluster.nodes.pop().end()
        cluster.add(prefix=("unshare", "-m", "sh", "-c", hidden, "sh"))
        process = start(cluster, library, setup=f"import os; os.chdir({str(tmp_path)!r})")
        out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (1, "")
    lines = err.splitlines()
    assert len(lines) == 2 and f"dlrm_tvm does not run from {ROOT} there" in lines[0]
    assert lines[1] == "1 of 2 nodes cannot take part; nothing was measured."


def test_nodes_with_different_builds_at_the_same_path_are_refused(library, tmp_path):
    """The second node sees other files at the library's path: a mount of its own."""
    mine = tmp_path / "mine"
    shutil.copytree(library.parent, mine)
    other = build_plain(random_dlrm(), 32, tmp_path)
    mount = f'mount --bind {other.parent} {mine} && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", mount, "sh", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    with ray_cluster() as cluster:
        cluster.nodes.pop().end()
        cluster.add(prefix=("unshare", "-m", "sh", "-c", mount, "sh"))
        process = start(cluster, mine / library.name)
        out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (1, "")
    lines = err.splitlines()
    assert len(lines) == 2 and "is of another build" in lines[0] and lines[0].startswith("node ")
    assert lines[1] == "1 of 2 nodes cannot take part; nothing was measured."


@pytest.mark.parametrize("what", ["nothing", "silence", "HTTP"])
def test_a_wrong_address_is_one_line_within_5_s(library, what):
    pytest.importorskip("ray", reason="ray is not installed (requirements-ray.txt)")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if what == "nothing":
            server.close()
        elif what == "HTTP":
            threading.Thread(target=answer_once, args=(server,)).start()
        begun = time.monotonic()
        done = run("--model", library, "--ray", f"127.0.0.1:{port}")
    assert_one_line(done, f"--ray 127.0.0.1:{port}: ", "ray start --head")
    assert time.monotonic() - begun < 5
    assert ("something else than Ray listens" in done.stderr) == (what == "HTTP")


def answer_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.close()
