"""Where the toolkit's own files lie, and how a module of it is started as a process: told here, asked everywhere.

                    a checkout           installed by pip
comes with us       beside dlrm_tvm/     in dlrm_tvm/_shipped/      scripts, __patches, schedules, demo's data
is written          beside dlrm_tvm/     in the current folder      __prebuilt, the generated demo model
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = _PACKAGE / "_shipped"
_IS_INSTALLED = _SHIPPED.is_dir()

ROOT = _PACKAGE.parent
try:
    _HERE = Path.cwd()
except FileNotFoundError:  # deleted: scripts refuse that, and who loads a library by its whole path needs none
    _HERE = ROOT
WORK = _HERE if _IS_INSTALLED else ROOT
_OURS = _SHIPPED if _IS_INSTALLED else ROOT

DATA = WORK / "__data"
PREBUILT = WORK / "__prebuilt"
SHIPPED_DATA = _OURS / "__data"
PATCHES = _OURS / "__patches"
COMPILE_SCRIPT = _OURS / "compile.py"
COMPILE_COMMAND = "dlrm-compile" if _IS_INSTALLED else "python compile.py"  # as people type it
MEASURE_SCRIPT = _OURS / "multi_instance.py"
DEFAULT_LIBRARY = Path(os.path.relpath(PREBUILT / "dlrm_avx512_b100.so", _HERE))
_LOG = "dlrm_tune_100.tune_log"
DEFAULT_LOG = (DATA if (DATA / _LOG).is_file() else SHIPPED_DATA) / _LOG


def log_to_extend(log: Path) -> Path:
    """`log`; of the one in an installed package a copy in the current folder, as tuning leaves the package alone."""
    if log.parent != SHIPPED_DATA or SHIPPED_DATA == DATA:
        return log
    DATA.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(log, DATA / log.name))


def packages_command(extra: str) -> str:
    """What to type for the packages of an extra of pyproject.toml: in a checkout its pinned set."""
    if _IS_INSTALLED:
        return f"pip install 'dlrm-tvm[{extra}]'"
    return f"pip install -r requirements-{'dev' if extra == 'engines' else extra}.txt"


def module_command(module: str) -> tuple[str, ...]:
    """The command that runs `main` of a module of this package, such as "instances.worker", in a process of its own.

    `python -m` would look into the current folder first: another checkout's package, somebody's json.py. An entry of
    sys.path may hold any character, one of PYTHONPATH no colon.
    """
    name = f"{__package__}.{module}"
    path = f"import sys; sys.path = [{str(ROOT)!r}, *filter(None, sys.path)]"
    return (sys.executable, "-c", f"{path}; from {name} import main; sys.exit(main())")
