"""A library runs without TVM's compiler and without PyTorch, in processes of their own beside a PyTorch that tells when
it is imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from scripts import TWO_CORES, WITH_COMPILER

from dlrm_tvm.paths import ROOT

pytest.importorskip("tvm_ffi", reason="needs apache-tvm")

PREDICT = """
import sys
import numpy as np
from dlrm_tvm import load
model = load(sys.argv[1], threads=int(sys.argv[2]))
def predictions():
    return model(np.ones((9, 13), np.float32), np.zeros((9, 3), np.int64)).tolist()
first = predictions()
"""
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None"


def run_beside_torch(tmp_path: Path, script: str, *words: object, **variables: str) -> str:
    (tmp_path / "torch.py").write_text("print('torch')\n")
    return run(script, *words, PYTHONPATH=f"{tmp_path}:{ROOT}", **variables)


def run(script: str, *words: object, **variables: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.fixture
def tvms_library() -> str:
    """The path of libtvm_runtime.so."""
    from tvm.libinfo import find_libtvm_runtime

    return find_libtvm_runtime()


def test_what_runs_a_library_imports_neither_the_compiler_nor_torch(tmp_path: Path, small_library: Path) -> None:
    script = f"{PREDICT}\nprint(sorted({{'tvm', 'torch'}} & set(sys.modules)))"
    script += "\nprint('libtvm_compiler' in open('/proc/self/maps').read())"
    assert run_beside_torch(tmp_path, script, small_library, 1) == "[]\nFalse\n"


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=TWO_CORES)])
def test_the_compiler_comes_later_without_torch_and_changes_nothing(
    tmp_path: Path, small_library: Path, threads: int
) -> None:
    script = f"""{PREDICT}
{WITH_COMPILER}
import tvm
print("tvm")
double = tvm.te.compute((4,), lambda at: tvm.tirx.const(2.0, "float32"), name="double")
tvm.compile(tvm.te.create_prim_func([double]), target="llvm")
again = predictions()
model = load(sys.argv[1], threads={threads})
print(first == again == predictions())
import torch
"""
    assert run_beside_torch(tmp_path, script, small_library, threads) == "tvm\nTrue\ntorch\n"


def test_tvm_may_be_there_before(small_library: Path) -> None:
    assert run(f"{WITHOUT_TORCH}\nimport tvm\n{PREDICT}\nprint(len(first))", small_library, 1) == "9\n"


def test_tvms_libraries_may_lie_elsewhere(tmp_path: Path, small_library: Path, tvms_library: str) -> None:
    """As TVM's own import has it, for who builds TVM."""
    folder = tmp_path / "lib"
    folder.mkdir()
    shutil.copy(tvms_library, folder)
    script = f"{PREDICT}\nprint({str(folder)!r} in open('/proc/self/maps').read())"
    assert run_beside_torch(tmp_path, script, small_library, 1, TVM_LIBRARY_PATH=str(folder)) == "True\n"


def test_tvms_library_of_a_build_is_found_beside_its_sources(
    tmp_path: Path, small_library: Path, tvms_library: str
) -> None:
    """python/tvm and build/lib of TVM's own checkout."""
    package, built = tmp_path / "python" / "tvm", tmp_path / "build" / "lib"
    package.mkdir(parents=True)
    built.mkdir(parents=True)
    shutil.copy(tvms_library, built)
    for name in ("__init__.py", "libinfo.py"):
        shutil.copy(Path(find_spec("tvm").origin).with_name(name), package)
    script = f"{PREDICT}\nprint({str(built)!r} in open('/proc/self/maps').read())"
    assert run(script, small_library, 1, PYTHONPATH=f"{package.parent}:{ROOT}") == "True\n"


def test_a_run_time_library_that_is_open_already_is_the_only_one(
    tmp_path: Path, small_library: Path, tvms_library: str
) -> None:
    """TVM's functions registered a second time end the process."""
    script = f"{WITHOUT_TORCH}\nimport ctypes, tvm_ffi\n"
    script += f"ctypes.CDLL({tvms_library!r}, ctypes.RTLD_GLOBAL)\n{PREDICT}\n"
    shutil.copy(tvms_library, tmp_path)
    script += "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'libtvm_runtime.so' in line}))"
    assert run(script, small_library, 1, TVM_LIBRARY_PATH=str(tmp_path)) == "1\n"


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.with_suffix(".py").touch()])
def test_a_folder_or_a_file_called_tvm_is_no_tvm(tmp_path: Path, small_library: Path, make: Callable) -> None:
    make(tmp_path / "tvm")
    script = f"""
import importlib.util
from importlib.machinery import PathFinder
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: PathFinder.find_spec(name, [{str(tmp_path)!r}]) if name == "tvm" else find(name)
try:
    import dlrm_tvm.runtime.executor
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(script) == "No module named 'tvm'\n"


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
