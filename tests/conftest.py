"""Fixtures that compile: the demo library once per session, and only where the CPU can run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def require_fma() -> None:
    """Skips what runs our kernels on a CPU with neither AVX-512 nor AVX2 and FMA."""
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    if "avx512f" not in flags and not {"avx2", "fma"} <= flags:
        pytest.skip("this CPU has neither avx512f nor avx2 and fma")


@pytest.fixture(scope="session")
def demo_library(require_fma: None) -> Iterator[Path]:
    """The demo model compiled for batches of 100 by compile.py itself, under a name of its own."""
    name = f"pytest_{os.getpid()}"  # two test runs at once, or a user's library, must not meet
    command = [sys.executable, str(ROOT / "compile.py"), "--output-name", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "no C compiler found" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    library = Path(json.loads(done.stdout.splitlines()[-1])["library"])
    yield library
    for suffix in (".so", ".params", ".json"):
        library.with_suffix(suffix).unlink(missing_ok=True)
