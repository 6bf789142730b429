"""Spoilt manifests, parameters and libraries: every field of a manifest by every kind of wrong value."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import refused_or
from models import build_plain, random_batch, random_dlrm
from sparse_tables import on_disk

from dlrm_tvm import load

MODEL = random_dlrm(table_rows=(40, 5, 33), dim=16)
BATCH = random_batch(MODEL, 9)
SUFFIXES = (".so", ".json", ".params")
WRONG = (None, True, -1, 0, 1, 3.5, float("nan"), 10**30, "", "../../etc/passwd", "\x1b[2J\n", [], [1], {}, {"a": 1})
NUDGES = (-(1 << 40), -4096, -64, -1, 1, 64, 4096, 1 << 21, 1 << 40)

Path_ = tuple[Any, ...]


@pytest.fixture(scope="module", params=["copied", "in place"])
def library(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    model = MODEL if request.param == "copied" else on_disk(MODEL, folder / "data")
    return build_plain(model, 4, folder / "built")


@pytest.fixture(scope="module")
def wanted(library) -> np.ndarray:
    return load(str(library))(*BATCH)


def check(library: Path, wanted: np.ndarray) -> bool:
    """Whether it was refused; else its predictions are those of the library that was not spoilt."""
    answer = refused_or(lambda: load(str(library))(*BATCH))
    if answer is not None:
        np.testing.assert_array_equal(answer, wanted)
    return answer is None


@pytest.fixture
def spoilt(library, tmp_path) -> Path:
    for suffix in SUFFIXES:
        shutil.copy(library.with_suffix(suffix), tmp_path)
    return tmp_path / library.name


def leaves(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Paths of all values of a JSON document; of lists the first and last elements."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if not isinstance(value, list) or key in (0, len(value) - 1):
            yield from leaves(child, (*path, key))


def changed(fields: dict, path: Path_, value: Any) -> dict:
    fields = copy.deepcopy(fields)
    if not path:
        return value
    place = fields
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return fields


FIELDS = (
    "format_version", "build", "model", "batch_size", "precision", "family", "target_cpu", "cpu_features", "inputs",
    "bag_inputs", "outputs", "library_sha256", "parameter_file", "parameter_bytes", "parameter_sha256", "parameters",
    "table_range", "peak_flops_per_round", "tuned_kernels", "untuned_kernels", "tvm_version", "command", "created",
    "profile", "onnx_model", "directory", "numerics", "options", "machine", "rest_sha256", "other_peaks",
)  # fmt: skip


def test_all_fields_are_spoilt(library) -> None:
    assert set(json.loads(library.with_suffix(".json").read_text())) == set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_a_manifest_with_wrong_values(spoilt, wanted, field) -> None:
    """Of the wrong type, missing, or a number beside the right one."""
    path = spoilt.with_suffix(".json")
    fields = json.loads(path.read_text())
    for place in leaves(fields[field], (field,)):
        right = fields
        for key in place:
            right = right[key]
        nudged = [right + nudge for nudge in NUDGES] if type(right) is int else []
        for value in (*WRONG, *nudged):
            if value != right or type(value) is not type(right):
                path.write_text(json.dumps(changed(fields, place, value)))
                check(spoilt, wanted)
    path.write_text(json.dumps({key: value for key, value in fields.items() if key != field}))
    check(spoilt, wanted)


@pytest.mark.parametrize(
    "place, value",
    [
        (("parameters", 0, "offset"), 4097),
        (("parameters", 0, "shape"), [-5]),
        (("parameters", 0, "dtype"), "object"),
        (("parameters", 0, "dtype"), "float16"),
        (("parameters", 0, "name"), "mlp"),
        (("parameters", -1, "shape"), [1 << 62, 4]),
        (("parameters", -1, "offset"), 0),
        (("parameter_file",), "../small_b4.params"),
        (("parameter_file",), "/etc/passwd"),
        (("parameter_file",), "."),
        (("table_range", "nbytes"), 1 << 62),
        (("table_range", "pieces"), []),
        (("table_range", "pieces", 0, "at"), 1 << 21),
        (("table_range", "pieces", 0, "nbytes"), 1 << 50),
        (("table_range", "pieces", 0, "file"), "../../data"),
        (("table_range", "pieces", 0, "file"), "/etc/passwd"),
        (("model", "table_rows"), [40, 5, 34]),
        (("model", "table_rows"), [5, 40, 33]),
        (("model", "table_rows"), [78, 0, 0]),
        (("model", "table_rows"), [40, 5]),
        (("model", "dim"), 32),
        (("precision",), "int8"),
        (("precision",), "fp64"),
        (("batch_size",), 5),
        (("batch_size",), 1 << 40),
        (("unknown",), 1),
    ],
)
def test_a_manifest_that_describes_no_library_is_refused(spoilt, wanted, place, value) -> None:
    path = spoilt.with_suffix(".json")
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    assert check(spoilt, wanted)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format_version": 3, "model": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b"\xff\xfe\x00",
        b"1" * 10_000,
        b'{"format_version": ' + b"9" * 5_000 + b"}",
        b'"\\ud800"',
        b"NaN",
        b"\0" * 100,
    ],
    ids=range(9),
)
def test_a_manifest_that_is_no_json_of_ours_is_refused(spoilt, wanted, text) -> None:
    spoilt.with_suffix(".json").write_bytes(text)
    assert check(spoilt, wanted)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [0, 1, 100, 4095, -1, -64, 5000])
def test_files_of_another_length_are_refused(spoilt, wanted, suffix, size) -> None:
    path = spoilt.with_suffix(suffix)
    data = path.read_bytes()
    path.write_bytes(data[:size] if size < 4096 else data + bytes(size))
    assert check(spoilt, wanted) or suffix == ".json"  # a newline less at its end is no harm


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["folder", "missing", "loop", "dangling link", "pipe"])
def test_files_that_are_none_are_refused(spoilt, wanted, suffix, kind) -> None:
    import os

    path = spoilt.with_suffix(suffix)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling link":
        path.symlink_to(path.with_suffix(".nowhere"))
    elif kind == "pipe":
        os.mkfifo(path)
    assert check(spoilt, wanted)


@pytest.mark.parametrize("seed", range(40))
def test_bits_flipped_anywhere_but_in_the_tables(spoilt, wanted, seed) -> None:
    rng = np.random.default_rng(seed)
    path = spoilt.with_suffix(SUFFIXES[seed % 3])
    data = np.fromfile(path, np.uint8)
    end = len(data) if path.suffix != ".params" else 4096  # test_artifact.py flips the others
    data[rng.integers(end)] ^= np.uint8(1 << int(rng.integers(8)))
    data.tofile(path)
    check(spoilt, wanted)
