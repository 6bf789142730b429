"""pip install: the three commands in any folder, with what they need from beside the package in a checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest

from dlrm_tvm import paths
from dlrm_tvm.console import VERSION
from dlrm_tvm.paths import ROOT

SOURCES = ("dlrm_tvm", "__data", "__patches", "compile.py", "accuracy.py", "multi_instance.py")
METADATA = ("pyproject.toml", "README.md", "LICENSE")
COMMANDS = ("dlrm-compile", "dlrm-accuracy", "dlrm-multi-instance")
_MADE = shutil.ignore_patterns("__pycache__", "demo_dlrm_*")
DATA = ("demo_data_small.npz", "demo_v2_data_small.npz", "dlrm_tune_100.tune_log")
_SETUPTOOLS = 77  # the first one that reads a licence's SPDX name


def pip(*arguments: object, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline from a copy, as building leaves files among its sources."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed")
    try:
        found = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed (requirements-dev.txt)")
    if int(found.split(".")[0]) < _SETUPTOOLS:
        pytest.skip(f"setuptools {found} is older than {_SETUPTOOLS} (requirements-dev.txt)")
    copy = tmp_path_factory.mktemp("copy")
    for name in (*SOURCES, *METADATA):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=_MADE)
        else:
            shutil.copy(source, copy)
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=copy)
    return next((copy / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel was installed into; the commands are in its bin."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    return folder


def run(installed: Path, command: str, *options: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    words = [str(installed / "bin" / command), *map(str, options)]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_a_wheel_has_all_of_the_package_and_all_that_is_shipped(wheel: Path):
    rooms = {str(path.relative_to(ROOT)) for path in (ROOT / "dlrm_tvm").rglob("*.py")}
    scripts = {f"dlrm_tvm/_shipped/{name}" for name in SOURCES if name.endswith(".py")}
    shipped = {f"dlrm_tvm/_shipped/{path.relative_to(ROOT)}" for path in (ROOT / "__patches").glob("*.py")}
    shipped |= {f"dlrm_tvm/_shipped/__data/{name}" for name in DATA}
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == rooms | scripts | shipped


def test_a_wheel_says_version_licence_and_what_it_needs(wheel: Path):
    text = next(ZipFile(wheel).read(name) for name in ZipFile(wheel).namelist() if name.endswith("/METADATA")).decode()
    assert f"\nVersion: {VERSION}\n" in text and "\nLicense-Expression: Apache-2.0\n" in text
    assert set(re.findall(r"^Provides-Extra: (.*)$", text, re.MULTILINE)) == {
        "loadgen",
        "plot",
        "engines",
        "ray",
        "torch",
    }
    needed = set(re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", text, re.MULTILINE))
    assert needed == {"apache-tvm", "apache-tvm-ffi", "numpy", "onnx", "psutil", "tqdm"}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_installed_command_says_its_name_and_version(installed: Path, command: str, tmp_path: Path):
    assert f"usage: {command} " in run(installed, command, "--help", cwd=tmp_path).stdout
    assert run(installed, command, "--version", cwd=tmp_path).stdout == f"dlrm_tvm {VERSION}\n"
    assert not list(tmp_path.iterdir())


def test_installed_commands_compile_check_and_measure_in_an_empty_folder(
    require_fma: None, installed: Path, tmp_path: Path
):
    before = files(installed)
    done = run(installed, "dlrm-compile", "--demo-table-rows", 10, "--batch-size", 7, cwd=tmp_path)
    if "no C compiler found" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    library = "__prebuilt/dlrm_avx512_b7.so"
    assert json.loads(done.stdout.splitlines()[-1])["library"] == library
    assert "_shipped/__data/dlrm_tune_100.tune_log)" in done.stdout
    assert {path.name for path in (tmp_path / "__data").glob("demo*")} == {
        "demo_dlrm_10.onnx",
        "demo_dlrm_10.onnx.data",
    }
    done = run(installed, "dlrm-accuracy", "--model", library, cwd=tmp_path)
    assert done.returncode == 1 and "recorded for another model" in done.stderr  # it found the demo's own data
    window = ("--num-instances", 1, "--duration", 0.2, "--warmup", 0)
    done = run(installed, "dlrm-multi-instance", "--model", library, *window, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["items_per_s"] > 0
    assert files(installed) == before


def test_tuning_extends_a_copy_of_the_log_that_was_installed(installed: Path, tmp_path: Path):
    told = asked(installed, "DEFAULT_LOG, log_to_extend(DEFAULT_LOG)", cwd=tmp_path)
    shipped, copied = map(Path, told.split())
    assert shipped.is_relative_to(installed)
    assert copied == tmp_path / "__data" / shipped.name and copied.read_text() == shipped.read_text()


@pytest.mark.parametrize("extra", ["loadgen", "plot", "engines", "ray", "torch"])
def test_what_to_type_for_packages_is_an_extra_where_there_are_no_requirement_files(
    installed: Path, extra: str, tmp_path: Path
):
    told = asked(installed, f"packages_command({extra!r})", cwd=tmp_path)
    assert told == f"pip install 'dlrm-tvm[{extra}]'\n"
    assert (ROOT / paths.packages_command(extra).removeprefix("pip install -r ")).is_file()


def test_a_missing_library_names_the_command_that_was_installed(installed: Path, tmp_path: Path):
    told = run(installed, "dlrm-accuracy", cwd=tmp_path).stderr
    assert told == "__prebuilt/dlrm_avx512_b100.so: no such file. Make it with: dlrm-compile\n"


def asked(installed: Path, expression: str, *, cwd: Path) -> str:
    """What the installed paths.py says."""
    command = [sys.executable, "-c", f"from dlrm_tvm.paths import *; print({expression})"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600).stdout


def test_a_package_has_the_same_pins_in_all_files_of_requirements():
    """Two of them go into one environment, and what one says of an older Python holds for the other."""
    pins: dict[str, dict[str, set[str]]] = {}
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text().splitlines():
            name, equals, version = line.partition("#")[0].replace(" ", "").partition("==")
            if equals:
                pins.setdefault(name.lower(), {}).setdefault(path.name, set()).add(version)
    shared = {name: files for name, files in pins.items() if len(files) > 1}
    assert {"filelock", "setuptools"} <= shared.keys()
    assert not {name: files for name, files in shared.items() if len(set(map(frozenset, files.values()))) > 1}
