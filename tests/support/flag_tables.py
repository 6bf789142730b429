"""Tables of flags in docs/, made from what each script's --help says.

    python tests/support/flag_tables.py            exit status 1, and the page's name, where a table differs from --help
    python tests/support/flag_tables.py --write    write the tables anew

A page says where a table stands and which group of which script's flags it has:

    <!-- flags: multi_instance.py, arrivals -->
    <!-- end of flags -->
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("compile.py", "accuracy.py", "multi_instance.py")
MARKED = re.compile(r"(<!-- flags: (?P<script>[\w/.]+), (?P<group>.+?) -->\n).*?(<!-- end of flags -->)", re.DOTALL)
_GROUP = re.compile(r"^(\S.*):\n((?: .*\n|\n)*)", re.MULTILINE)
_FLAG = re.compile(r"^ {2}(?:-\w, )?(--\S+(?: \S+)*)(?:\n? {2,}(\S.*))?$", re.MULTILINE)


def pages() -> list[Path]:
    return sorted((ROOT / "docs").glob("*.md"))


@cache
def flags(script: str) -> dict[str, dict[str, str]]:
    """group -> flag with its value, as it is typed -> help text; of what --help lists, without --help itself."""
    wide = {**os.environ, "COLUMNS": "10000", "PYTHONPATH": str(ROOT)}  # a flag's text on one line
    command = [sys.executable, str(ROOT / script), "--help"]
    text = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True, check=True).stdout
    return {group: _flags_of(lines) for group, lines in _GROUP.findall(f"{text}\n")}


def _flags_of(lines: str) -> dict[str, str]:
    return {flag: help_text for flag, help_text in _FLAG.findall(lines) if flag != "--help"}


def table(script: str, group: str) -> str:
    """Raises KeyError for a group that the script's --help lacks."""
    rows = [f"| `{_typed(flag)}` | {_cell(text)} |\n" for flag, text in flags(script)[group].items()]
    return "| flag | meaning |\n|---|---|\n" + "".join(rows)


def _typed(flag: str) -> str:
    """argparse's {a,b} as a|b: what is typed."""
    return _cell(re.sub(r"\{(.+?)\}", lambda choices: choices[1].replace(",", "|"), flag))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def with_tables(page: str) -> str:
    """The page's text with every marked table as --help has it."""
    return MARKED.sub(lambda found: found[1] + table(found["script"], found["group"]) + found[4], page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the tables anew")
    write = parser.parse_args().write
    differing = [path for path in pages() if with_tables(path.read_text()) != path.read_text()]
    for path in differing:
        print(f"{path.relative_to(ROOT)}: {'written' if write else 'differs from --help. Give --write.'}")
        if write:
            path.write_text(with_tables(path.read_text()))
    return 1 if differing and not write else 0


if __name__ == "__main__":
    sys.exit(main())
