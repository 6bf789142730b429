"""Day 23 as MLPerf cuts it: v1's one file and v2's three, which rows each split holds, and what is said and refused."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cards import Card, save

from dlrm_tvm.data import chunks
from dlrm_tvm.data.multi_hot import day_files
from dlrm_tvm.data.reference_data import open_reference, read_inputs
from dlrm_tvm.data.splits import halves
from dlrm_tvm.errors import UserError

ITEMS = 251  # odd: the scored half has the odd item
HOTS = (3, 2, 1, 6)
TABLE_ROWS = (50, 7, 3, 90)
CARD = Card(table_rows=TABLE_ROWS, table_names=tuple(f"t_{t}" for t in range(4)))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 64)


def save_day(folder: Path, *, items: int = ITEMS, hots: tuple[int, ...] = HOTS, **changes) -> dict[str, np.ndarray]:
    """The three files as MLPerf's scripts write them; item i has the label i % 3 == 0."""
    rng = np.random.default_rng(8)
    arrays = {
        "dense": rng.random((items, 13), dtype=np.float32) * 6,
        "labels": (np.arange(items) % 3 == 0).astype(np.int32)[:, None],
        **{
            str(t): rng.integers(0, rows, (items, hot), np.int32) for t, (rows, hot) in enumerate(zip(TABLE_ROWS, hots))
        },
    }
    arrays |= changes
    np.save(folder / "day_23_dense.npy", arrays["dense"])
    np.save(folder / "day_23_labels.npy", arrays["labels"])
    np.savez(folder / "day_23_sparse_multi_hot.npz", **{key: arrays[key] for key in arrays if key.isdecimal()})
    return arrays


def save_v1(folder: Path, items: int = ITEMS, **others: np.ndarray) -> Path:
    """As data_utils.py writes day_23_reordered.npz; item i has i in its first column of counts."""
    counts = np.tile(np.arange(items, dtype=np.float64)[:, None], (1, 13))
    return save(folder, {"X_int": counts, "X_cat": np.zeros((items, 26)), "y": np.zeros(items), **others})


def numbers(path: Path, **part) -> list[int]:
    """The numbers of the items of `save_v1`'s file that are read."""
    dense = np.concatenate([chunk.dense for chunk in open_reference(path, Card(), **part)])
    return np.rint(np.expm1(dense[:, 0])).astype(int).tolist()


def test_the_day_is_cut_where_mlperf_says():
    """The numbers of mlcommons/inference, recommendation/dlrm_v2/pytorch/README.md, "Calibration set"."""
    for scored, other in (("test", "val"), ("val", "test")):
        cut = halves(178_274_637, scored, other)
        assert list(cut) == [scored, other, "calib"]
        assert (cut[scored], len(cut[scored])) == (range(89_137_319), 89_137_319)
        assert cut[other] == range(89_137_319, 178_274_637)
        assert (cut["calib"][0], cut["calib"][-1]) == (89_137_319, 89_265_318)
    assert halves(89_137_319, "val", "test") == {"val": range(89_137_319)}


def test_v1_scores_its_first_half_and_calibrates_on_the_second(tmp_path):
    path = save_v1(tmp_path)
    assert numbers(path) == numbers(path, split="test") == list(range(126))
    assert numbers(path, split="val") == numbers(path, for_calibration=True) == list(range(126, 251))
    assert numbers(path, split="all") == list(range(251))
    assert numbers(path, split="val", first_item=100, max_items=7) == list(range(226, 233))
    assert numbers(path, first_item=120, max_items=100) == list(range(120, 126))


def test_the_kaggle_week_and_data_with_outputs_are_not_cut(tmp_path):
    week = save_v1(tmp_path, counts=np.ones(26))
    assert (len(numbers(week)), open_reference(week, Card()).cut()) == (ITEMS, None)
    with pytest.raises(UserError, match=r"has no split test; it is not cut into splits. Leave --split out"):
        open_reference(week, Card(), split="test")


@pytest.mark.parametrize(
    "name",
    ["day_23_dense.npy", "day_23_labels.npy", "day_23_sparse_multi_hot.npz", "."],
    ids=["dense", "labels", "ids", "folder"],
)
def test_v2_is_found_by_any_of_its_files_and_read_as_it_was_written(tmp_path, name):
    arrays = save_day(tmp_path)
    data = open_reference(tmp_path / name, CARD, split="all")
    assert (data.num_items, data.has_reference, data.has_labels, data.indices_per_bag) == (ITEMS, False, True, 3.0)
    at = 0
    for chunk in data:
        part = slice(at, at + len(chunk.dense))
        np.testing.assert_array_equal(chunk.dense, arrays["dense"][part])  # logarithms already
        np.testing.assert_array_equal(chunk.labels, arrays["labels"][part, 0])
        for t, (indices, offsets) in enumerate(zip(*chunk.lookups)):
            bags = np.split(indices, offsets[1:])
            np.testing.assert_array_equal(bags, arrays[str(t)][part])
        at = part.stop
    assert at == ITEMS


@pytest.mark.parametrize(
    ("split", "first", "last"),
    [(None, 0, 125), ("val", 0, 125), ("test", 126, 250), ("calib", 126, 250), ("all", 0, 250)],
)
def test_v2_is_cut_in_halves_of_which_the_first_is_scored(tmp_path, split, first, last):
    arrays = save_day(tmp_path)
    data = open_reference(tmp_path, CARD, split=split)
    chunk = next(iter(data))
    np.testing.assert_array_equal(chunk.dense[0], arrays["dense"][first])
    np.testing.assert_array_equal(chunk.bags.indices[3][:6], arrays["3"][first])
    assert (data.items, data.split) == (range(first, last + 1), split or "val")
    wanted = (
        f"{split or 'val'}, items {first} to {last} of 251 (day 23 of Criteo's logs has 178,274,637; cut as that is)"
    )
    assert data.cut() == f"{wanted}; others by --split"


def test_calibration_of_v2_takes_128_000_items_behind_the_scored_half(tmp_path):
    items = 300_001
    dense = np.arange(items, dtype=np.float32)[:, None] * np.ones(13, np.float32)
    save_day(tmp_path, items=items, dense=dense)
    data = open_reference(tmp_path, CARD, for_calibration=True)
    assert data.portion == "128,000 items of split calib, from item 150,001 on"
    dense, bags = read_inputs(tmp_path, CARD, 10, for_calibration=True)
    assert dense[:, 0].tolist() == list(range(150_001, 150_011)) and bags.num_indices == 10 * sum(HOTS)


def test_what_was_read_of_the_day_is_no_memory_of_the_process(tmp_path):
    save_day(tmp_path, items=20_000)
    data, most = open_reference(tmp_path, CARD, split="all"), 0
    for number, chunk in enumerate(data):
        if number % 20 == 0:  # looking takes a while
            most = max(most, mapped_bytes(tmp_path))
        assert len(chunk.labels)
    assert most > 0 and mapped_bytes(tmp_path) == 0


def mapped_bytes(folder: Path) -> int:
    """Of this process's memory, what maps files in the folder."""
    inside, kilobytes = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return 1024 * kilobytes


def test_bags_of_one_are_plain_indices(tmp_path):
    arrays = save_day(tmp_path, hots=(1, 1, 1, 1))
    (dense, indices), _ = read_inputs(tmp_path, CARD, 5), None
    np.testing.assert_array_equal(indices, np.hstack([arrays[str(t)][:5] for t in range(4)]))
    assert (indices.dtype, dense.shape) == (np.int64, (5, 13))


def test_values_that_do_not_fit_are_named_with_their_item_in_the_file(tmp_path):
    arrays = save_day(tmp_path)
    arrays["1"][200, 1] = 7
    save_day(tmp_path, **arrays)
    with pytest.raises(UserError, match=r"item 200 takes row 7 of table 1 \(t_1\), which has 7 rows"):
        list(open_reference(tmp_path, CARD, split="test"))
    list(open_reference(tmp_path, CARD, split="val"))
    arrays["labels"][9] = 3
    save_day(tmp_path, **arrays)
    with pytest.raises(UserError, match=r"day_23_labels\.npy: the label of item 9 is 3"):
        list(open_reference(tmp_path, CARD))


def without_member(folder: Path) -> None:
    arrays = save_day(folder)
    np.savez(folder / "day_23_sparse_multi_hot.npz", **{key: arrays[key] for key in "013"})


def compressed(folder: Path) -> None:
    arrays = save_day(folder)
    np.savez_compressed(folder / "day_23_sparse_multi_hot.npz", **{key: arrays[key] for key in "0123"})


def cut_off(folder: Path, name: str, kept: int) -> None:
    save_day(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:kept])


def lying_header(folder: Path) -> None:
    """A member whose header promises more rows than it holds, all rows of the file that follows included."""
    arrays = save_day(folder)
    with zipfile.ZipFile(folder / "day_23_sparse_multi_hot.npz", "w") as archive:
        for key in "0123":
            np.save(folder / "member.npy", arrays[key])
            content = (folder / "member.npy").read_bytes()
            archive.writestr(f"{key}.npy", content[:-40] if key == "0" else content)


DAMAGES = {
    "a file missing": (lambda f: (save_day(f), (f / "day_23_labels.npy").unlink()), "labels.npy: no such file"),
    "an empty folder": (lambda f: None, "a folder; day_23_sparse_multi_hot.npz of MLPerf v2's data was wanted in it"),
    "a table too few": (without_member, r"3 members, 0, 1, 3; 0 to 3 were wanted, one for each table"),
    "compressed": (compressed, r"0\.npy is compressed or encrypted.* Store it plain"),
    "a short npz": (lambda f: cut_off(f, "day_23_sparse_multi_hot.npz", 5000), "damaged, truncated or encrypted"),
    "a short npy": (lambda f: cut_off(f, "day_23_dense.npy", 5000), r"\[251, 13\] holds 4872 bytes, 13052 wanted"),
    "no npy": (lambda f: cut_off(f, "day_23_labels.npy", 5), "labels.npy: damaged, truncated or encrypted .* npy"),
    "a lying header": (lying_header, r"npz: 0\.npy of shape \[251, 3\] holds 2972 bytes, 3012 wanted"),
    "labels of other length": (
        lambda f: save_day(f, labels=np.zeros((9, 1), np.int32)),
        r"labels\.npy: its array has shape \[9, 1\]; this model and file need \[251\]",
    ),
    "float indices": (lambda f: save_day(f, **{"2": np.zeros((ITEMS, 1))}), r"npz: 2\.npy is float64; want integers"),
    "pickles": (lambda f: save_day(f, labels=np.full((ITEMS, 1), None)), "holds pickled objects"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_v2_files_that_do_not_belong_or_are_damaged_are_one_line(tmp_path, case):
    damage, message = DAMAGES[case]
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        list(open_reference(tmp_path, CARD))
    assert "\n" not in str(raised.value)


def test_of_many_days_in_a_folder_the_last_is_meant(tmp_path):
    save_day(tmp_path)
    for day in (0, 1):
        for each in sorted(tmp_path.glob("day_23_*")):
            (tmp_path / each.name.replace("23", str(day))).write_bytes(each.read_bytes())
    assert [path.name[:6] for path in day_files(tmp_path)] == ["day_23"] * 3
    assert [path.name for path in day_files(tmp_path / "day_1_dense.npy")][2] == "day_1_sparse_multi_hot.npz"
    for each in tmp_path.glob("day_23_*"):
        each.unlink()
    with pytest.raises(UserError, match=r"it has 2 such files and not one of day_23. Name a file"):
        day_files(tmp_path)


def test_mlperfs_debugging_names_are_known(tmp_path):
    assert [path.name for path in day_files(tmp_path / "day_23_dense_debug.npy")] == [
        "day_23_dense_debug.npy",
        "day_23_labels_debug.npy",
        "day_23_sparse_multi_hot_debug.npz",
    ]
    assert day_files(tmp_path / "my_dense.npz") is None


def test_a_part_with_no_items_is_refused(tmp_path):
    save_day(tmp_path)
    with pytest.raises(UserError, match=r"split test of its 251 has 125 items; none is left from item 125 on"):
        open_reference(tmp_path, CARD, split="test", first_item=125)
    with pytest.raises(UserError, match="--first-item -1: give 0 or more"):
        open_reference(tmp_path, CARD, first_item=-1)


def test_the_scored_half_alone_is_scored_whole_and_not_calibrated_on(tmp_path, monkeypatch):
    monkeypatch.setattr("dlrm_tvm.data.splits.SCORED_ITEMS", ITEMS)
    save_day(tmp_path)
    assert open_reference(tmp_path, CARD).items == range(ITEMS)
    with pytest.raises(
        UserError, match=r"holds the items that MLPerf scores and no others. Calibrate on the other half"
    ):
        open_reference(tmp_path, CARD, for_calibration=True)
    with pytest.raises(UserError, match="has no split calib; it has val and all"):
        open_reference(tmp_path, CARD, split="calib")


def test_other_models_are_refused(tmp_path):
    save_day(tmp_path)
    with pytest.raises(
        UserError, match=r"dense\.npy: its array has shape \[251, 13\]; this model and file need \[251, 12\]"
    ):
        open_reference(tmp_path, replace(CARD, num_dense=12))
