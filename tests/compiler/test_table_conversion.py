"""Tables as the kernels read them: narrow rows in words, padded and in their order, whatever comes in one chunk."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from models import random_dlrm
from quantized import QUANTIZED, VALUES, byte_order, values_of
from sparse_tables import on_disk

from dlrm_tvm.compiler import table_conversion
from dlrm_tvm.compiler.precision_choice import choose_numerics
from dlrm_tvm.compiler.table_conversion import stored_bytes, stored_rows, table_scales
from dlrm_tvm.compiler.table_layout import lay_out_tables
from dlrm_tvm.errors import UserError
from dlrm_tvm.model.dlrm import Dlrm, Table
from dlrm_tvm.model.precision import PRECISIONS, numerics_of

DIMS = (1, 16, 20, 33, 40, 64, 72, 128)
ROWS = (11, 1, 300)


def of_dim(dim: int, **options: object) -> Dlrm:
    return random_dlrm(table_rows=ROWS, dim=dim, **options)


def weighted(table: Table, seed: int = 0) -> Table:
    return replace(table, row_weights=np.random.default_rng(seed).uniform(-2, 2, table.num_rows).astype(np.float32))


def columns_of(words: np.ndarray, precision: str) -> np.ndarray:
    """Stored rows as numbers [rows, columns], columns in the model's order; int8 as whole numbers."""
    values = values_of(words, precision)
    if precision != "int8":
        return values
    order = byte_order(np.arange(values.shape[1]))
    columns = np.empty_like(values)
    columns[:, order] = values
    return columns


def formula(table: Table, precision: str, scale: float | None) -> np.ndarray:
    rows = table.rows if table.row_weights is None else table.rows * table.row_weights[:, None]
    if precision == "fp32":
        return rows
    if precision == "bf16":
        return rows.astype(ml_dtypes.bfloat16).astype(np.float32)
    return np.minimum(np.maximum(np.rint(rows / np.float32(scale)), -127), 127)


@pytest.fixture(params=["one chunk", "chunks of some rows", "chunks of one row"])
def chunks(request, monkeypatch) -> str:
    """However large a chunk is, the result must be the same; the smallest holds less than a row."""
    nbytes = {"one chunk": 16 << 20, "chunks of some rows": 4 * 16 * 7, "chunks of one row": 1}[request.param]
    monkeypatch.setattr(table_conversion, "_CHUNK_BYTES", nbytes)
    return request.param


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_are_stored_in_whole_vectors_of_words_with_zeros_past_their_end(precision, dim):
    table = of_dim(dim).tables[2]
    scale = float(np.abs(table.rows).max() / 127)
    words = np.concatenate(list(stored_rows(table, precision, scale)))
    assert (words.dtype, len(words), words.shape[1] % 16) == (np.float32, 300, 0)
    assert words.shape[1] - 16 < -(-dim // VALUES[precision]) <= words.shape[1], "no vector more than needed"
    columns = columns_of(words, precision)
    np.testing.assert_array_equal(columns[:, :dim], formula(table, precision, scale))
    np.testing.assert_array_equal(columns[:, dim:], 0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("where", ["memory", "file"])
def test_rows_do_not_depend_on_how_many_come_at_once_or_from_where(tmp_path, chunks, precision, where):
    model = of_dim(20)
    model = replace(model, tables=tuple(weighted(table, t) for t, table in enumerate(model.tables)))
    scales = table_scales(model)
    held = on_disk(model, tmp_path / "data", offset=64) if where == "file" else model
    for table, original, scale in zip(held.tables, model.tables, scales):
        parts = list(stored_rows(table, precision, scale))
        assert (len(parts) > 1) == (chunks != "one chunk" and table.num_rows > 5)
        columns = columns_of(np.concatenate(parts), precision)
        np.testing.assert_array_equal(columns[:, :20], formula(original, precision, scale))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_layout_copies_quantized_rows_one_table_after_another(tmp_path, precision):
    model = on_disk(of_dim(40), tmp_path / "data")
    scales = table_scales(model) if precision == "int8" else None
    layout = lay_out_tables(model, numerics=numerics_of(model, precision, scales))
    assert (layout.pieces, layout.copied.nbytes) == ((), stored_bytes(model, precision))
    flat = np.concatenate([chunk.reshape(-1) for chunk in layout.copied.chunks(0)])
    words = len(flat) // sum(ROWS)
    for t, (table, start) in enumerate(zip(model.tables, layout.starts)):
        rows = flat[start : start + table.num_rows * words].reshape(-1, words)
        wanted = formula(table, precision, None if scales is None else scales[t])
        np.testing.assert_array_equal(columns_of(rows, precision)[:, :40], wanted)


@pytest.mark.parametrize(("dim", "wanted"), [(128, (512, 256, 128)), (16, (64, 64, 64)), (40, (192, 128, 64))])
def test_stored_bytes_are_those_of_whole_vectors(dim, wanted):
    assert tuple(stored_bytes(of_dim(dim), p) for p in PRECISIONS) == tuple(sum(ROWS) * each for each in wanted)


def test_a_tables_scale_is_its_largest_magnitude_over_127_with_its_weights(chunks):
    model = of_dim(20)
    zeros = Table("zeros", np.zeros((4, 20), np.float32))
    tables = (model.tables[0], weighted(model.tables[1]), replace(model.tables[2], rows=-model.tables[2].rows), zeros)
    done = []
    scales = table_scales(replace(random_dlrm(table_rows=(*ROWS, 4), dim=20), tables=tables), done.append)
    largest = [np.abs(formula(table, "fp32", None)).max() for table in tables[:3]]
    np.testing.assert_array_equal(scales, [*(each / np.float32(127) for each in largest), 1])
    assert scales.dtype == np.float32
    assert sum(done) == sum(table.rows.nbytes for table in tables)


def test_what_int8_cannot_take_is_refused_with_a_precision_that_every_cpu_has():
    model = of_dim(16)
    large = replace(model.tables[0], rows=model.tables[0].rows * np.float32(1e20))
    with pytest.raises(UserError, match=r"int8 cannot take\. Use --precision fp32"):
        choose_numerics(replace(model, tables=(large, *model.tables[1:])), "int8")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -2e18])
@pytest.mark.parametrize("row", [0, 299])
def test_a_table_with_a_value_that_no_scale_fits_is_refused_with_its_row(chunks, value, row):
    model = of_dim(20)
    rows = model.tables[2].rows.copy()
    rows[row, 7] = value
    model = replace(model, tables=(*model.tables[:2], replace(model.tables[2], rows=rows)))
    with pytest.raises(ValueError, match=rf"table emb_2, row {row} holds {value:.6g}".replace("+", "[+]")):
        table_scales(model)


def test_a_value_beside_which_the_other_rows_would_be_zeros_is_refused_with_its_row(chunks):
    """Of 300 rows three may stay and 297 vanish; with four there is a table left."""
    model = of_dim(20)
    rows = np.abs(model.tables[2].rows) + np.float32(0.01)
    for row, is_refused in ((17, True), (270, True), (100, True), (40, False)):
        rows[row, 3] = 1000 + row
        changed = replace(model, tables=(*model.tables[:2], replace(model.tables[2], rows=rows)))
        if not is_refused:
            assert table_scales(changed)[2] == np.float32(1270) / np.float32(127)
            continue
        with pytest.raises(ValueError, match=r"emb_2, row \d+ holds 1\d+, beside which \d+ of 300 rows are zeros"):
            table_scales(changed)


def test_a_weight_of_a_row_that_is_not_finite_leaves_no_scale_either():
    model = of_dim(20)
    weights = np.ones(300, np.float32)
    weights[5] = np.nan
    model = replace(model, tables=(*model.tables[:2], replace(model.tables[2], row_weights=weights)))
    with pytest.raises(ValueError, match=r"table emb_2, row 5 holds nan"):
        table_scales(model)


def test_bf16_rows_keep_what_is_not_finite():
    rows = np.float32([[np.nan, np.inf, -np.inf, 1.0]])
    (words,) = stored_rows(Table("odd", rows), "bf16")
    np.testing.assert_array_equal(columns_of(words, "bf16")[:, :4], rows)
