"""Each kind of data is recognised by content and read in chunks; what does not fit is refused in one line."""

from __future__ import annotations

import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cards import Card, save

from dlrm_tvm.data import chunks
from dlrm_tvm.data.chunks import ReferenceData
from dlrm_tvm.data.reference_data import log_counts, open_reference, read_inputs
from dlrm_tvm.errors import UserError
from dlrm_tvm.model.dlrm import GraphInputs
from dlrm_tvm.paths import ROOT

NUM_ITEMS = 250


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks that no item count here is a multiple of, so that every reader crosses their edges."""
    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 64)


@pytest.fixture
def items() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "counts": rng.integers(0, 5000, (NUM_ITEMS, 13)).astype(np.int32),
        "categories": rng.integers(0, 100, (NUM_ITEMS, 26)).astype(np.int32),
        "labels": rng.integers(0, 2, NUM_ITEMS).astype(np.int32),
        "outputs": rng.random(NUM_ITEMS).astype(np.float32),
    }


def logs_of(counts: np.ndarray) -> np.ndarray:
    return np.array([[math.log(1 + max(x, 0)) for x in row] for row in counts.tolist()])


def mlperf_arrays(items: dict[str, np.ndarray], **changes: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {
        "X_int": logs_of(items["counts"]).astype(np.float32),
        "X_cat": items["categories"],
        "torch_res": items["outputs"],
        "target": items["labels"].astype(np.int8),
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def criteo_arrays(items: dict[str, np.ndarray], **changes: np.ndarray) -> dict[str, np.ndarray]:
    """As dlrm's data_utils.py writes them: all float64."""
    arrays = {"X_int": items["counts"], "X_cat": items["categories"], "y": items["labels"]}
    return {**{key: value.astype(np.float64) for key, value in arrays.items()}, **changes}


def graph_arrays(items: dict[str, np.ndarray], **changes: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {
        "dense_x": logs_of(items["counts"]).astype(np.float32),
        "indices": items["categories"].T.astype(np.int64),
        "offsets": np.tile(np.arange(NUM_ITEMS), (26, 1)),
        "pred": items["outputs"][:, None],
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def save_binary(tmp_path: Path, items: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "anything"
    np.hstack([items["labels"][:, None], items["counts"], items["categories"]]).astype("<i4").tofile(path)
    return path


def read_all(data: ReferenceData) -> list[np.ndarray | None]:
    """Chunks joined: dense, indices, reference, labels."""
    chunks = list(data)
    assert all(len(chunk.dense) <= 64 for chunk in chunks)
    assert all(chunk.bags is None for chunk in chunks)
    return [None if column[0] is None else np.concatenate(column) for column in zip(*(c[:4] for c in chunks))]


def check_items(data: ReferenceData, items: dict[str, np.ndarray], *, count: int = NUM_ITEMS) -> None:
    assert data.num_items == count
    dense, indices, reference, labels = read_all(data)
    assert (dense.dtype, indices.dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(dense, logs_of(items["counts"])[:count], rtol=1e-6)
    np.testing.assert_array_equal(indices, items["categories"][:count])
    assert (data.has_reference, data.has_labels) == (reference is not None, labels is not None)
    if data.has_reference:
        np.testing.assert_array_equal(reference, items["outputs"][:count])
    if data.has_labels:
        np.testing.assert_array_equal(labels, items["labels"][:count])


@pytest.mark.parametrize("compressed", [True, False])
def test_mlperf_npz_gives_its_items_with_outputs_and_labels(tmp_path, items, compressed):
    data = open_reference(save(tmp_path, mlperf_arrays(items), compressed=compressed), Card())
    assert (data.has_reference, data.has_labels) == (True, True)
    check_items(data, items)
    check_items(data, items)  # iterating again starts anew


@pytest.mark.parametrize("order", ["C", "F"])
def test_criteo_npz_gives_logs_of_counts_and_labels(tmp_path, items, order):
    arrays = {key: np.asarray(value, order=order) for key, value in criteo_arrays(items).items()}
    data = open_reference(save(tmp_path, arrays), Card(), split="all")
    assert (data.has_reference, data.has_labels) == (False, True)
    check_items(data, items)


def test_criteo_binary_gives_logs_of_counts_and_labels(tmp_path, items):
    data = open_reference(save_binary(tmp_path, items), Card())
    assert (data.has_reference, data.has_labels) == (False, True)
    check_items(data, items)


def test_negative_counts_are_taken_as_zero(tmp_path, items):
    items["counts"][3, 4] = -2
    for path in (save_binary(tmp_path, items), save(tmp_path, criteo_arrays(items))):
        check_items(open_reference(path, Card(), split="all"), items)
    np.testing.assert_array_equal(log_counts(np.array([-3, -1, 0])), np.zeros(3, dtype=np.float32))


def test_graph_inputs_are_read_stacked_and_as_one_array_per_table(tmp_path, items):
    check_items(open_reference(save(tmp_path, graph_arrays(items)), Card()), items)
    names = tuple(f"indices_{t}" for t in range(26))
    columns = {name: items["categories"][:, t] for t, name in enumerate(names)}
    path = save(tmp_path, graph_arrays(items, indices=None, offsets=None, **columns))
    card = Card(graph_inputs=GraphInputs("dense_x", names, (), "pred"))
    check_items(open_reference(path, card), items)


@pytest.mark.parametrize("count", [1, 64, 100, NUM_ITEMS, 10**6])
def test_max_items_limits_every_kind(tmp_path, items, count):
    for path in (
        save(tmp_path, mlperf_arrays(items)),
        save(tmp_path, criteo_arrays(items)),
        save(tmp_path, graph_arrays(items)),
        save_binary(tmp_path, items),
    ):
        check_items(open_reference(path, Card(), max_items=count), items, count=min(count, NUM_ITEMS))


def test_read_inputs_joins_chunks_and_takes_inputs_of_any_model(tmp_path, items):
    path = save(tmp_path, mlperf_arrays(items, model_fingerprint=np.array("b" * 64)))
    dense, indices = read_inputs(path, Card(), 100)
    np.testing.assert_array_equal(indices, items["categories"][:100])
    assert dense.shape == (100, 13)


def test_outputs_of_another_model_are_refused_and_of_this_one_read(tmp_path, items):
    path = save(tmp_path, mlperf_arrays(items, model_fingerprint=np.array("b" * 64)))
    with pytest.raises(UserError, match=r"recorded for another model \(fingerprint bbbbbbbbbbbb"):
        open_reference(path, Card())
    check_items(open_reference(path, Card(fingerprint="b" * 64)), items)


@pytest.mark.parametrize("key", ["X_int", "X_cat", "torch_res", "target"])
def test_a_missing_key_is_named(tmp_path, items, key):
    path = save(tmp_path, mlperf_arrays(items, **{key: None}))
    with pytest.raises(UserError, match=f"lacks {key}; has"):
        open_reference(path, Card())


@pytest.mark.parametrize("key", ["dense_x", "indices", "pred"])
def test_a_missing_graph_input_is_named(tmp_path, items, key):
    with pytest.raises(UserError, match=f"lacks {key}; has"):
        open_reference(save(tmp_path, graph_arrays(items, **{key: None})), Card())


def test_unknown_keys_are_refused_with_what_is_wanted(tmp_path):
    with pytest.raises(UserError, match="keys weights; want X_int, X_cat, torch_res, target, or X_int, X_cat, y, or"):
        open_reference(save(tmp_path, {"weights": np.ones(3)}), Card())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("X_cat", np.zeros((NUM_ITEMS - 1, 26), np.int32), r"X_cat has shape \[249, 26\]"),
        ("X_cat", np.zeros((NUM_ITEMS, 25), np.int32), r"X_cat has shape \[250, 25\]; .* need \[250, 26\]"),
        ("X_int", np.zeros((NUM_ITEMS, 12), np.float32), r"X_int has shape \[250, 12\]; .* need \[250, 13\]"),
        ("X_int", np.zeros((), np.float32), r"X_int has shape \[\]"),
        ("torch_res", np.zeros(NUM_ITEMS + 1, np.float32), r"torch_res has shape \[251\]"),
        ("target", np.zeros((NUM_ITEMS, 2), np.int8), r"target has shape \[250, 2\]"),
        ("X_int", np.zeros((NUM_ITEMS, 13), np.int64), "X_int is int64; want floating point"),
        ("X_cat", np.zeros((NUM_ITEMS, 26), np.float32), "X_cat is float32; want integers"),
        ("torch_res", np.zeros(NUM_ITEMS, np.int32), "torch_res is int32; want floating point"),
        ("target", np.full(NUM_ITEMS, "1"), "target is <U1; want numbers"),
        ("target", np.full(NUM_ITEMS, None), "target holds pickled objects"),
    ],
)
def test_other_shapes_and_dtypes_are_refused_on_opening(tmp_path, items, key, value, message):
    with pytest.raises(UserError, match=message) as raised:
        open_reference(save(tmp_path, mlperf_arrays(items, **{key: value})), Card())
    assert "\n" not in str(raised.value)


def test_float32_row_numbers_are_refused(tmp_path, items):
    path = save(tmp_path, criteo_arrays(items, X_cat=items["categories"].astype(np.float32)))
    with pytest.raises(UserError, match="X_cat is float32; want integers or float64"):
        open_reference(path, Card())


@pytest.mark.parametrize("value", [-1, 103, 2**31 - 1])
def test_an_index_outside_its_table_is_named_with_table_item_and_value(tmp_path, items, value):
    items["categories"][200, 3] = value
    for path in (save(tmp_path, mlperf_arrays(items)), save_binary(tmp_path, items)):
        with pytest.raises(UserError, match=rf"item 200 takes row {value} of table 3 \(emb_3\), which has 103 rows"):
            read_all(open_reference(path, Card()))
    items["categories"][200, 3] = 102
    read_all(open_reference(save_binary(tmp_path, items), Card()))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_dense_values_and_outputs_that_are_not_finite_are_named(tmp_path, items, value):
    arrays = mlperf_arrays(items)
    arrays["X_int"][130, 7] = value
    with pytest.raises(UserError, match=f"dense value 7 of item 130 is {value}"):
        read_all(open_reference(save(tmp_path, arrays), Card()))
    arrays = mlperf_arrays(items)
    arrays["torch_res"][131] = value
    with pytest.raises(UserError, match=f"reference output of item 131 is {value}"):
        read_all(open_reference(save(tmp_path, arrays), Card()))


def test_labels_and_row_numbers_that_are_none_are_named(tmp_path, items):
    items["labels"][77] = 2
    for path in (save(tmp_path, criteo_arrays(items)), save_binary(tmp_path, items)):
        with pytest.raises(UserError, match=r"of item 77 is 2.*labels are 0 or 1"):
            read_all(open_reference(path, Card()))
    items["labels"][77] = 1
    for value in (2.5, np.nan):
        arrays = criteo_arrays(items)
        arrays["X_cat"][78, 2] = value
        with pytest.raises(UserError, match=f"item 78, table 2 is {value}, not a row number"):
            read_all(open_reference(save(tmp_path, arrays), Card()))


@pytest.mark.parametrize("kept_bytes", [3, 100, 5000, -1])
def test_a_truncated_npz_is_refused(tmp_path, items, kept_bytes):
    path = save(tmp_path, mlperf_arrays(items))
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(UserError, match=r"damaged, truncated or|want an npz"):
        read_all(open_reference(path, Card()))


def repack(path: Path, method: int) -> Path:
    """The same members, packed another way."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def assert_refused_as_damaged(path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.npz: damaged, truncated or encrypted \(.*\); want a complete npz"
    ) as raised:
        read_all(open_reference(path, Card()))
    assert "\n" not in str(raised.value)


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arrays_of", [mlperf_arrays, criteo_arrays, graph_arrays])
def test_damage_anywhere_is_one_line_or_harmless(tmp_path, items, arrays_of, method):
    """Ten bytes zeroed at places all over the file; dates and sizes that nobody reads may be among them."""
    content = repack(save(tmp_path, arrays_of(items)), method).read_bytes()
    check_items(open_reference(tmp_path / "data.npz", Card(), split="all"), items)
    refused = 0
    for at in np.linspace(0, len(content) - 10, 150).astype(int):
        (tmp_path / "data.npz").write_bytes(content[:at] + bytes(10) + content[at + 10 :])
        try:
            read_all(open_reference(tmp_path / "data.npz", Card(), split="all"))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 75


@pytest.mark.parametrize("arrays_of", [mlperf_arrays, graph_arrays])
def test_an_encrypted_npz_is_refused(tmp_path, items, arrays_of):
    path = save(tmp_path, arrays_of(items))
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + flags] |= 1
    path.write_bytes(content)
    assert_refused_as_damaged(path)


def test_a_count_beyond_float32_is_one_line(tmp_path, items):
    arrays = criteo_arrays(items)
    arrays["X_int"][5, 6] = 1e300
    with pytest.raises(UserError, match="dense value 6 of item 5 is inf"):
        read_all(open_reference(save(tmp_path, arrays), Card()))


@pytest.mark.parametrize("arrays_of", [mlperf_arrays, graph_arrays])
def test_a_file_that_breaks_after_it_was_opened_is_refused(tmp_path, items, arrays_of):
    path = save(tmp_path, arrays_of(items))
    data = open_reference(path, Card())
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="damaged, truncated or encrypted"):
        read_all(data)


def test_a_damaged_fingerprint_is_refused(tmp_path, items):
    path = repack(save(tmp_path, mlperf_arrays(items, model_fingerprint=np.array("a" * 64))), zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"a\0\0\0" * 64, b"b\0\0\0" * 64))
    assert_refused_as_damaged(path)


@pytest.mark.parametrize(
    "key, message", [("offsets", r"offsets has shape \[\]"), ("indices", r"indices has shape \[\]")]
)
def test_a_graph_input_without_dimensions_is_refused(tmp_path, items, key, message):
    with pytest.raises(UserError, match=message):
        read_all(open_reference(save(tmp_path, graph_arrays(items, **{key: np.int64(0)})), Card()))


def test_flipped_bytes_inside_an_npz_are_refused(tmp_path, items):
    path = save(tmp_path, mlperf_arrays(items))
    content = bytearray(path.read_bytes())
    content[2000:2010] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_all(open_reference(path, Card()))


def test_a_binary_that_is_not_whole_records_or_another_models_is_refused(tmp_path, items):
    path = save_binary(tmp_path, items)
    with pytest.raises(UserError, match="the model takes 12 and 26"):
        open_reference(path, replace(Card(), num_dense=12))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="39996 bytes; want an npz, or Criteo records of 40 int32"):
        open_reference(path, Card())
    path.write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes"):
        open_reference(path, Card())


def test_no_items_are_refused(tmp_path, items):
    empty = {key: value[:0] for key, value in mlperf_arrays(items).items()}
    with pytest.raises(UserError, match="holds no items"):
        open_reference(save(tmp_path, empty), Card())
    with pytest.raises(UserError, match="--max-items 0"):
        open_reference(save(tmp_path, mlperf_arrays(items)), Card(), max_items=0)


def test_a_large_npz_is_read_without_holding_it(tmp_path, monkeypatch):
    """Two passes over 40 MB of rows, one chunk at a time: the peak stays at a few chunks."""
    import tracemalloc

    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 1024)
    count = 100_000
    zeros = {"X_int": np.zeros((count, 13)), "X_cat": np.zeros((count, 26)), "y": np.zeros(count)}
    path = save(tmp_path, zeros)
    del zeros
    tracemalloc.start()
    assert sum(len(chunk.dense) for chunk in open_reference(path, Card(), split="all")) == count
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4_000_000


@pytest.mark.parametrize("name", ["t171_stacked", "t213_legacy_onehot"])
def test_data_of_the_real_exports_is_read(name):
    path = ROOT.parent / "shared" / "exports" / f"{name}.npz"
    if not path.exists():
        pytest.skip("the real exports are not here")
    indices = ("indices",) if name == "t171_stacked" else tuple(f"indices_{t}" for t in range(26))
    card = Card(table_rows=(1000,) * 26, graph_inputs=GraphInputs("dense_x", indices, ("offsets",), "pred"))
    dense, rows, outputs, labels = read_all(open_reference(path, card))
    assert (dense.shape, rows.shape, outputs.shape, labels) == ((4, 13), (4, 26), (4,), None)


def test_a_stored_npz_is_entered_midway_without_reading_what_is_before(tmp_path, items):
    """The bytes before are damaged: whoever read them would stumble over the CRC."""
    path = save(tmp_path, mlperf_arrays(items), compressed=False)
    data = open_reference(path, Card())
    assert [(each.start, each.stop) for each in data.shards(100)] == [(0, 100), (100, 200), (200, 250)]
    content = bytearray(path.read_bytes())
    row = logs_of(items["counts"]).astype(np.float32)[3].tobytes()
    content[content.index(row)] ^= 1
    path.write_bytes(content)
    dense, indices, reference, labels = read_all(data.only(range(200, 250)))
    np.testing.assert_allclose(dense, logs_of(items["counts"])[200:], rtol=1e-6)
    np.testing.assert_array_equal(indices, items["categories"][200:])
    np.testing.assert_array_equal(reference, items["outputs"][200:])
    np.testing.assert_array_equal(labels, items["labels"][200:])
    with pytest.raises(UserError, match="Bad CRC"):
        list(data)


def test_what_cannot_be_entered_midway_is_one_shard(tmp_path, items):
    by_columns = np.asfortranarray(mlperf_arrays(items)["X_int"])
    for path in (
        save(tmp_path, mlperf_arrays(items), compressed=True),
        save(tmp_path, mlperf_arrays(items, X_int=by_columns), compressed=False),
        save(tmp_path, graph_arrays(items), compressed=False),
    ):
        assert open_reference(path, Card()).shards(100) == [range(NUM_ITEMS)]


def test_shards_end_at_borders_and_hold_no_more_items_than_asked_for_where_borders_allow(tmp_path, items):
    data = open_reference(save_binary(tmp_path, items), Card())
    cut = replace(data, borders=(10, 30, 130, 150, 200, 250))
    assert cut.shards(50) == [range(30), range(30, 130), range(130, 150), range(150, 200), range(200, 250)]
    assert replace(cut, items=range(140, 160)).shards(5) == [range(140, 150), range(150, 160)]
    assert replace(cut, borders=(0, 30, 30, 30, 250, 250)).shards(20) == [range(30), range(30, 250)]
    assert replace(cut, items=range(0)).shards(20) == []
    assert data.shards(1000) == [range(NUM_ITEMS)]


@pytest.mark.parametrize("absent", [("torch_res",), ("target",), ("torch_res", "target")])
def test_outputs_and_labels_may_be_missing_where_that_is_allowed(tmp_path, items, absent):
    path = save(tmp_path, mlperf_arrays(items, **dict.fromkeys(absent)))
    data = open_reference(path, Card(), outputs_optional=True)
    check_items(data, items)
    assert (data.has_reference, data.has_labels) == ("torch_res" not in absent, "target" not in absent)
    with pytest.raises(UserError, match=f"lacks {absent[0]}"):
        open_reference(path, Card())
