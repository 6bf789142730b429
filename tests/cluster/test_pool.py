"""accuracy.py --predictions --ray: what one process would write, whatever dies meanwhile. Skips without ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import pytest
from models import build_plain
from prediction_files import KINDS, items_of, model_of_items, prediction_words, save
from ray_nodes import RayCluster, ray_cluster
from scripts import read_result, run

from dlrm_tvm.cluster import pool
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.paths import ROOT

MANY = 40  # items of a shard where something is to die meanwhile


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as started:
        yield started


@pytest.fixture(scope="module")
def model() -> Dlrm:
    return model_of_items()


@pytest.fixture(scope="module")
def library(model, tmp_path_factory) -> Path:
    return build_plain(model, 32, tmp_path_factory.mktemp("library"))


def words(library: Path, files: list[Path], output: Path, *options: object) -> list[str]:
    return prediction_words(library, files, output, "--quiet", *options)


def start(*options: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "accuracy.py"), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "job.lock"}


def test_the_bytes_are_those_of_one_process_for_every_kind_of_file(cluster, model, library, tmp_path):
    files = []
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        files.append(save(kind, tmp_path / kind, items_of(model, 1000, seed=len(files)))[0])
    here = run(*words(library, files, tmp_path / "here"), script="accuracy")
    there = start(*words(library, files, tmp_path / "there", "--ray", cluster.address))
    out, err = there.communicate(timeout=200)
    assert there.returncode == here.returncode == 0, err
    assert content(tmp_path / "there") == content(tmp_path / "here")
    one, other = read_result(here.stdout), read_result(out)
    assert {**one, "predictions": 0, "items_per_s": 0} == {**other, "predictions": 0, "items_per_s": 0}
    assert other["items_per_s"] > 0 and one["items"] == 1000 * len(KINDS)


def slow_items(model: Dlrm, folder: Path) -> tuple[Path, list[object]]:
    """A file of 3,000 items, and flags for 75 shards of it."""
    return save("criteo binary", folder, items_of(model, 3000))[0], ["--shard-items", MANY]


def wait_for_parts(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 100
    while len(list(folder.glob("part-*.npz"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_a_writer(folder: Path) -> None:
    """An actor that is in the midst of writing a part, under the name .PART.HOST.PID.tmp."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        for temporary in folder.glob(".part-*.tmp"):
            writer = psutil.Process(int(temporary.name.split(".")[-2]))
            writer.suspend()
            if temporary.exists():
                writer.kill()
                return
            writer.resume()
    pytest.fail("no actor was caught while it wrote")


def test_after_an_actor_is_killed_amid_a_part_every_item_is_there_once(cluster, model, library, tmp_path):
    path, flags = slow_items(model, tmp_path)
    run(*words(library, [path], tmp_path / "here", *flags), script="accuracy")
    process = start(*words(library, [path], tmp_path / "out", *flags, "--ray", cluster.address))
    wait_for_parts(tmp_path / "out", 3)
    kill_a_writer(tmp_path / "out")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert content(tmp_path / "out") == content(tmp_path / "here")
    assert read_result(out)["items"] == 3000


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_after_the_driver_is_ended_the_rest_is_scored_once(cluster, model, library, tmp_path, how):
    path, flags = slow_items(model, tmp_path)
    out = tmp_path / "out"
    run(*words(library, [path], tmp_path / "here", *flags), script="accuracy")
    process = start(*words(library, [path], out, *flags, "--ray", cluster.address))
    wait_for_parts(out, 3)
    process.send_signal(getattr(signal, how))
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in err
    if how != "SIGKILL":  # not as Ray's handler has it
        ended = {"SIGTERM": (143, "Ended by SIGTERM."), "SIGINT": (130, "Interrupted.")}
        assert (process.returncode, err.splitlines()[-1]) == ended[how]
        assert "of 75 shards are done; --resume goes on" in err and len(err.splitlines()) == 2
    before = {each: each.stat().st_mtime_ns for each in out.glob("part-*.npz")}
    assert 3 <= len(before) < 75
    process = start(*words(library, [path], out, *flags, "--resume", "--ray", cluster.address))
    printed, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert content(out) == content(tmp_path / "here")
    assert 0 < read_result(printed)["shards_of_this_run"] <= 75 - len(before)
    assert {each: each.stat().st_mtime_ns for each in before} == before


def test_a_bad_index_is_named_and_ends_the_job(cluster, model, library, tmp_path):
    path, _ = save("criteo binary", tmp_path, items_of(model, 1000))
    records = np.memmap(path, "<i4", "r+", shape=(1000, 40))
    records[700, 14 + 3] = 11
    records.flush()
    process = start(*words(library, [path], tmp_path / "out", "--ray", cluster.address))
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1 and "item 700 takes row 11 of table 3 (emb_3), which has 11 rows" in err


def test_a_library_that_is_gone_is_one_line(cluster, model, library, tmp_path):
    """The driver reads job.json's library in the plan; the actors find another build at its path."""
    other = build_plain(model, 32, tmp_path)
    path, _ = save("criteo binary", tmp_path, items_of(model, 600))
    setup = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
import os
from dlrm_tvm.predictions.job import Job
write = Job.write
def written(job):
    job.fields["build"] = "0" * 32
    write(job)
Job.write = written
import accuracy; accuracy.command()"""
    given = words(other, [path], tmp_path / "out", "--ray", cluster.address)
    process = subprocess.Popen([sys.executable, "-c", setup, *given], stderr=subprocess.PIPE, text=True)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1 and "is another build than that of" in err


def test_an_address_where_no_ray_is_leaves_no_folder(model, library, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed (requirements-ray.txt)")
    path, _ = save("criteo binary", tmp_path, items_of(model, 600))
    done = run(*words(library, [path], tmp_path / "out", "--ray", "127.0.0.1:1"), script="accuracy")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "no Ray answers" in done.stderr and not (tmp_path / "out").exists()


def test_a_shard_that_kills_every_actor_ends_the_job(cluster, model, library, tmp_path):
    """Bounded retries: here every actor dies of every shard."""
    path, _ = save("criteo binary", tmp_path, items_of(model, 600))
    setup = f"""import os, sys; sys.path.insert(0, {str(ROOT)!r})
from dlrm_tvm.cluster import pool
class Dies:
    def __init__(self, folder):
        pass
    def __call__(self, batch):
        os.kill(os.getpid(), 9)
pool.ShardWorker = Dies
import accuracy; accuracy.command()"""
    given = words(library, [path], tmp_path / "out", "--ray", cluster.address)
    process = subprocess.Popen([sys.executable, "-c", setup, *given], stderr=subprocess.PIPE, text=True)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1 and err.startswith("Ray gave up (") and "--resume" in err


def test_a_job_whose_shards_are_all_done_waits_for_no_cpu(monkeypatch):
    """A cluster of which others hold all CPUs."""

    class Full:
        def available_resources(self):
            raise AssertionError("nobody need ask")

    monkeypatch.setattr(pool, "connected", lambda address: nullcontext(Full()))
    with pool.on_ray("10.0.0.1:1", resume=True) as score:
        assert list(score(None, [], print)) == []
