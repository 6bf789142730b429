"""The demo model: the same bits everywhere, whole on disk or not there, understood by other runtimes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from dlrm_tvm.data import demo
from dlrm_tvm.data.demo_weights import CRITEO_TABLE_ROWS, V1, data_chunks, demo_tensors, mlp_end
from dlrm_tvm.errors import UserError
from dlrm_tvm.model import reference

SMALL_ROWS = 100
SMALL_SHA256 = "2fce43b794abd6d8db14a21707c382669849ae2b5f70d529d2360021dfaadb65"


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory) -> Path:
    """The demo model with tables of at most 100 rows."""
    return demo.demo_model_path(SMALL_ROWS, directory=tmp_path_factory.mktemp("demo"), announce=lambda line: None)


def data_file(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def reference_items(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(demo.DEMO_REFERENCE) as data:
        return data["X_int"][:count], data["X_cat"][:count].astype(np.int64), data["torch_res"][:count]


def test_weights_are_the_same_bits_everywhere(small_demo):
    assert demo.data_sha256(SMALL_ROWS) == SMALL_SHA256
    assert demo.data_sha256(demo.DEMO_TABLE_ROWS) == V1.data_sha256[demo.DEMO_TABLE_ROWS]
    content = data_file(small_demo).read_bytes()
    assert hashlib.sha256(content).hexdigest() == SMALL_SHA256
    assert hashlib.sha256(content[: mlp_end(demo_tensors(SMALL_ROWS))]).hexdigest() == V1.mlp_sha256


def test_values_follow_the_stated_recipe_word_by_word():
    tensor = demo_tensors(SMALL_ROWS)[1]
    words = [int(word) for word in np.random.PCG64(tensor.seed).random_raw(256)]
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    expected = [((half >> 8) - 2**23) * (tensor.bound / 2**23) for half in halves]
    np.testing.assert_array_equal(np.concatenate(list(tensor.values())), np.float32(expected))


def test_a_lower_cap_keeps_the_heads_of_the_tables():
    low, high = demo_tensors(SMALL_ROWS)[-7], demo_tensors(1000)[-7]
    assert (low.name, low.shape, high.shape) == (high.name, (SMALL_ROWS, 128), (1000, 128))
    head = next(high.values())[: SMALL_ROWS * 128]
    np.testing.assert_array_equal(next(low.values()), head)


def test_shape_and_layout_are_those_of_the_mlperf_model(small_demo):
    model = demo.demo_dlrm(SMALL_ROWS, directory=small_demo.parent)
    assert model.macs_per_item == 2_410_112
    assert [table.num_rows for table in model.tables] == [min(rows, SMALL_ROWS) for rows in CRITEO_TABLE_ROWS]
    tensors = demo_tensors(SMALL_ROWS)
    assert all(tensor.offset % 4096 == 0 for tensor in tensors)
    assert next(tensor for tensor in tensors if tensor.is_table).offset % (2 << 20) == 0
    assert sum(len(memoryview(chunk)) for chunk in data_chunks(tensors)) == tensors[-1].end


def test_model_on_disk_is_used_as_it_is_and_only_generating_is_announced(tmp_path, capsys):
    path = demo.demo_model_path(SMALL_ROWS, directory=tmp_path)
    assert os.path.relpath(path) in capsys.readouterr().err
    before = [file.stat().st_mtime_ns for file in (path, data_file(path))]
    assert demo.demo_model_path(SMALL_ROWS, directory=tmp_path) == path
    assert capsys.readouterr() == ("", "")
    assert before == [file.stat().st_mtime_ns for file in (path, data_file(path))]


@pytest.mark.parametrize(
    "damage", ["data truncated", "data missing", "graph missing", "graph truncated", "mlp changed"]
)
def test_a_damaged_model_is_generated_again(tmp_path, damage):
    path = demo.demo_model_path(SMALL_ROWS, directory=tmp_path, announce=lambda line: None)
    if damage == "data truncated":
        os.truncate(data_file(path), 1000)
    elif damage == "data missing":
        data_file(path).unlink()
    elif damage == "graph missing":
        path.unlink()
    elif damage == "graph truncated":
        os.truncate(path, path.stat().st_size - 1)
    else:
        with data_file(path).open("r+b") as file:
            file.write(b"\0")
    lines = []
    demo.demo_model_path(SMALL_ROWS, directory=tmp_path, announce=lines.append)
    assert len(lines) == 1
    assert hashlib.sha256(data_file(path).read_bytes()).hexdigest() == SMALL_SHA256


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch, interruption):
    def chunks(tensors):
        yield bytes(100_000)
        raise interruption

    monkeypatch.setattr(demo, "data_chunks", chunks)
    expected = UserError if isinstance(interruption, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        demo.demo_model_path(SMALL_ROWS, directory=tmp_path, announce=lambda line: None)
    assert list(tmp_path.iterdir()) == []
    if expected is UserError:
        assert "No space left on device; the demo model needs 12 MB" in str(raised.value)


def test_a_model_larger_than_the_disk_is_refused_before_writing(tmp_path):
    with pytest.raises(UserError, match="MB are free; the demo model needs"):
        demo.demo_model_path(10**12, directory=tmp_path, announce=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_cap_below_one_row_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        demo.demo_model_path(0)


def generate(directory: str) -> None:
    demo.demo_model_path(SMALL_ROWS, directory=Path(directory), announce=lambda line: None)


def test_processes_generating_at_once_leave_one_good_model(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=generate, args=(str(tmp_path),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    path = tmp_path / f"demo_dlrm_{SMALL_ROWS}.onnx"
    assert sorted(tmp_path.iterdir()) == [path, data_file(path)]
    assert hashlib.sha256(data_file(path).read_bytes()).hexdigest() == SMALL_SHA256


def test_inputs_are_reproducible_skewed_and_within_the_tables():
    dense, indices = demo.demo_inputs(4000, seed=7, table_rows=1000)
    assert (dense.dtype, dense.shape, indices.dtype, indices.shape) == (np.float32, (4000, 13), np.int64, (4000, 26))
    assert dense.min() == 0
    assert 8 < dense.max() < 8.5
    assert indices.min() == 0
    assert (indices.max(axis=0) < np.minimum(CRITEO_TABLE_ROWS, 1000)).all()
    assert 0.4 < (indices[:, 0] < 1000 / 256).mean() < 0.6
    head = demo.demo_inputs(100, seed=7, table_rows=1000)
    np.testing.assert_array_equal(head[0], dense[:100])
    np.testing.assert_array_equal(head[1], indices[:100])
    assert (demo.demo_inputs(100, seed=8)[0] != head[0]).any()


def test_shipped_items_are_the_demo_inputs():
    dense, indices, _ = reference_items(300)
    expected_dense, expected_indices = demo.demo_inputs(300, seed=2024)
    np.testing.assert_allclose(dense, expected_dense, rtol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)


def test_numpy_reference_gives_the_outputs_recorded_from_pytorch():
    dense, indices, torch_res = reference_items(400)
    np.testing.assert_allclose(reference.predict(demo.demo_dlrm(), dense, indices), torch_res, rtol=0, atol=1e-6)


def test_shipped_items_belong_to_the_demo_model_and_to_a_good_classifier():
    from dlrm_tvm.data.metrics import auc

    with np.load(demo.DEMO_REFERENCE) as data:
        assert str(data["model_fingerprint"]) == demo.demo_dlrm().fingerprint
        assert auc(data["target"], data["torch_res"]) == pytest.approx(0.80, abs=0.01)
        assert len(data["torch_res"]) == 32768


def test_onnx_runtime_gives_the_outputs_recorded_from_pytorch():
    onnxruntime = pytest.importorskip("onnxruntime")
    dense, indices, torch_res = reference_items(50)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(demo.demo_model_path()), options)
    inputs = {"dense_x": dense, "indices": np.ascontiguousarray(indices.T)}
    np.testing.assert_allclose(session.run(["pred"], inputs)[0][:, 0], torch_res, rtol=0, atol=3e-6)


def test_onnx_checker_accepts_the_graph(small_demo):
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(str(small_demo), full_check=True)


def test_the_reader_reads_the_same_model(small_demo):
    read_dlrm = pytest.importorskip("dlrm_tvm.frontend.reader").read_dlrm
    direct = demo.demo_dlrm(SMALL_ROWS, directory=small_demo.parent)
    assert read_dlrm(small_demo).fingerprint == direct.fingerprint
