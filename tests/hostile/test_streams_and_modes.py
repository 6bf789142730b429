"""Scripts without streams, in other locales and interpreter modes, in folders that are gone or full of traps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from graphs import write_dlrm
from scripts import WITH_COMPILER

import dlrm_tvm
from dlrm_tvm.errors import UserError, interrupts_blocked, printable
from dlrm_tvm.paths import PREBUILT, ROOT

SCRIPTS = ("compile.py", "accuracy.py", "multi_instance.py")
HELP = ("--help", "--version")
TRAP = "raise SystemExit('a module of the current folder was imported')\n"


@pytest.fixture
def library(small_library: Path) -> Path:
    return small_library


def sh(command: str, **options) -> subprocess.CompletedProcess:
    environment = os.environ | options.pop("env", {})
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=6000, env=environment, **options
    )


def run_work(lines: str, work: str = "work") -> subprocess.CompletedProcess:
    """What run_script(work) comes to after these lines, in a process of its own."""
    code = f"import os, signal, sys, time; sys.path[:0] = [{str(ROOT)!r}]\nfrom dlrm_tvm.errors import run_script\n"
    code += f"{lines}run_script({work})\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)


def script(name: str, *arguments: object) -> str:
    return " ".join([sys.executable, str(ROOT / name), *map(str, arguments)])


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full"])
def test_streams_that_are_missing_or_full_change_the_status_at_most(closed) -> None:
    done = sh(f"{script('accuracy.py', '--model', 'nowhere.so')} {closed}")
    assert done.returncode == 1
    assert done.stderr in ("", "nowhere.so: no such file. Make it with: python compile.py\n")


def test_a_full_disk_under_stdout_is_one_line(library) -> None:
    run = script(
        "multi_instance.py", "--model", library, "--num-instances", 1, "--duration", 0.2, "--warmup", 0, "--quiet"
    )
    done = sh(f"{run} >/dev/full")
    assert (done.returncode, done.stderr) == (1, "No space left on device\n")


@pytest.mark.parametrize(
    ("name", "flag", "unbuffered"),
    [(name, flag, "1" * ((at + of) % 2)) for at, name in enumerate(SCRIPTS) for of, flag in enumerate(HELP)],
)  # every pair of values
def test_help_that_a_full_disk_does_not_take_is_no_success(name, flag, unbuffered) -> None:
    done = sh(f"{script(name, flag)} >/dev/full", env={"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "No space left on device" in done.stderr


def test_a_reader_that_leaves_is_one_line(library) -> None:
    run = script(
        "multi_instance.py", "--model", library, "--num-instances", 1, "--duration", 0.5, "--warmup", 0, "--quiet"
    )
    done = sh(f"{run} | head -n 1")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == "Whoever read the output is gone.\n"


def test_an_ascii_terminal_gets_escapes(library) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = script(
        "multi_instance.py", "--model", library, "--num-instances", 1, "--duration", 0.2, "--warmup", 0, "--quiet"
    )
    done = sh(run.replace(sys.executable, f"{sys.executable} -OO"), env=ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 instance \\xd7 1 thread" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_needs_no_docstrings(name) -> None:
    done = sh(script(name, "--help").replace(sys.executable, f"{sys.executable} -OO"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_find_their_package_in_isolated_mode(tmp_path, name) -> None:
    """Which leaves the script's own folder out of sys.path; a link to a script is not where the package is."""
    (tmp_path / name).symlink_to(ROOT / name)
    done = sh(f"{sys.executable} -I {tmp_path / name} --version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_folder_that_is_gone_is_one_line(tmp_path, name) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = sh(f"rmdir {gone}; {script(name, '--model' if name != 'compile.py' else '--onnx-model', 'm.so')}", cwd=gone)
    assert (done.returncode, done.stderr) == (1, "The current folder was deleted. Change to another one.\n")


def test_a_model_is_loaded_and_called_in_a_folder_that_is_gone(tmp_path, library) -> None:
    # A file: with -c Python 3.13.0 itself fails to import NumPy in a folder that is gone.
    code = tmp_path / "call.py"
    code.write_text(
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1]); from dlrm_tvm import load\n"
        "print(load(sys.argv[2])(np.ones((2, 13), np.float32), np.zeros((2, 3), int)).shape)\n"
    )
    (tmp_path / "gone").mkdir()
    done = sh(f"rmdir ../gone; {sys.executable} {code} {ROOT} {library}", cwd=tmp_path / "gone")
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2,)\n", "")


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("after_s", [0.1, 0.25])
def test_ctrl_c_while_modules_are_imported_is_one_line(name, after_s) -> None:
    """Before the script's first statement it is Python's own, so wait for the first module that the script imports."""
    command = [sys.executable, "-v", str(ROOT / name), "--num-threads" if "multi" in name else "--batch-size", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1) as process:
        for line in process.stderr:
            if line.startswith("import 'argparse'"):
                break
        time.sleep(after_s / 10)
        process.send_signal(signal.SIGINT)
        lines = [line for line in process.communicate()[1].splitlines() if not line.startswith(("#", "import "))]
    assert "Traceback" not in "".join(lines)
    assert process.returncode in (130, 1, 2)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "Interrupted."), (signal.SIGTERM, "Ended by SIGTERM.")])
def test_an_interrupt_in_a_function_that_tvm_calls_is_one_line(number, said) -> None:
    """TVM makes a RuntimeError of it, as of everything that it does not know."""
    done = run_work(
        "from dlrm_tvm.runtime.tvm_alone import tvm_ffi\n"
        "def work():\n    try:\n"
        f"        tvm_ffi.convert(lambda: signal.raise_signal({int(number)}))()\n"
        "    except RuntimeError:\n        print('a RuntimeError', flush=True)\n        raise\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "a RuntimeError\n", said + "\n")


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "Interrupted."), (signal.SIGTERM, "Ended by SIGTERM.")])
@pytest.mark.parametrize(
    "work",
    [
        "Table(); print('goes on', flush=True); time.sleep(60)",
        "Table(); Table(); Table(); print('goes on', flush=True); time.sleep(60)",
        "table = Table(); print('goes on', flush=True)",
        "_thread.start_new_thread = none; Table(); print('goes on', flush=True)",
    ],
    ids=["once", "three times", "at the end", "without threads"],
)
def test_an_interrupt_while_an_object_is_destroyed_is_not_lost(number, said, work) -> None:
    """Python ignores what is raised there, as where tables are unmapped."""
    done = run_work(
        'import _thread\ndef none(*_):\n    raise RuntimeError("can\'t start new thread")\n'
        "class Table:\n"
        f"    def __del__(self):\n        signal.raise_signal({int(number)})\n        time.sleep(0)\n"
        f"def work():\n    {work}\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "goes on\n", said + "\n")


def test_what_else_goes_wrong_while_an_object_is_destroyed_is_still_said() -> None:
    done = run_work(
        "class Table:\n    def __del__(self):\n        raise RuntimeError('our own bug')\n"
        "def work():\n    Table()\n    return 0\n"
    )
    assert done.returncode == 0 and "Exception ignored in" in done.stderr
    assert done.stderr.endswith("RuntimeError: our own bug\n")


def test_an_interrupt_while_a_class_is_made_is_one_line() -> None:
    """Up to Python 3.11 what is raised in __set_name__ becomes a RuntimeError."""
    done = run_work(
        "def work():\n    try:\n        signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt as error:\n        raise RuntimeError('Error calling __set_name__') from error\n"
    )
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


@pytest.mark.parametrize("mb", [60, 140, 300])
def test_a_limit_of_memory_in_which_libraries_do_not_load_is_one_line(mb) -> None:
    """NumPy's, and TVM's, which is loaded in part."""
    command = script("compile.py", "--onnx-model", "missing.onnx", "--quiet")
    done = sh(f"ulimit -v {1000 * mb}; {command}", env={"OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("Out of memory") or done.stderr.endswith(": Cannot allocate memory\n")


@pytest.mark.parametrize(
    ("work", "last"),
    [
        ("{}['our own']", "KeyError: 'our own'"),
        ("__import__('no_such_library')", "Out of memory (ModuleNotFoundError: "),
    ],
)
def test_a_bug_of_ours_keeps_its_traceback_under_a_limit_of_memory(work, last) -> None:
    """Where less is left than TVM takes, only what fails while it is loaded is the limit's fault."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (400 << 20, resource.RLIM_INFINITY))\n"
    done = run_work(limit, f"lambda: {work}")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(last)
    assert ("Traceback" in done.stderr) == ("own" in work)


@pytest.mark.parametrize(
    "limit", ["-n 10", "-f 20", *(pytest.param(limit, marks=pytest.mark.slow) for limit in ("-n 5", "-f 1"))]
)
def test_a_compilation_that_hits_a_limit_leaves_nothing(tmp_path, limit) -> None:
    model = write_dlrm(tmp_path / "m.onnx", table_rows=(11, 5, 7))
    flags = ("--onnx-model", model, "--tuning-log-file", "none", "--quiet", "--output-name", "pytest_limited")
    done = sh(f"ulimit {limit}; {script('compile.py', *flags)}")
    assert list(PREBUILT.rglob("*pytest_limited*")) == []
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "Too many open files" in done.stderr or "File too large" in done.stderr, done.stderr


THREADS = "No process or thread can be started. Raise the limit: ulimit -u, ulimit -v or the cgroup's pids.max.\n"


@pytest.mark.parametrize(
    "work", ["threading.Thread(target=int).start()", "os.fork()", "signal.raise_signal(signal.SIGINT)"]
)
def test_a_limit_of_processes_is_one_line(work) -> None:
    """The last is what OpenBLAS does while NumPy is imported."""
    done = run_work(
        "import errno, threading\n"
        'def none(*_, **__):\n    raise RuntimeError("can\'t start new thread")\n'
        "def fork():\n    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "threading._start_new_thread = threading._start_joinable_thread = none; os.fork = fork\n",
        f"lambda: {work}",
    )
    assert (done.returncode, done.stderr) == (1, THREADS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_compilation_that_is_ended_leaves_nothing(tmp_path, number, library) -> None:
    """Once it has begun to write."""
    code = (
        f"import sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'support')!r}]\n"
        f"from dlrm_tvm.errors import run_script\n{WITH_COMPILER}\n"
        "from dlrm_tvm.compiler.library_writer import staging_directory\n"
        "from pathlib import Path\n"
        "def main():\n"
        "    with staging_directory(Path(sys.argv[1])) as staging:\n"
        "        (staging / 'half').write_text('half'); print('begun', flush=True); time.sleep(60)\n"
        "run_script(main)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.communicate()[1] == f"Ended by {number.name}.\n"
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_what_nohup_ignores_stays_ignored() -> None:
    done = run_work(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "def work(): os.kill(os.getpid(), signal.SIGHUP); print('alive'); return 0\n"
    )
    assert (done.returncode, done.stdout) == (0, "alive\n")


@pytest.fixture
def traps(tmp_path) -> Path:
    """A folder with modules that everybody imports, and with a package of our name."""
    for name in ("json", "socket", "numpy", "typing", "psutil", "tvm"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    (tmp_path / "dlrm_tvm").mkdir()
    (tmp_path / "dlrm_tvm" / "__init__.py").write_text(TRAP)
    return tmp_path


def test_workers_import_nothing_from_the_current_folder(traps, library) -> None:
    done = sh(
        script(
            "multi_instance.py", "--model", library, "--num-instances", 1, "--duration", 0.2, "--warmup", 0, "--quiet"
        ),
        cwd=traps,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_loadgens_process_imports_nothing_from_the_current_folder(traps, library) -> None:
    pytest.importorskip("mlperf_loadgen")
    options = ("--scenario", "offline", "--duration", 0.2, "--samples", 20, "--log-dir", traps / "logs", "--quiet")
    done = sh(script("multi_instance.py", "--model", library, "--num-instances", 1, *options), cwd=traps)
    assert done.stderr == ""


def test_the_quantizer_imports_nothing_from_the_current_folder(traps) -> None:
    """Its process gets as far as reading what it is to quantize."""
    from dlrm_tvm.paths import module_command

    command = [*module_command("engines.quantization"), "{}", str(traps)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=traps, timeout=600)
    assert "a module of the current folder" not in done.stderr
    assert "ValueError: graph lacks engine" in done.stderr


def test_a_checkout_whose_path_has_a_colon_and_quotes_runs_its_own_workers(tmp_path, library) -> None:
    checkout = tmp_path / "a:b 'c' \"d\""
    checkout.mkdir()
    for name in ("dlrm_tvm", "__patches", "__data", *SCRIPTS):
        source = ROOT / name
        shutil.copytree(source, checkout / name) if source.is_dir() else shutil.copy(source, checkout)
    run = [sys.executable, str(checkout / "multi_instance.py"), "--model", str(library), "--num-instances", "1"]
    done = subprocess.run(
        [*run, "--duration", "0.2", "--warmup", "0", "--quiet"], capture_output=True, text=True, timeout=6000
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "name, shown",
    [
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x07\x00\x7f\x9b", "\\x07\\x00\\x7f\\x9b"),
        ("\u2028\u202e", "\\u2028\\u202e"),
        ("\udc80", "\\udc80"),
        ("übergröße 表 ×", "übergröße 表 ×"),
    ],
)
def test_names_that_steer_terminals_are_written_as_escapes(name, shown) -> None:
    assert printable(name) == str(UserError(name)) == shown


def test_a_number_of_thousands_of_digits_is_shown_in_part() -> None:
    shown = f"version {'9' * 200}...{'9' * 49}; 1 was wanted"
    assert str(UserError(f"version {'9' * 5000}; 1 was wanted")) == shown


@pytest.mark.parametrize(
    "word", ["/data/" + "folder/" * 500 + "m.onnx", "n" * 255 + "/" + "m" * 255, ",".join(map(str, range(768)))]
)
def test_a_path_or_a_list_of_cores_to_type_is_whole_however_long(word) -> None:
    assert str(UserError(f"{word}: no such file. Try: ls {word}")) == f"{word}: no such file. Try: ls {word}"


@pytest.mark.parametrize("name", ["n" * 70_000, "/n" * 35_000, "/a/" + "n" * 70_000 + "/b", "1," * 35_000])
def test_a_name_that_is_no_path_for_its_length_is_shown_in_part(name) -> None:
    assert len(str(UserError(f"m.onnx: node {name}: unknown"))) < 300


def test_a_link_that_leads_to_itself_is_one_line(tmp_path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    loop = tmp_path / "loop"
    for command in (
        script("compile.py", "--onnx-model", loop),
        script("accuracy.py", "--model", loop),
        script("accuracy.py", "--ref-data", loop),
        script("multi_instance.py", "--sweep", "'batch=1'", "--csv", loop),
        script("multi_instance.py", "--baseline", loop),
    ):
        done = sh(command, cwd=tmp_path)
        assert done.returncode in (1, 2), command
        assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1, (command, done.stderr)


def test_predictions_are_the_same_under_o2(library) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import numpy as np; from dlrm_tvm import load\n"
        f"print(load({str(library)!r})(np.ones((2, 13), 'f4'), np.zeros((2, 3), 'i8')).tolist())"
    )
    plain, optimized = (
        subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=600)
        for options in ([], ["-OO"])
    )
    assert plain.stdout == optimized.stdout != "" and np.isfinite(eval(plain.stdout)).all()


def test_names_that_steer_terminals_reach_no_line_of_compile(tmp_path, capsys) -> None:
    """Neither the file's name nor those of tables in it."""
    import onnx
    from graphs import write_dlrm

    from dlrm_tvm.compiler.job import Job
    from dlrm_tvm.compiler.options import CompileSettings
    from dlrm_tvm.compiler.pipeline import compile_model
    from dlrm_tvm.frontend.reader import read_dlrm

    path = write_dlrm(tmp_path / "a\n\x1b[31m.onnx", table_rows=(9, 5))
    graph = onnx.load(path)
    graph.graph.initializer[[each.name for each in graph.graph.initializer].index("table.0")].name = "t\x1b[2J\n"
    for node in graph.graph.node:
        node.input[:] = ["t\x1b[2J\n" if name == "table.0" else name for name in node.input]
    onnx.save(graph, path)
    settings = CompileSettings(onnx_model=path, batch_size=4, tuning_log_file=None, directory=tmp_path / "built")
    library = compile_model(Job(settings, read_dlrm)).library
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "t\\x1b[2J\\n is copied" in printed and "a\\n\\x1b[31m" in printed
    dlrm_tvm.load(str(library))


@pytest.mark.parametrize(
    "crash",
    [
        "    pass\n    raise RuntimeError('our own bug')",
        "    raise RuntimeError('our own bug')",
        "    pass\n    tvm_ffi.convert(lambda: exec('raise RuntimeError(\"our own bug\")'))()",
    ],
    ids=["later", "while it was handled", "in TVM"],
)
def test_a_crash_after_an_interrupt_that_was_handled_keeps_its_traceback(crash: str) -> None:
    done = run_work(
        "from dlrm_tvm.runtime.tvm_alone import tvm_ffi\n"
        "def work():\n    try:\n        signal.raise_signal(signal.SIGINT)\n"
        f"    except KeyboardInterrupt:\n    {crash}\n"
    )
    assert done.returncode == 1 and done.stderr.endswith("RuntimeError: our own bug\n")


def test_signals_do_not_stay_blocked_where_a_handler_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(number: int, handler: object) -> None:
        raise KeyboardInterrupt

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), interrupts_blocked():
        patched.setattr(signal, "signal", raises)  # as one that comes while handlers are put back
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert signal.pthread_sigmask(signal.SIG_SETMASK, before) == before
