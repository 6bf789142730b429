"""Coverage-guided fuzzing of what reads files: fuzz.py onnx|manifest|npz|criteo|torch|log [libFuzzer's flags]

Each input must be refused in one line or read; anything else ends the run with the input in a file crash-*, which then
becomes a case of the tables beside this file. Needs atheris (`make fuzz` installs it).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

with atheris.instrument_imports(include=["dlrm_tvm"]):
    from cards import Card
    from graphs import write_dlrm
    from hostile import refused_or
    from models import build_plain, random_dlrm

    from dlrm_tvm.data.reference_data import open_reference
    from dlrm_tvm.data.torch_file import torch_tensors
    from dlrm_tvm.errors import UserError
    from dlrm_tvm.frontend.reader import read_dlrm
    from dlrm_tvm.runtime.manifest import Manifest
    from dlrm_tvm.schedules.tuning_log import read_log

CARD = Card(num_dense=13, table_rows=(9,) * 26)


def read_manifest(path: Path) -> None:
    try:
        Manifest.from_json(path.read_text())
    except ValueError as error:  # artifact.py makes a UserError of it
        raise UserError(str(error)) from None


def read_items(path: Path) -> None:
    for _ in open_reference(path, CARD, max_items=100):
        pass


def seed_onnx(folder: Path) -> None:
    for interaction in ("dot", "cat"):
        write_dlrm(folder / interaction, table_rows=(3, 2), dim=2, bottom=(3,), top=(2,), interaction=interaction)


def seed_manifest(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as built:
        text = build_plain(random_dlrm(), 4, Path(built)).with_suffix(".json").read_bytes()
    (folder / "manifest").write_bytes(text)


def seed_npz(folder: Path) -> None:
    ones = np.ones(4, np.float32)
    dense, indices = np.ones((4, 13), np.float32), np.ones((4, 26), int)
    mlperf = {"X_int": dense, "X_cat": indices, "torch_res": ones, "target": ones > 0}
    criteo = {"X_int": dense, "X_cat": indices, "y": ones}
    graph = {"dense_x": dense, "indices": indices.T, "pred": ones}
    for number, arrays in enumerate((mlperf, criteo, graph)):
        with (folder / str(number)).open("wb") as file:
            np.savez(file, **arrays)


def seed_criteo(folder: Path) -> None:
    (folder / "records").write_bytes(np.ones((3, 40), "<i4").tobytes())


def seed_torch(folder: Path) -> None:
    for name in ("dlrm_dot.pt", "dlrm_dot_self.safetensors", "refused_legacy.pt"):
        shutil.copy(ROOT / "tests" / "weights" / name, folder)


def seed_log(folder: Path) -> None:
    lines = (ROOT / "__data" / "dlrm_tune_100.tune_log").read_bytes().splitlines(keepends=True)
    (folder / "log").write_bytes(b"".join(lines[:2]))


TARGETS: dict[str, tuple[Callable[[Path], object], Callable[[Path], None]]] = {
    "onnx": (read_dlrm, seed_onnx),
    "manifest": (read_manifest, seed_manifest),
    "npz": (read_items, seed_npz),
    "criteo": (read_items, seed_criteo),
    "torch": (torch_tensors, seed_torch),
    "log": (lambda path: read_log(path, must_exist=True), seed_log),
}


def main() -> None:
    name = sys.argv.pop(1)
    read, seed = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        corpus, path = Path(folder) / "corpus", Path(folder) / "input"
        corpus.mkdir()
        seed(corpus)

        def one(data: bytes) -> None:
            path.write_bytes(data)
            refused_or(lambda: read(path))

        atheris.Setup([*sys.argv, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
