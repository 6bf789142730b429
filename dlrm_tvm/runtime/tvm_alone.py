"""TVM without what a library that is compiled does not need: 1 s and 140 MB of compiler, 3 s and 190 MB of PyTorch.

What runs a library needs TVM's functions (tvm_ffi) and its run-time library of 3 MB, not `import tvm`: that imports the
compiler, whose library takes 260 MB. Both TVM and tvm_ffi import PyTorch wherever that is installed, for tensors of a
kind that is never passed here; this room hides it from them. To be imported before anything else that imports them.
A PyTorch or TVM that the process has already stays; later they may be imported as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from threading import get_ident

_HIDDEN = "torch"


class _Hiding:
    """Finds no PyTorch, for the thread that made it: others may be importing it at this moment. Meanwhile importlib's
    find_spec raises for it, which nothing that TVM 0.27 imports asks."""

    def __init__(self) -> None:
        self._thread = get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name == _HIDDEN and get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is hidden from TVM", name=name)


@contextmanager
def _without_torch() -> Iterator[None]:
    hiding = _Hiding()
    sys.meta_path.insert(0, hiding)
    try:
        yield
    finally:
        sys.meta_path.remove(hiding)


def import_compiler() -> None:
    """`import tvm`, all of it but PyTorch."""
    with _without_torch():
        import_module("tvm")


def _load_runtime() -> None:
    """libtvm_runtime.so as TVM's own import opens it (tvm/base.py), which finds it open when it comes later.

    One that is open already stays, wherever it came from: a second one would end the process.
    """
    if tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True):
        return
    found = find_spec("tvm")
    if not (found and found.origin and found.submodule_search_locations):  # a folder without a TVM, or a file
        raise ModuleNotFoundError("No module named 'tvm'", name="tvm")
    places = spec_from_file_location("tvm_libinfo", Path(found.origin).with_name("libinfo.py"))
    libinfo = module_from_spec(places)
    places.loader.exec_module(libinfo)
    load_lib_ctypes("tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=libinfo.package_lib_paths())


with _without_torch():
    import tvm_ffi
    from tvm_ffi.libinfo import load_lib_ctypes

_load_runtime()

__all__ = ["import_compiler", "tvm_ffi"]
