"""Where tables lie: in place where the kernel can read them so, copied where it cannot, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import (
    assert_close,
    build,
    build_plain,
    build_without_code,
    numpy_predictions,
    random_bags,
    random_batch,
    random_dlrm,
    schedules_of,
)
from sparse_tables import on_disk, sparse_model

from dlrm_tvm import load
from dlrm_tvm.compiler.table_layout import TableLayout, lay_out_tables
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.runtime.artifact import open_artifact

ROWS = (300, 5, 9000)
HUGE_PAGE = 2 << 20
BIGGEST = 39_979_771  # of MLPerf's tables


def of_model(**shape: object) -> Dlrm:
    return random_dlrm(table_rows=ROWS, **shape)


def as_opened(model: Dlrm, folder: Path) -> list[np.ndarray]:
    """Every table as a kernel would read it from an opened library."""
    opened = open_artifact(build_without_code(model, 4, folder / "built"))
    tables, info, _ = opened.parameters
    dim = -(-model.dim // 16) * 16
    return [tables[start : start + rows * dim].reshape(rows, dim) for start, rows in info.T.tolist()]


def assert_all_there(model: Dlrm, tables: list[np.ndarray]) -> None:
    for table, rows in zip(model.tables, tables, strict=True):
        weights = 1 if table.row_weights is None else table.row_weights[:, None]
        np.testing.assert_array_equal(rows[:, : model.dim], table.rows * weights)
        np.testing.assert_array_equal(rows[:, model.dim :], 0)
        assert rows.ctypes.data % 64 == 0


def reasons(layout: TableLayout) -> dict[str, str]:
    return dict(layout.reasons)


def test_aligned_tables_of_one_file_are_one_piece_and_nothing_is_copied(tmp_path):
    model = on_disk(of_model(), tmp_path / "data")
    layout = lay_out_tables(model)
    assert layout.copied is None
    (piece,) = layout.pieces
    assert (piece.file, piece.offset, piece.at) == (str(tmp_path / "data"), 0, 0)
    assert piece.nbytes == 4096 + model.table_bytes
    assert_all_there(model, as_opened(model, tmp_path))


def test_a_piece_begins_at_the_huge_page_of_its_first_table(tmp_path):
    model = on_disk(of_model(), tmp_path / "data", offset=5 * HUGE_PAGE + 64)
    (piece,) = lay_out_tables(model).pieces
    assert (piece.offset, piece.nbytes) == (5 * HUGE_PAGE, 64 + model.table_bytes)
    assert_all_there(model, as_opened(model, tmp_path))


def test_tables_of_several_files_each_have_a_piece_of_their_own(tmp_path):
    model = of_model()
    tables = []
    for table in model.tables:
        table.rows.tofile(tmp_path / table.name)
        rows = np.memmap(tmp_path / table.name, "<f4", "r", 0, table.rows.shape)
        tables.append(replace(table, rows=rows))
    model = replace(model, tables=tuple(tables))
    layout = lay_out_tables(model)
    assert len(layout.pieces) == 3
    assert all(piece.at % HUGE_PAGE == piece.offset % HUGE_PAGE == 0 for piece in layout.pieces)
    ends = [piece.at + piece.nbytes for piece in layout.pieces]
    assert all(end <= piece.at for end, piece in zip(ends, layout.pieces[1:]))
    assert layout.nbytes == ends[-1]
    assert_all_there(model, as_opened(model, tmp_path))


@pytest.mark.parametrize("offset", [4, 32, 4096 + 16])
def test_tables_that_are_not_64_byte_aligned_are_copied_with_that_reason(tmp_path, offset):
    model = on_disk(of_model(), tmp_path / "data", offset=offset)
    layout = lay_out_tables(model)
    assert layout.pieces == ()
    assert f"begins at byte {offset} of its file" in reasons(layout)["emb_0"]
    assert_all_there(model, as_opened(model, tmp_path))


def test_of_some_aligned_and_some_unaligned_tables_only_the_latter_are_copied(tmp_path):
    model = on_disk(of_model(), tmp_path / "data")
    odd = on_disk(of_model(), tmp_path / "odd", offset=12)
    model = replace(model, tables=(model.tables[0], odd.tables[1], model.tables[2]))
    layout = lay_out_tables(model)
    assert reasons(layout).keys() == {"emb_1"}
    assert layout.copied.nbytes == 5 * 16 * 4
    assert_all_there(model, as_opened(model, tmp_path))


def test_rows_that_are_no_whole_vectors_are_copied_and_widened(tmp_path):
    model = on_disk(of_model(dim=20), tmp_path / "data")
    assert "rows of 20 values are widened to 32" in reasons(lay_out_tables(model))["emb_2"]
    assert_all_there(model, as_opened(model, tmp_path))


def test_weights_of_rows_are_multiplied_in_as_they_are_copied(tmp_path):
    model = on_disk(of_model(), tmp_path / "data")
    weights = np.random.default_rng(0).random(ROWS[2], np.float32)
    model = replace(model, tables=(*model.tables[:2], replace(model.tables[2], row_weights=weights)))
    layout = lay_out_tables(model)
    assert reasons(layout) == {"emb_2": "its rows have weights, which are multiplied in"}
    assert_all_there(model, as_opened(model, tmp_path))
    opened = load(build_plain(model, 4, tmp_path))
    for inputs in (random_batch(model, 6), (random_batch(model, 6)[0], *random_bags(model, 6))):
        assert_close(opened(*inputs), numpy_predictions(model, *inputs))


def test_transposed_tables_and_those_in_memory_are_copied(tmp_path):
    model = of_model(dim=16)
    copied = "its rows are inside the ONNX file, or do not lie one after another"
    assert reasons(lay_out_tables(model))["emb_0"] == copied
    np.ascontiguousarray(model.tables[0].rows.T).tofile(tmp_path / "turned")
    turned = np.memmap(tmp_path / "turned", "<f4", "r", 0, (16, ROWS[0])).T
    model = replace(model, tables=(replace(model.tables[0], rows=turned), *model.tables[1:]))
    assert reasons(lay_out_tables(model))["emb_0"] == copied
    assert_all_there(model, as_opened(model, tmp_path))


def test_copying_is_done_when_asked_for_and_needs_no_reason(tmp_path):
    model = on_disk(of_model(), tmp_path / "data")
    layout = lay_out_tables(model, copy=True)
    assert (layout.pieces, layout.reasons) == ((), ())
    assert layout.copied.nbytes == model.table_bytes


def test_slices_of_a_mapped_file_are_found_where_they_lie(tmp_path):
    model = on_disk(of_model(), tmp_path / "data")
    head = replace(model.tables[2], rows=model.tables[2].rows[4000:8000])
    model = replace(model, tables=(*model.tables[:2], head))
    assert lay_out_tables(model).reasons == ()
    assert_all_there(model, as_opened(model, tmp_path))


@pytest.mark.parametrize("kernels", ["ours", "plain"])
def test_the_last_row_of_the_biggest_table_is_read_with_64_bit_indices(tmp_path, kernels, require_fma):
    """20 GB of holes twice: elements 5.1 and 10.2 billion are past 32 bits, bytes past 35."""
    model, known = sparse_model(tmp_path / "data", (BIGGEST, BIGGEST))
    rng = np.random.default_rng(0)
    indices = np.stack([rng.choice(rows, 8) for rows in known], axis=1)
    indices[0] = BIGGEST - 1
    dense = rng.uniform(-1, 1, (8, 13)).astype(np.float32)
    wanted = numpy_predictions(model, dense, indices)
    narrow = numpy_predictions(model, dense, np.minimum(indices, (1 << 32) // 128 - 1))
    assert np.abs(wanted - narrow).max() > 1e-3, "rows past 32 bits must matter"
    library = build_plain(model, 8, tmp_path) if kernels == "plain" else build_ours(model, 8, tmp_path)
    opened = load(library)
    assert_close(opened(dense, indices), wanted)
    lasts = [np.array([0, BIGGEST - 1, BIGGEST - 2]), np.array([BIGGEST - 1] * 3)]
    offsets = [np.array([0, 2]), np.array([0, 1])]
    assert_close(opened(dense[:2], lasts, offsets), numpy_predictions(model, dense[:2], lasts, offsets))
    assert library.with_suffix(".params").stat().st_size < 100 << 20


def build_ours(model: Dlrm, batch: int, folder: Path) -> Path:
    return build(model, batch, schedules_of(model, batch), folder)


def test_our_kernels_read_tables_of_several_pieces(tmp_path, require_fma):
    model = on_disk(of_model(), tmp_path / "data")
    odd = on_disk(of_model(), tmp_path / "odd", offset=12)
    model = replace(model, tables=(odd.tables[0], model.tables[1], model.tables[2]))
    dense, indices = random_batch(model, 16)
    assert_close(load(build_ours(model, 16, tmp_path))(dense, indices), numpy_predictions(model, dense, indices))
