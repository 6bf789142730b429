"""README.md, docs/, their tables of flags and file tree, and the patches' headers, held against what is there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from flag_tables import MARKED, SCRIPTS, flags, pages, with_tables

from dlrm_tvm.paths import ROOT

README = (ROOT / "README.md").read_text()
_BESIDE = (ROOT / name for name in ("README.md", "CHANGELOG.md", "__data/README.md", "__prebuilt/README.md"))
PAGES = {path.relative_to(ROOT): path.read_text() for path in (*_BESIDE, *pages())}
TEXT = "\n".join(PAGES.values())
PATCHES = ROOT / "__patches"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def section(heading: str) -> str:
    """The text from the heading that ends in these words to the next heading of any level."""
    found = re.search(rf"^#+ (?:\d\. )?{re.escape(heading)}\n(.*?)(?=^#+ |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no section {heading}"
    return found.group(1)


def command_lines() -> list[str]:
    """Lines of fenced and of indented blocks that call python or make, without their comments."""
    fenced = "\n".join(re.findall(r"^```.*?\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^    (.*)$", TEXT, re.MULTILINE))
    lines = [re.sub(r"^\$ |\s+#.*", "", line.strip()) for line in f"{fenced}\n{indented}".splitlines()]
    return [line for line in lines if line.startswith(("python ", "make "))]


def make_targets_named() -> set[str]:
    """Of `make ...` in backticks and of the command lines; settings such as PYTHON=python3.12 are no targets."""
    calls = re.findall(r"`make ([^`]*)`", TEXT) + [line[5:] for line in command_lines() if line.startswith("make ")]
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


def all_flags(script: str) -> set[str]:
    return {flag.split()[0] for group in flags(script).values() for flag in group}


def anchors(page: str) -> set[str]:
    """What a page's headings are called in links, as GitHub does it."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_script_named_exists():
    elsewhere = TEXT.replace(section("Files"), "")
    named = set(re.findall(r"(?<![\w*./-])[\w./-]*\w\.py\b", elsewhere))
    assert set(SCRIPTS) <= named
    assert {name for name in named if not (ROOT / name).is_file()} == set()


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_tables_of_flags_are_what_help_says(page: Path):
    """Where this fails, python tests/support/flag_tables.py --write mends it."""
    assert with_tables(page.read_text()) == page.read_text()


def test_every_group_of_flags_has_its_table_once():
    there = Counter((found["script"], found["group"]) for found in MARKED.finditer(TEXT))
    assert there == Counter((script, group) for script in SCRIPTS for group in flags(script) if flags(script)[group])


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_tables_have_all_flags_of_a_script(script: str):
    tables = [found[0] for found in MARKED.finditer(TEXT) if found["script"] == script]
    listed = re.findall(r"^\| `(--[a-z-]+)", "\n".join(tables), re.MULTILINE)
    assert sorted(listed) == sorted(all_flags(script)) and listed


def test_flags_named_anywhere_exist():
    known = set().union(*map(all_flags, (*SCRIPTS, "tests/support/flag_tables.py", "tests/benchmarks/turns.py")))
    others = re.compile(
        r"^    (?:docker|numactl|srun|sbatch|taskset|ray|RAY_\S+|#SBATCH) .*?(?:python|$)", re.MULTILINE
    )  # before ours begins
    assert set(FLAG.findall(others.sub("", TEXT))) - known == set()


def test_the_dockerfile_installs_copies_and_runs_what_exists():
    text = (ROOT / "Dockerfile").read_text()
    files = re.findall(r"(?:-r|COPY) (requirements[\w.-]+)", text)
    runs = re.findall(r"python (\w+\.py)((?: --\w+)*)", text)
    assert [script for script, _ in runs] == list(SCRIPTS) and files
    assert all((ROOT / name).is_file() for name in files)
    assert all(set(options.split()) <= all_flags(script) for script, options in runs)


def test_commands_call_what_exists():
    lines = command_lines()
    assert lines
    for line in lines:
        words = line.split()
        if words[0] != "python" or words[1].startswith("-"):
            continue
        assert (ROOT / words[1]).is_file(), line
        assert set(FLAG.findall(line)) <= all_flags(words[1]), line


def test_readme_is_read_at_once():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_between_pages_resolve(page: Path):
    """To files of the repository and to headings in them; other places on the web are not asked."""
    for target, anchor in LINK.findall(PAGES[page]):
        if target.startswith(("https://", "http://")):
            continue
        path = (ROOT / page.parent / target).resolve() if target else ROOT / page
        assert path.is_relative_to(ROOT) and path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), f"{target}#{anchor}"


def test_readme_leads_to_every_page():
    assert {f"docs/{path.name}" for path in pages()} <= {target for target, _ in LINK.findall(README)}


def test_every_make_target_named_exists():
    rules = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    named = make_targets_named()
    assert {"demo", "test"} <= named
    assert named - targets == set()


def test_everything_in_the_file_tree_exists():
    entries = tree_entries()
    assert len(entries) > len(SCRIPTS)
    assert [entry for entry in entries if not list(ROOT.glob(entry.rstrip("/")))] == []
    assert [entry for entry in entries if entry.endswith("/") and not (ROOT / entry).is_dir()] == []


def test_files_of_the_repository_named_in_passing_exist():
    """`__data/x`, `tests/x` and the like; what __prebuilt holds is made by compile.py, and so is the demo model."""
    named = set(re.findall(r"(?<![\w/])(?:__data|__patches|dlrm_tvm|docs|tests)/[\w./-]*\w", TEXT))
    made = {name for name in named if name.startswith("__data/demo_dlrm_")}
    assert {name for name in named - made if not (ROOT / name).exists()} == set()


def test_no_placeholder_is_left():
    assert re.findall(r"@[A-Z]+@", TEXT) == []


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
