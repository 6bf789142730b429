"""README.md, its file tree and the patches' headers, held against what is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PATCHES = ROOT / "__patches"
SCRIPTS = ("compile.py", "accuracy.py", "multi_instance.py")
BENCH = "tests/benchmarks/bench.py"  # what BENCH_ARGS are for
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")


def section(heading: str) -> str:
    """The text from the heading that ends in these words to the next heading of any level."""
    found = re.search(rf"^#+ (?:\d\. )?{re.escape(heading)}\n(.*?)(?=^#+ |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no section {heading}"
    return found.group(1)


def command_lines() -> list[str]:
    """Lines of fenced and of indented blocks that call python or make, without their comments."""
    fenced = "\n".join(re.findall(r"^```.*?\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^    (.*)$", README, re.MULTILINE))
    lines = [re.sub(r"^\$ |\s+#.*", "", line.strip()) for line in f"{fenced}\n{indented}".splitlines()]
    return [line for line in lines if line.startswith(("python ", "make "))]


def make_targets_named() -> set[str]:
    """Of `make ...` in backticks and of the command lines; settings such as PYTHON=python3.12 are no targets."""
    calls = re.findall(r"`make ([^`]*)`", README) + [line[5:] for line in command_lines() if line.startswith("make ")]
    return {word for call in calls for word in re.findall(r'(?:[A-Z_]+=(?:"[^"]*"|\S+))|(\S+)', call) if word}


def tree_entries() -> list[str]:
    """Paths from the root, globs included, of the block under ## Files; a deeper line lies in the folder above it."""
    paths, folder = [], ""
    for line in re.findall(r"^    (.*)$", section("Files"), re.MULTILINE):
        names = [name for name in re.split(r"\s{2,}", line.strip())[0].split() if name != "..."]
        inside = line.startswith(" ")
        folder = folder if inside else (names[0] if names[0].endswith("/") else "")
        paths += [(folder if inside else "") + name for name in names]
    return paths


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """script -> the flags that its --help lists, --help itself left out."""
    found, environment = {}, {**os.environ, "PYTHONPATH": str(ROOT)}
    for script in (*SCRIPTS, BENCH):
        command = [sys.executable, str(ROOT / script), "--help"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        found[script] = set(re.findall(r"^\s+(?:-\w, )?(--[a-z][a-z-]*)", done.stdout, re.MULTILINE)) - {"--help"}
        assert found[script], done.stdout
    return found


def test_every_script_named_exists():
    elsewhere = README.replace(section("Files"), "")
    named = set(re.findall(r"(?<![\w*./-])[\w./-]*\w\.py\b", elsewhere))
    assert set(SCRIPTS) <= named
    assert {name for name in named if not (ROOT / name).is_file()} == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_scripts_section_has_all_of_its_flags_and_no_others(flags, script):
    assert set(FLAG.findall(section(script))) == flags[script]


def test_flags_named_anywhere_exist(flags):
    assert set(FLAG.findall(README)) - set().union(*flags.values()) == set()


def test_commands_call_what_exists(flags):
    lines = command_lines()
    assert lines
    for line in lines:
        words = line.split()
        if words[0] != "python" or words[1].startswith("-"):
            continue
        assert (ROOT / words[1]).is_file(), line
        assert set(FLAG.findall(line)) <= flags.get(words[1], set()), line


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = make_targets_named()
    assert {"demo", "test"} <= named
    assert named - targets == set()


def test_everything_in_the_file_tree_exists():
    entries = tree_entries()
    assert len(entries) > len(SCRIPTS)
    assert [entry for entry in entries if not list(ROOT.glob(entry.rstrip("/")))] == []
    assert [entry for entry in entries if entry.endswith("/") and not (ROOT / entry).is_dir()] == []


def test_files_of_the_repository_named_in_passing_exist():
    """`__data/x`, `tests/x` and the like; what __prebuilt holds is made by compile.py."""
    named = set(re.findall(r"(?<![\w/])(?:__data|__patches|dlrm_tvm|tests)/[\w./-]*\w", README))
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_no_placeholder_is_left():
    assert re.findall(r"@[A-Z]+@", README) == []


def test_patches_and_their_list_agree():
    listed = set(re.findall(r"^\| `([^`]+)`", (PATCHES / "README.md").read_text(), re.MULTILINE))
    there = {path.name for path in PATCHES.iterdir() if path.is_file()} - {"README.md"}
    assert there
    assert listed == there


@pytest.mark.parametrize("patch", sorted(p.name for p in PATCHES.iterdir() if p.is_file() and p.name != "README.md"))
def test_a_patch_says_what_for_which_version_why_and_until_when(patch):
    header = (PATCHES / patch).read_text()[:3000]
    found = re.findall(r"^\W*(What|Version|Why|Delete)\b", header, re.MULTILINE)
    assert found == ["What", "Version", "Why", "Delete"]


def test_files_named_in_the_patches_list_exist():
    named = re.findall(r"`([\w/]+/[\w.]+)`", (PATCHES / "README.md").read_text())
    assert [name for name in named if not (ROOT / name).is_file()] == []
