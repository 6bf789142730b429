"""Parts of files side by side in one range of addresses."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dlrm_tvm.machine.address_range import HUGE_PAGE, AddressRange, writable_view
from dlrm_tvm.paths import ROOT

PAGE = mmap.PAGESIZE


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "file"
    np.arange(10 * PAGE // 8, dtype=np.int64).tofile(path)
    return path


def mapped(file: Path, memory: AddressRange, offset: int, nbytes: int, at: int) -> None:
    with file.open("rb") as stream:
        memory.map_file(stream.fileno(), offset, nbytes, at=at)


def test_parts_of_a_file_appear_where_they_are_put(file):
    memory = AddressRange(8 * PAGE)
    assert memory.address % HUGE_PAGE == 0
    mapped(file, memory, 4 * PAGE, 2 * PAGE, at=0)
    mapped(file, memory, PAGE, 100, at=3 * PAGE)
    content = np.fromfile(file, np.uint8)
    np.testing.assert_array_equal(memory.array[: 2 * PAGE], content[4 * PAGE : 6 * PAGE])
    np.testing.assert_array_equal(memory.array[3 * PAGE : 3 * PAGE + 100], content[PAGE : PAGE + 100])


def test_the_array_is_read_only_and_its_writable_view_has_the_same_memory(file):
    memory = AddressRange(PAGE)
    mapped(file, memory, 0, PAGE, at=0)
    array = memory.array.view(np.int64)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    view = writable_view(array)
    assert (view.ctypes.data, view.dtype, view.shape) == (array.ctypes.data, array.dtype, array.shape)
    assert view.flags.writeable


def test_addresses_live_as_long_as_an_array_of_them_and_no_longer(file):
    memory = AddressRange(PAGE)
    mapped(file, memory, 0, PAGE, at=0)
    address, part = memory.address, writable_view(memory.array.view(np.int64)[5:9])
    del memory
    gc.collect()
    np.testing.assert_array_equal(part, [5, 6, 7, 8])
    assert str(file) in Path("/proc/self/maps").read_text()
    del part
    gc.collect()
    assert f"{address:x}-" not in Path("/proc/self/maps").read_text()


def test_terabytes_can_be_reserved_and_cost_nothing():
    before = int(Path("/proc/self/statm").read_text().split()[1])
    memory = AddressRange(1 << 40)
    assert memory.array.nbytes == 1 << 40
    assert int(Path("/proc/self/statm").read_text().split()[1]) - before < 100


def test_residency_counts_the_pages_that_are_in_memory(file):
    memory = AddressRange(10 * PAGE)
    mapped(file, memory, 0, 10 * PAGE, at=0)
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    cold = memory.resident_bytes(0, 10 * PAGE)
    os.pread(descriptor, 10 * PAGE, 0)
    os.close(descriptor)
    assert memory.resident_bytes(0, 10 * PAGE) == 10 * PAGE
    assert memory.resident_bytes(PAGE, 2 * PAGE) == 2 * PAGE
    if cold == 10 * PAGE:
        pytest.skip("this file system keeps all pages in memory")
    assert cold == 0


def test_what_no_file_is_mapped_to_may_not_be_touched():
    script = "from dlrm_tvm.machine.address_range import AddressRange; print(AddressRange(4096).array[0])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=ROOT)
    assert done.returncode < 0, "ended by a signal"


def test_a_mapping_that_is_refused_is_an_oserror_with_its_reason(file):
    with pytest.raises(OSError, match="Invalid argument"):
        mapped(file, AddressRange(PAGE), 1, PAGE, at=0)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        AddressRange(1 << 60)


def test_arrays_may_be_used_until_the_interpreter_is_gone():
    """What atexit runs after us, a service's last prediction say, must not find its weights unmapped."""
    script = (
        "import atexit, mmap\n"
        "atexit.register(lambda: print(memory.array.sum()))\n"
        "from dlrm_tvm.machine.address_range import AddressRange\n"
        "memory = AddressRange(4096)\n"
        "file = open('pyproject.toml')\n"
        "memory.map_file(file.fileno(), 0, 100, at=0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr
