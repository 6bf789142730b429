"""What of the tables is in memory, what fits, and reading them in."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import build_plain, random_dlrm
from sparse_tables import on_disk

from dlrm_tvm.errors import UserError
from dlrm_tvm.machine.shared_memory import SharedMemory
from dlrm_tvm.runtime.artifact import Artifact, open_artifact
from dlrm_tvm.runtime.residency import TableMemory, check_tables_fit, fill, preload, run_parts, table_memory

GB = 1_000_000_000
MODEL = random_dlrm(table_rows=(400_000, 31))  # 25.6 MB: two reads
PLENTY = TableMemory(MODEL.table_bytes, 0, 99 * GB)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data") / "data"


@pytest.fixture(scope="module")
def library(data) -> Path:
    return build_plain(on_disk(MODEL, data), 4, data.parent)


@pytest.fixture
def artifact(library) -> Artifact:
    return open_artifact(library, whole_tables=False)


def evict(data: Path) -> None:
    descriptor = os.open(data, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def test_preload_reads_all_of_the_tables_in_and_counts_every_byte(artifact, data):
    evict(data)
    before = table_memory(artifact, 99 * GB)
    read = []
    preload(artifact.library, artifact.manifest, PLENTY, read.append)
    after = table_memory(artifact, 99 * GB)
    assert sum(read) == sum(piece.nbytes for piece in artifact.manifest.table_range.pieces)
    assert after.resident_bytes == after.table_bytes == MODEL.table_bytes
    if before.resident_bytes == MODEL.table_bytes:
        pytest.skip("this file system keeps all pages in memory")
    assert before.resident_bytes < MODEL.table_bytes / 2


def test_preload_of_what_does_not_fit_is_refused(artifact):
    tight = TableMemory(96 * GB, 0, 24 * GB)
    with pytest.raises(UserError, match=r"--preload: 96\.0 GB of tables do not fit into the 24\.0 GB .* Leave"):
        preload(artifact.library, artifact.manifest, tight, lambda _: pytest.fail("read"))


def test_filling_copies_every_byte_to_its_place(artifact):
    memory = SharedMemory(artifact.manifest.table_range.nbytes, huge=False)
    fill(artifact.library, artifact.manifest, memory.range, lambda _: None)
    np.testing.assert_array_equal(memory.range.array[: artifact.tables.nbytes], artifact.tables.array)
    memory.close()


def test_a_file_that_ends_early_is_said_by_name(artifact, data):
    whole = data.read_bytes()
    os.truncate(data, 20 << 20)
    memory = SharedMemory(artifact.manifest.table_range.nbytes, huge=False)
    for read_in in (
        lambda: preload(artifact.library, artifact.manifest, PLENTY, lambda _: None),
        lambda: fill(artifact.library, artifact.manifest, memory.range, lambda _: None),
    ):
        with pytest.raises(UserError, match=f"{data} ends early, at byte {20 << 20}"):
            read_in()
    data.write_bytes(whole)


def test_the_line_of_tables_says_what_is_in_memory_and_what_fits():
    assert TableMemory(96 * GB, 5 * GB, 24 * GB).line() == (
        "96.00 GB of tables: 5% in memory now, 25% fit (24.0 GB available)"
    )
    assert TableMemory(9 * GB, 3 * GB, 24 * GB).line().endswith("33% in memory now, all fit (24.0 GB available)")
    assert TableMemory(9 * GB, 9 * GB, 1 * GB).fits, "in memory already: they fit, whatever is left"


def test_of_another_users_file_nothing_is_known_and_nothing_is_assumed(artifact, monkeypatch):
    """mincore calls every page of such a file resident: a 96 GB model would seem to fit into 24 GB."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    memory = table_memory(artifact, GB)
    assert memory.resident_bytes is None
    assert memory.fits
    assert "an unknown part in memory now" in memory.line()
    assert not replace(memory, available_bytes=1000).fits


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_the_first_failure_ends_all_reading_at_once(error):
    reads = []

    def read(part: tuple, reader: int) -> int:
        reads.append(part)
        time.sleep(0.01)
        if len(reads) >= 3:
            raise error
        return part[2]

    with pytest.raises(type(error)):
        run_parts(iter([(None, at, 1) for at in range(500)]), read, lambda _: None)
    assert len(reads) < 50


def test_ctrl_c_ends_a_preload_long_before_its_end():
    """The real signal, which only the main thread gets; started in the background, a test run would ignore it."""
    reads = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def read(part: tuple, reader: int) -> int:
        reads.append(part)
        time.sleep(0.02)
        if part[1] == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return part[2]

    try:
        with pytest.raises(KeyboardInterrupt):
            run_parts(iter([(None, at, 1) for at in range(2000)]), read, lambda _: None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(reads) < 200


def test_residency_never_counts_more_than_the_tables(artifact):
    preload(artifact.library, artifact.manifest, PLENTY, lambda _: None)
    assert table_memory(artifact, GB).resident_bytes <= artifact.manifest.model.table_bytes
    assert not replace(PLENTY, available_bytes=0).fits


def test_tables_that_a_node_of_a_cluster_cannot_hold_are_refused_with_both_sizes():
    check_tables_fit(TableMemory(96 * GB, 0, 96 * GB))
    with pytest.raises(ValueError, match=r"tables of 96\.0 GB do not fit the 64\.0 GB .* --precision bf16 or int8"):
        check_tables_fit(TableMemory(96 * GB, 0, 64 * GB))
