"""Copies of weights in shared memory: the same bytes, on the pages and nodes asked for, read by real instances."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from models import assert_close, build_plain, numpy_predictions, random_batch, random_dlrm
from sparse_tables import on_disk
from sysfs_trees import write

from dlrm_tvm.bench.warnings import table_warnings
from dlrm_tvm.errors import UserError
from dlrm_tvm.machine import shared_memory
from dlrm_tvm.machine.numa import MemoryPolicy, NumaPlan
from dlrm_tvm.machine.shared_memory import SharedMemory
from dlrm_tvm.runtime import weight_copies
from dlrm_tvm.runtime.artifact import Artifact, SharedCopies, open_artifact
from dlrm_tvm.runtime.executor import Executor
from dlrm_tvm.runtime.residency import TableMemory
from dlrm_tvm.runtime.weight_copies import WeightCopies, prepared_weights

MODEL = random_dlrm(table_rows=(90_000, 31, 5))  # 5.8 MB: some huge pages
ROOMY = TableMemory(MODEL.table_bytes, 0, 1 << 40)
ONE_NODE = NumaPlan(None, "", (0, 0), (), (None, None))
# What a machine of two nodes would do, with node 0 standing in for both: mbind is called for real.
REPLICATED = NumaPlan("replicate", "", (0, 0), (MemoryPolicy((0,)), MemoryPolicy((0,))), table_copy_of=(0, 1))
INTERLEAVED = NumaPlan("interleave", "as asked", (0, 0), (MemoryPolicy((0,)),), (0, 0))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    return build_plain(on_disk(MODEL, folder / "data"), 4, folder / "built")


@pytest.fixture
def artifact(library) -> Artifact:
    return open_artifact(library)


def assert_right(library: Path, copies: SharedCopies) -> None:
    dense, indices = random_batch(MODEL, 9)
    predictions = Executor(open_artifact(library, copies=copies))(dense, indices)
    assert_close(predictions, numpy_predictions(MODEL, dense, indices))


def test_nothing_is_copied_where_nothing_asks_for_it(artifact):
    with WeightCopies(artifact, ONE_NODE, huge_pages=False, memory=ROOMY) as copies:
        assert copies.of_instance(0) == SharedCopies(None, None)
        assert copies.setup.copies == ()


@pytest.mark.parametrize("plan", [REPLICATED, INTERLEAVED], ids=["replicate", "interleave"])
def test_instances_read_the_copies_that_the_plan_gives_them(artifact, library, plan):
    with WeightCopies(artifact, plan, huge_pages=False, memory=ROOMY) as copies:
        given = [copies.of_instance(instance) for instance in range(2)]
        assert len({each.tables for each in given}) == len(plan.table_copies)
        assert given[0].parameters == given[1].parameters is not None, "one copy of the MLPs a node"
        for each in given:
            assert_right(library, each)
        assert len(copies.setup.copies) == len(plan.table_copies)
        assert all("node 0: small pages" in text for text in copies.setup.copies)


def test_tables_in_huge_pages_are_the_same_tables_and_say_what_was_got(artifact, library):
    with WeightCopies(artifact, ONE_NODE, huge_pages=True, memory=ROOMY) as copies:
        assert_right(library, copies.of_instance(0))
        assert copies.of_instance(0) == copies.of_instance(1)
        (text,) = copies.setup.copies
        assert "shared memory" in text and "huge pages" in text


def test_copies_that_do_not_fit_are_refused_before_anything_is_reserved(artifact, monkeypatch):
    monkeypatch.setattr(weight_copies, "SharedMemory", lambda *_, **__: pytest.fail("reserved"))
    tight = TableMemory(MODEL.table_bytes, 0, MODEL.table_bytes + (1 << 20))
    with pytest.raises(UserError, match=r"--numa replicate: 0\.0 GB of copies of the tables do not fit"):
        WeightCopies(artifact, REPLICATED, huge_pages=False, memory=tight)
    with pytest.raises(UserError, match=r"--huge-pages: .* Leave it out"):
        WeightCopies(artifact, ONE_NODE, huge_pages=True, memory=TableMemory(1, 0, 1000))


def test_descriptors_are_closed_whatever_happens(artifact, monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(weight_copies, "fill", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), WeightCopies(artifact, ONE_NODE, huge_pages=True, memory=ROOMY):
        pass
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_prepared_weights_say_what_they_found_and_did(artifact):
    said = []
    asked = NumaPlan(None, "this machine has one NUMA node, so --numa changes nothing", (0,), (), (None,))
    with prepared_weights(artifact, asked, preload=True, huge_pages=False, say=lambda *line: said.append(line)) as made:
        assert made.setup.memory.resident_bytes == MODEL.table_bytes
        assert table_warnings(made.setup) == []
    assert [label for label, _ in said] == ["tables", "numa", ""]
    assert "changes nothing" in said[1][1]
    assert "100% in memory now" in said[2][1]


def test_huge_pages_that_are_set_aside_are_taken_before_others(monkeypatch):
    """No machine has them without its administrator: what matters is that they are asked for when there are enough."""
    asked = []
    create = os.memfd_create
    monkeypatch.setattr(shared_memory, "free_hugetlb_bytes", lambda policy: 3 * (2 << 20))
    monkeypatch.setattr(shared_memory.os, "memfd_create", lambda name, flags: asked.append(flags) or create(name, 0))
    memory = SharedMemory(5 << 20, huge=True)
    assert asked == [os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB]
    assert memory.is_hugetlb
    memory.close()
    small = SharedMemory(7 << 20, huge=True)
    assert not small.is_hugetlb, "three pages hold 6 MiB"
    small.close()


def test_huge_pages_that_another_program_took_in_between_are_done_without(monkeypatch):
    monkeypatch.setattr(shared_memory, "free_hugetlb_bytes", lambda policy: 1 << 60)
    memory = SharedMemory(2 << 20, huge=True)
    memory.range.writable_array[:] = 3
    assert memory.range.array.sum(dtype=np.int64) == 3 * (2 << 20)
    memory.close()


def test_free_huge_pages_are_counted_on_the_nodes_that_are_to_give_them(tmp_path):
    pool = "hugepages/hugepages-2048kB/free_hugepages"
    for folder, count in {"kernel/mm": 9, "devices/system/node/node0": 4, "devices/system/node/node1": 5}.items():
        write(tmp_path, f"{folder}/{pool}", str(count))
    counted = [shared_memory.free_hugetlb_bytes(policy, tmp_path) >> 21 for policy in (None, MemoryPolicy((1,)))]
    assert counted == [9, 5]
    assert shared_memory.free_hugetlb_bytes(MemoryPolicy((0, 1)), tmp_path) >> 21 == 9
    assert shared_memory.free_hugetlb_bytes(MemoryPolicy((7,)), tmp_path) == 0


def test_pages_set_aside_make_room_that_is_not_counted_as_available(artifact, monkeypatch):
    full = TableMemory(MODEL.table_bytes, 0, 1000)
    monkeypatch.setattr(weight_copies, "free_hugetlb_bytes", lambda: 1 << 40)
    assert WeightCopies(artifact, ONE_NODE, huge_pages=True, memory=full).setup.copies == ()
    with pytest.raises(UserError, match="--numa replicate"):
        WeightCopies(artifact, REPLICATED, huge_pages=False, memory=full)


def test_preloading_what_was_copied_is_said_to_be_nothing(artifact):
    said = []
    with prepared_weights(artifact, ONE_NODE, preload=True, huge_pages=True, say=lambda *line: said.append(line)):
        assert ("", "--preload has nothing left to do: the copies are in memory") in said


def test_huge_bytes_counts_only_mappings_inside_the_range():
    smaps = (
        "200000-600000 rw-s 00000000 00:01 1 /memfd:dlrm_tvm\nRss: 4096 kB\nShmemPmdMapped:     2048 kB\n"
        "600000-800000 rw-s 00000000 00:01 1 /memfd:dlrm_tvm\nShmemPmdMapped:     2048 kB\n"
        "800000-a00000 rw-s 00000000 00:01 1 /other\nShmemPmdMapped:     2048 kB\nShared_Hugetlb: 0 kB\n"
    )
    assert shared_memory._huge_bytes(smaps, 0x200000, 6 << 20) == 4 << 20


def test_shared_memory_is_zeros_and_seen_by_whoever_maps_its_descriptor():
    memory = SharedMemory(100, huge=False)
    assert memory.nbytes == 2 << 20
    assert not memory.range.array.any()
    memory.range.writable_array[:3] = (1, 2, 3)
    np.testing.assert_array_equal(np.frombuffer(os.pread(memory.descriptor, 3, 0), np.uint8), [1, 2, 3])
    memory.close()
