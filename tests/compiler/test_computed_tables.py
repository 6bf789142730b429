"""Tables that are computed from an index, from the graph to predictions of the compiled library."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from field_graphs import DENSE, DIM, ROWS, Builder, feed_of, lower_triangle, plain, write_graph
from graphs import move_weights_out, onnxruntime_outputs, onnxruntime_session
from models import build_plain
from onnx import TensorProto

from dlrm_tvm.compiler.table_conversion import stored_rows
from dlrm_tvm.compiler.table_layout import lay_out_tables
from dlrm_tvm.data.reference_data import open_reference
from dlrm_tvm.data.workload import bag_lengths
from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.runtime.artifact import open_artifact
from dlrm_tvm.runtime.executor import Executor
from dlrm_tvm.symbols import interpreter

ITEMS = 23


def _hashed_half_and_multiplied(b: Builder, indices: list[str]) -> list[str]:
    hashed = b.add("Gather", b.table(11), b.add("Mod", indices[0], b.constant(11)))
    half = b.add("Cast", b.add("Gather", b.table(5, dtype=np.float16), indices[1]), to=TensorProto.FLOAT)
    parts = [b.add(op, indices[2], b.constant(3)) for op in ("Div", "Mod")]
    return [hashed, half, b.add("Mul", *(b.add("Gather", b.table(3), part) for part in parts))]


def test_library_takes_the_graphs_own_indices_and_gives_onnxruntimes_outputs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = write_graph(tmp_path / "m.onnx", embed=_hashed_half_and_multiplied, layout="items_first")
    model = Executor(open_artifact(build_plain(read_dlrm(path), 4, tmp_path)))
    rng = np.random.default_rng(1)
    dense = rng.uniform(-2, 2, (ITEMS, DENSE)).astype(np.float32)
    indices = np.stack([rng.integers(0, most, ITEMS) for most in (10**9, 5, 9)], axis=1)
    feed = feed_of(dense, indices, "items_first")
    wanted = onnxruntime_outputs(onnxruntime_session(path), feed)
    np.testing.assert_allclose(model(dense, indices), wanted, rtol=1e-5, atol=1e-6)
    np.savez(tmp_path / "data.npz", **feed, pred=wanted)
    (chunk,) = open_reference(tmp_path / "data.npz", model.artifact.manifest.model)
    np.testing.assert_array_equal(chunk.indices[:, 0], indices[:, 0] % 11)
    with pytest.raises(UserError, match="index 9 is outside table 2, which has 9 rows"):
        model(dense[:1], np.array([[10**9, 4, 9]]))


def test_parts_of_a_joint_table_are_used_in_place(tmp_path: Path) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        table = b.table(sum(ROWS), 16)
        return [b.add("Gather", table, b.add("Add", i, b.constant(at))) for i, at in zip(indices, (0, 11, 16))]

    def join(b: Builder, x: str, vectors: list[str]) -> tuple[str, int]:
        return b.add("Concat", b.layer(x, DIM, 16), *vectors, axis=1), 64

    path = write_graph(tmp_path / "m.onnx", embed=embed, join=join)
    model = onnx.load(path)
    move_weights_out(model, path, "one_file")
    onnx.save(model, path)
    read = read_dlrm(path)
    layout = lay_out_tables(read)
    assert [table.num_rows for table in read.tables] == list(ROWS)
    assert layout.copied is None and len(layout.pieces) == 1
    np.testing.assert_array_equal(np.diff(layout.starts), [11 * 16, 5 * 16])


def test_computed_rows_are_written_as_they_are_computed(tmp_path: Path) -> None:
    table = read_dlrm(write_graph(tmp_path / "m.onnx", embed=_hashed_half_and_multiplied)).tables[2]
    written = np.concatenate(list(stored_rows(table, "fp32")))
    np.testing.assert_array_equal(written[:, :DIM], table.rows[:])
    assert not written[:, DIM:].any()
    reasons = dict(lay_out_tables(read_dlrm(tmp_path / "m.onnx")).reasons)
    assert "computed (quotient-remainder embedding" in reasons[table.name]


def test_a_large_table_that_is_cast_as_a_whole_is_cast_row_by_row(tmp_path: Path, monkeypatch) -> None:
    def embed(b: Builder, indices: list[str]) -> list[str]:
        wide = b.add("Cast", b.table(ROWS[0], dtype=np.float16), to=TensorProto.FLOAT)
        return [b.add("Gather", wide, indices[0]), *plain(b, indices[1:])]

    path = write_graph(tmp_path / "m.onnx", embed=embed, join=lower_triangle)
    whole = read_dlrm(path)
    monkeypatch.setattr(interpreter, "MOST_COPIED_ELEMENTS", 10)
    by_row = read_dlrm(path)
    assert by_row.tables[0].rows.origin.startswith("rows of float16")
    assert by_row.fingerprint == whole.fingerprint


def test_bags_of_several_indices_are_refused_where_no_table_gives_them(tmp_path: Path) -> None:
    case = Path(__file__).parents[1] / "field_cases" / "qr_embedding.onnx"
    inputs = read_dlrm(shutil.copy(case, tmp_path)).graph_inputs
    card = type("Card", (), {"graph_inputs": inputs, "table_rows": (52,) * 5})
    assert bag_lengths(card, [1]) is None
    with pytest.raises(UserError, match=r"bags of one index each were wanted: .*quotient-remainder.*Leave --indices"):
        bag_lengths(card, [3])
