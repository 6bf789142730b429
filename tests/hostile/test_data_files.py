"""Spoilt data files of every kind: refused in one line, or read as what NumPy reads from the same file."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cards import TABLE_ROWS, Card, save
from hostile import refused_or

from dlrm_tvm.data.reference_data import open_reference

CARD, ITEMS = Card(), 40
Arrays = dict[str, np.ndarray]


def arrays_of(kind: str) -> Arrays:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (ITEMS, 13))
    categories = rng.integers(0, TABLE_ROWS, (ITEMS, 26))
    labels, outputs = rng.integers(0, 2, ITEMS), rng.random(ITEMS, np.float32)
    logs = np.log1p(counts).astype(np.float32)
    if kind == "criteo":
        return {"X_int": counts * 1.0, "X_cat": categories * 1.0, "y": labels * 1.0}
    if kind == "graph":
        offsets = np.tile(np.arange(ITEMS), (26, 1))
        return {"dense_x": logs, "indices": categories.T.copy(), "offsets": offsets, "pred": outputs}
    return {"X_int": logs, "X_cat": categories, "torch_res": outputs, "target": labels}


def read(path: Path, split: str | None = None) -> tuple[np.ndarray, ...] | None:
    """(dense, indices or None, reference or None); None where it was refused."""

    def attempt() -> tuple[np.ndarray, ...]:
        chunks = list(open_reference(path, CARD, split=split))
        return tuple(
            None if column[0] is None else np.concatenate(column) for column in zip(*(each[:3] for each in chunks))
        )

    return refused_or(attempt)


def put(key: str, place: tuple, value: object) -> Callable[[Arrays], object]:
    return lambda arrays: arrays[key].__setitem__(place, value)


def make(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({key: change(arrays[key])})


BIG = 1e300
REFUSED: dict[str, tuple[str, Callable[[Arrays], object]]] = {
    "no labels": ("mlperf", lambda a: a.pop("target")),
    "no indices": ("mlperf", lambda a: a.pop("X_cat")),
    "no dense": ("graph", lambda a: a.pop("dense_x")),
    "no keys": ("mlperf", lambda a: a.clear()),
    "foreign keys": ("mlperf", lambda a: (a.clear(), a.update(weights=np.ones(3)))),
    "keys that steer a terminal": ("mlperf", lambda a: (a.clear(), a.update({"\x1b[2J\n": np.ones(3)}))),
    "an index below 0": ("mlperf", put("X_cat", (3, 3), -1)),
    "an index beyond the table": ("mlperf", put("X_cat", (39, 25), 125)),
    "an index of 2^63": ("mlperf", make("X_cat", lambda x: x.astype(np.uint64) + np.uint64(2**63))),
    "an index of a half": ("criteo", put("X_cat", (3, 3), 0.5)),
    "an index of NaN": ("criteo", put("X_cat", (3, 3), np.nan)),
    "an index beyond int64": ("criteo", put("X_cat", (3, 3), BIG)),
    "indices of float32": ("criteo", make("X_cat", lambda x: x.astype(np.float32))),
    "indices of text": ("mlperf", make("X_cat", lambda x: x.astype(str))),
    "indices of booleans": ("mlperf", make("X_cat", lambda x: x > 0)),
    "indices of one table less": ("mlperf", make("X_cat", lambda x: x[:, :-1])),
    "indices transposed": ("mlperf", make("X_cat", lambda x: x.T)),
    "one item less": ("mlperf", make("X_cat", lambda x: x[:-1])),
    "dense NaN": ("mlperf", put("X_int", (0, 0), np.nan)),
    "dense infinity": ("mlperf", put("X_int", (39, 12), np.inf)),
    "dense beyond float32": ("graph", make("dense_x", lambda x: x.astype(float) + BIG)),
    "counts beyond float32": ("criteo", put("X_int", (5, 5), BIG)),
    "counts of NaN": ("criteo", put("X_int", (5, 5), np.nan)),
    "dense of whole numbers": ("mlperf", make("X_int", lambda x: x.astype(int))),
    "dense of complex numbers": ("mlperf", make("X_int", lambda x: x.astype(complex))),
    "dense of records": ("mlperf", make("X_int", lambda x: np.zeros(ITEMS, [("a", "f4")]))),
    "dense of dates": ("mlperf", make("X_int", lambda x: x.astype("M8[s]"))),
    "dense objects": ("mlperf", make("X_int", lambda x: x.astype(object))),
    "dense of three dimensions": ("mlperf", make("X_int", lambda x: x[None])),
    "a single number": ("mlperf", make("X_int", lambda x: np.float32(3))),
    "no items": ("mlperf", lambda a: a.update({key: value[:0] for key, value in a.items()})),
    "labels of 2": ("mlperf", put("target", (3,), 2)),
    "labels of NaN": ("criteo", put("y", (3,), np.nan)),
    "labels of text": ("mlperf", make("target", lambda x: x.astype(str))),
    "reference of NaN": ("mlperf", put("torch_res", (3,), np.nan)),
    "reference beyond float32": ("mlperf", make("torch_res", lambda x: x.astype(float) + BIG)),
    "pred beyond float32": ("graph", make("pred", lambda x: x.astype(float) - BIG)),
    "offsets that run backwards": ("graph", put("offsets", (0, 5), 2)),
    "offsets below 0": ("graph", put("offsets", (0, 0), -1)),
    "offsets beyond the indices": ("graph", put("offsets", (25, 39), 1 << 40)),
    "offsets of floats": ("graph", make("offsets", lambda x: x.astype(float))),
    "offsets of another table's number": ("graph", make("offsets", lambda x: x[:-1])),
    "another model's fingerprint": ("mlperf", lambda a: a.update(model_fingerprint=np.array("b" * 64))),
    "a fingerprint of numbers": ("mlperf", lambda a: a.update(model_fingerprint=np.ones((3, 3)))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_are_no_data_of_this_model_are_refused(tmp_path, name) -> None:
    kind, change = REFUSED[name]
    arrays = arrays_of(kind)
    change(arrays)
    assert read(save(tmp_path, arrays)) is None


@pytest.mark.parametrize("kind", ["mlperf", "criteo", "graph"])
def test_arrays_as_they_are_wanted_are_read(tmp_path, kind) -> None:
    dense, indices, _ = read(save(tmp_path, arrays_of(kind)), "all" if kind == "criteo" else None)
    np.testing.assert_allclose(dense, arrays_of("mlperf")["X_int"], rtol=1e-6)  # Criteo's log is in float32
    np.testing.assert_array_equal(indices, arrays_of("mlperf")["X_cat"])


def npz(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1") + data


NESTED = "[('a', " * 60 + "'<f4'" + ")]" * 60
HEADERS = {
    "a negative shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (-40, 13)}\n",
    "a shape that is negative twice": "{'descr': '<f4', 'fortran_order': False, 'shape': (-40, -13)}\n",
    "a huge shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (40, 4611686018427387904)}\n",
    "a huge number of items": "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 13)}\n",
    "more items than bytes": "{'descr': '<f4', 'fortran_order': False, 'shape': (40, 13)}\n",
    "a shape of floats": "{'descr': '<f4', 'fortran_order': False, 'shape': (40.0, 13)}\n",
    "a shape of booleans": "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 13)}\n",
    "a shape that is a number": "{'descr': '<f4', 'fortran_order': False, 'shape': 40}\n",
    "no shape": "{'descr': '<f4', 'fortran_order': False}\n",
    "an unknown dtype": "{'descr': 'junk', 'fortran_order': False, 'shape': (40, 13)}\n",
    "pickled objects": "{'descr': '|O', 'fortran_order': False, 'shape': (40, 13)}\n",
    "an empty dtype": "{'descr': '|V0', 'fortran_order': False, 'shape': (40, 13)}\n",
    "a dtype that nests": "{'descr': "
    + "[('a', " * 60
    + "'<f4'"
    + ")]" * 60
    + ", 'fortran_order': False, 'shape': (1,)}\n",
    "code in place of a header": "__import__('os').abort()\n",
    "deep brackets": "(" * 5000,
    "a name that steers a terminal": "{'\x1b[2J': 1}\n",
    "nothing": "",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_describe_no_array_are_refused(tmp_path, name) -> None:
    members = {f"{key}.npy": npy(array) for key, array in arrays_of("mlperf").items()}
    members["X_int.npy"] = header(HEADERS[name], bytes(100))
    assert read(npz(tmp_path / "data.npz", members)) is None


@pytest.mark.parametrize("part", range(12))
@pytest.mark.parametrize("compressed", [False, True])
def test_archives_cut_short_are_refused(tmp_path, part, compressed) -> None:
    path = save(tmp_path, arrays_of("mlperf"), compressed=compressed)
    os.truncate(path, path.stat().st_size * part // 12)
    assert read(path) is None


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", ["mlperf", "graph"])
def test_bytes_changed_anywhere_are_noticed_or_harmless(tmp_path, kind, seed) -> None:
    """A zip has a CRC of each member; names and times of members matter to nobody."""
    path = save(tmp_path, arrays_of(kind), compressed=seed % 2 == 0)
    whole = read(path)
    rng, data = np.random.default_rng(seed), np.fromfile(path, np.uint8)
    places = rng.integers(0, len(data), 1 + seed % 3) if seed % 4 else len(data) - 1 - rng.integers(0, 400, 2)
    data[places] = rng.integers(0, 256, len(places))
    data.tofile(path)
    answer = read(path)
    if answer is not None:
        for got, wanted in zip(answer, whole, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("size", [0, 1, 159, 161, 160 * 3 + 80, 4])
def test_records_of_another_length_are_refused(tmp_path, size) -> None:
    (tmp_path / "day.bin").write_bytes(bytes(size))
    assert read(tmp_path / "day.bin") is None


@pytest.mark.parametrize("place, value", [(0, 2), (0, -1), (14, -1), (39, 126), (20, 2**31 - 1)])
def test_records_with_values_that_the_model_cannot_take_are_refused(tmp_path, place, value) -> None:
    records = np.zeros((5, 40), "<i4")
    records[3, place] = value
    records.tofile(tmp_path / "day.bin")
    assert read(tmp_path / "day.bin") is None


def test_records_that_become_shorter_while_they_are_read_are_refused(tmp_path) -> None:
    path = tmp_path / "day.bin"
    path.write_bytes(bytes(160 * 40_000))
    data = iter(open_reference(path, CARD))
    next(data)
    os.truncate(path, 160 * 33_000)
    assert refused_or(lambda: list(data)) is None


@pytest.mark.parametrize("kind", ["folder", "loop", "dangling link", "text", "another zip", "an npy", "pipe", "device"])
@pytest.mark.parametrize("name", ["data", "day_23_dense.npy"])
def test_paths_that_are_no_data_are_refused(tmp_path, kind, name) -> None:
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind in ("loop", "dangling link"):
        path.symlink_to(path if kind == "loop" else tmp_path / "nowhere")
    elif kind == "another zip":
        npz(path, {"readme.txt": b"text"})
    else:
        path.write_bytes(b"text" if kind == "text" else npy(np.ones(3)))
    assert read(path) is None
