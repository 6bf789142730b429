"""The Python API with whatever a program may hand it: a sentence for each mistake, and the model works on."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from models import assert_close, build_plain, numpy_predictions, random_batch, random_dlrm
from scripts import run

from dlrm_tvm import load
from dlrm_tvm.paths import ROOT

MODEL = random_dlrm(table_rows=(11, 1, 300), dim=20)
DENSE, INDICES = random_batch(MODEL, 7)
BAGS = [np.array([0, 1, 2]), np.array([0]), np.array([5, 6])]
OFFSETS = [np.array([0, 1]), np.array([0, 1]), np.array([0, 1])]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(str(build_plain(MODEL, 4, tmp_path_factory.mktemp("library"))))


def with_value(array: np.ndarray, place: tuple, value: object) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


class Odd:
    """Neither an array nor a sequence."""


class Liar:
    """Has a length and no values."""

    def __len__(self) -> int:
        return 7


CALLS = {
    "no arrays": (None, None),
    "numbers": (1.0, 2),
    "text": ("dense", "indices"),
    "bytes": (b"dense", b"indices"),
    "odd objects": (Odd(), Odd()),
    "liars": (Liar(), Liar()),
    "dictionaries": ({}, {}),
    "sets": (set(), set()),
    "ragged lists": ([[1.0], [1.0, 2.0]], [[1], [2, 3]]),
    "arrays of objects": (DENSE.astype(object), INDICES.astype(object)),
    "text in arrays": (DENSE.astype(str), INDICES.astype(str)),
    "complex dense": (DENSE.astype(np.complex64), INDICES),
    "float16 dense": (DENSE.astype(np.float16), INDICES),
    "dense of another byte order": (DENSE.astype(">f4"), INDICES),
    "whole dense": (DENSE.astype(np.int32), INDICES),
    "dense of one more column": (np.ones((7, 14), np.float32), INDICES),
    "dense of no columns": (np.ones((7, 0), np.float32), INDICES),
    "dense of no dimension": (np.float32(3), INDICES),
    "dense of three dimensions": (DENSE[None], INDICES),
    "dense transposed": (DENSE.T, INDICES),
    "fewer dense": (DENSE[:3], INDICES),
    "indices transposed": (DENSE, INDICES.T),
    "indices of floats": (DENSE, INDICES.astype(float)),
    "indices that are booleans": (DENSE, INDICES.astype(bool)),
    "dates as indices": (DENSE, INDICES.astype("M8[s]")),
    "indices of one dimension": (DENSE, INDICES[:, 0]),
    "a masked NaN": (np.ma.masked_invalid(with_value(DENSE, (0, 0), np.nan)).data, INDICES),
    "an index below 0": (DENSE, with_value(INDICES, (3, 1), -1)),
    "an index beyond the table": (DENSE, with_value(INDICES, (6, 2), 300)),
    "an index of 2^63": (DENSE, with_value(INDICES.astype(np.uint64), (0, 0), 2**63)),
    "an index of 10^30": (DENSE, [[10**30, 0, 0]] * 7),
    "a dense NaN": (with_value(DENSE, (5, 5), np.nan), INDICES),
    "a dense infinity": (with_value(DENSE, (0, 12), -math.inf), INDICES),
    "offsets alone": (DENSE[:2], INDICES[:2], OFFSETS),
    "bags of too few tables": (DENSE[:2], BAGS[:2], OFFSETS[:2]),
    "bags of too many offsets": (DENSE[:2], BAGS, [*OFFSETS[:2], np.array([0, 1, 2])]),
    "bags that begin at 1": (DENSE[:2], BAGS, [np.array([1, 2]), *OFFSETS[1:]]),
    "bags that run backwards": (DENSE[:2], BAGS, [np.array([0, 3]), np.array([0, -1]), OFFSETS[2]]),
    "bags beyond the indices": (DENSE[:2], BAGS, [np.array([0, 9]), *OFFSETS[1:]]),
    "bags of floats": (DENSE[:2], [each.astype(float) for each in BAGS], OFFSETS),
    "offsets of floats": (DENSE[:2], BAGS, [each.astype(float) for each in OFFSETS]),
    "offsets that are a number": (DENSE[:2], BAGS, 3),
    "offsets that are text": (DENSE[:2], BAGS, "000"),
    "a bag with an index beyond its table": (DENSE[:2], [BAGS[0], np.array([1]), BAGS[2]], OFFSETS),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_with_wrong_arguments_is_a_value_error_of_one_line(model, name) -> None:
    with pytest.raises(ValueError) as error:
        model(*CALLS[name])
    assert "\n" not in str(error.value) and str(error.value)
    assert_close(model(DENSE, INDICES), numpy_predictions(MODEL, DENSE, INDICES))


@pytest.mark.parametrize(
    "library",
    ["", ".", "/", "nowhere.so", "a\0b.so", "a" * 5000, "/dev/null", "/etc/passwd", "/proc/self/mem", "x\n\x1b[2J.so"],
)
def test_loading_what_is_no_library_is_a_value_error_of_one_line(library, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError)) as error:
        load(library)
    assert "\n" not in str(error.value)


def test_a_library_of_the_current_folder_is_loaded_by_its_name_and_no_other_of_that_name(
    tmp_path, small_library, monkeypatch
) -> None:
    """The loader of shared libraries looks for a name without a folder elsewhere."""
    for path in small_library.parent.glob(f"{small_library.stem}.*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / small_library.name).write_text("no library\n")
    monkeypatch.chdir(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import numpy as np; from dlrm_tvm import load\n"
    code += f"print(load({small_library.name!r})(np.ones((2, 13), np.float32), np.zeros((2, 3), int)).shape)"
    command, environment = [sys.executable, "-c", code], os.environ | {"LD_LIBRARY_PATH": str(tmp_path / "elsewhere")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.stdout, done.stderr) == ("(2,)\n", "")
    for name in (small_library.name, f"./{small_library.name}"):
        done = run("--model", name, "--num-instances", 1, "--duration", 0.1, "--warmup", 0)
        assert done.returncode == 0, done.stderr


def test_items_beyond_memory_are_no_crash(model) -> None:
    """An array of 10^12 items that takes no memory, until it is copied."""
    dense = np.broadcast_to(np.float32(0), (10**12, 13))
    indices = np.broadcast_to(np.int64(0), (10**12, 3))
    with pytest.raises(MemoryError):
        model(dense, indices)
