"""MLPerf v2's three files with anything in them: refused in one line, or read as what they hold."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cards import Card
from hostile import refused_or

from dlrm_tvm.data.reference_data import open_reference

ITEMS, ROWS, HOTS = 30, (50, 7, 3), (3, 1, 4)
CARD = Card(table_rows=ROWS, table_names=("a", "b", "c"))
DENSE, LABELS, INDICES = "day_23_dense.npy", "day_23_labels.npy", "day_23_sparse_multi_hot.npz"


def save_day(folder: Path) -> None:
    rng = np.random.default_rng(8)
    np.save(folder / DENSE, rng.random((ITEMS, 13), dtype=np.float32))
    np.save(folder / LABELS, (np.arange(ITEMS) % 3 == 0).astype(np.int32)[:, None])
    save_indices(folder, [rng.integers(0, rows, (ITEMS, hot), np.int32) for rows, hot in zip(ROWS, HOTS)])


def save_indices(folder: Path, arrays: list[np.ndarray]) -> None:
    np.savez(folder / INDICES, **{str(table): array for table, array in enumerate(arrays)})


def indices_of(folder: Path) -> list[np.ndarray]:
    with np.load(folder / INDICES) as arrays:
        return [arrays[str(table)].copy() for table in range(len(ROWS))]


def read(path: Path) -> list | None:
    return refused_or(lambda: list(open_reference(path, CARD, outputs_wanted=False, split="all")))


def change(name: str, how: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / name, how(np.load(folder / name)))


def change_table(table: int, how: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        arrays = indices_of(folder)
        arrays[table] = how(arrays[table])
        save_indices(folder, arrays)

    return changed


def put(place: tuple, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def changed(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return changed


def cut(name: str, to: float) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * to))


def rewritten(how: Callable[[dict[str, bytes]], dict[str, bytes] | list], compression: int = zipfile.ZIP_STORED):
    """The indices' zip with other members."""

    def changed(folder: Path) -> None:
        with zipfile.ZipFile(folder / INDICES) as archive:
            members = how({name: archive.read(name) for name in archive.namelist()})
        with zipfile.ZipFile(folder / INDICES, "w", compression) as archive:
            for name, data in members.items() if isinstance(members, dict) else members:
                archive.writestr(name, data)

    return changed


def longer_than_the_file(folder: Path) -> None:
    """Sizes in the zip's directory beyond its end, of a member whose header says so too."""
    data = bytearray((folder / INDICES).read_bytes())
    with zipfile.ZipFile(folder / INDICES) as archive:
        last = archive.infolist()[-1]
    huge = (1 << 30).to_bytes(4, "little")
    for signature, at in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):
        place = data.rindex(signature)
        data[place + at : place + at + 8] = huge * 2
    shape, wanted = f"({ITEMS}, {HOTS[-1]})".encode(), f"({1 << 20}, {HOTS[-1]})".encode()
    place = data.index(shape, last.header_offset)
    data[place : place + len(wanted)] = wanted
    (folder / INDICES).write_bytes(data)


REFUSED: dict[str, Callable[[Path], object]] = {
    "dense NaN": change(DENSE, put((3, 3), np.nan)),
    "dense infinity": change(DENSE, put((29, 12), np.inf)),
    "dense of whole numbers": change(DENSE, lambda x: x.astype(int)),
    "dense beyond float32": change(DENSE, lambda x: x.astype(float) + 1e300),
    "dense of one column less": change(DENSE, lambda x: x[:, :12]),
    "dense of one item less": change(DENSE, lambda x: x[:-1]),
    "dense transposed": change(DENSE, lambda x: x.T),
    "dense of no dimension": change(DENSE, lambda x: np.float32(3)),
    "dense of objects": lambda folder: np.save(folder / DENSE, np.full((ITEMS, 13), None)),
    "no items": lambda folder: [change(DENSE, lambda x: x[:0])(folder), change(LABELS, lambda x: x[:0])(folder)],
    "labels of 2": change(LABELS, put((3, 0), 2)),
    "labels below 0": change(LABELS, put((3, 0), -1)),
    "labels of text": change(LABELS, lambda x: x.astype(str)),
    "labels of two columns": change(LABELS, lambda x: np.hstack([x, x])),
    "labels of one item more": change(LABELS, lambda x: np.vstack([x, x[:1]])),
    "an index below 0": change_table(0, put((3, 2), -1)),
    "an index beyond the table": change_table(1, put((29, 0), 7)),
    "an index beyond 32 bits": change_table(2, lambda x: x.astype(np.int64) + (1 << 32)),
    "an index beyond int64": change_table(2, lambda x: x.astype(np.uint64) + np.uint64(1 << 63)),
    "indices of floats": change_table(0, lambda x: x.astype(float)),
    "indices of booleans": change_table(0, lambda x: x > 0),
    "indices of three dimensions": change_table(0, lambda x: x[:, :, None]),
    "indices of one dimension": change_table(1, lambda x: x.ravel()),
    "indices of one item less": change_table(0, lambda x: x[:-1]),
    "indices of a table that is not there": lambda folder: save_indices(folder, indices_of(folder)[:2]),
    "indices of one table more": lambda folder: save_indices(folder, [*indices_of(folder), indices_of(folder)[0]]),
    "indices by other names": rewritten(lambda members: {f"t{name}": data for name, data in members.items()}),
    "indices in a folder": rewritten(lambda members: {f"a/{name}": data for name, data in members.items()}),
    "indices compressed": rewritten(lambda members: members, zipfile.ZIP_DEFLATED),
    "a member twice": rewritten(lambda members: [*members.items(), ("0.npy", members["1.npy"])]),
    "a member that is text": rewritten(lambda members: {**members, "1.npy": b"text"}),
    "a member of nothing": rewritten(lambda members: {**members, "1.npy": b""}),
    "a member cut short": rewritten(lambda members: {**members, "1.npy": members["1.npy"][:-1]}),
    "members longer than the file": longer_than_the_file,
    "an empty zip": rewritten(lambda members: {}),
    **{f"{name} cut to {to}": cut(name, to) for name in (DENSE, LABELS, INDICES) for to in (0, 0.02, 0.5, 0.99)},
    **{f"{name} missing": lambda folder, name=name: (folder / name).unlink() for name in (DENSE, LABELS)},
    **{f"{name} a folder": lambda folder, name=name: [(folder / name).unlink(), (folder / name).mkdir()]
       for name in (DENSE, LABELS)},
    **{f"{name} a text": lambda folder, name=name: (folder / name).write_text("text") for name in (DENSE, INDICES)},
    **{f"{name} a loop": lambda folder, name=name: [(folder / name).unlink(), (folder / name).symlink_to(name)]
       for name in (DENSE, LABELS, INDICES)},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_day_of_this_model_is_refused_in_one_line(tmp_path, name) -> None:
    save_day(tmp_path)
    REFUSED[name](tmp_path)
    assert read(tmp_path / INDICES) is None


@pytest.mark.parametrize(
    "how",
    [
        lambda folder: None,
        change(LABELS, lambda x: x.ravel().astype(bool)),
        change(DENSE, lambda x: np.asfortranarray(x.astype(np.float64))),
        change_table(0, lambda x: np.asfortranarray(x.astype(np.int64))),
        change_table(2, lambda x: x.astype(np.uint8)),
    ],
)
def test_the_same_values_in_another_form_are_read_as_the_same(tmp_path, how) -> None:
    """Read from another folder: arrays are maps of the files."""
    changed = tmp_path / "changed"
    changed.mkdir()
    for folder in (tmp_path, changed):
        save_day(folder)
    how(changed)
    (before,), (after,) = read(tmp_path), read(changed)
    np.testing.assert_array_equal(after.dense, before.dense)
    np.testing.assert_array_equal(after.labels, before.labels)
    for got, wanted in zip(after.bags.indices, before.bags.indices, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("seed", range(30))
def test_bytes_changed_anywhere_end_in_a_refusal_or_an_answer(tmp_path, seed) -> None:
    """No CRC is read: a value may be another one, but every array is one that fits."""
    save_day(tmp_path)
    rng = np.random.default_rng(seed)
    path = tmp_path / (DENSE, LABELS, INDICES)[seed % 3]
    data = np.fromfile(path, np.uint8)
    data[rng.integers(0, min(len(data), 300), 2)] = rng.integers(0, 256, 2)
    data.tofile(path)
    chunks = read(tmp_path / INDICES)
    if chunks is not None:
        assert all(np.isfinite(chunk.dense).all() for chunk in chunks)
        assert sum(len(chunk.dense) for chunk in chunks) == ITEMS
