"""Libraries whose tables stay in the model's own files: what happens when those are moved, cut or changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from models import assert_close, build_plain, numpy_predictions, random_batch, random_dlrm
from sparse_tables import on_disk

from dlrm_tvm import load
from dlrm_tvm.errors import UserError
from dlrm_tvm.runtime.artifact import open_artifact

MODEL = random_dlrm(table_rows=(700, 31))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data") / "data"


@pytest.fixture(scope="module")
def built(data) -> Path:
    return build_plain(on_disk(MODEL, data), 4, data.parent)


@pytest.fixture
def library(built, data, tmp_path) -> Iterator[Path]:
    """What a test does to the data is undone after it."""
    shutil.copy2(data, tmp_path / "whole")
    yield built
    shutil.copy2(tmp_path / "whole", data)


def refusal(library: Path) -> str:
    with pytest.raises(UserError) as error:
        open_artifact(library)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_library_reads_its_tables_from_the_models_own_file(library, data):
    dense, indices = random_batch(MODEL, 9)
    model = load(library)
    assert_close(model(dense, indices), numpy_predictions(MODEL, dense, indices))
    assert str(data) in Path("/proc/self/maps").read_text()
    assert library.with_suffix(".params").stat().st_size < MODEL.table_bytes


def test_a_missing_file_is_named_with_both_remedies(library, data):
    data.unlink()
    message = refusal(library)
    assert f"{data}: no such file" in message
    assert "Put it back, or compile again (--copy-tables" in message


def test_a_file_of_another_size_is_refused(library, data):
    size = data.stat().st_size
    os.truncate(data, size - 64)
    assert f"{data} has {size - 64} bytes, {size} when it was compiled" in refusal(library)


def test_a_file_that_was_changed_is_refused(library, data):
    with data.open("r+b") as file:
        file.seek(4096)
        file.write(np.full(200 * 16, 7, np.float32))
    assert f"{data} was changed since the library was compiled from it" in refusal(library)


def test_a_table_that_was_replaced_among_much_larger_ones_is_noticed(tmp_path):
    model = random_dlrm(table_rows=(200_000, 40))
    library = build_plain(on_disk(model, tmp_path / "data"), 4, tmp_path / "built")
    with (tmp_path / "data").open("r+b") as file:
        file.seek(-40 * 16 * 4, os.SEEK_END)
        file.write(np.full(40 * 16, 7, np.float32))
    os.utime(tmp_path / "data", (1, 1))
    assert "was changed" in refusal(library)


@pytest.mark.parametrize("how", ["in place", "copied"])
def test_a_single_value_that_was_changed_is_noticed_though_the_time_was_kept(library, data, tmp_path, how):
    before = data.stat()
    if how == "copied":
        shutil.copy2(data, tmp_path / "copy")
        (tmp_path / "copy").rename(data)
    with data.open("r+b") as file:
        file.seek(4096 + 333 * 64 + 4)
        file.write(np.float32(7).tobytes())
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert f"{data} was changed since the library was compiled from it" in refusal(library)


def test_a_file_whose_inode_was_only_touched_is_accepted(library, data):
    data.chmod(0o600)
    load(library)


def test_a_file_that_was_only_copied_is_accepted(library, data, tmp_path):
    shutil.copyfile(data, tmp_path / "copy")
    data.unlink()
    os.utime(tmp_path / "copy", (1, 1))
    (tmp_path / "copy").rename(data)
    dense, indices = random_batch(MODEL, 4)
    assert_close(load(library)(dense, indices), numpy_predictions(MODEL, dense, indices))


def test_opening_maps_tables_without_reading_them(library):
    opened = open_artifact(library, whole_tables=False)
    assert opened.manifest.table_range.pieces[0].is_in_place
    assert opened.tables.nbytes == opened.manifest.table_range.nbytes
