"""PyTorch checkpoints with anything in them: refused in one line, or read as the bytes that they are."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile import refused_or

from dlrm_tvm.data.state_dict import graph_of_weights
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.paths import ROOT

WEIGHTS = ROOT / "tests" / "weights"
Header = dict[str, dict]


def read(path: Path) -> Dlrm | None:
    return refused_or(lambda: read_dlrm(graph_of_weights(path)))


def parts(content: bytes) -> tuple[Header, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def whole(header: object, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ORIGINAL = (WEIGHTS / "dlrm_dot_self.safetensors").read_bytes()
FIRST, SECOND = "bot_l.0.weight", "bot_l.0.bias"


def changed(name: str, **fields: object) -> Callable[[Header, bytes], bytes]:
    return lambda header, data: whole({**header, name: {**header[name], **fields}}, data)


def repeated(header: Header, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return whole(text[:-1] + b", " + json.dumps({FIRST: header[FIRST]}).encode()[1:], data)


def overlapping(header: Header, data: bytes) -> bytes:
    """Two tables at the same bytes, and what is behind them moved up."""
    begin, end = header["emb_l.0.weight"]["data_offsets"]
    return whole({**header, "emb_l.0.weight": {**header["emb_l.0.weight"], "data_offsets": [0, end - begin]}}, data)


REFUSED: dict[str, Callable[[Header, bytes], bytes]] = {
    "a header of 0 bytes": lambda header, data: whole(b"", data),
    "a header of all bytes": lambda header, data: whole(header, data, (1 << 64) - 1),
    "a header longer than the file": lambda header, data: whole(header, data, 1 << 20),
    "a header one byte short": lambda header, data: whole(header, data, len(json.dumps(header)) - 1),
    "a header that is a list": lambda header, data: whole([header], data),
    "a header that nests": lambda header, data: whole(b'{"a":' * 50_000 + b"{}" + b"}" * 50_000, data),
    "a header of no UTF-8": lambda header, data: whole(b'{"\xff\xfe": {}}', data),
    "a name twice": repeated,
    "a name that steers a terminal": lambda header, data: whole({**header, "\x1b[2J\n": header[FIRST]}, data),
    "a tensor that is a number": lambda header, data: whole({**header, FIRST: 3}, data),
    "a tensor without a shape": lambda header, data: whole({**header, FIRST: {"dtype": "F32"}}, data),
    "a shape of floats": changed(FIRST, shape=[6.0, 5.0]),
    "a shape of booleans": changed(FIRST, shape=[True, True]),
    "a negative shape": changed(FIRST, shape=[-6, -5]),
    "a huge shape": changed(FIRST, shape=[1 << 62, 1 << 62]),
    "a shape of another size": changed(FIRST, shape=[6, 4]),
    "a shape that is text": changed(FIRST, shape="65"),
    "a type of text": changed(FIRST, dtype="str"),
    "a type that is a list": changed(FIRST, dtype=["F32"]),
    "whole numbers": changed(FIRST, dtype="I32"),
    "float8": changed(FIRST, dtype="F8_E4M3"),
    "places of one number": changed(FIRST, data_offsets=[0]),
    "places of text": changed(FIRST, data_offsets=["0", "120"]),
    "places beyond the file": changed(FIRST, data_offsets=[1 << 40, (1 << 40) + 120]),
    "places below 0": changed(FIRST, data_offsets=[-120, 0]),
    "places backwards": changed(FIRST, data_offsets=[120, 0]),
    "tensors that overlap": overlapping,
    "a gap": lambda header, data: whole(
        {
            name: {**entry, "data_offsets": [at + 4 * (at > 0) for at in entry["data_offsets"]]}
            for name, entry in header.items()
            if name != "__metadata__"
        },
        data + bytes(4),
    ),
    "bytes behind the last": lambda header, data: whole(header, data + bytes(4)),
    "bytes missing": lambda header, data: whole(header, data[:-4]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_headers_of_safetensors_that_lie_are_refused_in_one_line(tmp_path, name) -> None:
    header, data = parts(ORIGINAL)
    path = tmp_path / "w.safetensors"
    path.write_bytes(REFUSED[name](header, data))
    assert read(path) is None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("spaces", range(4))
def test_a_header_of_any_length_leaves_the_same_weights(tmp_path, spaces) -> None:
    """Then values begin at no multiple of 4 bytes."""
    path, plain = tmp_path / "w.safetensors", tmp_path / "plain.safetensors"
    header, data = parts(ORIGINAL)
    path.write_bytes(whole(json.dumps(header).encode() + b" " * spaces, data))
    plain.write_bytes(ORIGINAL)
    found, wanted = read(path), read(plain)
    for one, other in zip((*found.layers, *found.tables), (*wanted.layers, *wanted.tables), strict=True):
        values = [each.rows if hasattr(each, "rows") else each.weight for each in (one, other)]
        np.testing.assert_array_equal(*values)


# --- zips


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def endless(depth: int = 64) -> bytes:
    """Dicts that hold the one before twice: 2 ** depth of them in a few hundred bytes."""
    content: dict = {}
    for _ in range(depth):
        content = {"a": content, "b": content}
    return pickle.dumps(content, 2)


ZIPS: dict[str, Callable[[dict[str, bytes]], list[tuple[str, bytes]]]] = {
    "nothing": lambda members: [],
    "no pickle": lambda members: [(name, data) for name, data in members.items() if "pkl" not in name],
    "two pickles": lambda members: [*members.items(), ("b/data.pkl", members["dlrm_dot/data.pkl"])],
    "a member twice": lambda members: [*members.items(), ("dlrm_dot/data/0", members["dlrm_dot/data/0"][::-1])],
    "the pickle twice": lambda members: [*members.items(), ("dlrm_dot/data.pkl", pickle.dumps({}, 2))],
    "no data": lambda members: [(name, data) for name, data in members.items() if "/data/" not in name],
    "data cut short": lambda members: [(n, d[:-4] if "/data/" in n else d) for n, d in members.items()],
    "a pickle cut short": lambda members: [(n, d[: len(d) // 2] if "pkl" in n else d) for n, d in members.items()],
    "a pickle of nothing": lambda members: [(n, b"" if "pkl" in n else d) for n, d in members.items()],
    "a pickle of a number": lambda members: [(n, pickle.dumps(3, 2) if "pkl" in n else d) for n, d in members.items()],
    "dicts without end": lambda members: [(n, endless() if "pkl" in n else d) for n, d in members.items()],
    "names that go up": lambda members: [(f"../../{name}", data) for name, data in members.items()],
    "a byte order of junk": lambda members: [(n, b"\xff\x00" if "byteorder" in n else d) for n, d in members.items()]
    + [("dlrm_dot/byteorder", b"\xff")] * ("dlrm_dot/byteorder" not in members),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ZIPS)
def test_zips_that_torch_save_did_not_write_are_refused_in_one_line(tmp_path, name) -> None:
    path = write_zip(tmp_path / "w.pt", ZIPS[name](members_of(WEIGHTS / "dlrm_dot.pt")))
    assert read(path) is None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("seed", range(40))
def test_bytes_of_a_zip_changed_anywhere_end_in_a_refusal_or_an_answer(tmp_path, seed) -> None:
    rng, data = np.random.default_rng(seed), bytearray((WEIGHTS / "torchrec_dcn.pt").read_bytes())
    for _ in range(1 + seed % 3):
        data[-int(rng.integers(1, 3000)) if seed % 2 else int(rng.integers(len(data)))] = int(rng.integers(256))
    (tmp_path / "w.pt").write_bytes(data)
    read(tmp_path / "w.pt")
