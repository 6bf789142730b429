"""PyTorch's weights read where they lie: recorded checkpoints against PyTorch's outputs, by ONNX Runtime on the graph
that is written; foreign, damaged and misfitting ones refused in one line with nothing written."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

from dlrm_tvm.data.demo_weights import V2_TABLE_ROWS
from dlrm_tvm.data.dlrm_graph import dlrm_graph
from dlrm_tvm.data.state_dict import graph_of_weights, graph_path, read_weights
from dlrm_tvm.data.torch_file import torch_tensors
from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.paths import ROOT

WEIGHTS = ROOT / "tests" / "weights"
CHECKPOINTS = [
    *("dlrm_dot.pt", "dlrm_cat_bf16.pt", "dlrm_dot_self.safetensors", "torchrec_dot.pt"),
    *("torchrec_dcn.pt", "torchrec_dcn.safetensors", "torchrec_full_rank.pt"),
]
TABLES = 11


@pytest.fixture
def checkpoint(request, tmp_path) -> Path:
    return Path(shutil.copyfile(WEIGHTS / request.param, tmp_path / request.param))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, indirect=True)
def test_the_graph_that_is_written_computes_what_pytorch_did(checkpoint):
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (requirements-dev.txt)")
    recorded = np.load(WEIGHTS / f"{checkpoint.stem}.npz")
    session = runtime.InferenceSession(graph_of_weights(checkpoint), providers=["CPUExecutionProvider"])
    indices = np.stack([recorded[f"one_{t}"] for t in range(TABLES)])
    (found,) = session.run(["pred"], {"dense_x": recorded["dense"], "indices": indices})
    assert np.ptp(recorded["pred_one"]) > 0.04  # the items differ by far more than the tolerance
    np.testing.assert_allclose(found[:, 0], recorded["pred_one"], rtol=0, atol=5e-7)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, indirect=True)
def test_no_weight_is_copied(checkpoint):
    before = checkpoint.read_bytes()
    graph = graph_of_weights(checkpoint)
    assert (graph.name, graph.parent) == (f"{checkpoint.name}.onnx", checkpoint.parent)
    tensors = [
        each for each in onnx.load_model(graph, load_external_data=False).graph.initializer if each.external_data
    ]
    assert {each.name for each in tensors} <= torch_tensors(checkpoint).keys()
    places = [entry.value for each in tensors for entry in each.external_data if entry.key == "location"]
    assert len(tensors) > 16 and places == [checkpoint.name] * len(tensors)
    assert graph.stat().st_size < 20_000
    assert sorted(checkpoint.parent.iterdir()) == [checkpoint, graph] and checkpoint.read_bytes() == before


def in_two_files(folder: Path) -> Path:
    """torchrec_dcn.safetensors as Hugging Face's libraries save what is too large for one file -> its index."""
    content = (WEIGHTS / "torchrec_dcn.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    places = {}
    for number in range(2):
        own, at, parts = {}, 0, []
        for name in sorted(tensors)[number::2]:
            begin, end = tensors[name]["data_offsets"]
            own[name] = {**tensors[name], "data_offsets": [at, at + end - begin]}
            parts.append(data[begin:end])
            at += end - begin
            places[name] = f"model-{number}.safetensors"
        text = json.dumps(own).encode()
        (folder / f"model-{number}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": len(data)}, "weight_map": places}))
    return index


def link(folder: Path, blobs: Path, pattern: str) -> None:
    """Files of a folder moved into another, as Hugging Face's cache has them: links of their names stay."""
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.glob(pattern))):
        path.rename(blobs / f"4a5b{number}")
        path.symlink_to(os.path.relpath(blobs / f"4a5b{number}", folder))


@pytest.mark.parametrize(
    ("links", "graph"),
    [
        ("", "snapshots/0f/model.safetensors.index.json.onnx"),
        ("model*", "blobs/4a5b2.????????.onnx"),
        ("*.json", "snapshots/0f/model.safetensors.index.json.onnx"),
        ("model-*", "snapshots/0f/model.safetensors.index.json.onnx"),
    ],
)
def test_weights_in_several_files_are_read_by_their_index(tmp_path, links, graph):
    """Files; links to files beside each other, the index too; files beside an index that is a link; links to files in a
    folder within."""
    folder = tmp_path / "snapshots" / "0f"
    folder.mkdir(parents=True)
    index = in_two_files(folder)
    if links:
        link(folder, folder / "within" if links == "model-*" else tmp_path / "blobs", links)
    found = graph_of_weights(index)
    assert found == graph_path(index) and found.relative_to(tmp_path).match(graph)
    graph = found
    onnx.load(graph)  # which refuses external data outside the graph's folder
    found, wanted = (
        read_dlrm(graph),
        read_dlrm(graph_of_weights(Path(shutil.copy(WEIGHTS / "torchrec_dcn.pt", tmp_path)))),
    )
    for one, other in zip((*found.layers, *found.tables), (*wanted.layers, *wanted.tables), strict=True):
        np.testing.assert_array_equal(*(each.rows if hasattr(each, "rows") else each.weight for each in (one, other)))


def test_an_index_without_its_files_or_of_other_tensors_is_refused(tmp_path):
    index = in_two_files(tmp_path)
    content = json.loads(index.read_text())
    (first, *_) = sorted(content["weight_map"])
    for changed, message in (
        ({"weight_map": {**content["weight_map"], "a": "model-1.safetensors"}}, r"a is not in model-1\.safetensors"),
        ({"weight_map": {**content["weight_map"], first: "model-1.safetensors"}}, "is not in model-1"),
        ({"weight_map": {"a": index.name}}, "an index in an index"),
        ({"weight_map": {"a": "../x/model-1.safetensors"}}, "damaged or truncated.*ValueError"),
        ({"weight_map": {"a": 3}}, "damaged or truncated.*TypeError"),
        ({"weight_map": []}, "damaged or truncated.*AttributeError"),
        ({}, "damaged or truncated.*KeyError"),
        ([], "damaged or truncated.*TypeError"),
    ):
        index.write_text(json.dumps(changed))
        refused(index, message)
    index.write_text(json.dumps({"weight_map": {"a": ".."}}))
    with pytest.raises(UserError, match=r"/\.\.: a folder; one file was wanted"):
        graph_of_weights(index)
    index.write_text(json.dumps(content))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1\.safetensors: no such file"):
        graph_of_weights(index)


def test_two_revisions_with_one_index_have_graphs_of_their_own(tmp_path):
    """In Hugging Face's cache, where equal files are stored once."""
    graphs = []
    for revision in ("0f", "1e"):
        folder = tmp_path / "snapshots" / revision
        folder.mkdir(parents=True)
        index = in_two_files(folder)
        link(folder, tmp_path / revision, "model*")
        (tmp_path / "blobs").mkdir(exist_ok=True)
        for path in folder.glob("model*"):
            shared = tmp_path / "blobs" / (path.suffix if path == index else f"{revision}-{path.name}")
            path.resolve().replace(shared)
            path.unlink()
            path.symlink_to(shared)
        graphs.append(graph_of_weights(index))
        assert graph_of_weights(index) == graphs[-1]
    first, second = (graph.read_bytes() for graph in graphs)
    assert b"0f-model-0" in first and b"1e-model" not in first and b"1e-model-0" in second


def test_an_index_whose_files_are_links_out_of_its_folder_is_refused(tmp_path):
    folder = tmp_path / "0f"
    folder.mkdir()
    index = in_two_files(folder)
    link(folder, tmp_path / "blobs", "model-*")
    refused(index, r"model-0\.safetensors leads out of .*/0f, where the index is")


@pytest.mark.parametrize("checkpoint", ["torchrec_dcn.pt"], indirect=True)
def test_a_graph_with_fixed_bags_sums_them_before_the_cross_layers(checkpoint):
    """Against the formula of DCN v2 in float64, from the bytes at the tensors' places."""
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (requirements-dev.txt)")
    hots, rng = (3, 1, 2, 5, 1, 4, 1, 1, 2, 1, 6), np.random.default_rng(5)
    stored = replace(read_weights(checkpoint), indices_per_bag=hots)
    graph = checkpoint.with_suffix(".onnx")
    proto = dlrm_graph(stored, name="dlrm", data_name=checkpoint.name, marker="made by a test")
    graph.write_bytes(proto.SerializeToString())
    dense = rng.random((7, 5), np.float32)
    indices = [rng.integers(0, table.shape[0], (7, hot)) for table, hot in zip(stored.tables, hots)]

    def values(name: str) -> np.ndarray:
        each = torch_tensors(checkpoint)[f"model.{name}"]
        flat = np.fromfile(checkpoint, "<f4", int(np.prod(each.shape)), offset=each.offset)
        return flat.reshape(each.shape).astype(np.float64)

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return x @ values(f"{name}.weight").T + values(f"{name}.bias")

    x = dense.astype(np.float64)
    for at in range(2):
        x = np.maximum(layer(f"dense_arch.model._mlp.{at}._linear", x), 0)
    tables = "sparse_arch.embedding_bag_collection.embedding_bags.t_cat_{}.weight"
    x0 = x = np.hstack([x, *(values(tables.format(t))[each].sum(axis=1) for t, each in enumerate(indices))])
    for at in range(3):
        v, w = values(f"inter_arch.crossnet.V_kernels.{at}"), values(f"inter_arch.crossnet.W_kernels.{at}")
        x = x0 * (x @ v.T @ w.T + values(f"inter_arch.crossnet.bias.{at}")) + x
    for at in range(2):
        x = np.maximum(layer(f"over_arch.model.0._mlp.{at}._linear", x), 0)
    wanted = 1 / (1 + np.exp(-layer("over_arch.model.1", x)))
    session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (found,) = session.run(["pred"], {"dense_x": dense, **{f"indices_{t}": each for t, each in enumerate(indices)}})
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.ptp(wanted) > 0.04
    assert read_dlrm(graph).graph_inputs.indices_per_bag == hots


def test_mlperf_v2s_weights_are_known_by_the_sizes_of_their_tables(tmp_path):
    """104.5 GB that are holes, of the dimensions in recommendation/dlrm_v2/pytorch of mlcommons/inference."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part, widths in (
        ("dense_arch.model._mlp.{}._linear", (13, 512, 256, 128)),
        ("", (3456, 1024, 1024, 512, 256, 1)),
    ):
        for at, (inputs, outputs) in enumerate(pairwise(widths)):
            over = "over_arch.model.1" if outputs == 1 else f"over_arch.model.0._mlp.{at}._linear"
            name = part.format(at) or over
            shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    for at in range(3):
        kinds = {"V_kernels": (512, 3456), "W_kernels": (3456, 512), "bias": (3456,)}
        shapes |= {f"inter_arch.crossnet.{kind}.{at}": shape for kind, shape in kinds.items()}
    sparse = "sparse_arch.embedding_bag_collection.embedding_bags.t_cat_{}.weight"
    shapes |= {sparse.format(t): (rows, 128) for t, rows in enumerate(V2_TABLE_ROWS)}
    path = write_safetensors(tmp_path / "v2.safetensors", shapes)
    stored = read_weights(path)
    assert path.stat().st_size > 104_500_000_000 and sum(V2_TABLE_ROWS) == 204_184_588
    graph = onnx.load_model(graph_of_weights(path), load_external_data=False).graph
    dims = [[dim.dim_value for dim in each.type.tensor_type.shape.dim][1] for each in graph.input]
    assert dims == [13, 3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1]
    layers = [*stored.bottom, *(layer for each in stored.crossings for layer in each), *stored.top]
    assert sum(layer.weight.shape[0] * layer.weight.shape[1] for layer in layers) == 16_030_464


def test_tables_of_a_zip_can_be_used_in_place():
    """PyTorch begins every storage at a multiple of 64 bytes."""
    assert {table.offset % 64 for table in read_weights(WEIGHTS / "dlrm_dot.pt").tables} == {0}


@pytest.mark.parametrize("checkpoint", ["dlrm_dot.pt"], indirect=True)
def test_a_graph_is_written_once_and_no_other_file_is_overwritten(checkpoint):
    graph = graph_of_weights(checkpoint)
    status = graph.stat()
    assert (
        graph_of_weights(checkpoint).stat().st_mtime_ns == status.st_mtime_ns and graph.stat().st_ino == status.st_ino
    )
    graph.write_bytes(graph.read_bytes().replace(b"emb_l.0", b"emb_l.1"))
    assert graph_of_weights(checkpoint).read_bytes().count(b"emb_l.0.weight") > 0
    graph.write_bytes(b"somebody's model")
    with pytest.raises(UserError, match=r"dlrm_dot\.pt\.onnx: is there already, and not from --torch-weights"):
        graph_of_weights(checkpoint)
    graph.unlink()
    graph.mkdir()
    with pytest.raises(UserError, match="an ONNX file that points into the weights has to lie beside them"):
        graph_of_weights(checkpoint)


def test_a_link_gets_its_graph_beside_what_it_points_to(tmp_path):
    (tmp_path / "blobs").mkdir()
    shutil.copyfile(WEIGHTS / "dlrm_dot.pt", tmp_path / "blobs" / "4a5b")
    (tmp_path / "dlrm.pt").symlink_to(tmp_path / "blobs" / "4a5b")
    graph = graph_of_weights(tmp_path / "dlrm.pt")
    assert graph == tmp_path / "blobs" / "4a5b.onnx"
    assert read_dlrm(graph).num_vectors == TABLES + 1


def test_weights_whose_name_is_not_utf_8_are_refused(tmp_path):
    path = tmp_path / os.fsdecode(b"dlrm\xff.pt")
    shutil.copyfile(WEIGHTS / "dlrm_dot.pt", path)
    with pytest.raises(UserError, match=r"the name dlrm.udcff\.pt is not UTF-8, as ONNX wants"):
        graph_of_weights(path)


def refused(path: Path, message: str) -> None:
    """One line, and nothing but the checkpoint is in its folder."""
    with pytest.raises(UserError, match=message) as raised:
        graph_of_weights(path)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{path}: ")
    assert [each for each in path.parent.iterdir() if each.suffix == ".onnx"] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("legacy", r"format of before 1\.6, .* torch\.save\(torch\.load\(\"refused_legacy\.pt\", map_location"),
        ("module", r"pickles 'torch\.nn\.modules\.linear\.Linear', and only dicts of tensors are read"),
        ("sparse", r"pickles 'torch\._utils\._rebuild_sparse_tensor'"),
        ("torchscript", r"pickles '__torch__\.torch\.nn\.modules\.linear\.Linear'"),
        ("transposed", r"bot_l\.0\.weight is not stored row by row\. Save it as tensor\.contiguous\(\)"),
    ],
)
def test_what_pytorch_saves_and_we_do_not_read_is_named(name, message):
    refused(WEIGHTS / f"refused_{name}.pt", message)


# --- pickles that PyTorch did not write


class Call:
    """Pickled as the call of a global: what a hostile file would hold."""

    def __init__(self, called, *arguments) -> None:
        self.called, self.arguments = called, arguments

    def __reduce__(self) -> tuple:
        return self.called, self.arguments


def made_global(module: str, name: str, *arguments: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR."


def save_zip(path: Path, pickled: bytes, members: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, content in (members or {}).items():
            archive.writestr(f"a/{name}", content)
    return path


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v2.x"),
        ("numpy", "load"),
    ],
)
def test_no_foreign_object_is_ever_made(tmp_path, module, name):
    marker = tmp_path / "was_here"
    argument = b"X" + len(f"touch {marker}").to_bytes(4, "little") + f"touch {marker}".encode()
    refused(save_zip(tmp_path / "w.pt", made_global(module, name, argument)), re.escape(f"pickles '{module}.{name}'"))
    assert not marker.exists()


def test_objects_of_a_users_own_class_are_named(tmp_path):
    pickled = pickle.dumps({"model": Call(shutil.rmtree, str(tmp_path))}, protocol=2)
    refused(save_zip(tmp_path / "w.pt", pickled), r"pickles 'shutil\.rmtree'")
    assert tmp_path.exists()


class Storing(pickle.Pickler):
    """Writes tuples that begin with "storage" as PyTorch writes storages."""

    def persistent_id(self, value: object) -> object:
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None


def pickled_tensor(tmp_path: Path, storage: tuple, start: int, shape: tuple, stride: tuple) -> bytes:
    """{"bot_l.0.weight": tensor}; the classes are put in by their names."""
    with (tmp_path / "pickled").open("wb") as file:
        Storing(file, 2).dump({"bot_l.0.weight": Call(json.loads, storage, start, shape, stride, False, {})})
    text = (tmp_path / "pickled").read_bytes().replace(b"cjson\nloads\n", b"ctorch._utils\n_rebuild_tensor_v2\n")
    (tmp_path / "pickled").unlink()
    return text.replace(b"X\x05\x00\x00\x00float", b"ctorch\nFloatStorage\n")


@pytest.mark.parametrize(
    ("storage", "start", "shape", "stride", "message"),
    [
        (("storage", "float", "0", "cpu", 12), 1, (3, 4), (4, 1), r"shape \(3, 4\) in a storage of 12 values"),
        (("storage", "float", "0", "cpu", 12), 0, (2, 3), (9, 2), r"shape \(2, 3\) in a storage of 12 values"),
        (("storage", "float", "0", "cpu", 12), 0, (-3, -4), (4, 1), r"shape \(-3, -4\) and stride"),
        (("storage", "float", "0", "cpu", 12), -1, (3, 4), (4, 1), r"shape \(3, 4\) and stride"),
        (("storage", "float", "0", "cpu", 12), 0, (3, 4), (1,), r"stride \(1,\)"),
        (("storage", "float", "0", "cpu", 2**70), 0, (2**35, 2**35), (2**35, 1), "a/data/0, which is not"),
        (("storage", "float", "7", "cpu", 12), 0, (3, 4), (4, 1), "a/data/7, which is not"),
        (("storage", "complex", "0", "cpu", 12), 0, (3, 4), (4, 1), "a storage given as"),
        (("storage", "float", 0, "cpu", 12), 0, (3, 4), (4, 1), "a storage given as"),
    ],
)  # fmt: skip
def test_tensors_outside_their_storage_are_refused(tmp_path, storage, start, shape, stride, message):
    pickled = pickled_tensor(tmp_path, storage, start, shape, stride)
    refused(save_zip(tmp_path / "w.pt", pickled, {"data/0": bytes(48)}), f"damaged or truncated.*{message}")


def test_a_pickle_cannot_ask_for_memory(tmp_path):
    """Value number 2 ** 31 of a pickle of 9 bytes: the unpickler would make room for all before it."""
    pickled = b"\x80\x02}r" + (2**31).to_bytes(4, "little") + b"."
    refused(save_zip(tmp_path / "w.pt", pickled), "value number 2147483648 in a pickle of 9 bytes")
    huge = b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"."
    refused(save_zip(tmp_path / "w.pt", huge), "damaged or truncated.*bytearray8|pickles by BYTEARRAY8")


def test_changed_pickles_are_refused_in_one_line_or_harmless(tmp_path):
    """Bytes changed, left out and put in; the zip around them is whole."""
    with zipfile.ZipFile(WEIGHTS / "torchrec_dot.pt") as archive:
        members = {name.removeprefix("torchrec_dot/"): archive.read(name) for name in archive.namelist()}
    pickled, rng, found = members.pop("data.pkl"), np.random.default_rng(4), 0
    for _ in range(150):
        at = int(rng.integers(len(pickled)))
        new = [rng.bytes(1), b"", rng.bytes(3) + pickled[at : at + 1]][rng.integers(3)]
        path = save_zip(tmp_path / "w.pt", pickled[:at] + new + pickled[at + 1 :], members)
        try:
            read_weights(path)
        except UserError as error:
            assert "\n" not in str(error)
            found += 1
    assert found > 100


def test_a_dict_that_holds_itself_is_refused(tmp_path):
    endless: dict = {}
    endless["model"] = endless
    refused(save_zip(tmp_path / "w.pt", pickle.dumps(endless, 2)), "damaged or truncated.*RecursionError")


def test_compressed_and_big_endian_zips_are_refused(tmp_path):
    with zipfile.ZipFile(WEIGHTS / "dlrm_dot.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(tmp_path / "w.pt", r"dlrm_dot/data\.pkl is compressed or encrypted")
    refused(save_zip(tmp_path / "w.pt", pickle.dumps({}, 2), {"byteorder": b"big"}), "saved with 'big' byte order")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a zip as torch.save writes it nor safetensors, or truncated"),
        (b"weights!" * 40, "neither a zip as torch.save writes it"),
        ((10**9).to_bytes(8, "little") + b"{}", "damaged or truncated.*a header of 1000000000 bytes in a file of 10"),
        ((4).to_bytes(8, "little") + b"{]  ", "damaged or truncated.*JSONDecodeError"),
        ((2).to_bytes(8, "little") + b"{}", "holds no DLRM, it has no tensors; names such as bot_l"),
        ((8).to_bytes(8, "little") + b'{"a": 3}', "damaged or truncated"),
        ((22).to_bytes(8, "little") + b'{"a":{},"a":{}}       ', "a name that comes twice"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    refused(path, message)


def test_a_missing_file_and_a_zip_of_something_else_are_refused(tmp_path):
    refused(tmp_path / "none.pt", "no such file; PyTorch weights were wanted. Check --torch-weights")
    (tmp_path / "step_7").mkdir()
    refused(tmp_path / "step_7", r"a folder; one file was wanted\..* dcp_to_torch \S+step_7 step_7\.pt$")
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    refused(tmp_path / "w.npz", "a zip, but none that torch.save wrote")


@pytest.mark.parametrize("checkpoint", ["dlrm_dot.pt", "torchrec_dcn.safetensors"], indirect=True)
def test_a_truncated_checkpoint_is_refused_wherever_it_ends(checkpoint):
    content = checkpoint.read_bytes()
    for kept in [*range(0, 64, 7), *np.linspace(64, len(content) - 1, 60).astype(int)]:
        checkpoint.write_bytes(content[:kept])
        refused(checkpoint, "truncated")


@pytest.mark.parametrize("checkpoint", ["torchrec_dot.pt", "dlrm_dot_self.safetensors"], indirect=True)
def test_damaged_headers_are_refused_or_harmless(checkpoint):
    """One byte changed where names, shapes and places are: the first and the last thousands of bytes."""
    content, rng, found = bytearray(checkpoint.read_bytes()), np.random.default_rng(9), 0
    for at in rng.choice([*range(4000), *range(len(content) - 4000, len(content))], 150, replace=False):
        changed = content.copy()
        changed[at] ^= 1 << rng.integers(8)
        checkpoint.write_bytes(changed)
        try:
            read_weights(checkpoint)
        except UserError as error:
            assert "\n" not in str(error)
            found += 1
    assert found > 20


# --- state dicts that are no DLRM


def write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]], dtypes: dict[str, str] | None = None) -> Path:
    header, at = {}, 0
    for name, shape in tensors.items():
        dtype = (dtypes or {}).get(name, "F32")
        nbytes = int(np.prod(shape)) * {"F32": 4, "F64": 8, "I64": 8}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, path.stat().st_size + at)
    return path


def dlrm_shapes(**changes: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    """facebookresearch/dlrm's: 5-8-4, three tables, 6 dots, 10-6-1; changes: name with _ for . -> shape or None."""
    shapes = {
        "bot_l.0.weight": (8, 5), "bot_l.0.bias": (8,), "bot_l.2.weight": (4, 8), "bot_l.2.bias": (4,),
        "emb_l.0.weight": (9, 4), "emb_l.1.weight": (7, 4), "emb_l.2.weight": (3, 4),
        "top_l.0.weight": (6, 10), "top_l.0.bias": (6,), "top_l.2.weight": (1, 6), "top_l.2.bias": (1,),
    }  # fmt: skip
    return {name: shape for name, shape in (shapes | changes).items() if shape is not None}


def cross_shapes(**changes: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    """TorchRec's: 5-4, two tables, two cross layers of rank 3 on 12 values, 12-6-1."""
    sparse, cross = "sparse_arch.embedding_bag_collection.embedding_bags.t_cat_", "inter_arch.crossnet."
    shapes = {
        "dense_arch.model._mlp.0._linear.weight": (4, 5), "dense_arch.model._mlp.0._linear.bias": (4,),
        f"{sparse}0.weight": (9, 4), f"{sparse}1.weight": (7, 4),
        **{f"{cross}{kind}.{n}": shape for n in (0, 1)
           for kind, shape in (("V_kernels", (3, 12)), ("W_kernels", (12, 3)), ("bias", (12,)))},
        "over_arch.model.0._mlp.0._linear.weight": (6, 12), "over_arch.model.0._mlp.0._linear.bias": (6,),
        "over_arch.model.1.weight": (1, 6), "over_arch.model.1.bias": (1,),
    }  # fmt: skip
    return {name: shape for name, shape in (shapes | changes).items() if shape is not None}


def test_the_shapes_that_the_misfits_are_made_of_are_read(tmp_path):
    v1 = read_weights(write_safetensors(tmp_path / "w", dlrm_shapes()))
    v2 = read_weights(write_safetensors(tmp_path / "w", cross_shapes()))
    assert (v1.interaction.name, len(v1.crossings), len(v2.crossings), v2.dim) == ("dot", 0, 2, 4)


CROSS = "inter_arch.crossnet."
MISFITS = {
    "bottom chain": (dlrm_shapes(**{"bot_l.2.weight": (4, 7)}),
        r"bot_l\.2\.weight \[4, 7\] does not fit bot_l\.0\.weight \[8, 5\]: 8 inputs were wanted"),
    "bias": (dlrm_shapes(**{"bot_l.2.bias": (5,)}), r"bot_l\.2\.bias \[5\] does not fit bot_l\.2\.weight \[4, 8\]"),
    "table dimension": (dlrm_shapes(**{"emb_l.1.weight": (7, 5)}),
        r"emb_l\.1\.weight \[7, 5\] does not fit bot_l\.2\.weight \[4, 8\]: rows of 4 values were wanted"),
    "top inputs": (dlrm_shapes(**{"top_l.0.weight": (6, 11)}),
        r"top_l\.0\.weight \[6, 11\] does not fit emb_l\.0\.weight \[9, 4\]: "
        r"10 \(dot\), 14 \(dot_self\), 16 \(cat\) inputs were wanted of x and 3 tables"),
    "top chain": (dlrm_shapes(**{"top_l.2.weight": (1, 5)}), r"top_l\.2\.weight \[1, 5\] does not fit top_l\.0\.w"),
    "two predictions": (dlrm_shapes(**{"top_l.2.weight": (2, 6), "top_l.2.bias": (2,)}),
        r"top_l\.2\.weight \[2, 6\] is the last layer; a DLRM's gives one prediction"),
    # With one table less, the same top MLP would be that of dot_self.
    "a table missing": (dlrm_shapes(**{"emb_l.1.weight": None}),
        r"its tables are emb_l\.0\.weight, emb_l\.2\.weight; .* as emb_l\.0 or t_cat_0, none has 1\."),
    "a layer missing": (dlrm_shapes(**{"top_l.2.weight": None, "top_l.2.bias": None, "top_l.4.weight": (1, 6),
        "top_l.4.bias": (1,)}), r"lacks the layer before top_l\.4; has top_l\.0, top_l\.4"),
    "no first layer": (dlrm_shapes(**{"bot_l.0.weight": None, "bot_l.0.bias": None}), "lacks the layer before bot_l.2"),
    "no bias": (dlrm_shapes(**{"bot_l.0.bias": None}), r"lacks bot_l\.0\.bias; has bot_l\.0\.weight"),
    "no bottom": ({k: v for k, v in dlrm_shapes().items() if "bot" not in k}, "has no bottom MLP"),
    "no top": ({k: v for k, v in dlrm_shapes().items() if "top" not in k}, "has no top MLP"),
    "no tables": ({k: v for k, v in dlrm_shapes().items() if "emb" not in k}, "its tables are none"),
    "a flat table": (dlrm_shapes(**{"emb_l.1.weight": (28,)}), r"emb_l\.1\.weight \[28\] is no table of rows"),
    "a table without rows": (dlrm_shapes(**{"emb_l.1.weight": (0, 4)}), r"emb_l\.1\.weight \[0, 4\] is no table"),
    "a flat layer": (dlrm_shapes(**{"top_l.0.weight": (60,)}), r"top_l\.0\.weight \[60\] is no matrix of a layer"),
    "row weights": (dlrm_shapes(**{"v_W_l.0": (9,)}), r"v_W_l\.0 of shape \[9\] is no tensor of a DLRM's layers"),
    "quotient and remainder": (dlrm_shapes(**{"emb_l.0.weight": None, "emb_l.0.weight_q": (3, 4)}),
        r"emb_l\.0\.weight_q is part of a quotient-remainder embedding"),
    "ambiguous": ({**dlrm_shapes(), "bot_l.2.weight": (2, 8), "bot_l.2.bias": (2,), "emb_l.0.weight": (9, 2),
        "emb_l.1.weight": (7, 2), "emb_l.2.weight": (3, 2), "top_l.0.weight": (6, 8)},
        r"top_l\.0\.weight \[6, 8\] fits the interactions dot and cat"),
    "two models": ({**dlrm_shapes(), **{f"ema.{k}": v for k, v in dlrm_shapes().items()}},
        r"holds several models, \* and ema\.\*\. Save one of them"),
    "others' names": ({"encoder.weight": (3, 3), "decoder.weight": (3, 3)},
        r"holds no DLRM, its tensors are encoder\.weight, decoder\.weight; names such as bot_l"),
    "no name": ({"": (3, 3)}, r"holds no DLRM, it is one tensor without a name; names such as bot_l"),
    "tables by names": ({k.replace("t_cat_0", "t_user"): v for k, v in cross_shapes().items()},
        r"its tables are .*t_user\.weight, .*t_cat_1\.weight; names with the numbers 0, 1 and so on at their ends"),
    "cross width": (cross_shapes(**{f"{CROSS}V_kernels.1": (3, 11)}),
        r"V_kernels\.1 \[3, 11\] does not fit .*W_kernels\.1 \[12, 3\]: 12 values of x and 2 tables in and out"),
    "cross rank": (cross_shapes(**{f"{CROSS}V_kernels.1": (4, 12)}), r"V_kernels\.1 \[4, 12\] does not fit .*W_k"),
    "V alone missing": (cross_shapes(**{f"{CROSS}V_kernels.0": None}),
        r"lacks V of cross layer 0: .*W_kernels\.0 \[12, 3\] takes 3 v"),
    "W missing": (cross_shapes(**{f"{CROSS}W_kernels.0": None}), "lacks the weight or bias W of cross layer 0"),
    "a cross layer missing": (cross_shapes(**{f"{CROSS}{kind}.0": None for kind in ("V_kernels", "W_kernels", "bias")}),
        "lacks the weight or bias W of cross layer 0"),
    "over behind cross": (cross_shapes(**{"over_arch.model.0._mlp.0._linear.weight": (6, 13)}),
        r"over_arch\.model\.0\._mlp\.0\._linear\.weight \[6, 13\] does not fit .*W_kernels\.1 \[12, 3\]: 12 inputs"),
    "rank-one vectors": ({k.replace("W_kernels", "kernels"): (12, 1) if "W_k" in k else v
        for k, v in cross_shapes().items() if "V_k" not in k}, r"crossnet\.kernels\.0 \[12, 1\] does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_form_no_dlrm_are_named(tmp_path, case):
    shapes, message = MISFITS[case]
    refused(write_safetensors(tmp_path / "w.safetensors", shapes), message)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"model.module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"_dmp_wrapped_module.module.{name}",
        lambda name: name.replace("arch.", "arch._orig_mod.", 1).replace("_mlp.", "_mlp._checkpoint_wrapped_module."),
        lambda name: name if "sparse" in name else name.replace("arch.", "arch._fsdp_wrapped_module.", 1),
    ],
)
def test_what_wrappers_put_into_names_is_left_out(tmp_path, wrapped):
    plain = read_weights(write_safetensors(tmp_path / "w", cross_shapes()))
    found = read_weights(write_safetensors(tmp_path / "x", {wrapped(k): v for k, v in cross_shapes().items()}))
    for part in ("bottom", "top", "crossings"):
        assert str(shapes_of(getattr(found, part))) == str(shapes_of(getattr(plain, part)))
    assert [table.shape for table in found.tables] == [(9, 4), (7, 4)]


def shapes_of(layers: tuple) -> list:
    """Of layers, and of layers in tuples."""
    return [shapes_of(each) if isinstance(each, tuple) else each.weight.shape for each in layers]


def test_one_tensor_with_and_without_its_wrapper_is_two_models(tmp_path):
    shapes = {**cross_shapes(), "module.over_arch.model.1.bias": (1,)}
    message = r"holds several models, with over_arch\.model\.1\.bias and module\.over_arch\.model\.1\.bias\. Save one"
    refused(write_safetensors(tmp_path / "w.safetensors", shapes), message)


@pytest.mark.parametrize(
    ("checkpoint", "name", "bits", "message"),
    [
        ("torchrec_dcn.pt", "model.inter_arch.crossnet.bias.1", b"\0\0\xc0\x7f", r"\[192\] holds nan at \[3\]"),
        ("dlrm_dot_self.safetensors", "top_l.0.weight", b"\0\0\x80\xff", r"\[20, 94\] holds -inf at \[0, 3\]"),
        ("dlrm_cat_bf16.pt", "model.bot_l.2.bias", b"\xc0\x7f", r"\[16\] holds nan at \[3\]"),
    ],
    indirect=["checkpoint"],
)
def test_weights_that_are_not_finite_are_named(checkpoint, name, bits, message):
    content, tensor = bytearray(checkpoint.read_bytes()), torch_tensors(checkpoint)[name]
    at = tensor.offset + 3 * len(bits)
    content[at : at + len(bits)] = bits
    checkpoint.write_bytes(content)
    refused(checkpoint, rf"{re.escape(name)} {message}; finite weights were wanted\. Save it anew\.")


def test_other_types_are_named(tmp_path):
    path = write_safetensors(tmp_path / "w", dlrm_shapes(), {"emb_l.1.weight": "F64"})
    refused(path, r"emb_l\.1\.weight is float64; float32, float16 and bfloat16 are read\. Save it as float32")
