"""Imports point downwards, by the table of shared/design.md: between wings, and to packages of others.

Read from the source, so that imports inside functions and for type checking count as well.
"""

from __future__ import annotations

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from dlrm_tvm.paths import ROOT

PACKAGE = ROOT / "dlrm_tvm"
GROUND = {"errors", "console", "paths"}  # every wing may use them; they use one another only

MAY_IMPORT = {
    "model": set(),
    "machine": set(),
    "symbols": {"model", "machine"},
    "frontend": {"symbols", "model"},
    "kernels": {"model"},
    "network": {"kernels", "model"},
    "runtime": {"model", "machine"},
    "data": {"model", "machine"},
    "engines": {"frontend", "symbols", "runtime", "data", "model", "machine"},
    "schedules": {"kernels", "runtime", "model", "machine"},
    "compiler": {"schedules", "network", "kernels", "runtime", "data", "model", "machine"},
    "tuning": {"compiler", "schedules", "kernels", "runtime", "model"},
    "instances": {"engines", "runtime", "data", "model", "machine"},
    "bench": {"instances", "engines", "runtime", "data", "model", "machine"},
    "loadgen": {"bench", "instances", "engines", "runtime", "data", "model", "machine"},
    "sweep": {"bench", "instances", "engines", "runtime", "data", "model", "machine"},
    "predictions": {"runtime", "data", "model", "machine"},
    "cluster": {"predictions", "bench", "instances", "engines", "runtime", "data", "model", "machine"},
}
PACKAGES = {
    "console": {"tqdm"},
    "machine": {"psutil"},
    "frontend": {"onnx"},
    "symbols": {"onnx", "google"},  # protobuf's errors, which onnx raises
    "kernels": {"tvm"},
    "network": {"tvm"},
    "runtime": {"tvm", "tvm_ffi"},
    "data": {"onnx", "pyarrow"},
    "engines": {"onnxruntime", "openvino", "nncf", "onnx", "torch", "torchao", "zentorch"},
    "schedules": {"tvm"},
    "compiler": {"tvm"},
    "tuning": {"tvm", "tvm_ffi"},
    "loadgen": {"mlperf_loadgen"},
    "sweep": {"matplotlib"},
    "cluster": {"ray", "psutil"},
}
EVERYWHERE = {"numpy"}
ONLY_IN = {
    "onnx": {"data": {"dlrm_graph"}},
    "pyarrow": {"data": {"parquet"}},
    "torch": {"engines": {"pytorch"}},
}  # rooms of a wing that alone may use a package


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(source: Path) -> set[str]:
    """Full dotted names of all modules that a file imports anywhere."""
    here = source.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                is_module = (ROOT / inner.replace(".", "/")).with_suffix(".py").is_file()
                found.add(inner if is_module else module)
    return found


def wing_of(module: str) -> str:
    """dlrm_tvm.WING.room -> WING; a ground room is its own, and so is the package."""
    return module.split(".")[1] if "." in module else module


def own(source: Path) -> str:
    return ".".join(source.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


RELATIVE = [str(source.relative_to(PACKAGE)) for source in sources()]


@pytest.mark.parametrize("name", RELATIVE)
def test_a_room_knows_its_neighbours_only_downwards(name: str) -> None:
    source = PACKAGE / name
    wing = wing_of(own(source)) if source.parent != PACKAGE else ""
    used = {wing_of(module) for module in imported(source) if module.split(".")[0] == "dlrm_tvm"} - {wing, ""}
    if name == "__init__.py":
        allowed = {"runtime"}
    elif source.parent == PACKAGE:
        allowed = GROUND
    else:
        allowed = MAY_IMPORT[wing] | GROUND
    assert used - allowed == set()


@pytest.mark.parametrize("name", RELATIVE)
def test_packages_of_others_are_used_where_they_belong(name: str) -> None:
    source = PACKAGE / name
    wing = source.parent.name if source.parent != PACKAGE else source.stem
    others = {module.split(".")[0] for module in imported(source)} - sys.stdlib_module_names - {"dlrm_tvm"} - EVERYWHERE
    assert others - PACKAGES.get(wing, set()) == set()
    for package in others & ONLY_IN.keys():
        rooms = ONLY_IN[package].get(wing)
        assert rooms is None or source.stem in rooms


def test_what_runs_a_library_needs_no_compiler() -> None:
    used = {module for source in sources() if source.parent.name == "runtime" for module in imported(source)}
    assert {module for module in used if module.split(".")[0] == "tvm"} <= {"tvm.runtime", "tvm.runtime.vm"}


def test_no_room_imports_itself_by_way_of_others() -> None:
    graph = {own(source): imported(source) for source in sources()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_the_table_names_every_wing_and_no_other() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == MAY_IMPORT.keys()
    assert {path.stem for path in PACKAGE.glob("*.py")} == GROUND | {"__init__"}


@pytest.mark.parametrize("wing", MAY_IMPORT)
def test_a_wing_says_what_flows_in_and_out_and_which_room_to_open_first(wing: str) -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text()))
    first = re.search(r"^in: .*^out: .*^first: (\w+\.py)$", said, re.MULTILINE | re.DOTALL)
    assert first and (PACKAGE / wing / first.group(1)).is_file()


@pytest.mark.parametrize("name", [name for name in RELATIVE if not name.endswith("__init__.py")])
def test_a_room_is_no_longer_than_a_person_reads_at_once(name: str) -> None:
    assert len((PACKAGE / name).read_text().splitlines()) <= 310
