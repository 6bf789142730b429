"""Files as graphs: weights inside and outside the model, damage, missing files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_surgery import EXPORTS, changed, read_export, refusal
from graphs import move_weights_out, write_dlrm
from onnx import helper, numpy_helper

from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm


def test_weights_in_float_data_and_listed_as_inputs_are_read(tmp_path: Path) -> None:
    def list_as_inputs(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values.ravel()))
                assert tensor.float_data
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    same = read_dlrm(write_dlrm(tmp_path / "a.onnx"))
    model = read_dlrm(changed(tmp_path, list_as_inputs))
    assert model.fingerprint == same.fingerprint
    assert model.graph_inputs == same.graph_inputs


@pytest.mark.parametrize("external", ["one_file", "per_tensor"])
def test_external_tables_are_memory_maps_of_their_file(external: str, tmp_path: Path) -> None:
    path = write_dlrm(tmp_path / "small.onnx", external=external)
    inline = read_dlrm(write_dlrm(tmp_path / "inline.onnx"))
    model = read_dlrm(path)
    for table, same in zip(model.tables, inline.tables, strict=True):
        assert isinstance(table.rows, np.memmap)
        assert Path(table.rows.filename).name == ("small.onnx.data" if external == "one_file" else table.name)
        np.testing.assert_array_equal(table.rows, same.rows)


def test_huge_external_table_opens_without_being_read(tmp_path: Path) -> None:
    def grow(graph: onnx.GraphProto) -> None:
        (tensor,) = [tensor for tensor in graph.initializer if tensor.name == "table.1"]
        tensor.CopyFrom(onnx.TensorProto(name="table.1", data_type=1, dims=[39_979_771, 16]))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="table.1")

    path = changed(tmp_path, grow)
    with (tmp_path / "table.1").open("wb") as sparse:
        sparse.truncate(39_979_771 * 16 * 4)
    model = read_dlrm(path)
    assert model.tables[1].num_rows == 39_979_771
    assert isinstance(model.tables[1].rows, np.memmap)
    assert model.tables[1].rows[-1].sum() == 0


def test_damaged_or_missing_file_is_said_in_one_line(tmp_path: Path) -> None:
    whole = write_dlrm(tmp_path / "whole.onnx").read_bytes()
    cases = {
        "empty.onnx": (b"", "empty file"),
        "half.onnx": (whole[: len(whole) // 2], "truncated"),
        "text.onnx": (b"This is a README, not a model.\n", "not an ONNX model"),
        "header.onnx": (whole[:2], "holds no ONNX graph"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert reason in refusal(tmp_path / name)
    assert "no such file" in refusal(tmp_path / "missing.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.onnx")


def test_file_cut_anywhere_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_dlrm(tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for size in np.random.default_rng(3).integers(1, len(whole) - 10, 40):
        path.write_bytes(whole[:size])
        refusal(path)


def test_file_with_wrong_bytes_is_read_or_refused_never_a_traceback(tmp_path: Path) -> None:
    whole = np.frombuffer(write_dlrm(tmp_path / "whole.onnx").read_bytes(), np.uint8)
    path = tmp_path / "flipped.onnx"
    rng = np.random.default_rng(4)
    for _ in range(150):
        damaged = whole.copy()
        # Mostly outside the weights, which are two thirds of the file and make another model of the same form.
        damaged[rng.integers(1, 1500)] = rng.integers(256)
        path.write_bytes(damaged.tobytes())
        try:
            read_dlrm(path)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("external", ["one_file", "per_tensor"])
def test_missing_or_short_external_data_is_said_with_its_file_and_tensor(external: str, tmp_path: Path) -> None:
    path = write_dlrm(tmp_path / "small.onnx", external=external)
    data = tmp_path / ("small.onnx.data" if external == "one_file" else "table.2")
    content = data.read_bytes()
    data.write_bytes(content[:-64])
    with pytest.raises(UserError, match=rf"{data.name}: \d+ bytes for tensor table\.2 .* 192 wanted"):
        read_dlrm(path)
    data.unlink()
    message = refusal(path)
    assert str(data) in message
    assert "missing" in message


def test_external_data_outside_the_models_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = write_dlrm(tmp_path / "inner" / "small.onnx", external="per_tensor")
    model = onnx.load(path, load_external_data=False)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "table.0"]
    tensor.external_data[0].value = "../table.0"
    onnx.save(model, path)
    assert "outside the model's folder" in refusal(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("offset", "abc", "has the offset 'abc'"),
        ("offset", "-64", "has the offset '-64'"),
        ("length", "1e3", "has the length '1e3'"),
        ("location", "", "names no file"),
        ("location", "a\0b", "names no file"),
    ],
)
def test_unreadable_fields_of_external_data_are_named_with_their_tensor(tmp_path: Path, key, value, said):
    path = write_dlrm(tmp_path / "small.onnx", external="one_file")
    model = onnx.load(path, load_external_data=False)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "table.1"]
    (field,) = [field for field in tensor.external_data if field.key == key]
    field.value = value
    onnx.save(model, path)
    assert f"tensor table.1 {said}" in refusal(path)


@pytest.mark.parametrize("external", ["one_file", "per_tensor"])
@pytest.mark.parametrize("name", ["op9_aten", "op11_stacked", "op16_weighted_lists", "dynamo18_mean"])
def test_export_with_external_data_is_the_same_model(name: str, external: str, tmp_path: Path) -> None:
    model = onnx.load(EXPORTS / f"{name}.onnx")
    move_weights_out(model, tmp_path / "moved.onnx", external)
    onnx.save(model, tmp_path / "moved.onnx")
    moved = read_dlrm(tmp_path / "moved.onnx")
    assert moved.fingerprint == read_export(name).fingerprint
    assert all(isinstance(table.rows, np.memmap) for table in moved.tables)


def with_table_inside_too(tmp_path: Path, add: float) -> Path:
    """A model whose table.1 lies in a file and in the model as well, there with `add` added to its last value."""
    path = write_dlrm(tmp_path / "both.onnx", external="per_tensor")
    model = onnx.load(path, load_external_data=False)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "table.1"]
    values = np.fromfile(tmp_path / "table.1", np.float32)
    values[-1] += add
    tensor.raw_data = values.tobytes()
    assert tensor.data_location == onnx.TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
    return path


def test_table_kept_both_outside_and_inside_is_read_when_both_are_the_same(tmp_path: Path) -> None:
    """As in facebookresearch/dlrm issue 135."""
    path = with_table_inside_too(tmp_path, add=0)
    same = read_dlrm(write_dlrm(tmp_path / "inline.onnx")).fingerprint
    assert read_dlrm(path).fingerprint == same
    assert isinstance(read_dlrm(path).tables[1].rows, np.memmap)
    (tmp_path / "table.1").unlink()
    assert read_dlrm(path).fingerprint == same, "what is in the model is enough"


def test_table_kept_outside_and_inside_with_different_values_is_refused(tmp_path: Path) -> None:
    message = refusal(with_table_inside_too(tmp_path, add=1))
    assert f"tensor table.1 has other values in {tmp_path / 'table.1'} than in the model itself" in message


def test_graph_of_mlperfs_size_is_read_in_seconds_without_its_tables(tmp_path: Path) -> None:
    """26 tables of 40 million rows, 20 GB each, in sparse files; their pages would count as resident memory."""

    def grow(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name.startswith("table."):
                tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=1, dims=[39_979_771, 128]))
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=tensor.name)
                with (tmp_path / tensor.name).open("wb") as sparse:
                    sparse.truncate(39_979_771 * 128 * 4)

    path = changed(tmp_path, grow, table_rows=[3] * 26, dim=128)
    started, resident = time.perf_counter(), resident_bytes()
    model = read_dlrm(path)
    assert time.perf_counter() - started < 10
    assert resident_bytes() - resident < 200e6
    assert model.table_bytes > 500e9


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_export_with_wrong_bytes_is_read_or_refused_never_a_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for name in ("op9_aten", "op13_lists", "dynamo18_mean"):
        whole = np.frombuffer((EXPORTS / f"{name}.onnx").read_bytes(), np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            damaged[rng.integers(1, whole.size)] = rng.integers(256)
            (tmp_path / "flipped.onnx").write_bytes(damaged.tobytes())
            try:
                read_dlrm(tmp_path / "flipped.onnx")
            except UserError as error:
                assert "\n" not in str(error)
