"""Parquet: which columns are read as what, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cards import Card
from prediction_files import Items, save_parquet

from dlrm_tvm.data.reference_data import open_reference
from dlrm_tvm.errors import UserError

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-ray.txt)")
from pyarrow import parquet  # noqa: E402

COUNT = 250  # rows, in row groups of 100


@pytest.fixture
def items() -> Items:
    rng = np.random.default_rng(0)
    rows = np.array(Card().table_rows)
    return Items(
        rng.integers(0, 50, (COUNT, 13)),
        rng.integers(0, rows, (COUNT, len(rows))),
        rng.integers(0, 2, COUNT),
        rng.random(COUNT, np.float32),
    )


def rewritten(path: Path, **changes: object) -> Path:
    """The file with columns of other values; None: without them."""
    table = parquet.read_table(path)
    for name, values in changes.items():
        at = table.schema.get_field_index(name)
        table = table.drop([name]) if values is None else table.set_column(at, name, values)
    parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("lists", [True, False])
def test_items_are_read_from_any_item_on_across_row_groups(tmp_path, items, lists):
    path = save_parquet(tmp_path / "x", items, lists=lists)
    data = open_reference(path, Card(), first_item=90, max_items=125)
    chunks = list(data)
    part = slice(90, 215)
    dense, indices = items.inputs
    np.testing.assert_allclose(np.concatenate([each.dense for each in chunks]), dense[part], rtol=1e-6)
    np.testing.assert_array_equal(np.concatenate([each.indices for each in chunks]), indices[part])
    np.testing.assert_array_equal(np.concatenate([each.labels for each in chunks]), items.labels[part])
    assert (data.kind, data.has_reference, data.has_labels) == ("parquet", False, True)
    assert [(each.start, each.stop) for each in data.shards(50)] == [(90, 100), (100, 200), (200, 215)]
    assert [(each.start, each.stop) for each in data.shards(115)] == [(90, 200), (200, 215)]


def test_lists_without_a_fixed_size_are_read_where_all_have_the_same(tmp_path, items):
    path = save_parquet(tmp_path / "x", items, lists=True)
    rows = items.indices.tolist()
    rewritten(path, X_cat=pa.array(rows))
    np.testing.assert_array_equal(np.concatenate([chunk.indices for chunk in open_reference(path, Card())]), rows)
    rows[123] = rows[123][:-1]
    data = open_reference(rewritten(path, X_cat=pa.array(rows)), Card())
    with pytest.raises(UserError, match="X_cat of item 123 has 25 values; want 26"):
        list(data)


def test_the_reference_is_read_and_another_models_is_refused(tmp_path, items):
    path = save_parquet(tmp_path / "x", items, lists=True)
    table = parquet.read_table(path).append_column("torch_res", pa.array(items.reference))
    parquet.write_table(table, path)
    (chunk,) = open_reference(path, Card())
    np.testing.assert_array_equal(chunk.reference, items.reference)
    parquet.write_table(table.replace_schema_metadata({"model_fingerprint": "0" * 64}), path)
    with pytest.raises(UserError, match="recorded for another model"):
        open_reference(path, Card())


def test_what_does_not_fit_is_named_with_its_column_or_item(tmp_path, items):
    def refusal(lists: bool, **changes: object) -> str:
        path = rewritten(save_parquet(tmp_path / "x", items, lists=lists), **changes)
        with pytest.raises(UserError) as error:
            list(open_reference(path, Card()))
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
        return str(error.value).removeprefix(f"{path}: ")

    null = pa.array([None if item == 137 else 1 for item in range(COUNT)])
    assert "want X_cat, indices, or C1 to C26 (C3 is missing)" in refusal(False, C3=None)
    assert "I4 of item 137 is null" in refusal(False, I4=null)
    assert "I1 and I4 are counts and logarithms" in refusal(False, I4=pa.array(np.ones(COUNT)))
    assert "C2 is double; want integers" in refusal(False, C2=pa.array(np.ones(COUNT)))
    assert "C2 is string; want integers" in refusal(False, C2=pa.array(["a"] * COUNT))
    assert "label of item 137 is 7" in refusal(False, label=pa.array([7 * (item == 137) for item in range(COUNT)]))
    assert "item 137 takes row -1 of table 1" in refusal(
        False, C2=pa.array([-1 * (item == 137) for item in range(COUNT)])
    )
    short = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(COUNT * 12)), 12)
    assert "want integers or floating point, lists of 13" in refusal(True, X_int=short)
    rows = [[1.0] * 13 for _ in range(COUNT)]
    rows[137][5] = None
    assert "X_int of item 137 is null" in refusal(True, X_int=pa.array(rows, pa.list_(pa.float32(), 13)))
    assert "has neither torch_res nor pred nor target nor label nor y" in refusal(True, target=None)


def test_a_truncated_or_damaged_file_is_one_line(tmp_path, items):
    path = save_parquet(tmp_path / "x", items, lists=True)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:200] + bytes(1000) + whole[1200:], b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged or truncated .*; want a complete parquet file"):
            list(open_reference(path, Card()))


def test_without_pyarrow_the_pip_command_is_named(tmp_path, items, monkeypatch):
    path = save_parquet(tmp_path / "x", items, lists=True)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"parquet is read with pyarrow\. Install it: pip install .*ray"):
        open_reference(path, Card())
