"""TVM is imported without PyTorch, in processes of their own beside a PyTorch that tells when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dlrm_tvm.paths import ROOT

pytest.importorskip("tvm_ffi", reason="needs apache-tvm")


def run_beside_torch(tmp_path: Path, script: str) -> str:
    (tmp_path / "torch.py").write_text("print('torch')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_runs_a_library_imports_no_torch_and_leaves_it_to_be_imported(tmp_path: Path) -> None:
    script = "import dlrm_tvm.runtime.executor, tvm; print('tvm'); import torch"
    assert run_beside_torch(tmp_path, script) == "tvm\ntorch\n"


def test_what_compiles_imports_no_torch(tmp_path: Path) -> None:
    script = (
        "import compile\ntry:\n    compile.compile_library(None)\nexcept AttributeError:\n    import tvm; print('tvm')"
    )
    assert run_beside_torch(tmp_path, script) == "tvm\n"


def test_torch_is_hidden_from_no_other_thread() -> None:
    from dlrm_tvm.runtime.tvm_alone import _Hiding

    hiding, answers = _Hiding(), []
    thread = threading.Thread(target=lambda: answers.append(hiding.find_spec("torch")))
    thread.start()
    thread.join()
    assert answers == [None]
    with pytest.raises(ModuleNotFoundError):
        hiding.find_spec("torch")
