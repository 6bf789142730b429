"""Libraries on disk: what is written is mapped back as it was, and nothing is opened that does not belong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import assert_close, build_plain, numpy_predictions, random_batch, random_dlrm
from sparse_tables import on_disk

from dlrm_tvm import errors, load
from dlrm_tvm.errors import UserError
from dlrm_tvm.machine import cpu
from dlrm_tvm.model.card import describe
from dlrm_tvm.runtime.artifact import open_artifact
from dlrm_tvm.runtime.manifest import Manifest, Parameter

SUFFIXES = (".so", ".json", ".params")
MODEL = random_dlrm(table_rows=(11, 1, 300), dim=20, top=(24, 9), interaction="dot_self")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build_plain(MODEL, 4, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Another build of the same model: equal sizes, other files."""
    return build_plain(MODEL, 4, tmp_path_factory.mktemp("second"))


@pytest.fixture
def library(built, tmp_path) -> Path:
    """A copy to be spoilt."""
    for suffix in SUFFIXES:
        shutil.copy(built.with_suffix(suffix), tmp_path)
    return tmp_path / built.name


def refusal(library: Path) -> str:
    """The one line with which opening is refused."""
    with pytest.raises(UserError) as error:
        open_artifact(library)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(library: Path, change) -> None:
    path = library.with_suffix(".json")
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_manifest_is_read_back_as_it_was_written(built):
    text = built.with_suffix(".json").read_text()
    manifest = Manifest.from_json(text)
    assert manifest.to_json() == text
    assert manifest.model == describe(MODEL)
    assert manifest.batch_size == 4
    assert manifest.parameter_bytes == built.with_suffix(".params").stat().st_size


def test_model_card_describes_the_model(built):
    card = open_artifact(built).manifest.model
    assert (card.num_dense, card.num_tables, card.dim, card.interaction) == (13, 3, 20, "dot_self")
    assert (card.bottom, card.top) == ((13, 20, 20), (30, 24, 9, 1))
    assert card.table_rows == (11, 1, 300)
    assert card.macs_per_item == 13 * 20 + 20 * 20 + 10 * 20 + 30 * 24 + 24 * 9 + 9
    assert card.table_bytes == 312 * 20 * 4
    assert card.fingerprint == MODEL.fingerprint


def test_parameters_are_views_of_files_at_aligned_addresses(built):
    opened = open_artifact(built)
    tables, *rest = opened.parameters
    assert tables.nbytes == opened.manifest.table_range.nbytes
    entries = [entry for entry in opened.manifest.parameters if entry.name != "tables"]
    assert [entry.name for entry in entries] == ["table_info", "mlp"]
    for array, entry in zip(rest, entries, strict=True):
        assert (array.shape, array.dtype, array.nbytes) == (entry.shape, entry.dtype, entry.nbytes)
    assert all(array.ctypes.data % 64 == 0 for array in opened.parameters)
    assert built.name.replace(".so", ".params") in Path("/proc/self/maps").read_text()


def test_tables_lie_one_after_another_in_whole_vectors(built):
    tables, info, _ = open_artifact(built).parameters
    rows = tables.reshape(-1, 32)
    np.testing.assert_array_equal(rows[:, :20], np.concatenate([table.rows for table in MODEL.tables]))
    np.testing.assert_array_equal(rows[:, 20:], 0)
    np.testing.assert_array_equal(info, [[0, 11 * 32, 12 * 32], [11, 1, 300]])


TVM_ALONE = """
import json, sys
sys.modules["torch"] = None  # which TVM imports where it is installed: seconds
import numpy as np, tvm_ffi
from pathlib import Path
from tvm.runtime import cpu, load_module
from tvm.runtime.vm import VirtualMachine

library = Path(sys.argv[1])
manifest = json.loads(library.with_suffix(".json").read_text())

def aligned(array):
    raw = np.zeros(array.nbytes + 64, np.uint8)
    at = -raw.ctypes.data % 64
    copy = raw[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return tvm_ffi.from_dlpack(copy)

tables = np.zeros(manifest["table_range"]["nbytes"], np.uint8)
for piece in manifest["table_range"]["pieces"]:
    part = np.fromfile(library.parent / piece["file"], np.uint8, piece["nbytes"], offset=piece["offset"])
    tables[piece["at"] : piece["at"] + piece["nbytes"]] = part
rest = [
    np.fromfile(library.parent / manifest["parameter_file"], entry["dtype"], int(np.prod(entry["shape"])),
                offset=entry["offset"]).reshape(entry["shape"])
    for entry in manifest["parameters"] if entry["name"] != "tables"
]
inputs = np.load(sys.argv[2])
main = VirtualMachine(load_module(str(library)), cpu())["main"]
arguments = [inputs[name] for name in manifest["inputs"]] + [tables.view(np.float32), *rest]
print(json.dumps(np.from_dlpack(main(*map(aligned, arguments))).tolist()))
assert not any(name.startswith("dlrm_tvm") for name in sys.modules)
"""


@pytest.mark.parametrize(("in_place", "runtime_only"), [(False, "0"), (True, "1")], ids=["copied", "in place"])
def test_a_library_runs_with_tvm_alone_by_what_its_manifest_says(tmp_path, in_place, runtime_only):
    model = random_dlrm(table_rows=(11, 1, 300))
    library = build_plain(on_disk(model, tmp_path / "data") if in_place else model, 4, tmp_path)
    dense, indices = random_batch(model, 4)
    np.savez(tmp_path / "inputs.npz", dense=dense, indices=indices)
    command = [sys.executable, "-c", TVM_ALONE, str(library), str(tmp_path / "inputs.npz")]
    environment = os.environ | {"TVM_USE_RUNTIME_LIB": runtime_only}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert_close(np.array(json.loads(done.stdout)), numpy_predictions(model, dense, indices))


def test_an_opened_parameter_cannot_be_written_to(library):
    for array in open_artifact(library).parameters:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 7


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_named(library, suffix):
    library.with_suffix(suffix).unlink()
    message = refusal(library)
    assert str(library.with_suffix(suffix)) in message
    assert "no such file" in message


def test_a_folder_is_no_library(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: a folder, not the .so of a library. Make it with: python compile.py"


def test_parameters_of_another_build_are_refused(library, other):
    shutil.copy(other.with_suffix(".params"), library.with_suffix(".params"))
    assert "was written by another build" in refusal(library)


@pytest.mark.parametrize("number", range(24))
def test_a_flipped_bit_anywhere_but_in_the_tables_is_found(library, number):
    """Header, table_info, weights and biases: those bits that somebody reads."""
    path = library.with_suffix(".params")
    entries = json.loads(library.with_suffix(".json").read_text())["parameters"]
    places = [
        (0, 4096),
        *((entry["offset"], Parameter(**entry).nbytes) for entry in entries if entry["name"] != "tables"),
    ]
    offset, nbytes = places[number % len(places)]
    at = offset + int(np.random.default_rng(number).integers(nbytes))
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << number % 8
    path.write_bytes(content)
    assert f"{path} " in refusal(library)


def test_parameters_of_libraries_that_have_no_hash_of_them_are_still_compared_with_the_manifest(library):
    edit(library, lambda fields: fields.update(rest_sha256=None))
    open_artifact(library)
    entry = next(
        each for each in json.loads(library.with_suffix(".json").read_text())["parameters"] if "info" in each["name"]
    )
    with library.with_suffix(".params").open("r+b") as file:
        file.seek(entry["offset"])
        file.write(np.int64(1 << 40).tobytes())
    assert "does not hold the tables of its manifest" in refusal(library)


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF" + bytes(60), "libc.so.6"])
def test_a_file_that_is_no_library_of_ours_is_refused_though_its_hash_is_right(library, content):
    if isinstance(content, str):
        content = next(Path("/").glob(f"usr/lib/*/{content}")).read_bytes()
    library.write_bytes(content)
    edit(library, lambda fields: fields.update(library_sha256=hashlib.sha256(content).hexdigest()))
    with pytest.raises(UserError, match=r"^[^\n]*small_b4.so is no library of this program[^\n]*$"):
        load(str(library))


@pytest.mark.parametrize("change", [{"batch_size": 5}, {"batch_size": 10**9}])
def test_a_manifest_of_other_shapes_than_its_library_is_refused(library, change):
    edit(library, lambda fields: fields.update(change))
    with pytest.raises(UserError, match=r"^[^\n]*not the one of its manifest[^\n]*$"):
        load(str(library))


def test_a_library_that_was_changed_is_refused(library):
    with library.open("ab") as file:
        file.write(b"\0")
    assert "is not the library that small_b4.json describes" in refusal(library)


def test_a_manifest_of_another_build_is_refused(library, other):
    shutil.copy(other.with_suffix(".json"), library.with_suffix(".json"))
    assert "Compile again" in refusal(library)


@pytest.mark.parametrize("change", [-1, -5000, 1])
def test_parameters_of_another_size_are_refused(library, change):
    path = library.with_suffix(".params")
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0")
    assert f"has {len(content) + change} bytes, {len(content)} were wanted" in refusal(library)


def test_parameters_whose_header_is_overwritten_are_refused(library):
    with library.with_suffix(".params").open("r+b") as file:
        file.write(b"\xff" * 100)
    assert "does not belong to small_b4.so" in refusal(library)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format_version": 3}', "\x7fELF", '{"format_version"'])
def test_what_is_not_a_manifest_is_refused(library, text):
    library.with_suffix(".json").write_text(text)
    assert "is not a manifest of this version" in refusal(library)


def test_a_manifest_of_another_version_is_refused_with_both_versions(library):
    edit(library, lambda fields: fields.update(format_version=1))
    assert "format version 1, this program reads 3" in refusal(library)


@pytest.mark.parametrize("change", [{"model": None}, {"parameters": 3}, {"table_range": 3}, {"compensation": 1}])
def test_a_manifest_with_other_fields_is_refused(library, change):
    edit(library, lambda fields: fields.update(change))
    assert "is not a manifest of this version" in refusal(library)


def test_a_library_for_another_cpu_is_refused_before_anything_of_it_is_loaded(library):
    edit(library, lambda fields: fields["cpu_features"].append("avx1024_dream"))
    library.write_bytes(b"not even a library")
    assert "small_b4.so needs avx1024_dream, which this CPU lacks" in refusal(library)


def test_a_cpu_that_lacks_an_instruction_is_refused(built, monkeypatch):
    flags = cpu.host_flags()
    monkeypatch.setattr(cpu, "host_flags", lambda: flags - {"fma", "sse2"})
    assert "small_b4.so needs fma, sse2, which this CPU lacks" in refusal(built)


def test_every_refusal_is_a_value_error():
    assert issubclass(errors.UserError, ValueError)


def test_a_fingerprint_tells_models_apart():
    cards = [describe(random_dlrm(seed=seed)) for seed in (0, 0, 1)]
    assert cards[0] == cards[1]
    assert cards[0].fingerprint != cards[2].fingerprint
    changed = replace(MODEL, interaction=replace(MODEL.interaction))
    assert describe(changed) == describe(MODEL)
